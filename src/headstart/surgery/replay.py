"""A module cut where what is frozen ends, while all of its own Python code runs at every step.

The prefix runs the module until everything that crosses the cut is there. The suffix runs the module, too, on a
stand-in for the images: fixed operations are not computed, and what crosses is taken from where it was kept. So hooks,
counters, buffers, random numbers and branches are those of the module. B batch, C channels, H and W pixels
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.isolation import own_turn
from headstart.surgery.constants import same_bytes
from headstart.surgery.cut import Cut
from headstart.surgery.fixed_values import IMAGES, Book, Contents, NotReplayable, geometry_of
from headstart.surgery.generators import seed_generators
from headstart.surgery.halves import Known, Prefix, Suffix
from headstart.surgery.held import Sources, list_named_tensors
from headstart.surgery.module_state import read_state, restore_state
from headstart.surgery.pairing import pair
from headstart.surgery.recording import Obstacle, Recording, RecordingRun, run_module

__all__ = ["NotReplayable", "Obstacle", "Prefix", "Replay", "Suffix", "find_replay"]

_SMALL = 1 << 16  # numbers in a parameter that is copied to see whether a forward pass changes it
_CHANCES = 6  # more runs of a module that draws random numbers, whose way they may decide


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A module cut in two. ``prefix``: images (B, C, H, W) -> tensors with B first; ``suffix``: these -> what the
    module gives.

    ``labels`` names the modules that made them; ``obstacles`` are operations behind which nothing is kept although
    all that they depend on is frozen; ``decides``: Python reads numbers of the images, and what crosses may be made
    after that.
    """

    prefix: Prefix
    suffix: Suffix
    labels: tuple[str, ...]
    obstacles: tuple[Obstacle, ...]
    decides: bool = False

    @property
    def train_suffix(self) -> Suffix:
        """The suffix, for a module in training mode."""
        return self.suffix

    @property
    def eval_suffix(self) -> Suffix:
        """The suffix, for a module in evaluation mode."""
        return self.suffix


def find_replay(
    module: nn.Module, images: Tensor, frozen_tensors: Collection[str], *, before_decisions: bool = False
) -> Replay:
    """Cut a module behind what is fixed in training and in evaluation.

    ``images`` (B, C, H, W), B > 1, as they are given to it in a step, under its autocast; ``frozen_tensors``: names of
    parameters and buffers; ``before_decisions``: what crosses is made before Python reads a number of the images. The
    module runs four times or more, and is left as it was.

    Raises: NotReplayable: it cannot be run from kept tensors, or nothing frozen stands before what trains.
    """
    two_batches = _two_batches(images)
    frozen, moving = frozenset(frozen_tensors), frozenset[str]()
    while True:
        contents = Contents()
        books = (Book(contents, len(two_batches[0])), Book(contents, len(two_batches[1])))
        recorder = _Recorder(module, two_batches, books, frozen - moving, moving)
        found = [recorder.record_passes(training=training) for training in (True, False)]
        moved = frozenset().union(*(recording.moving for recordings in found for recording in recordings))
        if moved <= moving:
            break
        moving |= moved
    frozen -= moving
    pairs = pair(*books)
    image = pairs.geometry(geometry_of(two_batches[0]), geometry_of(two_batches[1]))
    if image is None:
        raise NotReplayable(
            "model: its images do not lie one behind the other in memory, so it does not run from a cache"
        )
    cut = Cut(books[0], pairs, found, decides=before_decisions)
    kept = cut.find_boundary_tensors()
    if not {each.content for each in kept} - {IMAGES}:
        reason = f": {'; '.join(map(str, cut.obstacles()[:2]))}" if cut.obstacles() else ""
        raise NotReplayable(f"model: nothing that is fixed for an image stands before what trains{reason}")
    known = Known(contents, pairs, kept, image, images.dtype, frozen)
    return Replay(
        prefix=Prefix(module, known), suffix=Suffix(module, known),
        labels=tuple(each.label for each in kept), obstacles=cut.obstacles(),
        decides=not before_decisions and any(recording.decided for recordings in found for recording in recordings),
    )  # fmt: skip


def _two_batches(images: Tensor) -> tuple[Tensor, Tensor]:
    """The images, and a second batch in the other order with one fewer (of two images: one more), laid out alike."""
    images = images.clone()
    turned = images.flip(0)
    others = turned[:-1] if len(images) > 2 else torch.cat([turned, images[:1].flip(-1)])
    in_layout = torch.empty_strided(others.shape, images.stride(), dtype=images.dtype, device=images.device)
    return images, in_layout.copy_(others)


@dataclass(frozen=True)
class _Recorder:
    """Runs a module on two batches; ``moving``: tensors of it that change in a forward pass."""

    module: nn.Module
    images: tuple[Tensor, Tensor]
    books: tuple[Book, Book]
    frozen: Collection[str]
    moving: Collection[str]

    def record_passes(self, *, training: bool) -> list[Recording]:
        """Record a forward pass of each batch, in a row, so that what counts them shows; where random numbers decide,
        several of the first batch, each from the start.
        """
        with self._put_back():
            recordings = [self._record(place, training=training, seed=place) for place in (0, 1)]
        while recordings[0].drew and len(recordings) < 2 + _CHANCES:
            with self._put_back():
                recordings.append(self._record(0, training=training, seed=len(recordings)))
        return recordings

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        with own_turn():
            state = read_state(self.module)
            try:
                yield
            finally:
                restore_state(self.module, state)

    def _record(self, place: int, *, training: bool, seed: int) -> Recording:
        book = self.books[place]
        seed_generators(seed)
        before, chances = _values(self.module), _generators()
        run = RecordingRun(book, Sources(self.frozen, book.contents).read(self.module, book), self.module, self.moving)
        run_module(run, self.module, self.images[place], training=training)
        after = _values(self.module)
        run.recording.drew = _generators() != chances
        run.recording.moving |= {
            name for name in before if name not in after or not _is_unchanged(before[name], after[name])
        }
        return run.recording


def _values(module: nn.Module) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The tensors by name, with copies of buffers and of what is small."""
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return {
        name: (value, value.detach().clone() if name in buffers or value.numel() <= _SMALL else None)
        for name, value in list_named_tensors(module)
    }


def _is_unchanged(before: tuple[Tensor, Tensor | None], after: tuple[Tensor, Tensor | None]) -> bool:
    if before[0] is not after[0] or before[1] is None or after[1] is None:
        return before[0] is after[0]
    return before[1].shape == after[1].shape and same_bytes(before[1], after[1])


def _generators() -> tuple[Any, ...]:
    """The states of the global generators."""
    of_numpy: Any = np.random.get_state()
    ours = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *ours)]
    return states, random.getstate(), of_numpy[1].tobytes(), of_numpy[2:]
