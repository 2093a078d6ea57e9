"""What ``fit`` trains on: batches by epoch and number, or any iterable that gives an epoch's batches each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Protocol, runtime_checkable

from headstart.data.batch import Batch, Pair, as_batch
from headstart.errors import ConfigError, DataError


@runtime_checkable
class TrainingBatches(Protocol):
    """Batches of which the same epoch number gives the same, from any first one on."""

    def __len__(self) -> int:
        """How many batches, that is optimizer steps, an epoch has."""

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (0-based), from batch ``first`` on."""


class IterableBatches:
    """An iterable's batches: one pass over it is an epoch, whatever its number."""

    def __init__(self, batches: Iterable[Batch | Pair]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """How many batches an epoch has; 0 where the iterable does not say."""
        try:
            return len(self._batches) if isinstance(self._batches, Sized) else 0
        except TypeError:  # a DataLoader has a length, which a dataset that is only iterable does not give it
            return 0

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """A pass over the iterable without its ``first`` batches; a sampler with ``set_epoch`` is told the epoch."""
        set_epoch = getattr(getattr(self._batches, "sampler", None), "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        return map(as_batch, islice(self._batches, first, None))


def as_training_batches(batches: object, *, epochs: int, must_count: bool) -> TrainingBatches:
    """The batches as they are, or an iterable's; with ``must_count`` only where their number is known.

    Raises: DataError, ConfigError: they are none, can be gone through only once, or cannot be counted.
    """
    if isinstance(batches, TrainingBatches):
        return batches
    if not isinstance(batches, Iterable):
        raise DataError(
            f"fit: type {type(batches).__name__} was given; accepted are hs.open_images(...).train and an iterable of "
            "(images, targets), such as a torch DataLoader"
        )
    if isinstance(batches, Iterator) and epochs > 1:
        raise DataError(
            f"fit: type {type(batches).__name__} gives its batches only once, and {epochs} epochs need them each time; "
            "give what can be gone through again, such as a list or a torch DataLoader"
        )
    counted = IterableBatches(batches)
    if must_count and not len(counted):
        raise ConfigError(
            f"fit: type {type(batches).__name__} does not say how many batches it has, which a schedule needs; give "
            "one with a length, or leave schedule out and set the rates yourself"
        )
    return counted
