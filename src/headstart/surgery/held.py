"""What a module holds: its frozen tensors by identity, and stand-ins that a forward pass left in its attributes."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from headstart.surgery.constants import find_constant
from headstart.surgery.fixed_values import Book, Contents, Fixed, Memory, map_nested


def list_named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers by every name that they have."""
    parameters = module.named_parameters(remove_duplicate=False)
    return [*parameters, *module.named_buffers(remove_duplicate=False)]


class Sources:
    """The frozen tensors of a module, by identity; looked for again where it holds others."""

    def __init__(self, names: Collection[str], contents: Contents) -> None:
        self._names, self._contents = names, contents
        self._module: nn.Module | None = None
        self._held: list[tuple[dict[str, Any], str, Tensor, int, Memory, int]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Sources:
        return Sources(self._names, copy.deepcopy(self._contents, memo))

    def read(self, module: nn.Module, book: Book) -> dict[int, Memory]:
        """The memories of the frozen tensors by id, and of what the module keeps that was made of them."""
        if self._module is not module or not all(
            held.get(name) is value and value.data_ptr() == where and not value.requires_grad
            for held, name, value, where, _, _ in self._held
        ):
            self._module, self._held = module, list(self._find(module))
        for _, _, _, _, memory, content in self._held:
            memory.content = content
        memories = {id(value): memory for _, _, value, _, memory, _ in self._held}
        for path, name in self._contents.attributes:
            for value in leaves(vars(module.get_submodule(path)).get(name)):
                is_plain = type(value) is Tensor and not value.requires_grad
                known = find_constant(book, value) if is_plain else None
                if known is not None:
                    memories[id(value)] = Memory(known, value, value.detach(), source=True)
        return memories

    def _find(self, module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor, int, Memory, int]]:
        seen, known = dict[int, Memory](), self._contents.frozen
        for name, held, key, value in iterate_holders(module):
            if name not in self._names or value.requires_grad:
                continue
            if name not in known:
                known[name] = self._contents.new()
            memory = seen.setdefault(id(value), Memory(known[name], value, value.detach(), source=True))
            assert memory.content is not None
            yield held, key, value, value.data_ptr(), memory, memory.content


def iterate_holders(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
    """Parameters and buffers by every name that they have, with the dict and the key that hold them."""
    parts = module.named_modules(remove_duplicate=False)
    holders = ((path, held) for path, part in parts for held in (part._parameters, part._buffers))
    for path, held in holders:
        for key, value in held.items():
            if value is not None:
                yield f"{path}.{key}" if path else key, held, key, value


def plain_outputs(value: Any) -> Any:
    """A module's outputs with stand-ins replaced by their numbers, those in dataclasses, too."""
    return map_nested(value, _plain_leaf)


def _plain_leaf(leaf: Any) -> Any:
    if type(leaf) is Fixed:
        return plain_tensor(leaf)
    return _plain_dataclass(leaf) if is_dataclass(leaf) and not isinstance(leaf, type) else leaf


def _plain_dataclass(value: Any) -> Any:
    """A copy with plain fields, without a call of its class, which may check or compute; itself if all are plain."""
    held = {each.name: getattr(value, each.name) for each in fields(value) if hasattr(value, each.name)}
    if not any(type(leaf) is Fixed for each in held.values() for leaf in leaves(each)):
        return value
    copied = copy.copy(value)
    for name, each in held.items():
        object.__setattr__(copied, name, plain_outputs(each))
        if isinstance(copied, dict) and name in copied:  # outputs of transformers are both
            OrderedDict.__setitem__(copied, name, getattr(copied, name))
    return copied


def plain_tensor(value: Fixed) -> Tensor:
    """The numbers of a stand-in; what has a gradient keeps it."""
    return value.clone() if value.requires_grad or value.memory.content is None else value.run.need(value)


def settle(module: nn.Module) -> None:
    """Replace stand-ins that a forward pass left in the module's attributes by their numbers."""
    for path, part in module.named_modules():
        if type(part).__module__.startswith("torch.nn.") and not part._forward_hooks and not part._forward_pre_hooks:
            continue  # torch's own layers keep nothing
        for held in (part.__dict__, part._buffers):
            for name in [name for name, value in held.items() if type(value) in _HOLDING and _holds(name, value)]:
                _settle(held, name, path)


def _settle(held: dict[str, Any], name: str, path: str) -> None:
    for leaf in leaves(held[name]):
        if type(leaf) is Fixed:
            leaf.run.stays(leaf, (path, name))
    held[name] = _settle_value(held[name])


def _settle_value(value: Any) -> Any:
    """The value with numbers in place of stand-ins; lists and dictionaries, which others may hold too, stay the same
    objects.
    """
    if type(value) is list or type(value) is deque:
        for place, each in enumerate(value):
            value[place] = _settle_value(each)
        return value
    if type(value) is dict:
        value.update({name: _settle_value(each) for name, each in value.items()})
        return value
    return plain_outputs(value)


def detach_held(module: nn.Module) -> None:
    """Make tensors that the module's parts hold besides parameters plain: what a training step computed them from is
    let go, without which a module cannot be copied.
    """
    for held in (held for part in module.modules() for held in (part.__dict__, part._buffers)):
        for name, value in list(held.items()):
            if isinstance(value, Tensor) or (type(value) in _HOLDING and not name.startswith("_")):
                held[name] = _detach(value)


def _detach(value: Any) -> Any:
    """The value with plain tensors in it; the same object where all of them are."""
    if not any(map(_is_tied, leaves(value))):
        return value
    if type(value) is deque:
        return deque(map(_detach, value), value.maxlen)
    return map_nested(value, lambda leaf: leaf.detach() if _is_tied(leaf) else leaf)


def _is_tied(value: Any) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


_HOLDING = frozenset((Fixed, list, tuple, dict, deque))


def _holds(name: str, value: Any) -> bool:
    return type(value) is Fixed or (not name.startswith("_") and any(type(leaf) is Fixed for leaf in leaves(value)))


def leaves(value: Any) -> list[Any]:
    """The values that nested tuples, lists, deques and dicts hold."""
    if isinstance(value, dict | list | tuple | deque):
        return [leaf for each in (value.values() if isinstance(value, dict) else value) for leaf in leaves(each)]
    return [value]
