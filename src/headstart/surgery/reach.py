"""Everything that a module's own code can read and change, as a graph: each object's content, once.

From the module: its attributes, containers and tensors, hooks and replaced methods; from functions of the user's own:
closures, defaults, the globals that they name; from classes of the user's own: their attributes and methods.
"""

from __future__ import annotations

import dis
import functools
import itertools
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from headstart.surgery.naming import TENSOR_HOOKS, child_name
from headstart.surgery.origins import is_library, is_live, is_users_class, is_users_function
from headstart.surgery.plain import PLAIN, find_foreign, is_plain, plain_rule
from headstart.surgery.values import FAILURES, GENERATORS, array_value, generator_state, tensor_value

ITERATORS: tuple[Any, ...] = (type(iter([])), type(iter(())), type(iter(range(1))), type(iter("")), type(reversed([])))
_OTHER_ITERATORS = (types.GeneratorType, itertools.count, itertools.cycle, itertools.repeat)
NO_CONTENT = frozenset(
    ("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__abstractmethods__",
     "_abc_impl", "__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__", "__match_args__",
     "__annotations_cache__", "__dataclass_fields__", "__dataclass_params__", "__parameters__", "__orig_bases__",
     "__slots__", "__conditional_annotations__", "__type_params__", "__subclasshook__", "__slotnames__")
)  # fmt: skip
CONTAINERS = frozenset((dict, OrderedDict, list, set))
_MOST_OBJECTS = 200_000


class Content(NamedTuple):
    """One object: what it refers to as ``values`` under ``labels``, and what it is itself (``own``); ``origin``: its
    name, or what refers to it and under which label (few names are ever asked for).
    """

    target: Any
    kind: str
    origin: str | tuple[Content, Any]
    labels: Sequence[Any]
    values: tuple[Any, ...]
    own: Any = None

    @property
    def name(self) -> str:
        """What a person calls it."""
        labels, place = [], self.origin
        while not isinstance(place, str):
            content, label = place
            labels.append((content.kind, label))
            place = content.origin
        for kind, label in reversed(labels):
            place = child_name(kind, place, label)
        return place

    def name_of(self, label: object) -> str:
        """What a person calls the thing that is referred to under the label."""
        return child_name(self.kind, self.name, label)


class Copying(NamedTuple):
    """Which tensors' values are copied: any at all, and the parameters' and their gradients' too."""

    values: bool
    parameters: bool


def is_empty(value: object) -> bool:
    """Whether it is a container of Python's own that holds nothing: it has no content, only a place."""
    return type(value) in CONTAINERS and not value


def is_marker(name: object, value: object) -> bool:
    """Whether it is headstart's own ``train`` of a module that is frozen in evaluation mode."""
    function = value.func if name == "train" and isinstance(value, functools.partial) else None
    return getattr(function, "__module__", "") == "headstart.surgery.freeze"


def read_graph(module: nn.Module, copying: Copying) -> dict[int, Content]:
    """Contents by ``id`` of the object, the module's first; each keeps its object alive."""
    paths = {id(part): path for path, part in iterate_modules(module)}
    return _read_from([(module, "")], copying, paths, frozenset())


def read_roots(roots: Sequence[object], copying: Copying, *, besides: Collection[int]) -> dict[int, Content]:
    """Contents by ``id`` of what these objects reach; what has one of the ids ``besides`` is not gone into."""
    return _read_from([(root, "") for root in roots], copying, {}, besides)


def _read_from(
    waiting: list[tuple[object, Any]], copying: Copying, paths: Mapping[int, str], besides: Collection[int]
) -> dict[int, Content]:
    found: dict[int, Content] = {}
    plain: dict[int, object] = {}  # classes and functions that were asked about
    while waiting and len(found) < _MOST_OBJECTS:
        target, place = waiting.pop()
        kind: Any = type(target)
        key = id(target)
        if key in found:
            continue
        place = paths.get(key, place)
        try:
            content = _reader(kind)(target, place, copying)
        except FAILURES:
            content = Content(target, "opaque", place, (), ())
        found[key] = content
        for label, value in zip(content.labels, content.values, strict=True):
            kind, key = type(value), id(value)
            if kind in PLAIN or (kind in CONTAINERS and not value) or key in found or key in plain or key in besides:
                continue
            if plain_rule(kind)(value):
                plain[key] = value
            else:
                waiting.append((value, (content, label)))
    return found


def iterate_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module), each once: as ``named_modules``, past any code of the modules' own."""
    waiting, seen = [("", module)], set[int]()
    while waiting:
        path, part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield path, part
        held = attributes_of(part).get("_modules")
        inner = (
            [(name, sub) for name, sub in held.items() if isinstance(sub, nn.Module)] if isinstance(held, dict) else []
        )
        waiting += [(f"{path}.{name}" if path else str(name), sub) for name, sub in reversed(inner)]


def attributes_of(target: object) -> dict[str, Any]:
    """The object's own ``__dict__``, past its ``__getattr__``; an empty one where it has none."""
    try:
        held = object.__getattribute__(target, "__dict__")
    except FAILURES:
        return {}
    return held if isinstance(held, dict) else {}


Pairs = list[tuple[Any, Any]]
Place = Any
"""The ``origin`` of a ``Content``: its name, or what refers to it and under which label."""
_WITHOUT_ATTRIBUTES = frozenset((dict, list, tuple, set, frozenset, deque))


def _content(target: Any, kind: str, name: Place, pairs: Pairs, own: Any = None, *, more: bool = True) -> Content:
    """The content of labelled values, with those that an instance of the user's class, or a function, has beside what
    it holds.
    """
    if more and type(target) not in _WITHOUT_ATTRIBUTES and (attributes := attributes_of(target)):
        pairs = [*pairs, *((("attribute", label), value) for label, value in attributes.items())]
    labels, values = zip(*pairs, strict=True) if pairs else ((), ())
    return Content(target, kind, name, labels, values, own)


@functools.lru_cache(maxsize=4096)
def _reader(kind: type) -> Callable[[Any, Any, Copying], Content]:
    """How an object of this class is read."""
    if issubclass(kind, Tensor):
        return _read_tensor
    if issubclass(kind, np.ndarray):
        return _read_array
    read = next((read for kinds, read in _READERS if issubclass(kind, kinds)), _read_object)
    return lambda target, name, _: read(target, name)


def _read_tensor(target: Tensor, name: Place, copying: Copying) -> Content:
    copied = copying.values and (copying.parameters or not isinstance(target, nn.Parameter))
    pairs: Pairs = [("__class__", type(target))]
    if target.is_leaf and target.grad is not None:
        pairs.append(("gradient", target.grad))
    for hooks in TENSOR_HOOKS:
        if getattr(target, hooks, None):
            pairs.append((hooks, getattr(target, hooks)))
    return _content(target, "tensor", name, pairs, tensor_value(target, copied=copied))


def _read_module(part: Any, name: Place) -> Content:
    held = {label: value for label, value in attributes_of(part).items() if label != "_compiled_call_impl"}
    if is_marker("train", held.get("train")):
        del held["train"]
    if any(kind.__name__ == "ScriptModule" for kind in type(part).__mro__):  # keeps its tensors elsewhere
        held |= {("buffer", label): value for label, value in part.named_buffers(recurse=False)}
    return Content(part, "module", name, ("__class__", *held), (type(part), *held.values()))


def _read_dict(target: dict[Any, Any], name: Place) -> Content:
    items, pairs, keys = tuple(dict.items(target)), Pairs(), Pairs()
    for place, (key, value) in enumerate(items):
        plain = is_plain(key) or _is_of_plain(key)
        pairs.append((key if plain else ("key", place), value))
        keys += [] if plain else [(("the key", place), key)]
    return _content(target, "dict", name, pairs + keys, items)


def _is_of_plain(key: object) -> bool:
    return isinstance(key, tuple) and all(is_plain(part) or _is_of_plain(part) for part in key)


def _read_sequence(target: Any, name: Place) -> Content:
    kind = "list" if isinstance(target, (list, deque)) else "tuple"
    return _content(target, kind, name, list(enumerate(target)))


def _read_set(target: Any, name: Place) -> Content:
    others = [value for value in target if not is_plain(value)]
    plain = frozenset(value for value in target if is_plain(value))
    return _content(target, "set", name, list(enumerate(others)), (plain, tuple(target)))


def _read_array(target: np.ndarray[Any, Any], name: Place, copying: Copying) -> Content:
    if target.dtype == object:
        return Content(target, "tuple", name, range(target.size), tuple(target.flat))
    return Content(target, "array", name, (), (), array_value(target, copied=copying.values))


def _read_function(target: types.FunctionType, name: Place) -> Content:
    cells = zip(target.__code__.co_freevars, target.__closure__ or (), strict=True)
    pairs: Pairs = [(("closure", label), cell) for label, cell in cells]
    pairs += [(("default", place), value) for place, value in enumerate(target.__defaults__ or ())]
    pairs += [(("default", label), value) for label, value in (target.__kwdefaults__ or {}).items()]
    spaces = list(iterate_globals(target)) if is_users_function(target) else []
    pairs += [(("global", label, space.get("__name__")), value) for space, label, value in spaces]
    return _content(target, "function", name, pairs, tuple((space, label) for space, label, _ in spaces))


def iterate_globals(function: types.FunctionType) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(namespace, name, value) of the globals that a function's code names, in modules of the user's own too."""
    own, others = function.__globals__, []
    names, attributes = _sort_names(function.__code__)
    for name in names:
        if name not in own:
            continue
        if not isinstance(own[name], types.ModuleType):
            yield own, name, own[name]
        elif not _is_installed(own[name]):
            others.append(vars(own[name]))
    for space in others:
        for name in attributes:
            if name in space and not isinstance(space[name], types.ModuleType):
                yield space, name, space[name]


@functools.lru_cache(maxsize=4096)
def _sort_names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names, attributes = _names(code)
    return tuple(sorted(names)), tuple(sorted(attributes))


def _is_installed(module: types.ModuleType) -> bool:
    place = str(getattr(module, "__file__", None) or "")
    return is_library(module.__name__) or not place or "site-packages" in place or "dist-packages" in place


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names of globals, and names of attributes, in a function's code and in that of functions inside it."""
    found = [(step.opname, str(step.argval)) for step in dis.get_instructions(code)]
    names = frozenset(name for step, name in found if step.endswith(("_GLOBAL", "_NAME")))
    attributes = frozenset(name for step, name in found if "_ATTR" in step or "_METHOD" in step)
    for inner in (_names(const) for const in code.co_consts if isinstance(const, types.CodeType)):
        names, attributes = names | inner[0], attributes | inner[1]
    return names, attributes


def _read_cell(target: types.CellType, name: Place) -> Content:
    try:
        return Content(target, "cell", name, ("contents",), (target.cell_contents,))
    except ValueError:  # empty
        return Content(target, "cell", name, (), ())


def _read_method(target: Any, name: Place) -> Content:
    function = target.__func__ if isinstance(target, types.MethodType) else target.__name__
    return Content(target, "method", name, ("function", "self"), (function, target.__self__))


def _read_partial(target: Any, name: Place) -> Content:
    pairs = [("function", target.func), ("arguments", target.args), ("keywords", target.keywords)]
    return _content(target, "partial", name, pairs)


def _read_class(target: type, name: Place) -> Content:  # noqa: ARG001  its own name says it better
    if not is_users_class(target):
        return _content(target, "class", target.__qualname__, list(find_foreign(target).items()), more=False)
    own = {label: value for label, value in vars(target).items() if label not in NO_CONTENT}
    pairs: Pairs = [(label + part, value) for label in sorted(own) for part, value in _functions_in(own[label])]
    pairs += [(("base", place), base) for place, base in enumerate(target.__mro__[1:])]
    return _content(target, "class", target.__qualname__, pairs, own, more=False)


def _functions_in(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, (staticmethod, classmethod)):
        return [("", value.__func__)]
    if isinstance(value, property):
        return [(f" ({word})", getattr(value, word)) for word in ("fget", "fset") if getattr(value, word) is not None]
    if isinstance(value, functools.cached_property):
        return [("", value.func)]
    return [("", value)]


def _read_generator(target: Any, name: Place) -> Content:
    return Content(target, "generator", name, (), (), generator_state(target))


def _read_iterator(target: Any, name: Place) -> Content:
    if isinstance(target, types.GeneratorType):
        frame = target.gi_frame
        held = dict(frame.f_locals) if frame is not None else {}
        return Content(target, "iterator", name, tuple(held), tuple(held.values()), frame and frame.f_lasti)
    own = target.__reduce__()[2:] if isinstance(target, ITERATORS) else repr(target)
    return Content(target, "iterator", name, (), (), own)


def _read_object(target: Any, name: Place) -> Content:
    held = dict(attributes_of(target))
    kind: Any = type(target)
    for slot in _slots(kind):
        if hasattr(target, slot):
            held[slot] = getattr(target, slot)
    is_seen = bool(held) or is_users_class(type(target))
    if not is_seen or is_live(type(target)) or any(map(is_live, set(map(type, held.values())))):
        return Content(target, "opaque", name, (), ())
    return Content(target, "object", name, ("__class__", *held), (type(target), *held.values()))


@functools.lru_cache(maxsize=4096)
def _slots(kind: type) -> tuple[str, ...]:
    """The names of the slots of a class and its bases."""
    found = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


_READERS: tuple[tuple[Any, Any], ...] = (
    (nn.Module, _read_module),
    (dict, _read_dict),
    ((list, tuple, deque), _read_sequence),
    ((set, frozenset), _read_set),
    (types.FunctionType, _read_function),
    (types.CellType, _read_cell),
    ((types.MethodType, types.BuiltinMethodType), _read_method),
    (functools.partial, _read_partial),
    (type, _read_class),
    (GENERATORS, _read_generator),
    ((*ITERATORS, *_OTHER_ITERATORS), _read_iterator),
)
