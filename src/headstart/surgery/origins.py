"""Whose code an object is: a library's, which its version settles, or the user's own, which has to be looked at."""

from __future__ import annotations

import sys
from enum import Enum
from functools import lru_cache, partial
from types import BuiltinFunctionType, FunctionType

_LIBRARIES = frozenset({"torch", "torchvision", "timm", "numpy", "headstart"}) | sys.stdlib_module_names
_LIVE = frozenset(
    ("logging", "threading", "_thread", "multiprocessing", "socket", "subprocess", "concurrent", "asyncio", "io",
     "_io", "weakref", "queue", "ctypes", "contextvars", "inspect")
)  # fmt: skip


@lru_cache(maxsize=4096)
def is_library(module_name: str | None) -> bool:
    """Whether a module of this name belongs to Python, torch, torchvision, timm, NumPy or headstart."""
    top = (module_name or "").partition(".")[0]
    return top in _LIBRARIES and top not in ("__main__", "this", "antigravity")


def is_live(kind: type) -> bool:
    """Whether instances of a class belong to the process (threads, locks, files, groups of processes): nobody else's
    to change.
    """
    return _is_live_module(str(getattr(kind, "__module__", "")))


@lru_cache(maxsize=4096)
def _is_live_module(name: str) -> bool:
    return name.partition(".")[0] in _LIVE or name.startswith("torch.distributed.")


def is_headstarts(function: object) -> bool:
    """Whether it is a function of this package, such as a hook that watches: no part of the module's state."""
    return str(getattr(function, "__module__", "")).partition(".")[0] == "headstart"


def is_librarys_hook(hook: object) -> bool:
    """Whether a hook, or what it is a ``functools.partial`` of, is a library's function, method or object."""
    function = hook.func if isinstance(hook, partial) else hook
    return isinstance(function, bool) or is_library(getattr(function, "__module__", None) or type(function).__module__)


def is_users_function(value: object) -> bool:
    """Whether it is a plain function of the user's own."""
    return isinstance(value, FunctionType) and not is_library(value.__globals__.get("__name__"))


def is_users_class(value: object) -> bool:
    """Whether it is a class of the user's own; an enumeration is a value."""
    return isinstance(value, type) and not is_library(value.__module__) and not issubclass(value, Enum)


def make_qualified_name(value: object) -> str:
    """A name that is the same in every process: the module's and the object's own, else that of its class."""
    named = isinstance(value, (type, FunctionType, BuiltinFunctionType))
    target = value if named else type(value)
    return f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', type(target).__qualname__)}"
