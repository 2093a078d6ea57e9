"""Nothing passes that is not finite: rates before a step, loss and gradient in it, weights and statistics after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from headstart.data.batch import Batch
from headstart.distributed.fsdp import is_sharded_tensor, local, whole
from headstart.errors import NonFiniteError, name_some
from headstart.private_names import foreach_norm
from headstart.training.state import TrainState
from headstart.wording import option


def refuse_rates(state: TrainState, batch: Batch) -> NoReturn:
    """Raises: NonFiniteError: it names the group whose rate is NaN or infinite."""
    rates = {name: float(group["lr"]) for name, group in _groups(state).items()}
    name, rate = next((name, rate) for name, rate in rates.items() if not math.isfinite(rate))
    raise NonFiniteError(
        f"step {state.step + 1}: the rate of group {name} is {rate}, so the step was not taken; give a finite one "
        f"({option('lr')}). Images: {names(batch)}"
    )


def refuse_weights(state: TrainState, batch: Batch) -> None:
    """Refuse a step after which the weights have no finite norm.

    Raises: NonFiniteError: a weight or a batch statistic is not finite; names them and the files.
    """
    wrong = find_damaged(state.model)
    if not wrong:  # only their squares are too large
        return
    raise NonFiniteError(
        f"step {state.step + 1}: not finite after it: {name_some(wrong)}; nothing of it is saved. "
        f"{_name_groups(state, by_gradient=False)}Images: {names(batch)}. Rates: {_rates(state)}. Try a lower rate "
        f"({option('lr')})"
    )


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The 2-norm of each tensor, of the whole of it where it is sharded."""
    if not tensors:
        return [torch.zeros(())]
    each = foreach_norm([*tensors], 2.0)
    return list(whole(torch.stack(each)).unbind() if is_sharded_tensor(each[0]) else each)


def find_damaged(model: nn.Module) -> list[str]:
    """Names of parameters and batch statistics that hold a NaN or an infinity (other buffers may, on purpose)."""
    tensors = {
        name: local(value.detach()) for name, value in (dict(model.named_parameters()) | _statistics(model)).items()
    }
    floats = [value for value in tensors.values() if value.is_floating_point()]
    sizes = foreach_norm(floats, 2.0) if floats else []
    if all(map(math.isfinite, torch.stack([size.float() for size in sizes]).tolist() if sizes else [])):
        return []  # a tenth of the time that looking at each value takes; huge ones give an infinite norm
    return [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]


def check_before_saving(state: TrainState) -> None:
    """Raises: NonFiniteError: a weight, a batch statistic or a number of a group is not finite."""
    wrong = find_damaged(state.model) + [
        f"{key} of group {name}"
        for name, group in _groups(state).items()
        for key, value in group.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if wrong:
        raise NonFiniteError(f"step {state.step}: {name_some(wrong)}: not finite, so the state is not saved")


def complaint(state: TrainState, batch: Batch, loss: float, grad_norm: float) -> str:
    """The message on a step that cannot be taken."""
    return (
        f"step {state.step + 1}: loss {loss}, gradient norm {grad_norm}: not finite, so the step was not taken. "
        f"{_name_groups(state, by_gradient=True)}Images: {names(batch)}. Rates: {_rates(state)}. Try a lower rate "
        f"({option('lr')}), clipping ({option('batch.clip_norm', 1.0)}) or {option('precision', 'fp32')}"
    )


def names(batch: Batch) -> str:
    """The files of a batch, the first few."""
    return name_some(batch.keys)


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_buffers() if "running_" in name}


def _groups(state: TrainState) -> Mapping[str, dict[str, Any]]:
    groups = state.optimizer.param_groups
    return {str(group.get("name", f"number {number}")): group for number, group in enumerate(groups)}


def _name_groups(state: TrainState, *, by_gradient: bool) -> str:
    """The clause ``Weights of: GROUP, GROUP. `` (or Gradients) on groups with a value that is not finite."""
    damaged = []
    for name, group in _groups(state).items():
        values = [parameter.grad if by_gradient else parameter for parameter in group["params"]]
        if any(not bool(torch.isfinite(local(value)).all()) for value in values if value is not None):
            damaged.append(name)
    return f"{'Gradients' if by_gradient else 'Weights'} of: {name_some(damaged)}. " if damaged else ""


def _rates(state: TrainState) -> str:
    return ", ".join(f"{name.removeprefix('number ')} {group['lr']:.3g}" for name, group in _groups(state).items())
