"""Values that are all there is to them, and what of the user's own was put in a library's class."""

from __future__ import annotations

import functools
import operator
import re
import types
import weakref
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np
import torch
from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from headstart.surgery.origins import is_headstarts, is_library, is_users_class, is_users_function

PLAIN = frozenset(
    (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), torch.dtype, torch.device, torch.Size,
     torch.layout, torch.memory_format, types.ModuleType, types.MethodDescriptorType,
     types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, re.Pattern)
)  # fmt: skip
_PLAIN_KINDS = (
    int, float, complex, str, bytes, Enum, np.generic, np.dtype, PurePath, date, time, timedelta, Decimal, Fraction,
    UUID, weakref.ref, RemovableHandle, fx.Graph, types.ModuleType,
    type(torch.ops.aten.relu), type(torch.ops.aten.relu.default),
)  # fmt: skip


def is_plain(value: object) -> bool:
    """Whether a value is all there is to it: a number, a name, a library's function or class."""
    kind: Any = type(value)
    return kind in PLAIN or bool(plain_rule(kind)(value))


@functools.lru_cache(maxsize=4096)
def plain_rule(kind: type) -> Callable[[Any], bool]:
    """How to tell of an instance of this class."""
    if issubclass(kind, types.BuiltinFunctionType):
        return lambda value: isinstance(value.__self__, (types.ModuleType, type, type(None)))
    if kind is types.FunctionType:
        return _is_plain_function
    if issubclass(kind, type):
        return lambda value: not is_users_class(value) and not find_foreign(value)
    if issubclass(kind, _PLAIN_KINDS):
        return lambda _: True
    return lambda value: value is torch.default_generator


def _is_plain_function(value: types.FunctionType) -> bool:
    inner = getattr(value, "__wrapped__", None)
    own = is_users_function(value)
    if type(inner) is types.FunctionType and not own and not is_users_function(inner):
        return True  # a library's decorator around a library's function, which may note its first use
    return not own and (is_headstarts(value) or (value.__closure__ is None and not vars(value)))


def find_foreign(kind: type) -> dict[str, Any]:
    """Functions of the user's own that were put in a library's class of modules or in one of its bases."""
    if not issubclass(kind, nn.Module):
        return {}
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if is_library(base.__module__):
            found |= _users_functions(base)
    return found


_HELPERS = frozenset({"transformers.modeling_utils"})
"""Modules that put a function into ``nn.Module`` which initializes weights (``smart_apply``) and which no ``forward``
calls: with it every model of the process would be one with code of the user's own.
"""

_LOOKED_AT: weakref.WeakKeyDictionary[type, tuple[tuple[str, ...], tuple[Any, ...], dict[str, Any]]] = (
    weakref.WeakKeyDictionary()
)
"""A library's classes with the attributes that they had, and the functions of the user's own that were among these."""


def _users_functions(kind: type) -> dict[str, Any]:
    """The user's functions in a library's class; looked for again where one of its attributes is another object."""
    held, known = vars(kind), _LOOKED_AT.get(kind)
    names, values = tuple(held), tuple(held.values())
    if known is None or known[0] != names or not all(map(operator.is_, known[1], values)):
        found = {
            name: value
            for name, value in held.items()
            if type(value) is types.FunctionType and is_users_function(value) and value.__module__ not in _HELPERS
        }
        known = _LOOKED_AT[kind] = (names, values, found)
    return known[2]
