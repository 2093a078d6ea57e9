"""A forward pass in which values that are fixed are known as such: what every operation gives.

Two kinds of it compute what is fixed (``recording``), a third does not (``halves``).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.private_names import TorchDispatchMode, without_dispatch
from headstart.surgery.fixed_values import (
    Book,
    Call,
    Fixed,
    Key,
    Memory,
    NotReplayable,
    Output,
    Ref,
    Step,
    Values,
    copy_span,
    flat,
    geometry_of,
    make_fixed,
    map_nested,
    once,
)  # fmt: skip
from headstart.surgery.per_image_ops import WRITES, is_fixed

if TYPE_CHECKING:
    from headstart.surgery.per_image_ops import Operation

OWN_FORWARD = "the model's own forward"
"""What stands in the place of a module's path for code of the model itself, in none of its parts."""
_LIVE: Any = object()
_RESTRIDE = torch.ops.aten.as_strided_.default
_SIZES = frozenset(("size", "repeats", "sizes", "split_sizes", "split_size", "N"))
"""Names of arguments that may hold the number of images."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every operation to a run."""

    def __init__(self, run: Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: what torch wraps a mode in otherwise costs 10 microseconds an operation."""
        return False

    def __torch_dispatch__(
        self, func: Operation, types: Sequence[type], args: Sequence[Any] = (), kwargs: Values | None = None
    ) -> Any:
        return self._run.call(func, args, kwargs or {})


class Run:
    """One forward pass of ``module`` whose fixed part is recorded, or is not computed; ``frozen``: its tensors that
    are, by identity. A context: within, it is told of every operation.
    """

    def __init__(self, book: Book, frozen: Mapping[int, Memory], module: nn.Module) -> None:
        self.book, self.frozen, self.module = book, frozen, module
        self.active = False
        self.failure: NotReplayable | None = None
        self.standing: dict[int, Tensor] = {}
        self.device_type = next((value.device.type for value in module.parameters()), "cpu")

    def __enter__(self) -> None:
        self.active, self._watch = True, _Watch(self)
        self._watch.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *about: Any) -> None:
        self.active = False
        self._watch.__exit__(*about)  # type: ignore[no-untyped-call]

    def need(self, value: Fixed) -> Tensor:
        """The numbers of a value that something live reads."""
        raise NotImplementedError

    def own(self, memory: Memory) -> None:
        """Put numbers that nothing else sees into a memory that something live writes to."""
        raise NotImplementedError

    def stays(self, value: Fixed, attribute: tuple[str, str]) -> None:
        """A value is kept by the module after the forward pass, in an attribute of one of its parts."""

    def constant(self, value: Tensor) -> int | None:
        """The content of a tensor that is neither frozen nor fixed; None where it is live."""
        raise NotImplementedError

    def real_arguments(self, value: Any) -> Any:
        """An argument of a fixed operation, to run it for real."""
        raise NotImplementedError

    @property
    def computes(self) -> bool:
        """Whether fixed operations run."""
        raise NotImplementedError

    def call(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        """What an operation gives: fixed where it and its arguments are."""
        if func is _RESTRIDE and type(args[0]) is Fixed:
            return _restride(args[0], func, args, kwargs)
        if not self._concerns(args) and not (kwargs and self._concerns(tuple(kwargs.values()))):
            return self.plain(func, args, kwargs)
        key = self._key(func, args, kwargs)
        step = _LIVE if key is _LIVE else self.book.steps.get(key)
        if step is None and not self._is_fixed(func, args, kwargs):
            step = self.book.steps[key] = _LIVE
        if step is _LIVE:
            return self.live(func, args, kwargs, known=key is not _LIVE)
        outs = self.compute(func, args, kwargs) if step is None or self.computes else None
        if step is None:
            step = self.book.steps[key] = self._learn(key, func, args, kwargs, outs)
            if self.depends(args, kwargs) and not is_fixed(func, args, kwargs, batch=self.book.batch):
                self.book.along.add(key)
            if step is _LIVE:
                return self.live(func, args, kwargs, known=True)
        return self._results(step, args, outs)

    def _concerns(self, values: Sequence[Any]) -> bool:
        """Whether something fixed or frozen is among the values, or in a list there."""
        for value in values:
            kind = type(value)
            if kind is Fixed or id(value) in self.frozen:
                return True
            if (kind is list or kind is tuple) and value and self._concerns(value):
                return True
        return False

    def plain(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        """An operation on tensors that are not fixed."""
        return func(*args, **kwargs)

    def _is_fixed(self, func: Operation, args: Sequence[Any], kwargs: Values) -> bool:
        if func._schema.name in WRITES and (type(args[0]) is not Fixed or args[0].memory.source):
            return False
        return is_fixed(func, args, kwargs) and not self.picks_by_images(func, args)

    def picks_by_images(self, func: Operation, args: Sequence[Any]) -> bool:
        """Whether a mask that depends on the images says what is taken: how much that is differs with the images."""
        masks = args[1] if func._schema.name == "aten::index" else ()
        by_mask = [each for each in masks if isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)]
        return self.depends(by_mask, {})

    def depends(self, args: Sequence[Any], kwargs: Values) -> bool:
        """Whether an argument depends on the images."""
        values = flat((args, tuple(kwargs.values())))
        return any(type(value) is Fixed and value.memory.content in self.book.of_images for value in values)

    def _key(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        sizes = _size_places(func)
        parts: list[Any] = [func]
        for place, value in enumerate(args):
            part = self._describe_argument(value, place in sizes)
            if part is _LIVE:
                return _LIVE
            parts.append(part)
        for name, value in kwargs.items():
            part = self._describe_argument(value, name in _SIZES)
            if part is _LIVE:
                return _LIVE
            parts.append((name, part))
        return tuple(parts)

    def _describe_argument(self, value: Any, size: bool) -> Any:
        kind = type(value)
        if kind is Fixed or isinstance(value, Tensor):
            return self._describe_tensor(value)
        if kind is list or kind is tuple:
            if not size and value and type(value[0]) is int:
                return ("=", kind, tuple(value))
            parts = tuple([self._describe_argument(each, size) for each in value])
            return _LIVE if _LIVE in parts else parts
        if size and kind is int:
            return value
        return ("=", kind, value.hex() if kind is float else value)

    def _describe_tensor(self, value: Tensor) -> Any:
        if value.requires_grad:
            return _LIVE
        if type(value) is Fixed:
            content = value.memory.content
            if content is None or (value.run is not self and content in value.run.book.of_images):
                return _LIVE
            return ("#", content, value.geometry)
        source = self.frozen.get(id(value))
        if source is not None:
            return ("#", source.content, source.base) if source.content is not None else _LIVE
        content = self.constant(value) if self.active else None
        return _LIVE if content is None else ("#", content, geometry_of(value))

    def compute(self, func: Operation, args: Sequence[Any], kwargs: Values) -> Any:
        """Run a fixed operation for real."""
        self.standing.clear()
        real = once(self.real_arguments)
        with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
            return func(*map_nested(tuple(args), real), **map_nested(dict(kwargs), real))

    def _learn(self, key: Key, func: Operation, args: Sequence[Any], kwargs: Values, outs: Any) -> Any:
        """The step that an operation is, from what it gave; it is live where it gives a view of what is not fixed."""
        values = list(outs) if isinstance(outs, (list, tuple)) else [outs]
        many = type(outs) if isinstance(outs, (list, tuple)) else None
        places = {place for place, each in enumerate(args) for out in values if self._shares(each, out)}
        writes = func._schema.name in WRITES
        if not writes and places:
            (place, *more) = places
            if (
                more
                or not (type(args[place]) is Fixed or id(args[place]) in self.frozen)
                or _changes_dtype(values, args[place])
            ):
                return _LIVE
            return Step(tuple(map(_view_plain, values)), many, place, False)
        return Step(self._name_values(key, func, args, kwargs, values, writes), many, None, writes)

    def _shares(self, argument: Any, out: Any) -> bool:
        if not isinstance(argument, Tensor) or not isinstance(out, Tensor):
            return False
        real = self.real_arguments(argument)
        where = out.untyped_storage().data_ptr()
        return where != 0 and bool(real.untyped_storage().data_ptr() == where)

    def _name_values(
        self, key: Key, func: Operation, args: Sequence[Any], kwargs: Values, values: list[Any], writes: bool
    ) -> tuple[Any, ...]:
        book, refer = self.book, once(self._refer)
        known = book.names.setdefault(key, ()) or tuple(book.contents.new() for _ in values)
        book.names[key] = known
        noted, noted_kwargs = map_nested(tuple(args), refer), map_nested(dict(kwargs), refer)
        label, outputs = self.name_running(), list[Any]()
        for place, (content, value) in enumerate(zip(known, values, strict=True)):
            if not isinstance(value, Tensor):
                outputs.append(value)
                continue
            base = args[0].memory.base if writes else geometry_of(value)
            made = Output(content, base, value.dtype, value.device)
            book.calls[content] = Call(func, noted, noted_kwargs, place, writes, made, label)
            if any(ref.content in book.of_images for ref in book.calls[content].refs()):
                book.of_images.add(content)
            outputs.append(made)
        return tuple(outputs)

    def _refer(self, value: Any) -> Any:
        if type(value) is Fixed:
            assert value.memory.content is not None
            return Ref(value.memory.content, value.geometry)
        source = self.frozen.get(id(value))
        if source is not None:
            assert source.content is not None
            return Ref(source.content, source.base)
        return copy_span(value) if isinstance(value, Tensor) else value  # a constant, which may be written to later

    def _results(self, step: Step, args: Sequence[Any], outs: Any) -> Any:
        if step.writes:
            args[0].memory.content = step.outputs[0].content
            self.receive(args[0].memory)
            return args[0]
        values = outs if step.many else (outs,)
        results = []
        for place, made in enumerate(step.outputs):
            if not isinstance(made, Output):
                results.append(made)
                continue
            if step.view_of is not None:
                origin = args[step.view_of]
                parent = origin if type(origin) is Fixed else None
                memory = self.frozen[id(origin)] if parent is None else parent.memory
                results.append(make_fixed(self, memory, made.geometry, parent))
                continue
            memory = Memory(made.content, made, values[place] if self.computes else None)
            results.append(make_fixed(self, memory, made.geometry))
            self.receive(memory)
        return step.many(results) if step.many else results[0]

    def receive(self, memory: Memory) -> None:
        """A content is there."""

    def live(self, func: Operation, args: Sequence[Any], kwargs: Values, *, known: bool) -> Any:  # noqa: ARG002
        """Run an operation on numbers; ``known``: all its arguments are fixed."""
        values = [v for v in flat((args, tuple(kwargs.values()))) if type(v) is Fixed]
        written = _find_written(func)
        for place, value in [*enumerate(args), *kwargs.items()]:
            if type(value) is Fixed and place in written and value.memory.content is not None:
                value.run.own(value.memory)
                value.memory.content = None
            elif id(value) in self.frozen and place in written:
                self.moves(value)
        given = {id(v): v.run.need(v) for v in values}
        outs = func(
            *map_nested(tuple(args), lambda v: given.get(id(v), v)),
            **map_nested(dict(kwargs), lambda v: given.get(id(v), v)),
        )
        for value in values:
            if value.memory.content is not None and not value.memory.source and _overlaps(outs, given[id(value)]):
                value.run.own(value.memory)
                value.memory.content = None
        back = {id(real): value for value, real in ((v, given[id(v)]) for v in values)}
        return map_nested(outs, lambda out: back.get(id(out), out))

    def moves(self, value: Tensor) -> None:  # noqa: ARG002
        """A frozen tensor is written to."""
        raise self.fail(f"{self.name_running()} writes to a frozen tensor")

    def fail(self, text: str) -> NotReplayable:
        """The reason why this cannot go on; it stays known if the user's code catches it."""
        self.failure = self.failure or NotReplayable(f"model: {text}; so it does not run from a cache")
        return self.failure

    def name_running(self) -> str:
        """The module whose code is running, by its path; for the whole model words that say so."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and id(frame.f_locals.get("self")) not in self._paths:
            frame = frame.f_back
        return self._path(frame)

    def name_raiser(self, error: BaseException) -> str:
        """The module whose code raised it."""
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        return self._path(next((f for f in reversed(frames) if id(f.f_locals.get("self")) in self._paths), None))

    def _path(self, frame: FrameType | None) -> str:
        path = self._paths[id(frame.f_locals["self"])] if frame is not None else ""
        return path or OWN_FORWARD

    @cached_property
    def _paths(self) -> dict[int, str]:
        return {id(part): path for path, part in self.module.named_modules()}


def _view_plain(value: Any) -> Any:
    return Output(-1, geometry_of(value), value.dtype, value.device) if isinstance(value, Tensor) else value


def _changes_dtype(values: Sequence[Any], argument: Tensor) -> bool:
    return any(value.dtype != argument.dtype or value.is_conj() or value.is_neg() for value in values)


def _overlaps(outs: Any, real: Tensor) -> bool:
    where = real.untyped_storage().data_ptr()
    return any(isinstance(out, Tensor) and out.untyped_storage().data_ptr() == where != 0 for out in flat(outs))


def _restride(value: Fixed, func: Operation, args: Sequence[Any], kwargs: Values) -> Fixed:
    """Pooling to a single pixel does this to a result of its own."""
    with without_dispatch():  # the stand-in's own sizes; it has no numbers
        func(*args, **kwargs)
    value.geometry, value.within = geometry_of(value), None
    return value


@lru_cache(maxsize=4096)
def _size_places(func: Operation) -> frozenset[int]:
    return frozenset(place for place, argument in enumerate(func._schema.arguments) if argument.name in _SIZES)


@lru_cache(maxsize=4096)
def _find_written(func: Operation) -> frozenset[int | str]:
    """Arguments that an operation writes to, by place or name."""
    return frozenset(
        key
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for key in (place, argument.name)
    )
