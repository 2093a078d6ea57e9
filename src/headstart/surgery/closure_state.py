"""What functions keep between two calls: in closures, defaults and attributes of their own."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.surgery.origins import is_live, is_users_class, is_users_function
from headstart.surgery.values import GENERATORS

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic, torch.dtype, torch.device)
_DEEPEST, _WIDEST = 8, 1000
EMPTY = object()
"""Stands for the content of a closure's cell that nothing was put in yet."""


def is_data(value: object) -> bool:
    """Whether a value is numbers, text, tensors, arrays, generators of random numbers, or what holds nothing else: a
    copy of it is as good as itself.
    """
    waiting, seen = [(value, 0)], dict[int, object]()
    while waiting:
        part, depth = waiting.pop()
        if id(part) in seen or isinstance(part, (*_PLAIN, *GENERATORS)):
            continue
        seen[id(part)] = part
        inner = _list_members(part)
        if inner is None or depth == _DEEPEST or len(seen) > _WIDEST:
            return False
        waiting += [(other, depth + 1) for other in inner]
    return True


def _list_members(value: object) -> list[Any] | None:
    """What a value of data holds; None where it is something else."""
    match value:
        case nn.Parameter() | type() | nn.Module():
            return None
        case Tensor():
            return [] if type(value) is Tensor and value.is_leaf and not value.requires_grad else None
        case np.ndarray():
            return [] if value.dtype != object else value.ravel().tolist()
        case dict():
            return [*value.keys(), *value.values()]
        case list() | tuple() | set() | frozenset() | deque():
            return list(value)
    plain = isinstance(value, types.SimpleNamespace) or (is_users_class(type(value)) and not is_live(type(value)))
    return list(vars(value).values()) if plain and hasattr(value, "__dict__") and not callable(value) else None


def iterate_contents(function: FunctionType) -> Iterator[Any]:
    """Iterate over what a function keeps: its closure's contents, defaults, and attributes."""
    yield from map(content_of, function.__closure__ or ())
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()


def keeps_data(value: object) -> bool:
    """Whether it is a function of the user's own that keeps data, or refers to one by a partial, a method, a container
    or another function's closure.
    """
    waiting, seen = [(value, 0)], dict[int, object]()
    while waiting:
        part, depth = waiting.pop()
        if id(part) in seen or depth > _DEEPEST:
            continue
        seen[id(part)] = part
        match part:
            case FunctionType():
                held = list(iterate_contents(part)) if is_users_function(part) else []
                if any(map(is_data, held)):
                    return True
                waiting += [(other, depth + 1) for other in held]
            case MethodType():
                waiting.append((part.__func__, depth + 1))
            case partial():
                waiting += [(other, depth + 1) for other in (part.func, *part.args, *part.keywords.values())]
            case list() | tuple() if type(part) in (list, tuple) and len(part) <= _WIDEST:
                waiting += [(other, depth + 1) for other in part]
    return False


def content_of(cell: CellType) -> object:
    """What a closure's cell holds; ``EMPTY`` where that is nothing so far."""
    try:
        return cell.cell_contents
    except ValueError:
        return EMPTY
