"""The exponential moving average of weights and buffers (timm's ``ModelEmaV3``), each tensor once per step."""

from __future__ import annotations

import weakref

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from headstart.data.randomness import derive_seed
from headstart.distributed.fsdp import is_sharded
from headstart.errors import ConfigError, name_some
from headstart.private_names import foreach_lerp_
from headstart.surgery.module_copy import copy_module
from headstart.wording import option

_LOW_BITS = 1 << 16  # of a float32 that bfloat16 does not have
_unbounded: weakref.WeakKeyDictionary[ModelEmaV3, frozenset[str]] = weakref.WeakKeyDictionary()


def make_average(model: nn.Module, *, half_life: float, total_steps: int) -> ModelEmaV3:
    """An exponential moving average, buffers included, whose past counts half after ``half_life`` of all steps.

    Hooks and replaced methods that speak to the model speak to its average there.

    Raises: ModelError: the model cannot be copied.
    """
    decay = decay_of(half_life * total_steps)
    if is_sharded(model):
        return ModelEmaV3(model, decay=decay)
    first = next(model.parameters(), nn.Parameter(torch.empty(0)))
    average = ModelEmaV3(nn.ParameterList([first]), decay=decay)
    average.module = copy_module(
        model, free_bytes=None, instead=f"train without one: {option('average.kind', 'none')}"
    ).eval()
    return average


def decay_of(steps: float) -> float:
    """The decay of an average whose past counts half after so many steps (at least one)."""
    return float(0.5 ** (1 / max(1.0, steps)))


@torch.no_grad()
def update_average(average: ModelEmaV3, model: nn.Module, *, step: int) -> None:
    """One step of the average, ``step`` counted from 0. A tensor with several names (tied weights) is averaged once.

    After steps 0 and 1 the average is the model itself (there ``get_decay`` is 0), from then on it is ``decay`` times
    what it was, plus ``1 - decay`` times the model. Buffers with infinities (limits that limit nothing) are copied, as
    their mean is NaN, and so are whole numbers.

    Raises: ConfigError: it is the average of another model.
    """
    own, trained = _tensors(average.module), _tensors(model)
    _check_alike(own, trained)
    if average not in _unbounded:
        buffers = {name for name, _ in model.named_buffers()} & trained.keys()
        _unbounded[average] = frozenset(name for name in buffers if bool(torch.isinf(trained[name]).any()))
    copied = _unbounded[average] | {name for name, value in own.items() if not value.is_floating_point()}
    if average.exclude_buffers:
        copied |= own.keys() - {name for name, _ in model.named_parameters()}
    mixed = [(own[name], trained[name]) for name in own if name not in copied]
    _mix(average, mixed, weight=1.0 - average.get_decay(step), step=step)
    for name in copied:
        own[name].copy_(trained[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a module is saved with; of several names for the same memory the first."""
    by_place: dict[object, tuple[str, Tensor]] = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
            by_place.setdefault(place, (name, value))
    return dict(by_place.values())


def _check_alike(own: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    differ = sorted(own.keys() ^ trained.keys()) or [name for name in own if own[name].shape != trained[name].shape]
    if differ:
        raise ConfigError(
            f"state.average: it is of another model, {name_some(differ)} differ; where a part was replaced, make the "
            "average again"
        )


def _mix(average: ModelEmaV3, pairs: list[tuple[Tensor, Tensor]], *, weight: float, step: int) -> None:
    low = [(own, value) for own, value in pairs if average.stochastic_rounding and own.dtype == torch.bfloat16]
    rest = [pair for pair in pairs if pair[0].dtype != torch.bfloat16 or not average.stochastic_rounding]
    if low:
        _mix_bfloat16(low, weight=weight, step=step)
    alike = all(own.dtype == value.dtype and own.device == value.device for own, value in rest)
    if rest and alike and average.foreach:
        foreach_lerp_([own for own, _ in rest], [value for _, value in rest], weight=weight)
        return
    for own, value in rest:
        own.lerp_(value.to(own), weight)


def _mix_bfloat16(pairs: list[tuple[Tensor, Tensor]], *, weight: float, step: int) -> None:
    """Mix in float32 and round up or down at random, so that small changes add up; the numbers are a function of the
    step.
    """
    draw = torch.Generator(pairs[0][0].device).manual_seed(derive_seed("average", step))
    for own, value in pairs:
        exact = torch.lerp(own.float(), value.to(own.device).float(), weight).contiguous()
        noise = torch.randint(0, _LOW_BITS, exact.shape, generator=draw, dtype=torch.int32, device=own.device)
        rounded = (exact.view(torch.int32) + noise).bitwise_and(-_LOW_BITS).view(torch.float32)
        own.copy_(torch.where(exact.isfinite(), rounded, exact))
