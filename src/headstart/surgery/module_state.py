"""What a forward pass, or a look, can change in a module: read, compared and put back.

Buffers, attributes, containers, modes, gradients, hooks, closures, the globals and class attributes that the user's own
code names, and the generators of random numbers of torch, Python and NumPy.
"""

from __future__ import annotations

import operator
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.isolation import own_turn
from headstart.surgery.code_digest import code_digest, opaque
from headstart.surgery.origins import is_live
from headstart.surgery.plain import is_plain
from headstart.surgery.reach import (
    CONTAINERS,
    ITERATORS,
    NO_CONTENT,
    Content,
    Copying,
    attributes_of,
    is_marker,
    read_graph,
)
from headstart.surgery.values import (
    FAILURES,
    put_back_generator,
    put_back_tensor,
    same_array,
    same_plain,
    same_state,
    same_tensor,
    tensor_value,
)

__all__ = ["ModuleState", "code_digest", "differences", "opaque", "read_state", "restore_state", "with_parameters"]


@dataclass(frozen=True, kw_only=True)
class ModuleState:
    """``root``: the module; ``contents``: of all objects that it reaches, by id; ``generators``: of the process."""

    root: nn.Module
    contents: Mapping[int, Content]
    generators: Mapping[str, Any]
    parameters: bool
    """Whether the values of parameters and gradients were copied."""

    @property
    def has_own_code(self) -> bool:
        """Whether code of the user's own, or an iterator, is among what the module reaches: no plain library model."""
        kinds = ("function", "class", "iterator", "opaque")
        found = [content for content in self.contents.values() if content.kind in kinds]
        return any(content.kind != "opaque" or not is_live(type(content.target)) for content in found)


def read_state(module: nn.Module, *, parameters: bool = False) -> ModuleState:
    """A copy of everything that the module's code can change, independent of it from then on.

    ``parameters``: the values of parameters and of their gradients are copied too; else it is known only where they are
    and how often they were written to.
    """
    contents = read_graph(module, Copying(values=True, parameters=parameters))
    return ModuleState(root=module, contents=contents, generators=_process_generators(), parameters=parameters)


def with_parameters(state: ModuleState) -> ModuleState:
    """The state with copies of the parameters' values as they are now, if it has none."""
    if state.parameters:
        return state
    contents = {
        key: content._replace(own=tensor_value(content.target, copied=True)) if content.kind == "tensor" else content
        for key, content in state.contents.items()
        if content.kind != "tensor" or content.own.copied is None
    }
    return replace(state, contents={**state.contents, **contents}, parameters=True)


def restore_state(module: nn.Module, state: ModuleState) -> None:
    """Put back everything in place: the objects stay the same ones. What cannot be put back stays as it is, and
    ``differences`` names it.
    """
    assert module is state.root, "the state is another module's"
    restore_contents(state.contents)
    _put_back_process_generators(state.generators)


def restore_contents(contents: Mapping[int, Content]) -> None:
    """Put back what these objects held, in place; what cannot be put back stays as it is."""
    with torch.no_grad():
        for content in contents.values():
            try:
                _put_back(content)
                _empty_again(content, contents)
            except FAILURES:
                continue


def differences(before: ModuleState, after: ModuleState) -> tuple[str, ...]:
    """Names of what is not equal by value: ``tail.calls``, ``buffer tail.n``, ``Python's random generator``."""
    found: dict[str, None] = {}
    waiting, seen = [(id(before.root), id(after.root))], set[tuple[int, int]]()
    while waiting:
        pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        one, other = before.contents[pair[0]], after.contents[pair[1]]
        names, more = _compare(one, other, before.contents, after.contents)
        found |= dict.fromkeys(names)
        waiting += more
    generators = {**before.generators, **after.generators}
    moved = [name for name in generators if not _same_generator(name, before, after)]
    return (*found, *(f"{name} random generator" for name in moved))


_Contents = Mapping[int, Content]
_WITH_ATTRIBUTES = frozenset(("tensor", "dict", "list", "tuple", "set", "function", "partial"))
_PLAIN_CONTAINERS = frozenset((dict, list, tuple, set, frozenset, deque))


def _compare(
    one: Content, other: Content, before: _Contents, after: _Contents
) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of what differs in two objects, and pairs of objects that they refer to and that are to be compared."""
    if one.kind != other.kind or not _same_own(one, other):
        return [_title(one)], []
    if one.labels == other.labels and all(map(operator.is_, one.values, other.values)):
        return _compare_same(one, before, after)
    mine, theirs = dict(zip(one.labels, one.values, strict=True)), dict(zip(other.labels, other.values, strict=True))
    if one.kind in ("list", "tuple", "dict", "set") and tuple(one.labels) != tuple(other.labels):
        return _names_of_items(one, other), []
    names = [one.name_of(label) for label in mine.keys() ^ theirs.keys()]
    pairs: list[tuple[int, int]] = []
    for label in mine:
        if label not in theirs:
            continue
        a, b = mine[label], theirs[label]
        if (id(a) in before) != (id(b) in after):
            filled = before[id(a)] if id(a) in before else after[id(b)]
            names += _names_of_items(filled, filled._replace(labels=()))
        elif id(a) in before:
            pairs.append((id(a), id(b)))
        elif not _same_leaf(a, b):
            names.append(one.name_of(label))
    return names, pairs


def _compare_same(one: Content, before: _Contents, after: _Contents) -> tuple[list[str], list[tuple[int, int]]]:
    """Compare, as ``_compare`` does, two that refer to the same objects under the same labels."""
    names, pairs = list[str](), list[tuple[int, int]]()
    for value in one.values:
        key = id(value)
        if key in before and key in after:
            pairs.append((key, key))
        elif key in before or key in after:
            filled = before[key] if key in before else after[key]
            names += _names_of_items(filled, filled._replace(labels=()))
    return names, pairs


def _names_of_items(one: Content, other: Content) -> list[str]:
    """The names of what only one of two containers holds; the container's own for a sequence, or another order."""
    changed = set(one.labels) ^ set(other.labels) if one.kind == "dict" else ()
    return [one.name_of(label) for label in sorted(changed, key=str)] or [_title(one)]


def _title(content: Content) -> str:
    return content.name.rstrip(" .") or "the model"


def _same_leaf(one: Any, other: Any) -> bool:
    """Whether two values without contents are equal: plain ones, and containers that were empty."""
    if one is other:
        return True
    try:
        return same_plain(one, other) if is_plain(one) else type(one) is type(other) and type(one) in CONTAINERS
    except FAILURES:
        return False


def _same_own(one: Content, other: Content) -> bool:
    try:
        match one.kind:
            case "tensor":
                return _same_tensor_of(one, other)
            case "array":
                return same_array(one.own, other.own)
            case "generator" | "iterator":
                return same_state(one.own, other.own)
            case "set":
                return bool(one.own[0] == other.own[0])
            case "function":
                return one.target is other.target or one.target.__code__ == other.target.__code__
            case "class" | "opaque":
                return one.target is other.target
    except FAILURES:
        return False
    return True


def _same_tensor_of(one: Content, other: Content) -> bool:
    """Where values were not copied and the modules are two, nothing but shape and dtype can be said."""
    a, b = one.own, other.own
    if one.target is not other.target and (a.copied is None or b.copied is None):
        return bool(a[:4] == b[:4])
    return same_tensor(a, b)


def _put_back(content: Content) -> None:
    put_back = _PUT_BACK.get(content.kind)
    if put_back is not None:
        put_back(content)
    if content.kind in _WITH_ATTRIBUTES and type(content.target) not in _PLAIN_CONTAINERS:
        more = {label[1]: v for label, v in zip(content.labels, content.values, strict=True) if _is_attribute(label)}
        if more or attributes_of(content.target):
            _put_back_attributes(content.target, more)


def _put_back_tensor(content: Content) -> None:
    _put_back_class(content.target, content.values[0])
    put_back_tensor(content.target, content.own)
    _put_back_gradient(content.target, content)


def _put_back_array(content: Content) -> None:
    if not same_array(content.target, content.own):
        content.target[...] = content.own


def _put_back_object(content: Content) -> None:
    """A module, or another object: its class, and what it refers to."""
    target, values = content.target, content.values
    _put_back_class(target, values[0])
    held = attributes_of(target)
    same = len(held) == len(values) - 1 and all(map(operator.is_, held.values(), values[1:]))
    if same and tuple(held) == content.labels[1:]:
        return
    _put_back_attributes(target, dict(zip(content.labels[1:], values[1:], strict=True)))


def _put_back_set(content: Content) -> None:
    target, items = content.target, content.own[1]
    if isinstance(target, set) and (len(target) != len(items) or set(items) != target):
        set.clear(target)
        set.update(target, items)


def _put_back_iterator(content: Content) -> None:
    if isinstance(content.target, ITERATORS) and content.own:
        content.target.__setstate__(content.own[0])


def _empty_again(content: Content, contents: _Contents) -> None:
    for value in content.values:
        if type(value) in CONTAINERS and value and id(value) not in contents:
            value.clear()


def _is_attribute(label: object) -> bool:
    return isinstance(label, tuple) and len(label) == 2 and label[0] == "attribute"


def _put_back_class(target: Any, kind: type) -> None:
    if type(target) is not kind:
        target.__class__ = kind


def _put_back_gradient(target: Tensor, content: Content) -> None:
    gradient = content.values[1] if "gradient" in content.labels[1:2] else None
    if target.is_leaf and target.grad is not gradient:
        target.grad = gradient


def _put_back_attributes(target: Any, before: dict[Any, Any]) -> None:
    """Put attributes back in the object's own ``__dict__``, or in its slots."""
    held = attributes_of(target)
    for name in [name for name in held if name not in before and not is_marker(name, held[name])]:
        if name != "_compiled_call_impl":
            del held[name]
    for name, value in before.items():
        if isinstance(name, tuple):  # a buffer of a compiled script; its values were put back
            continue
        if name in held or not hasattr(type(target), name):
            if name not in held or held[name] is not value:
                held[name] = value
        elif getattr(target, name, None) is not value:
            object.__setattr__(target, name, value)


def _put_back_dict(content: Content) -> None:
    target, items = content.target, content.own
    now = tuple(dict.items(target))
    if len(now) == len(items) and all(a is c and b is d for (a, b), (c, d) in zip(now, items, strict=True)):
        return
    kind: Any = OrderedDict if isinstance(target, OrderedDict) else dict
    kind.clear(target)
    for key, value in items:
        kind.__setitem__(target, key, value)


def _put_back_list(content: Content) -> None:
    target: Any = content.target
    items = [value for label, value in zip(content.labels, content.values, strict=True) if isinstance(label, int)]
    if len(target) == len(items) and all(a is b for a, b in zip(target, items, strict=True)):
        return
    kind: Any = deque if isinstance(target, deque) else list
    kind.clear(target)
    kind.extend(target, items)


def _put_back_cell(content: Content) -> None:
    target, values = content.target, content.values
    if not values:
        del target.cell_contents
    elif target.cell_contents is not values[0]:
        target.cell_contents = values[0]


def _put_back_function(content: Content) -> None:
    """Defaults, and the globals that its code names; its closure's cells are put back themselves."""
    target = content.target
    labels = [(label, value) for label, value in zip(content.labels, content.values, strict=True)]
    plain = tuple(value for label, value in labels if label[0] == "default" and isinstance(label[1], int))
    named = {label[1]: value for label, value in labels if label[0] == "default" and isinstance(label[1], str)}
    if (target.__defaults__ or ()) != plain and any(
        a is not b for a, b in zip(target.__defaults__, plain, strict=True)
    ):
        target.__defaults__ = plain or None
    if (target.__kwdefaults__ or {}).keys() != named.keys():
        target.__kwdefaults__ = named or None
    values = [value for label, value in labels if label[0] == "global"]
    for (space, name), value in zip(content.own, values, strict=True):
        if space.get(name) is not value:
            space[name] = value


def _put_back_class_attributes(content: Content) -> None:
    if content.own is None:
        return
    target = content.target
    for name in [name for name in vars(target) if name not in content.own and name not in NO_CONTENT]:
        delattr(target, name)
    for name, value in content.own.items():
        if vars(target).get(name) is not value:
            setattr(target, name, value)


_PUT_BACK: Mapping[str, Callable[[Content], None]] = {
    "tensor": _put_back_tensor, "array": _put_back_array, "module": _put_back_object, "object": _put_back_object,
    "dict": _put_back_dict, "list": _put_back_list, "set": _put_back_set, "cell": _put_back_cell,
    "function": _put_back_function, "class": _put_back_class_attributes, "iterator": _put_back_iterator,
    "generator": lambda content: put_back_generator(content.target, content.own),
}  # fmt: skip


def _process_generators() -> dict[str, Any]:
    with own_turn():  # within a step of another thread they would be that step's
        found = {"torch's": torch.get_rng_state(), "Python's": random.getstate()}
        found["NumPy's"] = np.random.get_state(legacy=False)
        for name, device in _accelerators():
            found[name] = [device.get_rng_state(place) for place in range(device.device_count())]
    return found


def _accelerators() -> list[tuple[str, Any]]:
    """The accelerators of kinds that are in use: a look wakes none up."""
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    device = torch.get_device_module(kind)
    return [(f"{kind}'s", device)] if getattr(device, "is_initialized", lambda: True)() else []


def _put_back_process_generators(states: Mapping[str, Any]) -> None:
    with own_turn():
        torch.set_rng_state(states["torch's"])
        random.setstate(states["Python's"])
        np.random.set_state(states["NumPy's"])
        for name, device in _accelerators():
            for place, state in enumerate(states.get(name, ())):
                device.set_rng_state(state, place)


def _same_generator(name: str, before: ModuleState, after: ModuleState) -> bool:
    if name not in before.generators or name not in after.generators:
        return True
    return same_state(before.generators[name], after.generators[name])
