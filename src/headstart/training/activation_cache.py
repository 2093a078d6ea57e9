"""The activation cache: what is frozen runs once per image and view; training and validation read the tensors behind.

A record per image in a file per view (``headstart.storage.record_file``), kept under a key of everything that decides
its bits. A record that is missing or damaged is computed again. B batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from headstart.data.batch import Arguments, Batch
from headstart.data.dataset import ImageDataset
from headstart.data.loader import Batches
from headstart.data.transforms.transforms import transform_key
from headstart.distributed.collectives import all_gather_object, any_of, raise_together
from headstart.errors import RunError, StorageError
from headstart.events import CacheProgress
from headstart.machine import FOR_PEOPLE, environment
from headstart.storage.disk_cache import DiskCache
from headstart.storage.record_file import RecordFile
from headstart.storage.tensors import view_bytes
from headstart.surgery.boundary import Boundary
from headstart.surgery.fixed_values import NotReplayable
from headstart.surgery.halves import Prefix
from headstart.surgery.layout import iterate_tensors
from headstart.surgery.module_state import code_digest
from headstart.surgery.proof import compute_activations
from headstart.training.boundary_tensors import (
    BoundarySpec,
    make_boundary_spec,
    pack_records,
    record_bytes,
    rounding,
    unpack_records,
)
from headstart.training.precision import MEMORY_FORMATS, autocast, device_of, dtype_of
from headstart.training.rules import StepRules

_FORMAT = 2  # of the pages
_PROBED = 4  # images whose pixels go into the key: another decoder or another transform shows in them
_AHEAD = 2  # batches that the system reads in advance
_PROVEN: set[str] = set()
"""Keys of what this process has made whole, or found to be."""


@dataclass(frozen=True, kw_only=True)
class CacheRules:
    """Where activations are kept, how, and how many bytes in all; ``model`` names it for people. ``batch_size``:
    training images that are computed at a time (0: as many as the batches have).
    """

    folder: Path
    model: str
    dtype: Literal["auto", "bf16"]
    limit_bytes: int
    batch_size: int = 0


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What decides the bits at the boundary, but for the random changes."""

    format: int
    boundary_specs: list[dict[str, Any]]
    precision: str
    memory_format: str
    batch: int
    machine: dict[str, Any]
    prefix: str
    preprocess: dict[str, Any]
    transform: str
    decoded: str
    images: list[str]


@dataclass(frozen=True, kw_only=True)
class _Changes:
    """What tells a view: the pixels of a few images, and where they are changed at random, what decides how."""

    pixels: str
    seed: int | None = None
    alternating: bool | None = None
    drawn: int | None = None
    indices: list[int] | None = None


class ActivationDataset:
    """The tensors at a boundary for every image of ``batches``, from a cache (see ``TensorDataset``).

    Raises: StorageError: there is no room for them.
    """

    def __init__(self, boundary: Boundary, batches: Batches, *, rules: StepRules, where: CacheRules) -> None:
        images = replace(batches.images, augment_on_device=False)
        if images.augmentation is not None:  # of validation as many as are evaluated at a time: the bits are the same
            batches = replace(batches, batch_size=where.batch_size or batches.batch_size)
        batches = replace(batches, dataset=images)
        self._prefix, self._batches, self._rules = boundary.prefix, batches, rules
        self.boundary_specs = find_boundary_specs(boundary.prefix, batches, rules, dtype=where.dtype)
        augmentation = images.augmentation
        self._first = augmentation.first_epoch if augmentation else 0
        views = augmentation.views if augmentation else 1
        assert views > 0, "there is no end of new changes"
        self._disk_cache = DiskCache(where.folder, limit_bytes=where.limit_bytes)
        self._mended: list[int] = []
        self._computed_pages = 0
        self._rounding = 0.0
        self._files: dict[str, RecordFile] = {}  # by key, a view each
        count, size, facts = len(batches.samples), record_bytes(self.boundary_specs), self._facts()
        try:
            for view in range(views):
                key = _key(facts, self._changes(view))
                about = {"model": where.model, "boundary": list(boundary.labels), "images": count, "view": view}
                self._files[key] = self._disk_cache.open_records(key, count=count, record_bytes=size, about=about)
        except (StorageError, NotReplayable):
            self.close()
            raise

    @property
    def images(self) -> ImageDataset:
        """The images that the tensors stand for."""
        return self._batches.images

    def close(self) -> None:
        """Close the files; the pages stay for other runs."""
        for file in self._files.values():
            file.close()

    def discard(self) -> None:
        """Remove the pages, once the files are closed."""
        for key in self._files:
            _PROVEN.discard(key)
            self._disk_cache.remove(key)

    def summary(self) -> str:
        """What is there, in words."""
        count, views = len(self._batches.samples), len(self._files)
        each = record_bytes(self.boundary_specs)
        text = f"{count:,} images{f' x {views} views' if views > 1 else ''}, {count * views * each / 2**20:,.1f} MiB"
        stored = f", stored as bf16 (relative error {self._rounding:.1e})" if self._rounding else ""
        return f"{text}{stored}; {self._computed_pages:,} computed, {count * views - self._computed_pages:,} read"

    def fill(self) -> Iterator[CacheProgress]:
        """Compute what is missing, shared among the processes of this machine.

        Raises: StorageError: it cannot be written, here or in another process. NotReplayable: it cannot be computed.
        """
        ours, size = self._batches.processes, self._batches.batch_size
        with raise_together(NotReplayable):
            missing = self._missing()
        hosts = all_gather_object(missing)  # as the first process of each machine finds it
        mine = hosts[ours.rank - ours.local_rank]
        jobs = [(view, group) for view, some in enumerate(mine) for group in _groups(some, size)]
        most = max(sum(len(_groups(some, size)) for some in missing) for missing in hosts)
        made, total, done = self._compute_jobs(jobs[ours.local_rank :: ours.local_size]), sum(map(len, mine)), 0
        for start in range(0, most, ours.local_size):
            failed = next(made, None)
            if any(any_of(failed is not None)):  # all processes do without, or none
                raise failed or StorageError("another process cannot compute or write them")
            done += sum(len(group) for _, group in jobs[start : start + ours.local_size])
            yield CacheProgress(done, total)
        self._computed_pages = total
        for key, file in self._files.items():
            file.sync()
            if ours.local_rank == 0 and not self._disk_cache.is_complete(key) and not self.images.changed:
                self._disk_cache.complete(key, {"rounding": self._rounding})
            _PROVEN.add(key)

    def read_batches(self, batches: Sequence[Sequence[int]], *, epoch: int) -> Iterator[Arguments]:
        """The tensors of each batch of indices (see ``TensorDataset``); a damaged record is computed again."""
        view = (epoch - self._first) % len(self._files)
        file, coming = self._file(view), iter(batches)
        for later in islice(coming, _AHEAD):
            file.expect(later)
        for indices in batches:
            for later in islice(coming, 1):
                file.expect(later)
            yield self._read(view, indices)

    def take_mended(self) -> tuple[str, ...]:
        """Keys of the images whose pages were damaged and computed again since this was last asked."""
        found = tuple(self._batches.samples[position].key for position in self._mended)
        self._mended.clear()
        return found

    def _read(self, view: int, part: Sequence[int]) -> Arguments:
        size, pinned = record_bytes(self.boundary_specs), self._batches.pinned
        pages = torch.empty(len(part), size, dtype=torch.uint8, pin_memory=pinned)
        rows, file = pages.numpy(), self._file(view)
        damaged = [place for place, position in enumerate(part) if not file.read(position, rows[place].data)]
        if damaged:
            again = sorted({part[place] for place in damaged})
            values = self._make_again(view, again)
            self._mended += [position for position in again if not self._is_changed(position)]
            pages[damaged] = values[[again.index(part[place]) for place in damaged]]
            self._keep(view, again, values)  # where it cannot be written, the next reader computes it again
        return unpack_records(pages, self.boundary_specs)

    def _make_again(self, view: int, positions: Sequence[int]) -> Tensor:
        """Pages (N, page_bytes) of damaged ones, computed anew.

        Raises: NotReplayable: they cannot be. RunError: of several processes this one alone would have to do without.
        """
        try:
            return self._pages(view, positions)
        except NotReplayable as error:
            if not self._batches.processes.is_distributed:
                raise
            key = self._batches.samples[positions[0]].key
            raise RunError(f"cache: the page of {key} is damaged and cannot be computed again: {error}") from error

    def _compute_jobs(self, jobs: Sequence[tuple[int, list[int]]]) -> Iterator[StorageError | NotReplayable | None]:
        """Each job done; what could not be computed or written is a value."""
        try:
            for view in sorted({view for view, _ in jobs}):
                for group, pages in self._compute_batches(view, [group for other, group in jobs if other == view]):
                    yield self._keep(view, group, pages)
        except NotReplayable as error:
            yield error

    def _keep(self, view: int, group: Sequence[int], pages: Tensor) -> StorageError | None:
        try:
            for row, position in enumerate(group):
                if not self._is_changed(position):
                    self._file(view).write(position, pages[row].numpy().data)
        except StorageError as error:
            return error
        return None

    def _is_changed(self, position: int) -> bool:
        """Whether this image's file is not the one that the key names: what is made of it is not kept."""
        changed = self.images.changed
        return changed is not None and self._batches.samples[position].key in changed

    def _missing(self) -> list[list[int]]:
        """The images that are not there, by view; all, where the first batch, computed again, is not what is there."""
        if not all(map(self._disk_cache.is_complete, self._files)):
            return [file.missing() for file in self._files.values()]
        return [[] if self._is_proven(view) else self._all() for view in range(len(self._files))]

    def _is_proven(self, view: int) -> bool:
        first, room = self._all()[: self._batches.batch_size], bytearray(record_bytes(self.boundary_specs))
        if [*self._files][view] in _PROVEN:
            return True
        pages, file = self._pages(view, first), self._file(view)
        return all(file.read(place, room) and bytes(pages[place].numpy().data) == room for place in first)

    def _file(self, view: int) -> RecordFile:
        return [*self._files.values()][view]

    def _all(self) -> list[int]:
        return list(range(len(self._batches.samples)))

    def _pages(self, view: int, positions: Sequence[int]) -> Tensor:
        groups = _groups(positions, self._batches.batch_size)
        return torch.cat([pages for _, pages in self._compute_batches(view, groups)])

    def _compute_batches(self, view: int, groups: Sequence[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Each group of images and its bytes (B, page_bytes), computed at one batch shape."""
        coming = iter(groups)
        for batch in self._batches.pad_batches(groups, epoch=self._first + view):
            values = through_prefix(self._prefix, batch, self._rules)
            self._rounding = max(self._rounding, rounding(values, self.boundary_specs))
            yield next(coming), pack_records(values, self.boundary_specs)[: batch.size]

    def _facts(self) -> _Facts:
        batches, rules = self._batches, self._rules
        machine = environment(device_of(self._prefix))
        return _Facts(
            format=_FORMAT, boundary_specs=[spec.to_dict() for spec in self.boundary_specs],
            precision=rules.precision, memory_format=rules.memory_format, batch=batches.batch_size,
            machine={name: value for name, value in machine.items() if name not in (*FOR_PEOPLE, "world_size")},
            prefix=prefix_digest(self._prefix), preprocess=batches.preprocess.to_dict(),
            transform=_name_changes(batches.images), decoded=type(batches.images.decoded).__name__,
            images=[sample.digest for sample in batches.samples],
        )  # fmt: skip

    def _changes(self, view: int) -> _Changes:
        augmentation, samples = self._batches.augmentation, self._batches.samples
        some = sorted({place * (len(samples) - 1) // (_PROBED - 1) for place in range(_PROBED)})
        few = replace(self._batches, batch_size=len(some), workers=0)
        probe = next(few.pad_batches([some], epoch=self._first + view)).pixels
        pixels = hashlib.sha256(probe.contiguous().numpy().data).hexdigest()
        if augmentation is None or not augmentation.random:
            return _Changes(pixels=pixels)
        return _Changes(
            pixels=pixels, seed=augmentation.seed, alternating=augmentation.alternating,
            drawn=augmentation.epoch_of_draws(self._first + view), indices=[sample.index for sample in samples],
        )  # fmt: skip


def open_activations(boundary: Boundary, batches: Batches, *, rules: StepRules, where: CacheRules) -> ActivationDataset:
    """The activations of a split, made and kept so far.

    Raises: StorageError, NotReplayable: they cannot be opened, in this or another process.
    """
    found: ActivationDataset | None = None
    failed: StorageError | NotReplayable | None = None
    try:
        found = ActivationDataset(boundary, batches, rules=rules, where=where)
    except (StorageError, NotReplayable) as error:
        failed = error
    if not any(any_of(failed is not None)):
        assert found is not None
        return found
    if found is not None:
        found.close()
    raise failed or StorageError("another process cannot open them")


def find_boundary_specs(
    prefix: nn.Module, batches: Batches, rules: StepRules, *, dtype: str
) -> tuple[BoundarySpec, ...]:
    """What a batch's tensors at the boundary are, by a run on black images."""
    shape = batches.preprocess
    black = torch.zeros(2, shape.channels, shape.height, shape.width)
    images = black.to(device_of(prefix), dtype_of(prefix), memory_format=MEMORY_FORMATS[rules.memory_format])
    return tuple(
        make_boundary_spec(value, as_bf16=dtype == "bf16") for value in _compute_activations(prefix, images, rules)
    )


def prefix_digest(prefix: nn.Module) -> str:
    """SHA-256 over what a prefix computes: its graph, its layers' code, hooks and settings, its weights and buffers."""
    digest = hashlib.sha256(prefix.code.encode() if isinstance(prefix, fx.GraphModule) else b"")
    module = prefix.module if isinstance(prefix, Prefix) else prefix
    for part in [module] if isinstance(prefix, Prefix) else module.children():
        digest.update(code_digest(part).encode())
    for name, value, _ in iterate_tensors(module):
        if not isinstance(prefix, Prefix) or name in prefix.frozen:
            digest.update(repr((name, tuple(value.shape), value.dtype)).encode())
            digest.update(view_bytes(value.detach().contiguous().cpu()))
    return digest.hexdigest()


def through_prefix(prefix: nn.Module, batch: Batch, rules: StepRules) -> Arguments:
    """Tensors at the boundary, of every row of the batch."""
    device = device_of(prefix)
    (images,) = batch.arguments(device, MEMORY_FORMATS[rules.memory_format], dtype_of(prefix))
    return _compute_activations(prefix, images, rules)


def _compute_activations(prefix: nn.Module, images: Tensor, rules: StepRules) -> Arguments:
    return compute_activations(prefix, images, partial(autocast, device_of(prefix), rules.precision))


def _key(facts: _Facts, changes: _Changes) -> str:
    return hashlib.sha256(json.dumps([vars(facts), vars(changes)]).encode()).hexdigest()[:32]


def _groups(positions: Sequence[int], size: int) -> list[list[int]]:
    return [list(positions[start : start + size]) for start in range(0, len(positions), size)]


def _name_changes(images: ImageDataset) -> str:
    """The text that stands for an image's changes, the user's own among them by the digest of their code."""
    own = images.own if images.augmentation is not None else images.own_framing
    return transform_key(images.transform) + (f", then {own.digest}" if own is not None else "")
