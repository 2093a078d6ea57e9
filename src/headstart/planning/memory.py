"""Memory that training takes on the CPU, measured on a few images, against what is there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headstart.config.schema import Config, Optimizer
from headstart.distributed.processes import current
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.machine import available_bytes
from headstart.models.preprocess import Preprocess
from headstart.optim.optimizers import make_optimizer
from headstart.training.activation_checkpointing import recomputing
from headstart.training.attention import attending
from headstart.training.phases import TrainingPlan, freeze_phase
from headstart.training.precision import autocast, device_of, dtype_of
from headstart.training.rules import StepRules

_PROBES = (2, 3)  # images: two sizes tell what grows with the batch; BatchNorm takes no single one
_KEPT_SHARE = 1.5  # of a step's need, with what is freed and kept (measured: 1.2)
_IN_FLIGHT = 3  # of the largest tensor per image: a layer's output, its gradient, and the convolution's scratch


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes that the steps take beyond the model itself."""

    gradients: int
    optimizer: int
    average: int
    kept: int
    """For the backward pass, whatever the number of images."""
    kept_per_image: int
    largest_per_image: int

    def at_least(self, images: int) -> int:
        """All of it is alive at once when a forward pass of so many images ends, from the second step on."""
        return self.optimizer + self.average + self.kept + images * self.kept_per_image

    def about(self, images: int) -> int:
        """With gradients and what a layer works with."""
        return self.at_least(images) + self.gradients + images * _IN_FLIGHT * self.largest_per_image


def check_memory(
    config: Config, module: nn.Module, course: TrainingPlan, preprocess: Preprocess, *, batch_size: int
) -> tuple[bool, tuple[Decision, ...]]:
    """Whether there is room for what is freed and kept, too; and nothing where training fits into this machine's
    memory, a warning where it may not.

    Raises: ConfigError: it cannot; the message names a number of micro-batches that does.
    """
    free = available_bytes()
    if device_of(module).type != "cpu" or free is None:
        return True, ()
    try:
        need = measure(config, module, course, preprocess)
    except (RuntimeError, ValueError):  # not for so few images; what else is wrong, the first step says
        return True, ()
    images = math.ceil(batch_size / (config.batch.accumulate * current().world_size))  # in this process
    about = need.about(images)
    if _KEPT_SHARE * about <= free:
        return True, ()
    if about <= free:
        why = f"keeping it is faster, but a step takes about {_gib(about)} of the {_gib(free)} that are free"
        return False, (Decision("freed memory", "goes back at once", why),)
    remedy = _remedy(need, free, batch_size=batch_size)
    if need.at_least(images) > free:
        raise ConfigError(
            f"batch: {images} images at once take at least {_gib(need.at_least(images))} of memory beside the model, "
            f"{_gib(free)} are free; {remedy}"
        )
    why = f"{images} images at once, measured on {_PROBES[-1]}; it may not fit: {remedy}"
    return False, (Decision("memory", f"about {_gib(about)}, {_gib(free)} are free", why),)


def measure(config: Config, module: nn.Module, course: TrainingPlan, preprocess: Preprocess) -> MemoryNeed:
    """What the phase that trains most takes; the model is left as the last phase has it."""
    frozen = [freeze_phase(module, phase).parameters for phase in course.phases]
    freeze_phase(module, course.phases[frozen.index(min(frozen))])
    trained = sum(value.nbytes for value in module.parameters() if value.requires_grad)
    (few, largest), (more, _) = (_measure_retained(module, preprocess, course.rules, images=count) for count in _PROBES)
    freeze_phase(module, course.phases[-1])
    per_image = max(0, more - few)
    own = sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
    return MemoryNeed(
        gradients=trained,
        optimizer=int(trained * state_share(config.optimizer)),
        average=own if config.average.kind == "ema" else 0,
        kept=max(0, few - _PROBES[0] * per_image),
        kept_per_image=per_image,
        largest_per_image=largest // _PROBES[0],
    )


def _measure_retained(module: nn.Module, preprocess: Preprocess, rules: StepRules, *, images: int) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, and those of the largest tensor among them."""
    own = {value.untyped_storage().data_ptr() for value in (*module.parameters(), *module.buffers())}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # until the end, so that no address is used twice

    def note(value: Tensor) -> None:
        """The graph does not get the value: one that it has made itself, given back to it, would never be freed."""
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(value.detach())

    shape = (images, preprocess.channels, preprocess.height, preprocess.width)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda _: torch.empty(0))
    how = autocast(device_of(module), rules.precision)
    with _as_it_was(module), hooks, attending(rules.attention), recomputing(module, wanted=rules.recompute), how:
        module(torch.zeros(shape, dtype=dtype_of(module)))
    return sum(seen.values()), max(seen.values(), default=0)


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Within, training mode; afterwards modes, batch statistics and random numbers are as before."""
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)


def state_share(options: Optimizer) -> float:
    """Bytes of the optimizer's state per byte of weights, by one step on a small matrix."""
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = make_optimizer([{"params": [weight], "lr": 1e-3, "weight_decay": 0.0, "name": "probe"}], options)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = optimizer.state[weight].values()
    return sum(value.nbytes for value in state if isinstance(value, Tensor) and value.numel() > 1) / weight.nbytes


def _remedy(need: MemoryNeed, free: int, *, batch_size: int) -> str:
    cost = (need.about(4) - need.about(2)) // 2
    fit = (free - need.about(0)) // cost if cost else 0
    if fit >= 2:
        accumulate = math.ceil(batch_size / min(fit, batch_size))
        return f"give --batch.accumulate {accumulate} or --activation-checkpointing true (the result is the same)"
    return "give a smaller --image-size or --model, or train less of it, e.g. --freeze backbone"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
