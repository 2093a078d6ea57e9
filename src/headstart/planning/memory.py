"""Memory that training takes on the CPU, measured on a few images, against what is there: before anything is tried,
so that no trial takes more than there is, and once more for the arithmetic that was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from headstart.config.schema import Config, Optimizer
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.machine import available_bytes
from headstart.models.preprocess import Preprocess
from headstart.optim.optimizers import make_optimizer
from headstart.planning.about import count_images
from headstart.planning.draft import Draft
from headstart.planning.need import IN_FLIGHT, MemoryNeed
from headstart.surgery.no_trace import no_trace
from headstart.surgery.own_state import has_own_code
from headstart.surgery.trace import MODEL_FAILURES
from headstart.timing import is_out_of_memory
from headstart.training.activation_checkpointing import recomputing
from headstart.training.attention import attending
from headstart.training.phases import TrainingPlan, freeze_phase
from headstart.training.precision import autocast, device_of, dtype_of, has_bf16
from headstart.training.rules import StepRules
from headstart.wording import option

_PROBES = (2, 3)  # images: two sizes tell what grows with the batch; BatchNorm takes no single one
_RETAINED_SHARE = 1.5  # of a step's need, with what is freed and kept (measured: 1.2)
_NO_LIMIT = 1 << 62  # bytes


class OverLimit(Exception):
    """A step of so few images takes more memory than is free."""

    def __init__(self, images: int) -> None:
        super().__init__(images)
        self.images = images


def measure_memory(draft: Draft) -> Draft:
    """The draft with the memory that a step needs, on the CPU, measured before anything else is tried.

    Where precision is left open and fp32 does not fit, it is bf16 from here on.

    Raises: ConfigError: it cannot fit; the message names a number of micro-batches that does.
    """
    free = available_bytes()
    if draft.device.type != "cpu" or free is None:
        return draft
    could_be_half = draft.config.precision == "auto" and has_bf16(draft.device)
    try:
        draft = _add_need(draft, free)
    except OverLimit as error:
        if not could_be_half:
            raise _explain_limit(draft, error, free) from None
        draft = draft.set_rules(replace(draft.rules, precision="bf16"))
        try:
            return _add_need(draft, free)
        except OverLimit as half:
            raise _explain_limit(draft, half, free) from None
    if draft.need is not None and not could_be_half:
        _refuse_too_large(draft, draft.need, free)
    return draft


def _add_need(draft: Draft, free: int) -> Draft:
    return replace(draft, need=_measure_need(draft, free), need_in=(draft.rules.precision, draft.rules.attention))


def _explain_limit(draft: Draft, error: OverLimit, free: int) -> ConfigError:
    shape = draft.opened.preprocess
    return ConfigError(
        f"batch: {_name_images(error.images)} more than the {_gib(free)} of memory that are free, "
        f"at {shape.height} x {shape.width} pixels; "
        f"{_say_smaller()}"
    )


def _name_images(count: int) -> str:
    return "one image takes" if count == 1 else f"{count} images at once take"


def _refuse_too_large(draft: Draft, need: MemoryNeed, free: int) -> None:
    """Raises: ConfigError: a step's images certainly take more than is free."""
    images = draft.images_at_once
    if need.at_least(images) > free:
        raise ConfigError(
            f"batch: {_name_images(images)} at least {_gib(need.at_least(images))} of memory beside the model, "
            f"{_gib(free)} are free; {_remedy(need, free, batch_size=draft.batch_size)}"
        )


def _measure_need(draft: Draft, free: int) -> MemoryNeed | None:
    """The memory that a step needs; None where a few images cannot be tried: a later step says what is wrong."""
    module = draft.module
    try:
        with no_trace(module) if has_own_code(module) else nullcontext():
            preprocess, images = draft.opened.preprocess, draft.images_at_once
            return measure(draft.config, module, draft.training_plan, preprocess, images=images, limit=free)
    except MODEL_FAILURES:
        return None


def check_memory(draft: Draft) -> Draft:
    """The draft with whether freed memory can be kept as well, and with a warning where training may not fit into this
    machine's memory.

    Raises: ConfigError: it cannot; the message names a number of micro-batches that does.
    """
    free, need, images = available_bytes(), draft.need, draft.images_at_once
    if need is None or free is None:
        return draft
    if _RETAINED_SHARE * need.about(images) <= free:
        return draft
    if (draft.rules.precision, draft.rules.attention) != draft.need_in:
        need = _measure_need(draft, _NO_LIMIT) or need
    about = need.about(images)
    if _RETAINED_SHARE * about <= free:
        return draft
    if about <= free:
        why = f"keeping it is faster, but a step takes about {_gib(about)} of the {_gib(free)} that are free"
        return replace(draft.decide(Decision("freed memory", "goes back at once", why)), can_retain_memory=False)
    _refuse_too_large(draft, need, free)
    remedy = _remedy(need, free, batch_size=draft.batch_size)
    why = f"{count_images(images)} at once, measured on {min(images, _PROBES[-1])}; it may not fit: {remedy}"
    decision = Decision("memory", f"about {_gib(about)}, {_gib(free)} are free", why)
    return replace(draft.decide(decision), can_retain_memory=False)


def images_to_try(draft: Draft, wanted: int) -> int:
    """How many images a trial step may have: those that fit into memory, and no more than the run's own steps have; 0
    where not even one fits.
    """
    most, need, free = min(wanted, draft.images_at_once), draft.need, available_bytes()
    if need is None or free is None:
        return most
    return max((count for count in range(1, most + 1) if need.about(count) <= free), default=0)


def has_room_for(draft: Draft, images: int) -> bool:
    """Whether so many images can be evaluated at once."""
    free = available_bytes()
    return draft.need is None or free is None or draft.need.forward(images) <= free


def measure(
    config: Config, module: nn.Module, training_plan: TrainingPlan, preprocess: Preprocess, *,
    images: int = _PROBES[-1], limit: int = _NO_LIMIT,
) -> MemoryNeed:  # fmt: skip
    """The memory that the phase that trains most takes, measured by steps of a few images, at most ``images``; the
    model is left as the last phase has it.

    Raises: OverLimit: even these take more than ``limit`` bytes.
    """
    frozen = [freeze_phase(module, phase).parameters for phase in training_plan.phases]
    freeze_phase(module, training_plan.phases[frozen.index(min(frozen))])
    trained = sum(value.nbytes for value in module.parameters() if value.requires_grad)
    own = sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
    optimizer, average = int(trained * state_share(config.optimizer)), own if config.average.kind == "ema" else 0
    first, *further = [count for count in _PROBES if count <= images] or [images]
    rest = limit - optimizer - average - trained
    few, largest = _measure_retained(module, preprocess, training_plan.rules, images=first, limit=rest)
    per_image = few // first
    with suppress(OverLimit):  # then all of the first ones counts as the images' own
        for count in further:
            more, _ = _measure_retained(module, preprocess, training_plan.rules, images=count, limit=rest)
            per_image = max(0, more - few) // (count - first)
    freeze_phase(module, training_plan.phases[-1])
    return MemoryNeed(
        gradients=trained,
        optimizer=optimizer,
        average=average,
        retained=max(0, few - first * per_image),
        retained_per_image=per_image,
        largest_per_image=largest // first,
    )


def _measure_retained(
    module: nn.Module, preprocess: Preprocess, rules: StepRules, *, images: int, limit: int
) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, and those of the largest tensor among them.

    Raises: OverLimit: with what a layer works with they are more than ``limit``.
    """
    own = {value.untyped_storage().data_ptr() for value in (*module.parameters(), *module.buffers())}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # until the end, so that no address is used twice
    total = largest = 0

    def note(value: Tensor) -> None:
        """Count the value, and give the graph none: one that it has made itself, given back, would never be freed."""
        nonlocal total, largest
        storage = value.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in own:
            total, largest = total + size - seen.get(address, 0), max(largest, size)
            seen[address] = size
            alive.append(value.detach())
            if total + IN_FLIGHT * largest > limit:
                raise OverLimit(images)

    shape = (images, preprocess.channels, preprocess.height, preprocess.width)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda _: torch.empty(0))
    how = autocast(device_of(module), rules.precision)
    try:
        with _as_it_was(module), hooks, attending(rules.attention), recomputing(module, wanted=rules.recompute), how:
            module(torch.zeros(shape, dtype=dtype_of(module)))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OverLimit(images) from None
        raise
    return total, largest


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
        accumulate = -(-batch_size // min(fit, batch_size))
        return (
            f"give {option('batch.accumulate', accumulate)} or {option('activation_checkpointing', True)} (the "
            "result is the same)"
        )
    return _say_smaller()


def _say_smaller() -> str:
    smaller = f"{option('image_size')} or {option('model')}"
    return f"give a smaller {smaller}, or train less of it, e.g. {option('freeze', 'backbone')}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
