"""Every trainable tensor in exactly one group, with the rate of its depth and the decay of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from headstart.errors import ConfigError
from headstart.surgery.head import head_parameters
from headstart.surgery.layout import find_layout
from headstart.wording import option

_NEVER_DECAYED = {"norm", "token", "embedding", "adapter"}


def param_groups(
    module: nn.Module, *, lr: float, head_lr: float | None = None, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return groups of parameters for a torch optimizer, with rates that fall from the head to the input.

    The head has ``head_lr``, the backbone's last stage ``lr``, and each stage nearer to the input ``layer_decay`` times
    the next one's (layer-wise decay, Clark et al. 2020, arXiv:2003.10555). Norms, biases, tokens, position embeddings
    and LoRA adapters have no weight decay. The rates are in ``lr`` itself (torch's schedulers ignore timm's
    ``lr_scale``).

    Args:
        ``module``: The model; what is frozen is in no group.
        ``lr``: The rate of the backbone's last stage, above 0.
        ``head_lr``: The rate of the head; None takes ``lr``.
        ``layer_decay``: The factor from one stage to the one before it; 1 gives all stages the same rate.
        ``weight_decay``: The decay of the other weights.

    Returns:
        A dictionary per group, which also has a ``name`` and the ``names`` of its parameters.

    Raises:
        ConfigError: Nothing is trainable, or a rate is not positive.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> groups = hs.param_groups(net, lr=1e-4, head_lr=1e-3, layer_decay=0.5)
        >>> max(group["lr"] for group in groups)
        0.001
    """
    if not lr > 0 or not (head_lr is None or head_lr > 0) or not 0 < layer_decay <= 1:
        raise ConfigError(
            f"param_groups: lr {lr}, head_lr {head_lr}, layer_decay {layer_decay}: rates are positive, the decay "
            "is in (0, 1]"
        )
    layout, heads = find_layout(module), set(head_parameters(module))
    exempt = _exempt(module)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name, parameter in trainable.items():
        depth = len(layout.stages) if name in heads else min(layout.stage_of(name), len(layout.stages) - 1)
        plain = parameter.ndim > 1 and layout.find_tensor(name).kind not in _NEVER_DECAYED and name not in exempt
        decayed = plain or weight_decay == 0
        if (depth, decayed) not in groups:
            rate = (head_lr or lr) if name in heads else lr * layer_decay ** (len(layout.stages) - 1 - depth)
            place = "head" if depth == len(layout.stages) else layout.stages[depth].name
            groups[depth, decayed] = {
                "params": [], "names": [], "name": place if decayed else f"{place} (no decay)",
                "lr": rate, "initial_lr": rate, "weight_decay": weight_decay if decayed else 0.0,
            }  # fmt: skip
        groups[depth, decayed]["params"].append(parameter)
        groups[depth, decayed]["names"].append(name)
    if not groups:
        raise ConfigError(
            "nothing is trainable: every parameter is frozen; choose another freeze rule, e.g. "
            f"{option('freeze', 'backbone')}"
        )
    ordered = [groups[key] for key in sorted(groups)]
    _check(ordered, trainable)
    return ordered


def _exempt(module: nn.Module) -> set[str]:
    listed = getattr(module, "no_weight_decay", None)
    names: Iterable[str] | None = listed() if callable(listed) else None
    return set(names or ())


def _check(groups: list[dict[str, Any]], trainable: Mapping[str, nn.Parameter]) -> None:
    grouped = [name for group in groups for name in group["names"]]
    assert sorted(grouped) == sorted(trainable), f"{set(trainable) ^ set(grouped)} are in no group or in two"
