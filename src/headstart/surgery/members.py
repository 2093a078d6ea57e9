"""Parts, parameters and buffers of a module by name: what a forward pass must not add to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from headstart.errors import ModelError


def member_names(module: nn.Module) -> dict[str, str]:
    """Every part, parameter and buffer that a checkpoint would hold, by name, with what it is."""
    found = {name: f"a {type(part).__name__}" for name, part in module.named_modules()}
    found |= {name: "a parameter" for name, _ in module.named_parameters(remove_duplicate=False)}
    for path, part in module.named_modules():
        persistent = set(part._buffers) - part._non_persistent_buffers_set
        names = [name for name in part._buffers if part._buffers[name] is not None and name in persistent]
        found |= {f"{path}.{name}" if path else name: "a buffer" for name in names}
    return found


def refuse_new_members(module: nn.Module, before: Mapping[str, str], *, batch: tuple[int, ...]) -> None:
    """Raises: ModelError: a forward pass has made parts, parameters or buffers that were not there ``before``.

    ``batch``: (B, C, H, W) of one that the module runs on.
    """
    made = {name: kind for name, kind in member_names(module).items() if name not in before}
    made = {name: kind for name, kind in made.items() if not any(name.startswith(f"{other}.") for other in made)}
    if made:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(made.items())[:3])
        more = f" and {len(made) - 3} more" if len(made) > 3 else ""
        raise ModelError(
            f"model: {shown}{more} {'are' if len(made) > 1 else 'is'} made by the first forward pass, too late to be "
            "trained, saved and opened again; make it in __init__, or run one batch before the module is given, to "
            f"hs.open_run, too: model(torch.zeros{batch})"
        )
