"""Functions, methods and containers that refer to a module, made anew to refer to its copy."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import ModelError
from headstart.surgery.closure_state import EMPTY, content_of, is_data, keeps_data
from headstart.surgery.origins import is_live
from headstart.surgery.values import FAILURES

_LIBRARIES = ("torch", "timm", "torchvision", "numpy", "headstart", "peft")  # their functions know no user's module
_REFERRING = (FunctionType, MethodType, partial, weakref.ref, tuple, set, frozenset)  # made anew, not changed
_DEEPEST, _WIDEST = 8, 1000  # of what is looked through outside the module


class Rewiring:
    """What refers to parts of the original, made anew to refer to those of the copy.

    ``memo``: the copies by the id of their originals, as deepcopy keeps it; ``memory``: addresses of the original's
    storages; ``instead``: what a user can type where it cannot be done.
    """

    def __init__(self, module: nn.Module, memo: dict[int, Any], *, memory: frozenset[int], instead: str) -> None:
        self.memo, self.memory, self.instead = memo, memory, instead
        self.originals: dict[int, object] = {id(part): part for part in module.modules()}
        self.originals |= {id(value): value for value in (*module.parameters(), *module.buffers())}
        self.seen: dict[int, object] = {}  # looked through already; kept, so that no address is used twice
        self.renewed: dict[int, tuple[object, Any]] = {}  # originals of functions and cells, and what stands for them

    def inside(self, values: object, where: str) -> None:
        """Look through a container or an object that belongs to the copy, and put what is made anew in its place."""
        if id(values) in self.seen:
            return
        self.seen[id(values)] = values
        if isinstance(values, dict):
            for key, value in list(values.items()):
                values[key] = self._one(value, f"{where}.{key}" if isinstance(key, str) else where)
        elif isinstance(values, list | deque):
            for place, value in enumerate(list(values)):
                values[place] = self._one(value, where)
        elif isinstance(getattr(values, "__dict__", None), dict) and not _is_known(type(values)):
            self.inside(vars(values), where)

    def _one(self, value: object, where: str) -> object:
        if isinstance(value, MethodType):
            self._one(value.__self__, where)
        if id(value) in self.originals or isinstance(value, _REFERRING):
            return self.outside(value, where)
        if not isinstance(value, Tensor | nn.Module | type | ModuleType):  # which the copy shares
            self.inside(value, where)
        return value

    def check_classes(self, kinds: Iterable[type]) -> None:
        """Raises: ModelError: a method of a class of the user's refers to the original."""
        for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
            for name, function in vars(base).items():
                if isinstance(function, FunctionType) and not _is_librarys(function) and self._reaches(function):
                    self.outside(function, f"{base.__name__}.{name}")
                    raise self._refusal(f"{base.__name__}.{name}", "a part of the module")

    def outside(self, value: Any, where: str) -> Any:
        """The value itself, or the same for the copy where it refers to the original, or to functions that keep data;
        it is not changed.

        Raises: ModelError: it refers to the original in a way that cannot be made anew.
        """
        if not self._reaches(value) and not keeps_data(value):
            return value
        if id(value) in self.originals:
            if id(value) not in self.memo:
                raise self._refusal(where, "a part of the module that its own __deepcopy__ leaves out")
            return self.memo[id(value)]
        match value:
            case Tensor():
                raise self._refusal(where, "a part of the module's weights")
            case FunctionType():
                return self._function(value, where)
            case MethodType():
                return MethodType(self.outside(value.__func__, where), self.outside(value.__self__, where))
            case partial():
                func, args, keywords = (self.outside(part, where) for part in (value.func, value.args, value.keywords))
                renewed = partial(func, *args, **keywords)
                vars(renewed).update(vars(value))
                return renewed
            case weakref.ref():
                return weakref.ref(self.outside(value(), where))
            case dict() if type(value) is dict:
                return {key: self.outside(part, where) for key, part in value.items()}
            case list() | tuple() | set() | frozenset() if type(value) in (list, tuple, set, frozenset):
                return type(value)([self.outside(part, where) for part in value])
        raise self._refusal(where, f"an object ({type(value).__name__}) that holds parts of the module")

    def _copy_held(self, value: Any, where: str) -> Any:
        """What a function keeps, for its copy: data as the module's copy has it, or copied now."""
        if is_data(value) and not self._reaches(value):
            with suppress(*FAILURES):  # a class of the user's may forbid it: then it is shared
                return copy.deepcopy(value, self.memo)
        return self.outside(value, where)

    def _reaches(self, value: object) -> bool:
        """Whether it refers to the original, itself or through what it refers to."""
        waiting, seen = [(value, 0)], dict[int, object]()
        while waiting:
            part, depth = waiting.pop()
            if id(part) in self.originals or self._shares_memory(part):
                return True
            if id(part) not in seen and depth < _DEEPEST:
                seen[id(part)] = part
                waiting += [(other, depth + 1) for other in _list_referred(part)]
        return False

    def _shares_memory(self, value: object) -> bool:
        if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter) or value.is_meta:
            return False
        return value.layout is torch.strided and value.untyped_storage().data_ptr() in self.memory

    def _function(self, function: FunctionType, where: str) -> FunctionType:
        """A function of the same code, with cells, defaults and attributes of its own where the original is in one of
        them.
        """
        if id(function) in self.renewed:
            renewed: FunctionType = self.renewed[id(function)][1]
            return renewed
        for name, value in _iterate_globals(function):
            if self._reaches(value):
                raise self._refusal(where, f"the module or a part of it by the global name {name}")
        cells = function.__closure__ or ()
        changed = [cell for cell in cells if id(cell) not in self.renewed and self._is_made_anew(cell)]
        self.renewed |= {id(cell): (cell, CellType()) for cell in changed}
        closure = tuple(self.renewed[id(cell)][1] if id(cell) in self.renewed else cell for cell in cells)
        renewed = FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
        self.renewed[id(function)] = (function, renewed)  # before its cells are filled: it may be in one of them
        for cell in changed:
            self.renewed[id(cell)][1].cell_contents = self._copy_held(content_of(cell), where)
        defaults, named = function.__defaults__, function.__kwdefaults__
        renewed.__defaults__ = defaults and tuple([self._copy_held(value, where) for value in defaults])
        renewed.__kwdefaults__ = named and {name: self._copy_held(value, where) for name, value in named.items()}
        renewed.__qualname__, renewed.__module__ = function.__qualname__, function.__module__
        vars(renewed).update({name: self._copy_held(value, where) for name, value in vars(function).items()})
        return renewed

    def _is_made_anew(self, cell: CellType) -> bool:
        """Whether what a closure's cell holds is another thing for the copy; one that is empty stays so."""
        held = content_of(cell)
        return held is not EMPTY and (self._reaches(held) or is_data(held) or keeps_data(held))

    def _refusal(self, where: str, what: str) -> ModelError:
        return ModelError(
            f"model: the module cannot be copied: {where} refers to {what}; take the module that hooks and methods are "
            f"given in its place, or {self.instead}"
        )


def _list_referred(value: object) -> list[Any]:
    """The objects that a value refers to; modules and classes, libraries' objects and very large containers are not
    looked into.
    """
    match value:
        case nn.Module() | type() | Tensor():
            return []
        case FunctionType():
            if _is_librarys(value):
                return []
            contents = [content_of(cell) for cell in value.__closure__ or ()]
            named = [found for _, found in _iterate_globals(value)]
            return [*contents, *named, value.__defaults__, value.__kwdefaults__, vars(value)]
        case MethodType():
            return [value.__self__, value.__func__]
        case partial():
            return [value.func, value.args, value.keywords]
        case weakref.ref():
            return [value()]
        case dict():
            return list(value.values()) if len(value) <= _WIDEST else []
        case list() | tuple() | set() | frozenset() | deque():
            return list(value) if len(value) <= _WIDEST else []
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or _is_known(type(value)) or inspect.ismodule(value):
        return []
    return list(attributes.values())


def _is_librarys(function: FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] in _LIBRARIES


def _is_known(kind: type) -> bool:
    """Whether objects of this class are a library's, or belong to the process, and refer to no module of the user's."""
    return kind.__module__.partition(".")[0] in _LIBRARIES or is_live(kind)


def _iterate_globals(function: FunctionType) -> Iterator[tuple[str, object]]:
    """What a function's code may look up in its globals."""
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if not inspect.ismodule(value):
            yield name, value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
