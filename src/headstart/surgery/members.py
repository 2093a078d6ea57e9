"""Parts, parameters and buffers of a module by name: what a forward pass must not add to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from headstart.errors import ModelError


def member_names(module: nn.Module) -> dict[str, str]:
    """Every part, parameter and buffer that a checkpoint would hold, by name, with what it is."""
    found = {name: f"a {type(part).__name__}" for name, part in module.named_modules()}
    found |= {name: f"a {_kind(value)} parameter" for name, value in module.named_parameters(remove_duplicate=False)}
    for path, part in module.named_modules():
        for name, value in part._buffers.items():
            if value is not None and name not in part._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = f"a {_kind(value)} buffer"
    return found


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def refuse_new_members(module: nn.Module, before: Mapping[str, str], *, batch: tuple[int, ...]) -> None:
    """Raises: ModelError: a forward pass has made parts, parameters or buffers that were not there ``before``, or has
    given one another type.

    ``batch``: (B, C, H, W) of one that the module runs on.
    """
    now = member_names(module)
    made = {name: kind for name, kind in now.items() if name not in before}
    made = {name: kind for name, kind in made.items() if not any(name.startswith(f"{other}.") for other in made)}
    if made:
        shown = ", ".join(f"{name} (a {kind.split()[-1]})" for name, kind in list(made.items())[:3])
        more = f" and {len(made) - 3} more" if len(made) > 3 else ""
        raise ModelError(
            f"model: {shown}{more} {'are' if len(made) > 1 else 'is'} made by the first forward pass, too late to be "
            "trained, saved and opened again; make it in __init__, or run one batch before the module is given, to "
            f"hs.open_run, too: model(torch.zeros{batch})"
        )
    turned = [
        name
        for name, kind in now.items()
        if name in before and kind != before[name] and kind.endswith((" parameter", " buffer"))
    ]
    if turned:
        name, more = turned[0], f" (and {len(turned) - 1} more)" if len(turned) > 1 else ""
        raise ModelError(
            f"model: {name}{more} is {before[name]} and {now[name]} after a forward pass, so that what is saved would "
            "not fit the module as it is made; convert it in __init__, or run one batch before the module is given, to "
            f"hs.open_run, too: model(torch.zeros{batch})"
        )
