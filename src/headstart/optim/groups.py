"""Every trainable tensor in exactly one group, with the rate of its depth and the decay of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from headstart.errors import ConfigError
from headstart.surgery.head import head_parameters
from headstart.surgery.layout import find_layout

_NEVER_DECAYED = {"norm", "token", "embedding", "adapter"}


def param_groups(
    module: nn.Module, *, lr: float, head_lr: float | None = None, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: the head at ``head_lr``, the last backbone stage at ``lr``, each stage nearer to
    the input at ``layer_decay`` times the next one's. Norms, biases, tokens, position embeddings and LoRA adapters have
    no decay.

    The rates are in ``lr`` itself (torch's schedulers ignore timm's ``lr_scale``). Each group also has ``name`` and
    ``names``.

    Raises: ConfigError: nothing is trainable, or a rate is not positive.
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
        plain = parameter.ndim > 1 and layout.place(name).kind not in _NEVER_DECAYED and name not in exempt
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
            "nothing is trainable: every parameter is frozen; choose another freeze rule, e.g. --freeze backbone"
        )
    ordered = [groups[key] for key in sorted(groups)]
    _check(ordered, trainable)
    return ordered


def _exempt(module: nn.Module) -> set[str]:
    listed = getattr(module, "no_weight_decay", None)
    names: Iterable[str] = listed() if callable(listed) else ()
    return set(names)


def _check(groups: list[dict[str, Any]], trainable: Mapping[str, nn.Parameter]) -> None:
    grouped = [name for group in groups for name in group["names"]]
    assert sorted(grouped) == sorted(trainable), f"{set(trainable) ^ set(grouped)} are in no group or in two"
