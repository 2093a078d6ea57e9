"""State of a user's own modules that ``state_dict`` leaves out: attributes, and buffers that are not persistent.

A counter that forward moves, a list that it fills, a generator that a module holds: what can be written as numbers,
text and tensors is saved with a checkpoint and a bundle, and put back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.surgery.origins import is_library

_SPECIAL = "="  # before the kind of a value that JSON does not have; a dictionary with such a key is not written


@dataclass(frozen=True, kw_only=True)
class OwnState:
    """``values``: plain JSON by the attribute's path; ``tensors``: plain tensors and buffers, by theirs."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class _NotPlain(Exception):
    """A value that cannot be written."""


def read_own_state(module: nn.Module) -> OwnState:
    """What the module's own parts hold outside of ``state_dict``, as far as it can be written.

    Attributes are looked at in modules whose class is no library's, buffers that are not persistent in all of them.
    """
    found = OwnState()
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name in part._non_persistent_buffers_set:
                found.tensors[_joined(path, name)] = buffer.detach().clone()
    for path, name, value in _attributes(module):
        if isinstance(value, Tensor):
            found.tensors[_joined(path, name)] = value.detach().clone()
            continue
        try:
            found.values[_joined(path, name)] = _written(value)
        except _NotPlain:
            continue
    return found


def restore_own_state(module: nn.Module, state: OwnState) -> None:
    """Put back what was read; lists and dictionaries stay the same objects.

    What is not there any more, a name that is a method's, or one that holds a function or a module, is left out: a file
    says what an attribute is, not what a module does.
    """
    parts = dict(module.named_modules())
    for full, tensor in state.tensors.items():
        path, _, name = full.rpartition(".")
        current = getattr(parts.get(path), name, None)
        if isinstance(current, Tensor) and current.shape == tensor.shape and current.dtype == tensor.dtype:
            with torch.no_grad():
                current.copy_(tensor)
        elif path in parts and _may_hold(parts[path], name):
            setattr(parts[path], name, tensor.clone() if current is None else tensor.to(current.device))
    for full, value in state.values.items():
        path, _, name = full.rpartition(".")
        if path in parts and _may_hold(parts[path], name):
            own: dict[str, Any] = vars(parts[path])  # type: ignore[assignment]  # a dictionary, as its setters do
            own[name] = _put_back(own.get(name), value)


def _may_hold(part: nn.Module, name: str) -> bool:
    """Whether an attribute is one that holds values: there already, or new."""
    if is_library(type(part).__module__) or name.startswith("_") or not name.isidentifier() or name == "training":
        return False
    current = vars(part).get(name, part._buffers.get(name))
    return not hasattr(part, name) or (name in (*vars(part), *part._buffers) and not callable(current))


def has_own_code(module: nn.Module) -> bool:
    """Whether anything of a module is not a library's: a class, a hook, a replaced ``forward``."""
    return any(
        not is_library(type(part).__module__)
        or "forward" in vars(part)
        or part._forward_hooks
        or part._forward_pre_hooks
        for part in module.modules()
    )


def covers(state: OwnState, name: str) -> bool:
    """Whether the thing that ``headstart.surgery.module_state.differences`` calls ``name`` is among what was read."""
    plain = name.removeprefix("buffer ")
    known = (*state.values, *state.tensors)
    return any(plain == path or plain.startswith((path + ".", path + "[", path + ":")) for path in known)


def _attributes(module: nn.Module) -> Iterator[tuple[str, str, Any]]:
    for path, part in module.named_modules():
        if is_library(type(part).__module__):
            continue
        for name, value in vars(part).items():
            if not name.startswith("_") and name != "training" and not isinstance(value, nn.Module):
                yield path, name, value


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _written(value: Any) -> Any:
    """JSON of a value.  Raises: _NotPlain."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_SPECIAL: "float", "value": str(value)}
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        return {_SPECIAL: value.dtype.str, "value": _written(value.item())}
    if isinstance(value, Tensor):
        return {_SPECIAL: "tensor", "type": str(value.dtype).removeprefix("torch."), "value": value.detach().tolist()}
    if isinstance(value, list | tuple):
        items = [_written(item) for item in value]
        return items if type(value) is list else {_SPECIAL: "tuple", "value": items}
    if type(value) is dict and all(isinstance(key, str) and key != _SPECIAL for key in value):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, random.Random):
        return {_SPECIAL: "random", "value": _written(value.getstate())}
    if isinstance(value, np.random.Generator):
        return {_SPECIAL: "numpy", "value": _written(value.bit_generator.state)}
    if isinstance(value, torch.Generator):
        return {_SPECIAL: "torch", "value": value.get_state().tolist()}
    raise _NotPlain


def _put_back(current: Any, value: Any) -> Any:
    """The value that was written; where ``current`` can take it, that very object."""
    if isinstance(value, list):
        items = [_put_back(None, item) for item in value]
        if isinstance(current, list):
            current[:] = items
            return current
        return items
    if not isinstance(value, Mapping):
        return value
    kind = value.get(_SPECIAL)
    if kind is None:
        made = {key: _put_back(None, item) for key, item in value.items()}
        if isinstance(current, dict):
            current.clear()
            current.update(made)
            return current
        return made
    return _special(current, str(kind), value)


def _special(current: Any, kind: str, value: Mapping[str, Any]) -> Any:
    given = _put_back(None, value["value"])
    if kind == "float":
        return float(given)
    if kind == "tuple":
        return tuple(given)
    if kind == "tensor":
        return torch.tensor(given, dtype=getattr(torch, value["type"]))
    if kind == "random" and isinstance(current, random.Random):
        current.setstate(given)
        return current
    if kind == "numpy" and isinstance(current, np.random.Generator):
        current.bit_generator.state = given
        return current
    if kind == "torch" and isinstance(current, torch.Generator):
        current.set_state(torch.tensor(given, dtype=torch.uint8))
        return current
    if kind in ("random", "numpy", "torch"):
        return current
    number = np.dtype(kind)
    return number.type(given) if number.kind in "biufc" else current
