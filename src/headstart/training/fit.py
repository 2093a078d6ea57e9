"""Epochs of steps, as a generator of events: look at each, save when you like, break when you have enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from headstart.allocator import keep_freed_memory
from headstart.config.schema import Schedule
from headstart.data.batch import Batch, Pair
from headstart.data.decoding.interruptible import waiting_for_data
from headstart.data.loader import Batches
from headstart.distributed.processes import current
from headstart.errors import ConfigError, DataError, NonFiniteError
from headstart.events import EpochDone, StepDone
from headstart.isolation import each_in_own_arithmetic
from headstart.optim.schedules import rate_factor
from headstart.training.any_batches import TrainingBatches, as_training_batches
from headstart.training.finite import find_damaged
from headstart.training.precision import device_of
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step
from headstart.wording import option

Rates = list[tuple[dict[str, Any], float]]  # groups of an optimizer, and the rate that each had


def fit(
    state: TrainState,
    batches: TrainingBatches | Iterable[Batch | Pair],
    *,
    rules: StepRules,
    epochs: int,
    schedule: Schedule | None = None,
    first_epoch: int | None = None,
) -> Iterator[StepDone | EpochDone]:
    """Train some epochs, and yield what was done after each step and each epoch.

    A state that was restored in the middle of an epoch goes on with that epoch's next batch. Without a ``schedule`` the
    rates are the caller's: ``fit`` leaves the groups' ``lr`` alone, so that a scheduler of torch, or a change by hand,
    counts from the next step on. With one, a group's rate is its ``initial_lr`` (its ``lr``, where it has none yet)
    times a factor of the step within these epochs: change that to change its rate.

    Args:
        ``state``: The model, its optimizer and the counters, which are changed.
        ``batches``: The training batches: ``hs.open_images(...).train``, or an iterable of ``hs.Batch`` or of pairs
            (images, targets) that can be gone through once per epoch, such as a torch ``DataLoader``. Its sampler's
            ``set_epoch`` is called, if it has one; a state that was restored in an epoch's middle passes over as many
            batches as it has seen.
        ``rules``: How a step is made.
        ``epochs``: How many epochs are trained.
        ``schedule``: How the rates change over the steps, as ``config.schedule``; None leaves them.
        ``first_epoch``: The number of the first of these epochs, counted from 0; None takes where the state is.

    Returns:
        An iterator over ``hs.StepDone`` and ``hs.EpochDone``; nothing happens until it is gone through.

    Raises:
        NonFiniteError: The loss, the gradient or a weight is NaN or infinite.
        ConfigError: With a schedule, a group's ``lr`` was changed between two steps, which the schedule would undo, or
            the iterable does not say how many batches it has.
        DataError: The iterable gives no batches, or something else.

    Example:
        >>> import headstart as hs, torch
        >>> opened = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]})
        >>> images = hs.open_images("photos", like=opened, val=0.25, batch_size=4)
        >>> swap = hs.replace_head(opened.module, outputs=2)
        >>> state = hs.TrainState(opened.module, torch.optim.SGD(opened.module.parameters(), lr=0.01))
        >>> [type(done).__name__ for done in hs.fit(state, images.train, rules=hs.StepRules(), epochs=1)]
        ['StepDone', 'StepDone', 'StepDone', 'EpochDone']
    """
    first = state.epochs_done if first_epoch is None else first_epoch
    countable = as_training_batches(batches, epochs=epochs, must_count=schedule is not None)
    yield from each_in_own_arithmetic(_epochs(state, countable, rules, schedule, range(first, first + epochs)))


def _epochs(
    state: TrainState, batches: TrainingBatches, rules: StepRules, schedule: Schedule | None, which: range
) -> Generator[StepDone | EpochDone]:
    first, epochs, per_epoch = which.start, len(which), len(batches)
    rates: Rates = []
    with keep_freed_memory():
        for epoch in range(state.epochs_done, first + epochs):
            started, images = time.monotonic(), 0
            state.begin_epoch()
            timed = Timed(batches.epoch(epoch, first=state.epoch_step), waiting=_waiting(batches))
            for batch in timed:
                steps_before = (epoch - first) * per_epoch + state.epoch_step
                _follow(schedule, state, steps_before, total=epochs * per_epoch, before=rates)
                done = train_step(state, batch, rules=rules, steps_in_epoch=per_epoch)
                state.epoch_step += 1
                state.epoch_loss += done.loss * done.weight
                state.epoch_weight += done.weight
                images += done.images
                rates = [(group, group["lr"]) for group in state.optimizer.param_groups]
                yield done
            if not state.epoch_weight:
                raise DataError(f"epoch {epoch + 1}: fit was given no batch; give an iterable that begins anew")
            closed = _close_epoch(state, images, time.monotonic() - started)
            copied = timed.copying(device_of(state.model)) * images / current().world_size
            yield replace(closed, input_seconds=timed.seconds, copy_seconds=copied)


def _waiting(batches: TrainingBatches) -> Callable[[], AbstractContextManager[None]]:
    """The context in which batches are awaited: from images, one in which a signal is heard at once."""
    return waiting_for_data if isinstance(batches, Batches) else nullcontext


class Timed(Iterator[Batch]):
    """An iterator over batches that counts the seconds spent in getting them."""

    def __init__(
        self, batches: Iterator[Batch], *, waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._batches, self._waiting, self.seconds = batches, waiting, 0.0
        self._largest: Batch | None = None

    def __next__(self) -> Batch:
        started = time.monotonic()
        try:
            with self._waiting():
                batch = next(self._batches)
            if self._largest is None or len(batch.targets) > len(self._largest.targets):
                self._largest = batch
            return batch
        finally:
            self.seconds += time.monotonic() - started

    def copying(self, device: torch.device) -> float:
        """Seconds that copying an image to an accelerator takes, by the largest batch; 0 on a CPU, where nothing is
        copied.
        """
        if self._largest is None or device.type == "cpu":
            return 0.0
        tensors, seconds = self._largest.activations or (self._largest.pixels,), 0.0
        for _ in range(2):  # the first copy makes room for them there
            torch.accelerator.synchronize(device)
            started = time.monotonic()
            for values in tensors:
                values.to(device, non_blocking=True)
            torch.accelerator.synchronize(device)
            seconds = time.monotonic() - started
        return seconds / max(1, len(tensors[0]))  # a process may have no image of an epoch


def _follow(schedule: Schedule | None, state: TrainState, step: int, *, total: int, before: Rates) -> None:
    """Set the rates of a step; ``before`` are those after the last one.

    Raises: ConfigError: somebody else has set one since, which would have no effect.
    """
    if schedule is None:
        return
    for group, rate in before:
        if group["lr"] != rate and any(group is own for own in state.optimizer.param_groups):
            raise ConfigError(
                f"step {state.step + 1}: the rate of group {group.get('name', 'without a name')} was changed from "
                f"{rate:.4g} to {group['lr']:.4g}, but fit was given a schedule, which sets it at every step; change "
                'the group\'s "initial_lr", which the schedule multiplies, or give fit no schedule'
            )
    set_rates(state, rate_factor(schedule, step, total=total))


def set_rates(state: TrainState, factor: float) -> None:
    """Set every group's rate to its own full one times ``factor``."""
    for group in state.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def _close_epoch(state: TrainState, images: int, seconds: float) -> EpochDone:
    damaged = find_damaged(state.model)
    if damaged:
        raise NonFiniteError(
            f"epoch {state.epochs_done + 1}: {', '.join(damaged[:5])}: not finite after step {state.step}; try a "
            f"lower rate ({option('lr')})"
        )
    loss = state.epoch_loss / state.epoch_weight
    state.epochs_done += 1
    state.epoch_step, state.epoch_loss, state.epoch_weight = 0, 0.0, 0.0
    return EpochDone(
        lr=max(float(group["lr"]) for group in state.optimizer.param_groups),
        epoch=state.epochs_done,
        step=state.step,
        train_loss=loss,
        seconds=seconds,
        images_per_second=images / max(seconds, 1e-9),
    )
