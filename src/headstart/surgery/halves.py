"""The part of a module before a cut, and the part behind it: the module itself, both times.

B batch, C channels, H and W pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.surgery.constants import find_constant
from headstart.surgery.cut import BoundaryTensor
from headstart.surgery.fixed_run import Run
from headstart.surgery.fixed_values import (
    IMAGES,
    Book,
    Contents,
    Fixed,
    Geometry,
    Memory,
    NotReplayable,
    Ref,
    blank,
    make_fixed,
    map_nested,
    once,
)  # fmt: skip
from headstart.surgery.held import Sources, plain_outputs, settle
from headstart.surgery.pairing import Pairs, fill_in_batch
from headstart.surgery.recording import FAILURES, RealRun, copy_in_layout


@dataclass(frozen=True)
class Known:
    """What prefix and suffix share. ``image``: how the images look; ``frozen``: names of what is frozen."""

    contents: Contents
    pairs: Pairs
    boundary: tuple[BoundaryTensor, ...]
    image: Any
    dtype: torch.dtype
    frozen: frozenset[str]

    def book(self, batch: int) -> Book:
        """A new book for a number of images."""
        return Book(self.contents, batch, names=self.pairs.names(batch))


class _AllMade(BaseException):
    """Everything that crosses has been made."""


class _KeepingRun(RealRun):
    """A forward pass that ends once everything that crosses has been made."""

    def __init__(self, book: Book, frozen: Mapping[int, Memory], module: nn.Module, known: Known) -> None:
        super().__init__(book, frozen, module)
        self.retained = frozenset(each.content for each in known.boundary)
        self.seen: dict[int, Tensor] = {}

    def receive(self, memory: Memory) -> None:
        content = memory.content
        if content in self.retained and content not in self.seen:
            assert content is not None and memory.real is not None
            self.seen[content] = memory.real
            if self.retained <= self.seen.keys():
                raise _AllMade


class Prefix(nn.Module):
    """Images (B, C, H, W) -> the tensors that cross. ``module`` runs until they are there."""

    def __init__(self, module: nn.Module, known: Known) -> None:
        super().__init__()
        self.module = module
        self._known, self._books = known, dict[int, Book]()
        self._sources = Sources(known.frozen, known.contents)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the frozen tensors of ``module``."""
        return self._known.frozen

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that cross.  Raises: NotReplayable: the module took another way than before."""
        known = self._known
        if len(images) == 1:  # alone it may take another way, e.g. where sizes of 1 are left out
            return tuple(value[:1] for value in self.forward(images.expand(2, *images.shape[1:]).clone()))
        size, stride, _ = fill_in_batch(known.image, len(images))
        if images.stride() != stride:  # laid out as those that were recorded
            images = torch.empty_strided(size, stride, dtype=images.dtype, device=images.device).copy_(images)
        book = self._books.get(len(images)) or known.book(len(images))
        self._books[len(images)] = book
        run = _KeepingRun(book, self._sources.read(self.module, book), self.module, known)
        run.seen = {IMAGES: images} if IMAGES in run.retained else {}
        try:
            with run:
                self.module(run.image(images))
        except _AllMade:
            pass
        except FAILURES as error:
            raise run.failure or error from None
        finally:
            settle(self.module)
        missing = [each.label for each in known.boundary if each.content not in run.seen]
        if missing:
            raise NotReplayable(
                f"model: {missing[0]} is not computed for every batch as for the first one; its code takes another way"
            )
        return tuple(
            run.seen[each.content] if each.geometry is None
            else run.seen[each.content].as_strided(*fill_in_batch(each.geometry, len(images)))
            for each in known.boundary
        )  # fmt: skip


class _ReplayingRun(Run):
    """A forward pass, and its backward pass, in which fixed operations are not computed."""

    def __init__(self, book: Book, frozen: Mapping[int, Memory], module: nn.Module) -> None:
        super().__init__(book, frozen, module)
        self._wholes: dict[int, Tensor] = {}
        self._views: dict[tuple[int, Geometry], Tensor] = {}

    def hold(self, known: Known, activations: tuple[Tensor, ...]) -> None:
        """Take what crosses."""
        for each, value in zip(known.boundary, activations, strict=True):
            if each.geometry is None:
                self._wholes[each.content] = value
            else:
                self._views[each.content, Geometry(*fill_in_batch(each.geometry, self.book.batch))] = value
        self._given = dict(self._wholes)
        self._wholes = {}

    @property
    def computes(self) -> bool:
        return False

    def constant(self, value: Tensor) -> int | None:
        return find_constant(self.book, value)

    def real_arguments(self, value: Any) -> Any:
        """Zeros in place of a fixed argument: what is looked at is how the result lies in memory."""
        if type(value) is not Fixed:
            return value.detach() if isinstance(value, Tensor) else value
        memory = value.memory
        if memory.source:
            return memory.view_at(value.geometry)
        if id(memory) not in self.standing:
            self.standing[id(memory)] = blank(memory.base, memory)
        return self.standing[id(memory)].as_strided(*value.geometry)

    def need(self, value: Fixed) -> Tensor:
        memory = value.memory
        if memory.real is not None:
            return memory.view_at(value.geometry)
        assert memory.content is not None
        part: Fixed | None = value
        while part is not None and self._views:
            if (memory.content, part.geometry) in self._views:
                return self._read_view(memory.content, part.geometry, value.geometry)
            part = part.within
        return self._whole(memory.content, memory.base).as_strided(*value.geometry)

    def own(self, memory: Memory) -> None:
        if memory.real is None:
            assert memory.content is not None
            memory.real = copy_in_layout(self._whole(memory.content, memory.base))

    def _read_view(self, content: int, kept: Geometry, wanted: Geometry) -> Tensor:
        """The numbers of a part of a content, at their distances in the whole."""
        value = self._views[content, kept]
        if tuple(value.shape) != kept.size:
            raise self.fail(f"what it keeps has the shape {tuple(value.shape)}, and {kept.size} is needed")
        in_layout = value
        if value.stride() != kept.stride or value.storage_offset():
            in_layout = torch.empty_strided(kept.size, kept.stride, dtype=value.dtype, device=value.device).copy_(value)
            self._views[content, kept] = in_layout
        return in_layout.as_strided(wanted.size, wanted.stride, wanted.offset - kept.offset)

    def _whole(self, content: int, base: Geometry) -> Tensor:
        """All numbers of a content: those that were kept, or computed from such."""
        if content not in self._wholes:
            kept = self._given.get(content)
            self._wholes[content] = self._make(content) if kept is None else self._lay_out(kept, base)
        return self._wholes[content]

    def _lay_out(self, value: Tensor, base: Geometry) -> Tensor:
        if tuple(value.shape) != base.size:
            raise self.fail(f"what it keeps has the shape {tuple(value.shape)}, and {base.size} is needed")
        if value.stride() == base.stride and value.storage_offset() == base.offset:
            return value
        return torch.empty_strided(base.size, base.stride, dtype=value.dtype, device=value.device).copy_(value)

    def _make(self, content: int) -> Tensor:
        call = self.book.calls.get(content)
        if call is None:
            raise self.fail(
                f"{self.name_running()} needs the images, which are not kept: it took another way than before"
            )
        with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
            real = once(self._ref)
            args, kwargs = map_nested(call.args, real), map_nested(dict(call.kwargs), real)
            if call.writes:
                first = call.args[0]
                whole = copy_in_layout(self._whole(first.content, call.base.geometry))
                call.func(whole.as_strided(*first.geometry), *args[1:], **kwargs)
                return whole
            outs = call.func(*args, **kwargs)
        result = outs[call.index] if isinstance(outs, (tuple, list)) else outs
        assert isinstance(result, Tensor)
        return result

    def _ref(self, value: Any) -> Any:
        if not isinstance(value, Ref):
            return value
        source = self.by_content.get(value.content)
        if source is not None:
            return source.view_at(value.geometry)
        if (value.content, value.geometry) in self._views:
            return self._read_view(value.content, value.geometry, value.geometry)
        call = self.book.calls.get(value.content)
        return self._whole(value.content, call.base.geometry if call else value.geometry).as_strided(*value.geometry)

    @property
    def by_content(self) -> dict[int, Memory]:
        """Frozen tensors by their contents."""
        return {memory.content: memory for memory in self.frozen.values() if memory.content is not None}


class Suffix(nn.Module):
    """What crosses -> what ``module`` gives for the images that it was made from; the module's own code runs."""

    def __init__(self, module: nn.Module, known: Known) -> None:
        super().__init__()
        self.module = module
        self._known, self._books = known, dict[int, Book]()
        self._sources = Sources(known.frozen, known.contents)

    def forward(self, *activations: Tensor) -> Any:
        """Return what the module gives.  Raises: NotReplayable: it needs a fixed value that was not kept."""
        known, batch = self._known, len(activations[0])
        book = self._books.get(batch) or known.book(batch)
        self._books[batch] = book
        run = _ReplayingRun(book, self._sources.read(self.module, book), self.module)
        run.hold(known, activations)
        geometry = Geometry(*fill_in_batch(known.image, batch))
        like = torch.empty_strided(geometry.size, geometry.stride, dtype=known.dtype, device="meta")
        memory = Memory(IMAGES, like)
        memory.device = activations[0].device
        try:
            with run:
                outputs = plain_outputs(self.module(make_fixed(run, memory, geometry)))
                settle(self.module)
        except FAILURES:
            if run.failure is not None:
                raise run.failure from None
            raise
        if run.failure is not None:
            raise run.failure
        return outputs
