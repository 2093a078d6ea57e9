"""A copy of a module that has nothing in common with it: weights, buffers, attributes, hooks and what these refer to.

``copy.deepcopy`` alone leaves functions as they are: a hook, or a replaced ``forward``, that was made around the module
still speaks to the original; gradients' hooks and attributes of parameters are dropped; and tensors that share memory
with a parameter share it no longer.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import ModelError

_LIBRARIES = ("torch", "timm", "torchvision", "numpy", "headstart", "peft")  # their functions know no user's module
_REFERRING = (FunctionType, MethodType, partial, weakref.ref, tuple, set, frozenset)  # made anew, not changed
_DEEPEST, _WIDEST = 4, 1000  # of what is looked through outside the module


@dataclass(frozen=True)
class InPlace:
    """A module that is to be changed itself: no copy of it is made, as ``train`` and ``open_run`` do otherwise."""

    module: nn.Module


def copy_module(module: nn.Module, *, free_bytes: int | None, instead: str) -> nn.Module:
    """An equal module that shares nothing with ``module``, which stays as it is.

    Hooks and replaced methods of the copy speak to the copy where those of ``module`` spoke to ``module`` or its parts.
    ``free_bytes``: memory that can be had, if it is known; ``instead``: what a user can type where nothing is copied.

    Raises: ModelError: it cannot be copied, by the name of what stands in the way; or memory forbids it.
    """
    needed = sum(storage.nbytes() for storage in _storages(module).values())
    if free_bytes is not None and needed > free_bytes:
        raise ModelError(
            f"model: a copy of the module takes {needed / 1e9:,.1f} GB of memory, {free_bytes / 1e9:,.1f} GB are free; "
            f"{instead}"
        )
    memo = _parameters(module)
    try:
        copied = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError, RecursionError) as error:
        raise ModelError(f"model: the module cannot be copied: {_obstacle(module, error)}; {instead}") from error
    move = _Move(module, memo, instead)
    for path, part in copied.named_modules():
        move.inside(vars(part), path or "the module")
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        move.check_class(kind)
    for name, parameter in module.named_parameters():
        if id(parameter) in memo:
            _carry_over(parameter, memo[id(parameter)], move, name)
    return copied


def _storages(module: nn.Module) -> dict[int, torch.UntypedStorage]:
    """The memory of parameters and buffers on the CPU, by address."""
    tensors = [value for value in (*module.parameters(), *module.buffers()) if _is_plain(value)]
    return {value.untyped_storage().data_ptr(): value.untyped_storage() for value in tensors if value.is_cpu}


def _is_plain(value: Tensor) -> bool:
    """Whether it is what its storage, shape and strides say, and no more."""
    return type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta


def _parameters(module: nn.Module) -> dict[int, Any]:
    """deepcopy's memory with the copies of all parameters, over copied storages: what shared memory still does.

    Weights that old-style weight and spectral norm compute anew in each forward pass come without their history.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter and _is_plain(parameter) and not parameter.is_quantized:
            storage = copy.deepcopy(parameter.untyped_storage(), memo)
            with torch.no_grad():
                made = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
                made.set_(storage, parameter.storage_offset(), parameter.shape, parameter.stride())
            memo[id(parameter)] = nn.Parameter(made, requires_grad=parameter.requires_grad)
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            name = getattr(hook, "name", None)
            if type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm") and name:
                value = getattr(part, name)
                memo[id(value)] = value.detach().clone()
    return memo


def _carry_over(parameter: nn.Parameter, copied: Tensor, move: _Move, name: str) -> None:
    """Attributes of the parameter and hooks on its gradient, which deepcopy drops."""
    for key, value in vars(parameter).items():
        if key not in vars(copied):
            setattr(copied, key, move.outside(copy.deepcopy(value, move.memo), f"{name}.{key}"))
    where = f"a hook on the gradient of {name}"
    for hook in (parameter._backward_hooks or {}).values():
        copied.register_hook(move.outside(hook, where))  # type: ignore[no-untyped-call]
    for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
        copied.register_post_accumulate_grad_hook(move.outside(hook, where))  # type: ignore[no-untyped-call]


def _obstacle(module: nn.Module, error: Exception) -> str:
    """Which attribute cannot be copied, and why."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            where = f"{path}.{name}" if path else name
            if isinstance(value, Tensor) and value.grad_fn is not None:
                return (
                    f"{where} is a tensor with a history (it was computed while autograd recorded); keep "
                    f"{name}.detach() there, or set it to None before"
                )
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, {id(one): one for one in (*module.modules(), *module.parameters())})
            except (TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError, RecursionError) as own:
                return f"{where} ({type(value).__name__}: {_first_line(own)})"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


class _Move:
    """What refers to parts of the original, made anew to refer to those of the copy."""

    def __init__(self, module: nn.Module, memo: dict[int, Any], instead: str) -> None:
        self.memo, self.instead = memo, instead
        self.originals: dict[int, object] = {id(part): part for part in module.modules()}
        self.originals |= {id(value): value for value in (*module.parameters(), *module.buffers())}
        self.memory = set(_storages(module))
        self.seen: dict[int, object] = {}  # looked through already; kept, so that no address is used twice

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
        elif isinstance(getattr(values, "__dict__", None), dict):
            self.inside(vars(values), where)

    def _one(self, value: object, where: str) -> object:
        if isinstance(value, MethodType):
            self._one(value.__self__, where)
        if id(value) in self.originals or isinstance(value, _REFERRING):
            return self.outside(value, where)
        if not isinstance(value, Tensor | nn.Module | type):
            self.inside(value, where)
        return value

    def check_class(self, kind: type) -> None:
        """Raises: ModelError: a method of a class of the user's refers to the original."""
        for base in kind.__mro__:
            for name, function in vars(base).items():
                if isinstance(function, FunctionType) and self.outside(function, name) is not function:
                    raise self._refusal(f"{base.__name__}.{name}", "a part of the module")

    def outside(self, value: Any, where: str, depth: int = 0) -> Any:
        """The value itself, or the same for the copy where it refers to the original; it is not changed.

        Raises: ModelError: it refers to the original in a way that cannot be made anew.
        """
        if id(value) in self.originals:
            return self._counterpart(value, where)
        if depth > _DEEPEST or isinstance(value, type | nn.Module):
            return value
        match value:
            case Tensor():
                if _is_plain(value) and value.untyped_storage().data_ptr() in self.memory:
                    raise self._refusal(where, "a part of the module's weights")
                return value
            case FunctionType():
                return self._function(value, where, depth)
            case MethodType():
                owner = self.outside(value.__self__, where, depth + 1)
                function = self.outside(value.__func__, where, depth + 1)
                unchanged = owner is value.__self__ and function is value.__func__
                return value if unchanged else MethodType(function, owner)
            case partial():
                parts = (value.func, value.args, value.keywords)
                func, args, keywords = (self.outside(one, where, depth + 1) for one in parts)
                if all(one is other for one, other in zip(parts, (func, args, keywords), strict=True)):
                    return value
                made = partial(func, *args, **keywords)
                vars(made).update(vars(value))
                return made
            case weakref.ref():
                target = value()
                moved = self.outside(target, where, depth + 1)
                return value if moved is target else weakref.ref(moved)
            case list() | tuple() | set() | frozenset() | dict():
                return self._container(value, where, depth)
        return self._object(value, where, depth)

    def _counterpart(self, value: object, where: str) -> object:
        if id(value) not in self.memo:
            raise self._refusal(where, "a part of the module that its own __deepcopy__ leaves out")
        return self.memo[id(value)]

    def _container(self, value: Any, where: str, depth: int) -> Any:
        if len(value) > _WIDEST:
            return value
        if isinstance(value, dict):
            found = {key: self.outside(one, where, depth + 1) for key, one in value.items()}
            same = all(found[key] is one for key, one in value.items())
            if same or type(value) is dict:
                return value if same else found
        else:
            items = list(value)
            moved = [self.outside(one, where, depth + 1) for one in items]
            if all(one is other for one, other in zip(items, moved, strict=True)):
                return value
            if type(value) in (list, tuple, set, frozenset):
                return type(value)(moved)
        raise self._refusal(where, f"parts of the module in a {type(value).__name__}")

    def _object(self, value: object, where: str, depth: int) -> object:
        attributes = getattr(value, "__dict__", None)
        known = type(value).__module__.partition(".")[0] in _LIBRARIES
        if known or inspect.ismodule(value) or not isinstance(attributes, dict) or id(value) in self.seen:
            return value
        self.seen[id(value)] = value
        snapshot = dict(attributes)
        if self._container(snapshot, where, depth + 1) is not snapshot:
            raise self._refusal(where, f"an object ({type(value).__name__}) that holds parts of the module")
        return value

    def _function(self, function: FunctionType, where: str, depth: int) -> FunctionType:
        """With its own cells, defaults and attributes where the original is in one of them."""
        if (function.__module__ or "").partition(".")[0] in _LIBRARIES or id(function) in self.seen:
            return function
        for name in _global_names(function.__code__):
            value = function.__globals__.get(name)
            if not inspect.ismodule(value) and self.outside(value, where, depth + 1) is not value:
                raise self._refusal(where, f"the module or a part of it by the global name {name}")
        cells, attributes = function.__closure__ or (), vars(function)
        before = [*map(_content, cells), function.__defaults__, function.__kwdefaults__, attributes]
        self.seen[id(function)] = function  # a function may be in its own cell
        after = [self.outside(one, where, depth + 1) for one in before]
        del self.seen[id(function)]
        if all(one is other for one, other in zip(before, after, strict=True)):
            return function
        *contents, defaults, keywords, attributes = after
        closure = tuple(
            cell if one is other else CellType(other) for cell, one, other in zip(cells, before, contents, strict=False)
        )
        made = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
        made.__kwdefaults__, made.__qualname__, made.__module__ = keywords, function.__qualname__, function.__module__
        vars(made).update(attributes)
        return made

    def _refusal(self, where: str, what: str) -> ModelError:
        return ModelError(
            f"model: the module cannot be copied: {where} refers to {what}; take the module that hooks and methods are "
            f"given in its place, or {self.instead}"
        )


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty so far
        return None


def _global_names(code: CodeType) -> Iterator[str]:
    """The names that code may look up in its globals, functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
