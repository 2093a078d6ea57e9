"""What a phase trains on: pictures for the whole model, or tensors at its boundary for the part behind it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from headstart.data.decoding.decoded_cache import open_decoded_cache
from headstart.data.loader import Batches
from headstart.errors import ModelError, StorageError
from headstart.events import CacheNote, CacheProgress
from headstart.storage.disk_cache import DiskCache
from headstart.surgery.boundary import Boundary
from headstart.surgery.fixed_values import NotReplayable
from headstart.surgery.freeze import Frozen
from headstart.surgery.layout import iterate_tensors
from headstart.training.activation_cache import (
    ActivationDataset,
    CacheRules,
    find_boundary_specs,
    open_activations,
)
from headstart.training.boundary_proof import CacheCheck, prove_boundary
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import micro_batches


@dataclass(frozen=True, kw_only=True)
class PhaseData:
    """Batches of a phase. ``suffix``: what trains where ``train`` begins at the boundary, and ``check`` looks whether
    that is right. ``eval_model``: what is evaluated on ``val`` in place of the model, and of its average.
    """

    train: Batches
    val: Batches
    suffix: nn.Module | None = None
    check: CacheCheck | None = None
    eval_model: nn.Module | None = None
    eval_average: nn.Module | None = None

    def iterate_damage_notes(self) -> Iterator[CacheNote]:
        """Notes on activations that were damaged and computed again since this was last asked."""
        for batches in (self.train, self.val):
            keys = batches.dataset.take_mended() if isinstance(batches.dataset, ActivationDataset) else ()
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                yield CacheNote(f"cache: damaged, so computed again: {keys[0]}{more}")

    def discard(self) -> None:
        """Remove the activations: they are not what the model computes."""
        self.close()
        for batches in (self.train, self.val):
            if isinstance(batches.dataset, ActivationDataset):
                batches.dataset.discard()

    def close(self) -> None:
        """Close the files of activations."""
        for batches in (self.train, self.val):
            if isinstance(batches.dataset, ActivationDataset):
                batches.dataset.close()


@contextmanager
def open_image_cache(batches: Batches, *, where: CacheRules) -> Iterator[tuple[Batches, CacheNote | None]]:
    """Within, the batches with a file for their decoded images, where they keep some; without room for it, a note."""
    images = batches.images
    if images.decoded is None:
        yield batches, None
        return
    disk_cache = DiskCache(where.folder, limit_bytes=where.limit_bytes)
    try:
        opened = open_decoded_cache(images.decoded, images.samples, disk_cache, about=where.model)
    except StorageError as error:
        yield batches, CacheNote(f"cache: decoded images are not kept: {error}")
        return
    with closing(opened):
        yield replace(batches, dataset=replace(images, decoded=opened)), None


def make_phase_data(
    state: TrainState,
    frozen: Frozen,
    phase_data: PhaseData,
    *,
    splits: tuple[str, ...],
    rules: StepRules,
    where: CacheRules,
) -> Generator[CacheProgress | CacheNote, None, PhaseData]:
    """The data of a phase with the ``splits`` (train, val) that are to be cached, once their activations are there.

    What cannot be cached stays as it is, and a note says why.
    """
    if not splits:
        return phase_data
    try:
        boundary = prove_boundary(state.model, frozen, phase_data.train, rules)
    except ModelError as error:
        yield CacheNote(f"cache: not used, the frozen part is computed in every epoch: {error}")
        return phase_data
    if "val" in splits and boundary.mixes_in_evaluation:
        yield CacheNote("cache: not used for val: in evaluation a score depends on the other images of its batch")
        splits = tuple(split for split in splits if split != "val")
    for split in splits:
        batches = getattr(phase_data, split)
        try:
            at_once = _images_at_once(batches, rules) if split == "train" else 0
            activations = open_activations(boundary, batches, rules=rules, where=replace(where, batch_size=at_once))
            yield from _fill_activations(activations)
        except (StorageError, NotReplayable) as error:
            yield CacheNote(f"cache: not used for {split}, the frozen part is computed in every epoch: {error}")
            continue
        yield CacheNote(f"cache: {split}, {activations.summary()}")
        phase_data = replace(phase_data, **{split: replace(batches, dataset=activations)})
        if split == "train":
            check = CacheCheck(state.model, boundary, phase_data.train, rules)
            phase_data = replace(phase_data, suffix=boundary.train_suffix, check=check)
        else:
            average = _find_average_suffix(state, frozen, boundary, batches, rules, dtype=where.dtype)
            phase_data = replace(phase_data, eval_model=boundary.eval_suffix, eval_average=average)
    return phase_data


def _images_at_once(batches: Batches, rules: StepRules) -> int:
    """How many images a step gives to the model at a time: kernels round by that number."""
    sizes: list[int] = [part.stop - part.start for part in micro_batches(batches.batch_size, rules.accumulate)]
    return max(sizes)


def _fill_activations(activations: ActivationDataset) -> Iterator[CacheProgress]:
    """Fill the dataset, or close it where it cannot be filled."""
    try:
        yield from activations.fill()
    except (StorageError, NotReplayable):
        activations.close()
        raise


def _find_average_suffix(
    state: TrainState, frozen: Frozen, boundary: Boundary, batches: Batches, rules: StepRules, *, dtype: str
) -> nn.Module | None:
    """The suffix of the average, where its prefix is the model's; a part that trained before may not have caught up.
    Two places in the model's own forward are called alike: what crosses there is compared, too.
    """
    if state.average is None:
        return None
    average = state.average.module
    ours, theirs = ({name: value for name, value, _ in iterate_tensors(module)} for module in (state.model, average))
    if not all(torch.equal(ours[name], theirs[name]) for name in frozen.tensors):
        return None
    try:
        own_boundary = prove_boundary(average, frozen, batches, rules)
    except ModelError:
        return None
    if own_boundary.labels != boundary.labels:
        return None
    specs, own_specs = (
        find_boundary_specs(each.prefix, batches, rules, dtype=dtype) for each in (boundary, own_boundary)
    )
    return own_boundary.eval_suffix if specs == own_specs else None
