"""A module's forward pass, run for real, with what is fixed in it and where the rest needs that."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from headstart.surgery.constants import add_constant, find_constant
from headstart.surgery.fixed_run import Run
from headstart.surgery.fixed_values import (
    IMAGES,
    READS,
    Book,
    Fixed,
    Geometry,
    Memory,
    NotReplayable,
    Values,
    flat,
    geometry_of,
    make_fixed,
)  # fmt: skip
from headstart.surgery.held import list_named_tensors, plain_outputs, settle
from headstart.surgery.per_image_ops import is_fixed

if TYPE_CHECKING:
    from headstart.surgery.per_image_ops import Operation

MOST_CONSTANT_BYTES = 1 << 22
"""Plain tensors up to this size that a forward pass brings along are compared by their bytes at every step."""
_ROOM = frozenset(
    ("aten::empty_like", "aten::new_empty", "aten::empty", "aten::empty_strided", "aten::new_empty_strided")
)
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError)
"""What a module's own code raises where it asks a stand-in for what only numbers can give."""


@dataclass(frozen=True)
class Obstacle:
    """Why what comes after is not fixed: the module whose code was running, and what it did."""

    module: str
    reason: str

    def __str__(self) -> str:
        return f"{self.module}: {self.reason}"


@dataclass(frozen=True)
class Need:
    """A fixed value that something live reads; ``within``: what it is a view of, from the inside out."""

    content: int
    geometry: Geometry
    within: tuple[Geometry, ...] = ()


@dataclass
class Recording:
    """What a forward pass showed. ``seen``: contents made; ``prints``: two numbers per image of contents with a row for
    each image; ``reads``: contents whose numbers Python read, and where; ``decided``: contents made after the first of
    these, which Python may have decided on; ``moving``: frozen tensors that are written to; ``drew``: random numbers
    were drawn.
    """

    needs: dict[Need, None] = field(default_factory=dict)
    seen: set[int] = field(default_factory=lambda: {IMAGES})
    reads: dict[int | None, str] = field(default_factory=dict)
    decided: set[int] = field(default_factory=set)
    prints: dict[int, Tensor] = field(default_factory=dict)
    obstacles: dict[Obstacle, None] = field(default_factory=dict)
    moving: set[str] = field(default_factory=set)
    drew: bool = False


class RealRun(Run):
    """A forward pass in which fixed operations are computed, too."""

    def __init__(self, book: Book, frozen: Mapping[int, Memory], module: nn.Module) -> None:
        super().__init__(book, frozen, module)
        self.retained: frozenset[int] = frozenset()

    @property
    def computes(self) -> bool:
        """Always true: fixed operations are computed, too."""
        return True

    def need(self, value: Fixed) -> Tensor:
        """Return the numbers of a fixed value."""
        return value.memory.view_at(value.geometry)

    def own(self, memory: Memory) -> None:
        """Let a memory be written to; numbers that are kept stay as they are, in a copy."""
        if memory.content in self.retained and memory.real is not None:
            memory.real = copy_in_layout(memory.real)

    def real_arguments(self, value: Any) -> Any:
        """Return an argument with the numbers of a fixed one."""
        if type(value) is Fixed:
            return value.memory.view_at(value.geometry)
        return value.detach() if isinstance(value, Tensor) else value

    def compute(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        """Run a fixed operation; what it writes to is not kept."""
        if type(args[0]) is Fixed and func._schema.name.endswith("_"):
            self.own(args[0].memory)
        return super().compute(func, args, kwargs)

    def constant(self, value: Tensor) -> int | None:
        """Return the content of a tensor that is known by its bytes, or None."""
        return find_constant(self.book, value)

    def image(self, images: Tensor) -> Fixed:
        """Return the stand-in for images."""
        return make_fixed(self, Memory(IMAGES, images, images), geometry_of(images))


class RecordingRun(RealRun):
    """A forward pass that writes down what is made, what is needed, and where something ceases to be fixed. ``moving``:
    names of buffers that a forward pass changes; the others are constants.
    """

    def __init__(
        self, book: Book, frozen: Mapping[int, Memory], module: nn.Module, moving: Collection[str] = ()
    ) -> None:
        super().__init__(book, frozen, module)
        self.recording = Recording()
        self._live: dict[int, tuple[Tensor, Obstacle | Literal[""]]] = {}
        buffers = [value for name, value in module.named_buffers(remove_duplicate=False) if name in moving]
        others = [value for value in (*module.parameters(), *buffers) if id(value) not in frozen]
        self._trained = {id(value) for value in others}
        self._memory = {value.untyped_storage().data_ptr() for value in others}

    def need(self, value: Fixed) -> Tensor:
        """Return the numbers, and note that they were needed."""
        content = value.memory.content
        if value.run is self and content is not None and content in self.book.of_images:
            within, around = list[Geometry](), value.within
            while around is not None:
                within.append(around.geometry)
                around = around.within
            self.recording.needs[Need(content, value.geometry, tuple(within))] = None
        return super().need(value)

    def stays(self, value: Fixed, attribute: tuple[str, str]) -> None:
        """Remember by its bytes, for the next pass, what the module keeps of its frozen tensors."""
        content = value.memory.content
        if content is None or content in self.book.of_images or value.memory.source:
            return
        real = self.need(value)
        known = find_constant(self.book, real)
        if known is None:
            add_constant(self.book, real, content)
        elif known != content:
            self.book.contents.same[content] = known
        self.book.contents.attributes[attribute] = None

    def own(self, memory: Memory) -> None:
        """Note that all of a memory is needed: a part of it is written to."""
        if memory.content is not None and memory.content in self.book.of_images:
            self.recording.needs[Need(memory.content, memory.base)] = None
        super().own(memory)

    def compute(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        """Run a fixed operation, without a note."""
        return Run.compute(self, func, args, kwargs)

    def constant(self, value: Tensor) -> int | None:
        """Return a tensor's content, known by its bytes or new; None for what trains, is random, or comes of these."""
        if self._cause(value) is not None or value.numel() * value.element_size() > MOST_CONSTANT_BYTES:
            return None
        known = find_constant(self.book, value)
        return add_constant(self.book, value) if known is None else known

    def plain(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        """Run an operation, and note what is live by it."""
        outs = func(*args, **kwargs)
        self._mark(func, args, kwargs, outs)
        return outs

    def live(self, func: Operation, args: Sequence[Any], kwargs: Values, *, known: bool) -> Any:
        """Run a live operation, and note why it is live."""
        values = [*flat((tuple(args), tuple(kwargs.values())))]
        causes = [self._cause(v) for v in values if isinstance(v, Tensor)]
        if func._schema.name in READS and self.depends(args, kwargs):
            self.recording.reads |= {v.memory.content: self.name_running() for v in values if type(v) is Fixed}
        elif "" not in causes and any(map(self._is_weight, values)):  # frozen, and yet computed at every step
            self.recording.obstacles |= {cause: None for cause in causes if isinstance(cause, Obstacle)}
        outs = super().live(func, args, kwargs, known=known)
        self._mark(func, args, kwargs, outs, known=known)
        return outs

    def moves(self, value: Tensor) -> None:
        """Note a frozen tensor that is written to: it is not frozen."""
        self.frozen[id(value)].content = None
        self.recording.moving |= {name for name, tensor in list_named_tensors(self.module) if tensor is value}

    def receive(self, memory: Memory) -> None:
        """Take the prints of a content with a row for each image."""
        content = memory.content
        assert content is not None and memory.real is not None
        if self.recording.reads and content not in self.recording.seen:
            self.recording.decided.add(content)
        self.recording.seen.add(content)
        has_rows = memory.base.size[:1] == (self.book.batch,) and memory.real.numel() > 0
        if has_rows and content in self.book.of_images and content not in self.recording.prints:
            self.recording.prints[content] = prints(memory.real)

    def _is_weight(self, value: Any) -> bool:
        """Whether a value is frozen, or made of frozen ones alone."""
        if type(value) is Fixed:
            return value.memory.content is not None and value.memory.content not in self.book.of_images
        return id(value) in self.frozen

    def _cause(self, value: Tensor) -> Obstacle | Literal[""] | None:
        """Why a tensor is live, "" where it trains; None where it is not."""
        if id(value) in self._live:
            return self._live[id(value)][1]
        if type(value) is Fixed:
            return None
        trains = value.requires_grad or id(value) in self._trained
        return "" if trains or value.untyped_storage().data_ptr() in self._memory - {0} else None

    def _mark(self, func: Operation, args: Sequence[Any], kwargs: Values, outs: Any, *, known: bool = False) -> None:
        tensors = [v for v in flat((tuple(args), tuple(kwargs.values()))) if isinstance(v, Tensor)]
        causes = [cause for cause in map(self._cause, tensors) if cause is not None]
        random = torch.Tag.nondeterministic_seeded in func.tags and not is_fixed(func, args, kwargs)
        if func._schema.name in _ROOM:
            return
        if random or known:
            causes.append(Obstacle(self.name_running(), self._reason(func, args, random=random)))
        if causes or any(type(value) is Fixed for value in tensors):
            cause: Obstacle | Literal[""] = "" if not causes or "" in causes else causes[0]
            for value in flat(tuple(outs) if isinstance(outs, (tuple, list)) else (outs,)):
                if isinstance(value, Tensor) and type(value) is not Fixed:
                    self._live[id(value)] = (value, cause)

    def _reason(self, func: Operation, args: Sequence[Any], *, random: bool) -> str:
        if self.picks_by_images(func, args):
            return "a mask that depends on the images picks some of them, another number every time"
        reason = "draws random numbers" if random else "is not known to give the same for an image every time"
        return f"{func._schema.name.removeprefix('aten::')} {reason}"


def prints(value: Tensor) -> Tensor:
    """Two numbers for each row: its length, and where it points to."""
    rows = value.detach().reshape(value.shape[0], -1).double()  # (B, everything)
    direction = torch.cos(torch.arange(rows.shape[1], dtype=torch.float64, device=rows.device) * 0.7 + 0.3)
    return torch.stack([rows.norm(dim=1), rows @ direction], dim=1)


def copy_in_layout(value: Tensor) -> Tensor:
    """A copy with the same layout in memory."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).copy_(value)


def run_module(run: RealRun, module: nn.Module, images: Tensor, *, training: bool) -> None:
    """Run a forward pass under ``run``.  Raises: NotReplayable: it cannot be followed."""
    modes = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        with torch.set_grad_enabled(training), run:
            plain_outputs(module(run.image(images)))
            settle(module)
    except FAILURES as error:
        line = str(error).splitlines()[0][:160] if str(error) else ""
        raise run.failure or NotReplayable(
            f"model: {run.name_raiser(error)} does not run on stand-ins for tensors ({type(error).__name__}: {line}), "
            "so the model does not run from a cache"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if run.failure is not None:
        raise run.failure
