"""What rules need of a state besides model and optimizer, made at the first step with such rules: the loss scaler of
fp16, the start of L2-SP, the average. ``save`` keeps them all.
"""

from __future__ import annotations

from typing import Protocol

from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from headstart.config.schema import Penalties
from headstart.errors import ConfigError, ModelError, name_some
from headstart.surgery.head import head_parameters
from headstart.training.average import decay_of
from headstart.training.precision import Precision, device_of, make_scaler
from headstart.training.state import TrainState


class Index(Protocol):
    """The model that a step was made of, and its parameters by name."""

    model: nn.Module
    named: dict[str, nn.Parameter]


def make_companions(
    state: TrainState,
    before: Index | None,
    *,
    penalties: Penalties,
    precision: Precision,
    average_steps: float | None,
) -> None:
    """Make what is missing; what is there stays. ``before``: the model and parameters that the step before had.

    Raises: ConfigError: L2-SP leaves the head out, and it is not clear which layers that is.
    """
    if state.scaler is None:
        state.scaler = make_scaler(device_of(state.model), precision)
    if state.average is None and average_steps is not None:
        state.average_decay = decay_of(average_steps)
        state.average = ModelEmaV3(state.model, decay=state.average_decay)
    if penalties.l2_start:
        _keep_start(state, dict(state.model.named_parameters()), before)


def copy_pretrained_values(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter's value, those of the head left out.  Raises: ModelError: it is not clear."""
    heads = set(head_parameters(model))
    return {name: value.detach().clone() for name, value in model.named_parameters() if name not in heads}


def _keep_start(state: TrainState, named: dict[str, nn.Parameter], before: Index | None) -> None:
    """Keep the start of L2-SP: the values that parameters have now, or had when they came into the model."""
    unknown = sorted(state.start.keys() - named.keys())
    if before is None and unknown:
        raise ConfigError(f"state.start: the model has no parameter {name_some(unknown)}; leave out what it has not")
    new = {name for name in named if _is_new(state, name, named[name], before)}
    if state.start and not new and not unknown:
        return
    try:
        now = copy_pretrained_values(state.model)
    except ModelError as error:
        raise ConfigError(
            f"penalties.l2_start: it holds all but the head to the start, but {error}; or give the start yourself, "
            "state.start = {name: values}"
        ) from error
    if not state.start:
        state.start = now
        return
    old = {name: value for name, value in state.start.items() if name in named and name not in new}
    state.start = old | {name: value for name, value in now.items() if name in new}


def _is_new(state: TrainState, name: str, parameter: nn.Parameter, before: Index | None) -> bool:
    """Whether the parameter has come since the step before, so that its start is what it is now."""
    if before is None:
        return False
    if before.model is not state.model and name in state.start and state.start[name].shape == parameter.shape:
        return False  # a copy of the model goes on from the start that it has
    return before.named.get(name) is not parameter
