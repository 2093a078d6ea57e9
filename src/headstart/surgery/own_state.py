"""State of a user's own modules that ``state_dict`` leaves out: attributes, and buffers that are not persistent.

A counter that forward moves, a list that it fills, a generator that a module holds: what can be written as numbers,
text and tensors is saved with a checkpoint and a bundle, and put back; so is what ``get_extra_state`` gives.
"""

from __future__ import annotations

import copy
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.distributed.fsdp import is_sharded_tensor, plain_type, whole
from headstart.errors import ModelError
from headstart.surgery.origins import is_library

_EXTRA = "_extra_state"  # torch's name of it in a state dict
_PASSING = (
    "_non_persistent"  # in ``values``: names of tensors that are buffers; no attribute is written under such a name
)
_NUMBERS = "biuf"  # NumPy's kinds of numbers that JSON can hold
_MAKERS: dict[str, Callable[[Any], Any]] = {
    "float": float, "tuple": tuple, "Size": torch.Size, "bytes": bytes.fromhex, "set": set, "frozenset": frozenset,
}  # fmt: skip
_SPECIAL = "="  # before the kind of a value that JSON does not have; a dictionary with such a key is not written


@dataclass(frozen=True, kw_only=True)
class OwnState:
    """``values``: plain JSON by the attribute's path; ``tensors``: plain tensors and buffers, by theirs; ``held``:
    paths of other attributes, which are a part of what ``get_extra_state`` gives.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    held: tuple[str, ...] = ()


class NotWritable(Exception):
    """A value that cannot be written; says what it is."""


@dataclass(frozen=True)
class _Aside:
    """Where the tensors of a value go, so that they need not be text: under names that begin with ``name``."""

    name: str
    tensors: dict[str, Tensor]

    def put(self, value: Tensor) -> dict[str, Any]:
        """What stands for it."""
        place = f"{self.name}#{len(self.tensors)}"
        self.tensors[place] = whole(value.detach()).clone()
        return {_SPECIAL: "aside", "value": place}


def read_own_state(module: nn.Module) -> OwnState:
    """What the module's own parts hold outside of ``state_dict``, as far as it can be written.

    Attributes are looked at in modules whose class is no library's, buffers that are not persistent and extra state in
    all of them.

    Raises: ModelError: a part's ``get_extra_state`` gives what cannot be written.
    """
    found = OwnState(held=tuple(_iterate_held(module)))
    passing = list[str]()
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name in part._non_persistent_buffers_set and _is_writable(buffer):
                found.tensors[_join_path(path, name)] = buffer.detach().clone()
                passing += [] if is_library(plain_type(part).__module__) else [_join_path(path, name)]
    found.values.update({_PASSING: passing} if passing else {})
    for path, name, value in _attributes(module):
        if isinstance(value, Tensor):
            found.tensors.update({_join_path(path, name): value.detach().clone()} if _is_writable(value) else {})
            continue
        try:
            found.values[_join_path(path, name)] = _write_value(value)
        except (NotWritable, RecursionError):  # or it holds itself
            continue
    for path, value in _extra_state(module).items():
        tensors = dict[str, Tensor]()
        try:
            found.values[_join_path(path, _EXTRA)] = _write_value(value, _Aside(_join_path(path, _EXTRA), tensors))
        except (NotWritable, RecursionError) as error:
            kind = type(module.get_submodule(path)).__name__
            raise ModelError(
                f"model: get_extra_state of {path or 'the model'} ({kind}) gives {error or 'what holds itself'}, which "
                "is not saved, since reading it back could run code; have it give tensors, NumPy arrays, numbers, "
                "text, and lists, tuples, sets and dictionaries of these"
            ) from error
        found.tensors.update(tensors)
    return found


def _extra_state(module: nn.Module) -> dict[str, Any]:
    """What ``get_extra_state`` gives besides tensors, by the part's path: a tensor is saved like any other."""
    parts = module.named_modules() if _has_extra(module) else ()
    given = {path: part.get_extra_state() for path, part in parts if _gives_extra(part)}
    return {path: value for path, value in given.items() if not isinstance(value, Tensor)}


def _iterate_held(module: nn.Module) -> Iterator[str]:
    for path, value in _extra_state(module).items():
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        given = {id(value), *(id(item) for item in inside if not isinstance(item, bool | int | float | str))}
        named = {str(name) for name in value} if isinstance(value, Mapping) else set()
        for name, attribute in vars(module.get_submodule(path)).items():
            if attribute is not None and (id(attribute) in given or name.strip("_") in named):
                yield _join_path(path, name)


def _has_extra(module: nn.Module) -> bool:
    return any(map(_gives_extra, module.modules()))


def _gives_extra(part: nn.Module) -> bool:
    return type(part).get_extra_state is not nn.Module.get_extra_state


def read_saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of its state dict; what ``get_extra_state`` gives besides is no part of them.

    Raises: ModelError: a file of tensors cannot hold one, or extra state could not be put back.
    """
    for path, part in module.named_modules():
        if _gives_extra(part) and type(part).set_extra_state is nn.Module.set_extra_state:
            raise ModelError(
                f"model: {path or 'it'} ({type(part).__name__}) has a get_extra_state and no set_extra_state, so that "
                "what was saved could not be put back; write one, def set_extra_state(self, state), or leave both out"
            )
    state = module.state_dict()
    found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name in state.keys() - found.keys():
        if not name.endswith(_EXTRA):
            raise ModelError(
                f"model: its state_dict has {name} ({type(state[name]).__name__}), which a file of tensors cannot "
                "hold; give the module before it was quantized, or have its state_dict give tensors by name"
            )
    for name, value in found.items():
        if value.is_meta:
            raise ModelError(
                f"model: {name} is on the meta device, which holds no numbers; give the module its weights"
            )
        if not _is_writable(value):
            plain = type(value) in (Tensor, nn.Parameter)
            kind = str(value.dtype if value.layout is torch.strided else value.layout).removeprefix("torch.")
            kind = kind if plain else type(value).__name__
            raise ModelError(
                f"model: {name} is a {kind} tensor, which a safetensors file cannot hold; keep its numbers in plain "
                "ones, e.g. torch.view_as_real of complex numbers, to_dense() of sparse ones"
            )
    return found


def _is_writable(value: Tensor) -> bool:
    odd = value.is_quantized or value.is_meta or value.dtype in (torch.complex128, torch.complex32)
    odd = odd or _computes_itself(value)
    return value.layout is torch.strided and not odd


def _computes_itself(value: Tensor) -> bool:
    """Whether its class has values of its own in place of memory; a sharded one's are gathered."""
    return type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not is_sharded_tensor(value)


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a state dict of tensors; extra state of other kinds stays until ``restore_own_state``.

    Raises: RuntimeError: they are not the module's.
    """
    extra = {_join_path(path, _EXTRA): copy.deepcopy(value) for path, value in _extra_state(module).items()}
    module.load_state_dict(extra | dict(tensors))


def restore_own_state(module: nn.Module, state: OwnState) -> None:
    """Put back what was read; lists and dictionaries stay the same objects.

    What is not there any more, a name that is a method's, or one that holds a function or a module, is left out: a file
    says what an attribute is, not what a module does.
    """
    parts, passing = dict(module.named_modules()), state.values.get(_PASSING, ())
    for full, tensor in state.tensors.items():
        path, _, name = full.rpartition(".")
        current = getattr(parts.get(path), name, None)
        if isinstance(current, Tensor) and current.shape == tensor.shape and current.dtype == tensor.dtype:
            with torch.no_grad():
                current.copy_(tensor)
        elif path in parts and _may_hold(parts[path], name):
            if full in passing and not hasattr(parts[path], name):  # forward made it
                parts[path].register_buffer(name, tensor.clone(), persistent=False)
            else:
                device = current.device if isinstance(current, Tensor) else "cpu"
                setattr(parts[path], name, tensor.to(device, copy=True))
    for full, value in state.values.items():
        path, _, name = full.rpartition(".")
        if path in parts and _may_hold(parts[path], name):
            own: dict[str, Any] = vars(parts[path])  # type: ignore[assignment]  # a dictionary, as its setters do
            own[name] = _put_back(own.get(name), value)
        elif path in parts and name == _EXTRA and _gives_extra(parts[path]):
            parts[path].set_extra_state(_put_back(None, _fill_in_tensors(value, state.tensors)))


def _may_hold(part: nn.Module, name: str) -> bool:
    """Whether an attribute is one that holds values: there already, or new."""
    if is_library(plain_type(part).__module__) or name.startswith("_") or not name.isidentifier() or name == "training":
        return False
    current = vars(part).get(name, part._buffers.get(name))
    return not hasattr(part, name) or (name in (*vars(part), *part._buffers) and not callable(current))


def has_own_code(module: nn.Module) -> bool:
    """Whether anything of a module is not a library's: a class, a hook, a replaced ``forward``."""
    return any(
        not is_library(plain_type(part).__module__)
        or "forward" in vars(part)
        or part._forward_hooks
        or part._forward_pre_hooks
        for part in module.modules()
    )


def covers(state: OwnState, name: str) -> bool:
    """Whether the thing that ``headstart.surgery.module_state.differences`` calls ``name`` is among what was read."""
    plain = name.removeprefix("buffer ")
    known = (*state.values, *state.tensors, *state.held)
    return any(plain == path or plain.startswith((path + ".", path + "[", path + ":")) for path in known)


def _attributes(module: nn.Module) -> Iterator[tuple[str, str, Any]]:
    for path, part in module.named_modules():
        if is_library(plain_type(part).__module__):
            continue
        for name, value in vars(part).items():
            if not name.startswith("_") and name != "training" and not isinstance(value, nn.Module):
                yield path, name, value


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def write_value(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """JSON of a value, and the tensors in it under names that begin with ``name`` and a ``#``.

    Raises: NotWritable: something in it is no number, text, tensor, generator of random numbers or container.
    """
    tensors = dict[str, Tensor]()
    try:
        return _write_value(value, _Aside(name, tensors)), tensors
    except RecursionError as error:  # it holds itself
        raise NotWritable("what holds itself") from error


def read_value(value: Any, tensors: Mapping[str, Tensor], *, current: Any = None) -> Any:
    """What ``write_value`` wrote; ``current``: a generator of random numbers, which is set to what it was."""
    return _put_back(current, _fill_in_tensors(value, tensors))


def _write_value(value: Any, aside: _Aside | None = None) -> Any:
    """JSON of a value; its tensors are text, too, where they are not put ``aside``.  Raises: NotWritable.

    What is of a class that is derived from these has more to it than is written here.
    """
    kind = type(value)
    if value is None or kind in (bool, str, int):
        return value
    if kind is float:
        return value if math.isfinite(value) else {_SPECIAL: "float", "value": str(value)}
    if isinstance(value, np.generic) and value.dtype.kind in _NUMBERS and value.itemsize <= 8:
        return {_SPECIAL: value.dtype.str, "value": _write_value(value.item())}
    if isinstance(value, Tensor) and _is_writable(value):
        if aside is not None:
            return aside.put(value)
        return _with_shape("tensor", str(value.dtype).removeprefix("torch."), value.detach())
    if kind is np.ndarray and value.dtype.kind in _NUMBERS:
        return _with_shape("array", value.dtype.str, value)
    if kind is bytes:
        return {_SPECIAL: "bytes", "value": value.hex()}
    return _write_container(value, aside)


def _with_shape(kind: str, number: str, value: Tensor | np.ndarray[Any, Any]) -> dict[str, Any]:
    """Text of an array, with what an empty list does not say."""
    return {_SPECIAL: kind, "type": number, "shape": list(value.shape), "value": _write_value(value.tolist())}


def _write_container(value: Any, aside: _Aside | None) -> Any:
    kind = type(value)
    if kind in (list, tuple, torch.Size):
        items = [_write_value(item, aside) for item in value]
        return items if kind is list else {_SPECIAL: kind.__name__, "value": items}
    if kind is dict and all(isinstance(key, str) and key != _SPECIAL for key in value):
        return {key: _write_value(item, aside) for key, item in value.items()}
    if kind in (dict, OrderedDict):
        pairs = [[_write_value(key), _write_value(item, aside)] for key, item in value.items()]
        return {_SPECIAL: kind.__name__, "value": pairs}
    if kind in (set, frozenset):
        return {_SPECIAL: kind.__name__, "value": [_write_value(item) for item in sorted(value, key=repr)]}
    if kind is random.Random:
        return {_SPECIAL: "random", "value": _write_value(value.getstate())}
    if kind is np.random.Generator:
        return {_SPECIAL: "numpy", "value": _write_value(value.bit_generator.state)}
    if kind is torch.Generator:
        return {_SPECIAL: "torch", "value": value.get_state().tolist()}
    raise NotWritable(f"a value of type {kind.__qualname__}")


def _fill_in_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What was written with the tensors in it that were put aside."""
    if isinstance(value, list):
        return [_fill_in_tensors(item, tensors) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.get(_SPECIAL) == "aside":
        return tensors[value["value"]]
    return {key: _fill_in_tensors(item, tensors) for key, item in value.items()}


def _put_back(current: Any, value: Any) -> Any:
    """The value that was written; where ``current`` is such a container, that very one."""
    made = _rebuild(current, value)
    if type(current) is not type(made):
        return made
    if isinstance(current, list):
        current[:] = made
    elif isinstance(current, dict | set):
        current.clear()
        current.update(made)
    else:
        return made
    return current


def _rebuild(current: Any, value: Any) -> Any:
    """The value that was written, in new containers; of ``current`` it keeps generators, which get their state, and
    tensors that are the same, which may be the module's own by another name.
    """
    if isinstance(value, list):
        before = current if isinstance(current, list | tuple) else ()
        return [_rebuild(old, item) for old, item in zip_longest(before[: len(value)], value)]
    if not isinstance(value, Mapping):
        return value
    if _SPECIAL not in value:
        return {key: _rebuild(_get(current, key), item) for key, item in value.items()}
    return _special(current, str(value[_SPECIAL]), value)


def _get(container: Any, key: Any) -> Any:
    return container.get(key) if isinstance(container, dict) else None


def _special(current: Any, kind: str, value: Mapping[str, Any]) -> Any:
    if kind in ("dict", "OrderedDict"):
        pairs = [(_rebuild(None, key), item) for key, item in value["value"]]
        made = {key: _rebuild(_get(current, key), item) for key, item in pairs}
        return made if kind == "dict" else OrderedDict(made)
    given = _rebuild(current, value["value"])
    if kind in _MAKERS:
        return _MAKERS[kind](given)
    if kind == "tensor":
        return _same_tensor(current, torch.tensor(given, dtype=getattr(torch, value["type"])).reshape(value["shape"]))
    if kind == "array" and np.dtype(value["type"]).kind in _NUMBERS:
        return np.array(given, dtype=value["type"]).reshape(value["shape"])
    if kind in ("random", "numpy", "torch"):
        return _set_generator(current, kind, given)
    number = np.dtype(kind)
    return number.type(given) if number.kind in _NUMBERS else current


def _same_tensor(current: Any, made: Tensor) -> Tensor:
    """The one that is there already where it is equal; else the one that was made, where that one is."""
    if not isinstance(current, Tensor):
        return made
    made = made.to(current.device)
    is_same = current.shape == made.shape and current.dtype == made.dtype and torch.equal(current, made)
    return current if is_same else made


def _set_generator(current: Any, kind: str, state: Any) -> Any:
    """A generator in the state that was written: the one that is there, or a new one of Python or torch."""
    if kind == "random":
        python = current if isinstance(current, random.Random) else random.Random()
        python.setstate(state)
        return python
    if kind == "torch":
        generator = current if isinstance(current, torch.Generator) else torch.Generator()
        generator.set_state(torch.tensor(state, dtype=torch.uint8))
        return generator
    if isinstance(current, np.random.Generator):
        current.bit_generator.state = state
    return current
