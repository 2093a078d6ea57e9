"""A digest of what decides a module's results apart from its parameters and buffers: code, hooks, attributes, closures.

Code goes in as bytecode: it is what runs, also where the file was edited since, and comments do not matter.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import types
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from headstart.storage.tensors import view_bytes
from headstart.surgery.naming import HOOKS, TENSOR_HOOKS
from headstart.surgery.origins import is_library, is_live, is_users_class, make_qualified_name
from headstart.surgery.plain import is_plain
from headstart.surgery.reach import Content, Copying, is_empty, read_graph
from headstart.surgery.values import FAILURES

_LAYERS_OWN = frozenset(("training", "_is_full_backward_hook", "_version"))  # of a module: say nothing of results
_LONG = 200  # characters: no name is longer
_HELD_BY_LIBRARIES = frozenset(("torch", "torchvision", "timm", "numpy", "headstart"))  # their versions are known


def code_digest(module: nn.Module) -> str:
    """SHA-256 over classes, replaced methods, hooks, parametrizations, attributes, closures and named globals, the same
    in every process. Modes, values of parameters and of buffers, and what is trainable are no part of it.
    """
    return _Digest(read_graph(module, Copying(values=False, parameters=False))).of(module)


def opaque(module: nn.Module) -> tuple[str, ...]:
    """Names and classes of what the module refers to and nobody can look into (an open file, an object in C)."""
    found = read_graph(module, Copying(values=False, parameters=False)).values()
    hidden = [content for content in found if content.kind == "opaque" and not is_live(type(content.target))]
    return tuple(sorted({f"{content.name} ({type(content.target).__name__})" for content in hidden}))


class _Digest:
    """A walk through the contents in an order that is the same in every process; what it met goes into the hash."""

    def __init__(self, contents: Mapping[int, Content]) -> None:
        self.contents = contents
        self.hash = hashlib.sha256()
        self.numbers: dict[int, int] = {}

    def of(self, root: object) -> str:
        """The hexadecimal digest."""
        waiting: list[Any] = [root]
        while waiting:
            value = waiting.pop()
            if type(value) is _Text:
                self._add(value.text)
                continue
            content = self.contents.get(id(value))
            if content is None:
                self._add(plain_text(value))
            elif id(value) in self.numbers:
                self._add(f"#{self.numbers[id(value)]}".encode())
            else:
                if content.kind not in ("tuple", "set"):  # equal ones may be one object in one process only
                    self.numbers[id(value)] = len(self.numbers)
                waiting += reversed(self._list_members(content))
        return self.hash.hexdigest()

    def _add(self, text: bytes) -> None:
        self.hash.update(struct.pack("<I", len(text)) + text)

    def _list_members(self, content: Content) -> list[Any]:
        """The contents of an object, in order: texts, and values that have contents of their own."""
        parts: list[Any] = [_Text(f"{content.kind} {len(content.labels)}".encode())]
        match content.kind:
            case "module" | "object":
                return parts + self._of_attributes(content)
            case "tensor":
                parts.append(_Text(_tensor_bytes(content.target, values=not isinstance(content.target, nn.Parameter))))
            case "array":
                array = content.target
                parts.append(_Text(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()))
            case "set":
                parts += [_Text(text) for text in sorted(map(plain_text, content.own[0]))]
            case "function":
                parts.append(_Text(_function_text(content.target)))
            case "class":
                parts.append(_Text(_class_name(content.target)))
            case "generator" | "iterator":
                parts.append(_Text(repr(_digest_state(content.own)).encode()))
            case "opaque":
                parts.append(_Text(make_qualified_name(content.target).encode()))
        for label, value in zip(content.labels, content.values, strict=True):
            if content.kind == "tensor" and _is_hook(label) and isinstance(value, dict):
                parts += [_Text(_label_text(label)), *_of_hooks(value, _hook_places({label: value}))]
            elif content.kind != "tensor" or label == "__class__":
                parts += [_Text(_label_text(label)), value]
        return parts

    def _of_attributes(self, content: Content) -> list[Any]:
        """The attributes of a module or another object, by name; a module's tensors as shapes, its hooks in their
        order.
        """
        parts: list[Any] = []
        held = {str(label): value for label, value in zip(content.labels, content.values, strict=True)}
        places = _hook_places(held) if content.kind == "module" else {}
        for name in sorted(held):
            value = held[name]
            if content.kind == "module" and (name in _LAYERS_OWN or (name.startswith("_") and is_empty(value))):
                continue
            if content.kind == "module" and name in ("_parameters", "_buffers"):
                parts += [
                    tensor for tensor in value.values() if any(getattr(tensor, hooks, None) for hooks in TENSOR_HOOKS)
                ]
                value = _shapes(value)
            elif content.kind == "module" and isinstance(value, dict) and HOOKS.match(name):
                parts += [_Text(name.encode()), *_of_hooks(value, places)]
                continue
            parts += [_Text(name.encode()), value]
        return parts


class _Text:
    """Bytes among values, that go into the hash as they are."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


def _of_hooks(hooks: Mapping[int, Any], places: Mapping[int, int]) -> list[Any]:
    return [part for key, value in hooks.items() for part in (_Text(str(places.get(key)).encode()), value)]


def _hook_places(held: Mapping[str, Any]) -> dict[int, int]:
    """Keys of hooks are numbered through a process: here by their order within the module."""
    keys = {key for name, value in held.items() if HOOKS.match(name) and isinstance(value, dict) for key in value}
    return {key: place for place, key in enumerate(sorted(key for key in keys if isinstance(key, int)))}


def _shapes(tensors: Any) -> _Text:
    found = [(name, None if tensor is None else _tensor_facts(tensor)) for name, tensor in dict(tensors).items()]
    return _Text(repr(found).encode())


def _tensor_facts(tensor: Tensor) -> tuple[str, ...]:
    shape = "lazy" if nn.parameter.is_lazy(tensor) else str(tuple(tensor.shape))
    return type(tensor).__name__, shape, str(tensor.dtype), str(tensor.layout)


def _tensor_bytes(tensor: Tensor, *, values: bool) -> bytes:
    facts = repr(_tensor_facts(tensor)).encode()
    if not values or tensor.is_meta or nn.parameter.is_lazy(tensor):
        return facts
    try:
        return facts + view_bytes(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()).tobytes()
    except FAILURES:  # sparse, quantized
        return facts


def _is_hook(label: object) -> bool:
    return isinstance(label, str) and HOOKS.match(label) is not None


def _label_text(label: Any) -> bytes:
    return b"|".join(plain_text(part) for part in label) if isinstance(label, tuple) else plain_text(label)


def plain_text(value: Any) -> bytes:
    """A value that is all there is to it, as bytes that are the same in every process."""
    kind = type(value)
    if kind is str and len(value) < _LONG:
        return _word_text(value)
    if kind is int or kind is bool or value is None:
        return f"{kind.__name__} {value!r}".encode()
    if isinstance(value, (float, complex)):
        return f"{kind.__name__} {value!r}".encode()
    if isinstance(value, Enum):
        return f"{kind.__qualname__}.{value.name}".encode()
    if isinstance(value, (type, types.FunctionType)):
        return _class_name(value)
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
        return str(value.__qualname__).encode()
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}".encode()
    if isinstance(value, tuple):
        return b"(" + b",".join(map(plain_text, value)) + b")"
    if isinstance(value, types.CodeType):
        return code_text(value)
    if isinstance(value, frozenset):
        return b"{" + b",".join(sorted(map(plain_text, value))) + b"}"
    if isinstance(value, fx.Graph):
        return str(value).encode()
    if isinstance(value, np.generic):
        return f"{value.dtype.str} {value.tobytes().hex()}".encode()
    if isinstance(value, RemovableHandle) or not is_plain(value) or " at 0x" in repr(value):
        return make_qualified_name(value).encode()
    return f"{kind.__name__} {value!r}".encode("utf-8", "surrogatepass")


@lru_cache(maxsize=8192)
def _word_text(value: str) -> bytes:
    """The same as ``plain_text``, kept for words: the same names come again and again."""
    text = repr(value)
    return b"builtins.str" if " at 0x" in text else f"str {text}".encode("utf-8", "surrogatepass")


def _class_name(value: Any) -> bytes:
    """A library's by its full name, with the version of one that is not always there; the user's by its own name."""
    module = str(value.__module__)
    top = module.partition(".")[0]
    if is_users_class(value) and not hasattr(sys.modules.get(top), "__version__"):
        return str(value.__qualname__).encode()
    version = "" if top in _HELD_BY_LIBRARIES or is_library(module) else getattr(sys.modules[top], "__version__", "")
    return f"{module}.{value.__qualname__} {version}".encode()


def _function_text(function: types.FunctionType) -> bytes:
    if is_library(function.__globals__.get("__name__")):
        return make_qualified_name(function).encode()
    return code_text(function.__code__)


@lru_cache(maxsize=8192)
def code_text(code: types.CodeType) -> bytes:
    """Instructions, constants and names of a function, and of those inside it."""
    facts = (
        code.co_name, code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags, code.co_names,
        code.co_freevars, code.co_cellvars, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount],
    )  # fmt: skip
    parts = [repr(facts).encode(), code.co_code, code.co_exceptiontable, *map(plain_text, code.co_consts)]
    return hashlib.sha256(b"".join(struct.pack("<I", len(part)) + part for part in parts)).digest()


def _digest_state(state: Any) -> Any:
    """A generator's state with its tensors and arrays as digests."""
    if isinstance(state, Tensor):
        return hashlib.sha256(state.numpy().tobytes()).hexdigest()
    if isinstance(state, np.ndarray):
        return hashlib.sha256(state.tobytes()).hexdigest()
    if isinstance(state, Mapping):
        return [(key, _digest_state(value)) for key, value in state.items()]
    return [_digest_state(value) for value in state] if isinstance(state, (tuple, list)) else state
