"""L1 and L2-SP, added once per optimizer step whatever the number of micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from headstart.config.schema import Penalties
from headstart.errors import ConfigError
from headstart.surgery.head import head_parameters


def select_l1_parameters(module: nn.Module, penalties: Penalties) -> tuple[str, ...]:
    """Names of the parameters that L1 sees; ``head`` and ``all`` mean weights, without biases and norms.

    Raises: ConfigError: a glob matches nothing.
    """
    names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if penalties.l1_on == "head":
        return tuple(name for name in head_parameters(module) if name in names and names[name].ndim > 1)
    if penalties.l1_on == "all":
        return tuple(name for name, parameter in names.items() if parameter.ndim > 1)
    for glob in penalties.l1_on:
        if not any(fnmatchcase(name, glob) for name, _ in module.named_parameters()):
            raise ConfigError(f"penalties.l1_on: {glob!r} matches no parameter; `headstart describe` lists them")
    return tuple(name for name in names if any(fnmatchcase(name, glob) for glob in penalties.l1_on))


def penalty(module: nn.Module, penalties: Penalties, *, start: Mapping[str, Tensor]) -> Tensor | None:
    """The scalar to add to a step's mean loss, or None when there is none.

    ``start`` holds the pretrained values for L2-SP.
    """
    if not penalties.l1 and not penalties.l2_start:
        return None
    terms: list[Tensor] = []
    named = dict(module.named_parameters())
    if penalties.l1:
        terms += [penalties.l1 * named[name].abs().sum() for name in select_l1_parameters(module, penalties)]
    if penalties.l2_start:
        moved = [named[name] - value for name, value in start.items() if named[name].requires_grad]
        terms += [penalties.l2_start / 2 * (difference * difference).sum() for difference in moved]
    return torch.stack(terms).sum() if terms else None
