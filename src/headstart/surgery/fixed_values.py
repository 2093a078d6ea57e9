"""Values that are a function of the image and of frozen tensors: known by what made them, without their numbers.

A ``Fixed`` stands in the user's code for such a tensor. Operations on it that are known to be fixed give another one
and compute nothing; any other operation asks its run for the numbers. B batch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from headstart.errors import ModelError
from headstart.private_names import make_wrapper, without_torch_function

if TYPE_CHECKING:
    from headstart.surgery.per_image_ops import Operation

Values = Mapping[str, Any]
Key = tuple[Any, ...]
IMAGES = 0
"""What the images are called among the contents."""
READS = frozenset(("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"))
"""Operations that tell Python a number."""


class NotReplayable(ModelError):
    """A module cannot run from tensors that were kept in place of what its frozen part computes."""


class Geometry(NamedTuple):
    """Where a tensor's numbers are in its memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def geometry_of(value: Tensor) -> Geometry:
    """Where the numbers of a tensor are."""
    return Geometry(tuple(value.shape), value.stride(), int(value.storage_offset()))


def _count_span(size: Sequence[int], stride: Sequence[int]) -> int:
    """How many numbers a tensor's memory has from its first to its last."""
    return 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))


def copy_span(value: Tensor) -> Tensor:
    """A copy with the same strides in a memory of its own, where numbers that are one stay one."""
    size, stride, offset = geometry_of(value)
    span = value.detach().as_strided((_count_span(size, stride),), (1,), offset)
    return span.clone().as_strided(size, stride)


def blank(geometry: Geometry, like: Memory) -> Tensor:
    """Zeros laid out like ``geometry`` in a memory of their own."""
    span = _count_span(geometry.size, geometry.stride)
    span += geometry.offset if span else 0
    return torch.zeros(span, dtype=like.dtype, device=like.device).as_strided(*geometry)


class Memory:
    """What tensors that are views of one another share. ``content``: what is in it, None where that is not fixed any
    more; ``real``: the numbers, where they are there; ``source``: it is a frozen tensor of the module.
    """

    __slots__ = ("base", "content", "device", "dtype", "real", "source")

    def __init__(
        self, content: int, like: Tensor | Output, real: Tensor | None = None, *, source: bool = False
    ) -> None:
        self.content: int | None = content
        self.real, self.source = real, source
        self.base = geometry_of(like) if isinstance(like, Tensor) else like.geometry
        self.dtype, self.device = like.dtype, like.device

    def view_at(self, geometry: Geometry) -> Tensor:
        """The numbers, from a certain angle."""
        assert self.real is not None
        return self.real.as_strided(*geometry)


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an operation: its content (-1: it is a view of an argument), and how it looks."""

    content: int
    geometry: Geometry
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class Step:
    """What an operation gives: outputs, other values as they are; ``view_of``: the argument that they are views of;
    ``writes``: into its first argument; ``many``: what holds them.
    """

    outputs: tuple[Any, ...]
    many: type | None
    view_of: int | None
    writes: bool


@dataclass(frozen=True, slots=True)
class Ref:
    """A fixed argument of a call that is written down."""

    content: int
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Call:
    """How a content is made: output ``index`` of an operation, or what the operation leaves in its first argument.
    ``label``: the module that called it.
    """

    func: Operation
    args: tuple[Any, ...]
    kwargs: Values
    index: int
    writes: bool
    base: Output
    label: str

    def refs(self) -> Iterator[Ref]:
        """What it is made from."""
        return _refs((self.args, tuple(self.kwargs.values())))


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _refs(each)


@dataclass
class Contents:
    """Numbers given to contents for all runs of one module; ``constants`` by type and shape: plain tensors, compared
    by their bytes, whole or as the rows that every image has; ``same``: contents with the bytes of another one;
    ``attributes``: parts and their attributes that keep what is made of frozen tensors.
    """

    frozen: dict[str, int] = field(default_factory=dict)
    constants: dict[Key, list[tuple[Tensor, int]]] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)
    attributes: dict[tuple[str, str], None] = field(default_factory=dict)
    count: int = 1

    def new(self) -> int:
        """A number for another content."""
        self.count += 1
        return self.count - 1


@dataclass
class Book:
    """What is known of a module's fixed part at one number of images. ``names``: calls with the contents that they are
    known to make; ``of_images``: contents that depend on the images; ``along``: calls that may go along the images of a
    batch, or pick some.
    """

    contents: Contents
    batch: int
    names: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    steps: dict[Key, Any] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    of_images: set[int] = field(default_factory=lambda: {IMAGES})
    along: set[Key] = field(default_factory=set)


class Caller(Protocol):
    """What computes for a ``Fixed`` (see ``fixed_run.Run``)."""

    book: Book

    def call(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        """What an operation gives."""

    def need(self, value: Fixed) -> Tensor:
        """The numbers of a value."""

    def own(self, memory: Memory) -> None:
        """Put numbers of its own into a memory."""

    def stays(self, value: Fixed, attribute: tuple[str, str]) -> None:
        """A value is kept by the module, in a part's attribute."""


class Fixed(Tensor):
    """Looks like a tensor; the numbers are asked for only where they are needed."""

    run: Caller
    memory: Memory
    geometry: Geometry
    within: Fixed | None
    __torch_function__ = without_torch_function

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Operation, types: Sequence[type], args: Sequence[Any] = (), kwargs: Values | None = None
    ) -> Any:
        """Called outside its run: in a backward pass, in a loss."""
        run = next(value.run for value in flat((args, tuple((kwargs or {}).values()))) if type(value) is Fixed)
        return run.call(func, args, kwargs or {})


def make_fixed(run: Caller, memory: Memory, geometry: Geometry, within: Fixed | None = None) -> Fixed:
    """A stand-in for the numbers of ``memory`` at ``geometry``; ``within``: what it is a view of."""
    made: Fixed = make_wrapper(
        Fixed, geometry.size, geometry.stride, geometry.offset, dtype=memory.dtype, device=memory.device
    )
    made.run, made.memory, made.geometry, made.within = run, memory, geometry, within
    return made


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from flat(each)
    else:
        yield value


def once(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same change, made once for each tensor: some operations ask whether two arguments are one."""
    made: dict[int, Any] = {}

    def change_once(value: Any) -> Any:
        if not isinstance(value, (Tensor, Ref)):
            return change(value)
        if id(value) not in made:
            made[id(value)] = change(value)
        return made[id(value)]

    return change_once


def map_nested(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with every leaf changed."""
    if isinstance(value, tuple):
        parts = [map_nested(each, change) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if type(value) is list:
        return [map_nested(each, change) for each in value]
    if isinstance(value, dict) and type(value).__init__ is dict.__init__:
        return type(value)({name: map_nested(each, change) for name, each in value.items()})
    return change(value)
