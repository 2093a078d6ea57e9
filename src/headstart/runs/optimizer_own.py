"""What an optimizer keeps outside of ``state[parameter]``: attributes (a counter, a generator, a list of buffers),
entries of its state under other keys, and the optimizers that it was made around (lookahead and its like).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.optim.optimizers import is_optimizer
from headstart.surgery.own_state import NotWritable, read_value, write_value

_GENERATORS = (random.Random, np.random.Generator, torch.Generator)
_DEEPEST = 3  # of optimizers within one another


def iterate_inner(optimizer: Any, *, depth: int = 0, path: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over (path, optimizer) of those that this one was made around."""
    for name, value in vars(optimizer).items():
        if is_optimizer(value) and depth < _DEEPEST:
            yield f"{path}{name}", value
            yield from iterate_inner(value, depth=depth + 1, path=f"{path}{name}.")


def write_own(optimizer: Any, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON of what it keeps besides, by name, and the tensors in it.

    Raises: ConfigError: it keeps tensors by parameter in an attribute, where a checkpoint does not know whose they are.
    """
    values, tensors = dict[str, Any](), dict[str, Tensor]()
    known = {id(value) for value in model.parameters()}
    for name, value in _iterate_own(optimizer):
        if isinstance(value, Mapping) and any(isinstance(key, Tensor) for key in value):
            raise ConfigError(
                f"state.optimizer.{name} ({type(optimizer).__name__}) is a dictionary by parameter, which a "
                "checkpoint could not put back; take an optimizer that keeps it in its state, e.g. "
                f"self.state[p][{name!r}]"
            )
        if _holds(value, known):
            continue
        try:
            values[name], inside = write_value(value, f"//{name}")
        except NotWritable:  # a function, a module: nothing that moves with the steps
            continue
        tensors |= inside
    return values, tensors


def read_own(
    optimizer: Any, values: Mapping[str, Any], tensors: Mapping[str, Tensor], *, device: torch.device
) -> dict[str, Any]:
    """What ``write_own`` wrote, by name, as values of the optimizer's own."""
    now = dict(_iterate_own(optimizer))
    placed = {name: value.to(device) if value.ndim else value for name, value in tensors.items()}
    generators = {name: value for name, value in now.items() if isinstance(value, _GENERATORS)}
    return {name: read_value(value, placed, current=generators.get(name)) for name, value in values.items()}


def own_now(optimizer: Any) -> dict[str, Any]:
    """What it keeps besides, as it is."""
    return dict(_iterate_own(optimizer))


def put_own(optimizer: Any, values: Mapping[str, Any]) -> None:
    """Put values where ``own_now`` found them."""
    for name, value in values.items():
        if name.startswith(_KEY):
            optimizer.state[name.removeprefix(_KEY)] = value
        else:
            vars(optimizer)[name] = value


_KEY = "state:"  # before a name that is a key of ``state``


def _iterate_own(optimizer: Any) -> Iterator[tuple[str, Any]]:
    yield from ((f"{_KEY}{key}", value) for key, value in optimizer.state.items() if isinstance(key, str))
    for name, value in vars(optimizer).items():
        if name not in _usual_names() and not is_optimizer(value):
            yield name, value


@cache
def _usual_names() -> frozenset[str]:
    """What every optimizer of torch has, and what a fused kernel or a scheduler puts there."""
    plain, scheduled = torch.optim.SGD([torch.zeros(1)], lr=0.0), torch.optim.SGD([torch.zeros(1)], lr=0.0, fused=True)
    torch.optim.lr_scheduler.ConstantLR(scheduled)
    return frozenset(vars(plain)) | frozenset(vars(scheduled))


def _holds(value: object, known: set[int]) -> bool:
    """Whether a parameter is in a container, at any depth."""
    if isinstance(value, Mapping):
        return any(_holds(item, known) for item in value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds(item, known) for item in value)
    return isinstance(value, nn.Parameter) or id(value) in known
