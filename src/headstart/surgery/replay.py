"""A module cut where what is frozen ends, while all of its own Python code runs at every step.

The prefix runs the module until everything that crosses the cut is there. The suffix runs the module, too, on a
stand-in for the images: fixed operations are not computed, and what crosses is taken from where it was kept. So hooks,
counters, buffers, random numbers and branches are those of the module. B batch, C channels, H and W pixels
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.surgery.cut import Cut
from headstart.surgery.fixed_values import IMAGES, Book, Contents, NotReplayable, geometry_of
from headstart.surgery.generators import seed_generators
from headstart.surgery.halves import Known, Prefix, Suffix
from headstart.surgery.held import Sources, named
from headstart.surgery.module_state import read_state, restore_state
from headstart.surgery.pairing import pair
from headstart.surgery.recording import Obstacle, Recording, RecordingRun, run_module
from headstart.turns import own_turn

__all__ = ["NotReplayable", "Obstacle", "Prefix", "Replay", "Suffix", "find_replay"]

_CHANCES = 6  # more runs of a module that draws random numbers, whose way they may decide


@dataclass(frozen=True, kw_only=True)
class Replay:
    """``prefix``: images (B, C, H, W) -> tensors with B first; ``suffix``: these -> what the module gives.

    ``crossing`` names the modules that made them; ``obstacles`` are operations behind which nothing is kept although
    all that they depend on is frozen.
    """

    prefix: Prefix
    suffix: Suffix
    crossing: tuple[str, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def train_suffix(self) -> Suffix:
        """The suffix, for a module in training mode."""
        return self.suffix

    @property
    def eval_suffix(self) -> Suffix:
        """The suffix, for a module in evaluation mode."""
        return self.suffix


def find_replay(module: nn.Module, images: Tensor, frozen_tensors: Collection[str]) -> Replay:
    """Cut a module behind what is fixed in training and in evaluation.

    ``images`` (B, C, H, W), B > 1, as they are given to it in a step, under its autocast; ``frozen_tensors``: names of
    parameters and buffers. The module runs four times, and is left as it was.

    Raises: NotReplayable: it cannot be run from kept tensors, or nothing frozen stands before what trains.
    """
    turned = images.flip(0)
    several = (images, turned[:-1] if len(images) > 2 else torch.cat([turned, images[:1]]))
    frozen = frozenset(frozen_tensors)
    while True:
        contents = Contents()
        books = (Book(contents, len(several[0])), Book(contents, len(several[1])))
        found = [_recordings(module, several, frozen, books, training=training) for training in (True, False)]
        moving = set[str]().union(*(recording.moving for recordings in found for recording in recordings))
        if not moving & frozen:
            break
        frozen -= moving
    pairs = pair(*books)
    image = pairs.geometry(geometry_of(several[0]), geometry_of(several[1]))
    cut = Cut(books[0], pairs, found)
    kept = cut.kept()
    if not {each.content for each in kept} - {IMAGES}:
        reason = f": {'; '.join(map(str, cut.obstacles()[:2]))}" if cut.obstacles() else ""
        raise NotReplayable(f"model: nothing that is fixed for an image stands before what trains{reason}")
    known = Known(contents, pairs, kept, image, images.dtype, frozen)
    return Replay(
        prefix=Prefix(module, known), suffix=Suffix(module, known),
        crossing=tuple(each.label for each in kept), obstacles=cut.obstacles(),
    )  # fmt: skip


def _recordings(
    module: nn.Module,
    images: tuple[Tensor, Tensor],
    frozen: Collection[str],
    books: tuple[Book, Book],
    *,
    training: bool,
) -> list[Recording]:
    """A forward pass of each batch; of the first one several where random numbers decide."""
    found = [
        _recorded(module, some, frozen, book, training=training, seed=seed)
        for seed, (some, book) in enumerate(zip(images, books, strict=True))
    ]
    while found[0].drew and len(found) < 2 + _CHANCES:
        found.append(_recorded(module, images[0], frozen, books[0], training=training, seed=len(found)))
    return found


def _recorded(
    module: nn.Module, images: Tensor, frozen: Collection[str], book: Book, *, training: bool, seed: int
) -> Recording:
    with own_turn():
        state = read_state(module)
        try:
            seed_generators(seed)
            before, chances = dict(named(module)), _chances()
            run = RecordingRun(book, Sources(frozen, book.contents).read(module, book), module)
            run_module(run, module, images, training=training)
            after = dict(named(module))
            run.found.drew = _chances() != chances
            run.found.moving |= {name for name in before if after.get(name) is not before[name]}
        finally:
            restore_state(module, state)
    return run.found


def _chances() -> tuple[Any, ...]:
    """The states of the global generators."""
    of_numpy: Any = np.random.get_state()
    ours = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *ours)]
    return states, random.getstate(), of_numpy[1].tobytes(), of_numpy[2:]
