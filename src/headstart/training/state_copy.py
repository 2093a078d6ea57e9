"""A copy of all that steps change, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from headstart.surgery.module_state import ModuleState, restore_state
from headstart.surgery.no_trace import read_before
from headstart.training.state import TrainState

_OBJECTS = ("model", "optimizer", "average", "scaler", "unsharded", "suffix", "replica", "compiled")
"""What of a state stays the same object; everything else is a number, or is never changed in place."""


@dataclass(frozen=True, kw_only=True)
class StateCopy:
    """What a state was: its counters, trainable parameters, the model's and the average's buffers and attributes."""

    counters: Mapping[str, Any]
    trained: Mapping[str, Tensor]
    model: ModuleState
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]


def copy_state(state: TrainState) -> StateCopy:
    """A copy of what ``put_back`` needs; frozen parameters, which no step changes, are not copied."""
    return StateCopy(
        counters={field.name: getattr(state, field.name) for field in fields(state) if field.name not in _OBJECTS}
        | {"best": replace(state.best) if state.best is not None else None},
        trained={name: value.detach().clone() for name, value in _list_trained(state.model).items()},
        model=read_before(state.model),
        average=copy.deepcopy(state.average.module.state_dict()) if state.average is not None else {},
        optimizer=copy.deepcopy(state.optimizer.state_dict()),
        scaler=copy.deepcopy(state.scaler.state_dict()) if state.scaler is not None else {},
    )


def put_back(state: TrainState, before: StateCopy) -> None:
    """Make the state what it was; its objects stay the same ones."""
    with torch.no_grad():
        for name, value in _list_trained(state.model).items():
            value.copy_(before.trained[name])
            value.grad = None
    restore_state(state.model, before.model)
    if state.average is not None:
        state.average.module.load_state_dict(before.average)
    state.optimizer.load_state_dict(copy.deepcopy(dict(before.optimizer)))
    if state.scaler is not None:
        state.scaler.load_state_dict(dict(before.scaler))
    for name, value in before.counters.items():
        setattr(state, name, value)


def _list_trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
