"""Where every tensor of a model is: order of execution, kind, stage, and which layers are the head."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from headstart.distributed.fsdp import plain_type
from headstart.private_names import CONVOLUTIONS, NORMS_WITH_STATISTICS
from headstart.surgery.head_search import search_head
from headstart.surgery.naming import HOOKS
from headstart.surgery.origins import is_librarys_hook
from headstart.surgery.outputs import read_declared_scores
from headstart.surgery.stages import Cut, cut_stages
from headstart.surgery.trace import How, Trace, find_adapted_layers, is_adapted, trace_module, with_new_leaves
from headstart.surgery.whole_module import refuse_lazy, refuse_unregistered, refuse_wrapped

Kind = Literal["conv", "linear", "norm", "attention", "embedding", "token", "adapter", "head", "other"]


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """One parameter or buffer. ``order``: position in the execution; ``stage``: the head's is ``len(stages)``."""

    name: str
    module: str
    kind: Kind
    order: int
    stage: int
    is_buffer: bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the model in order of execution; ``modules``: its leaf modules; ``parameters``: how many numbers."""

    index: int
    name: str
    modules: tuple[str, ...]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What tracing found, by names alone: it keeps no module alive."""

    tensors: tuple[TensorPlace, ...]
    stages: tuple[Stage, ...]
    heads: tuple[str, ...]
    """Paths of the head's layers, the main one first; empty when ``head_problem`` says why it is not clear."""
    head_problem: str | None
    head_activations: tuple[str, ...]
    """Parameterless activations that follow the head: they would clip new scores."""
    probabilities: str | None
    """What turns the output into probabilities (softmax, sigmoid), if something does."""
    modules: tuple[str, ...]
    """Leaf modules in order of first execution, parameterless ones too."""
    last_calls: Mapping[str, int] = field(repr=False)
    """The position of each leaf module's last execution, in the same count as ``TensorPlace.order``."""
    how: How
    reason: str
    """Why torch.fx could not trace it; empty when it could."""

    def find_tensor(self, name: str) -> TensorPlace:
        """The place of a parameter or buffer.  Raises: KeyError: there is none of that name."""
        for place in self.tensors:
            if place.name == name:
                return place
        raise KeyError(name)

    def stage_of(self, name: str) -> int:
        """The stage of a tensor, or the last stage that a module reaches into.  Raises: KeyError: it has none."""
        stages = [place.stage for place in self.tensors if place.name == name or place.name.startswith(name + ".")]
        if not stages:
            raise KeyError(name)
        return max(stages)


_LAYOUTS: MutableMapping[nn.Module, tuple[object, Layout, Trace]] = WeakIdKeyDictionary()


def find_layout(module: nn.Module, *, example: Tensor | None = None) -> Layout:
    """The module's layout, traced once and again when its structure has changed.

    ``example``: images (B, C, H, W) for models that torch.fx cannot trace; default: zeros of the model's own size.
    """
    refuse_wrapped(module)
    refuse_lazy(module)
    structure = _structure(module)
    known = _LAYOUTS.get(module)
    if known is not None and known[0] == structure:
        return known[1]
    refuse_unregistered(module)
    trace = trace_module(module, example=example)
    layout = _look(module, trace)
    _LAYOUTS[module] = (structure, layout, trace)
    return layout


def find_trace(module: nn.Module) -> Trace:
    """The trace that the layout was read from."""
    find_layout(module)
    return _LAYOUTS[module][2]


def renew_layout(module: nn.Module, *, replaced: Collection[str]) -> None:
    """Renew the layout, without a trace: modules at these paths were replaced by others called alike."""
    known = _LAYOUTS.pop(module, None)
    trace = with_new_leaves(module, known[2], replaced) if known is not None else None
    if trace is not None:
        _LAYOUTS[module] = (_structure(module), _look(module, trace), trace)


def forget_layout(module: nn.Module) -> None:
    """Drop what is known; the next ``find_layout`` traces anew."""
    _LAYOUTS.pop(module, None)


def iterate_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Iterate over (name, tensor, is_buffer) of every parameter and buffer, with each name of a shared one."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, parameter, False
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield name, buffer, True


def _structure(module: nn.Module) -> object:
    parts = tuple((name, plain_type(part), _ways(part)) for name, part in module.named_modules())
    return (
        parts,
        read_declared_scores(module),
        tuple((name, tuple(tensor.shape)) for name, tensor, _ in iterate_tensors(module)),
    )


def _ways(part: nn.Module) -> object:
    """What may make a forward pass take another way: hooks, a replaced forward, switches. Counters are no switches;
    hooks of libraries (those that share a model out) send it the same way.
    """
    held = vars(part)
    filled = [hooks for name, hooks in held.items() if HOOKS.match(name) and isinstance(hooks, dict) and hooks]
    hooks = [key for hooks in filled for key, hook in hooks.items() if not is_librarys_hook(hook)]
    plain = [(name, value) for name, value in held.items() if isinstance(value, bool | str)]
    switches = [(name, value) for name, value in plain if name != "training" and "fsdp" not in name]  # torch's marks
    return id(held.get("forward")), tuple(hooks), tuple(switches)


def _look(module: nn.Module, trace: Trace) -> Layout:
    search = search_head(module, trace)
    orders = _find_orders(module, trace.calls)
    owners = _find_owners(module)
    units = _list_units(module, orders, owners, search.paths)
    weighty = {unit: _can_start_stage(module, unit) for unit in units}
    cuts = cut_stages(units, weighty=weighty, heads=search.paths)
    tensors = _list_places(module, orders, owners, cuts, search.paths)
    parts = dict(module.named_modules())
    called = [name for name in trace.calls if name in parts]
    return Layout(
        tensors=tensors,
        stages=_list_stages(module, cuts, tensors),
        heads=search.paths,
        head_problem=search.problem,
        head_activations=search.activations,
        probabilities=search.probabilities,
        modules=tuple(dict.fromkeys(called)),
        last_calls={name: position for position, name in enumerate(trace.calls) if name in parts},
        how=trace.how,
        reason=trace.reason,
    )


def _find_orders(module: nn.Module, calls: tuple[str, ...]) -> dict[str, int]:
    """Position of the first use of every tensor, by name; an unused one stands with its neighbour in the code."""
    parts, first = dict(module.named_modules()), dict[int, int]()
    by_name = {name: tensor for name, tensor, _ in iterate_tensors(module)}
    for position, name in enumerate(calls):
        if name in parts:
            used = [*parts[name].parameters(recurse=False), *parts[name].buffers(recurse=False)]
        else:
            used = [by_name[name]]
        for tensor in used:
            first.setdefault(id(tensor), position)
    orders, neighbour = dict[str, int](), 0
    for name in _in_code_order(module, by_name):
        neighbour = first.get(id(by_name[name]), neighbour)
        orders[name] = neighbour
    return orders


def _in_code_order(module: nn.Module, names: Mapping[str, Tensor]) -> list[str]:
    """The names in the order of the code: a module's own tensors, then its children's; buffers beside parameters."""
    rank = {name: position for position, (name, _) in enumerate(module.named_modules(remove_duplicate=False))}
    return sorted(names, key=lambda name: rank[name.rpartition(".")[0]])


def _find_owners(module: nn.Module) -> dict[str, str]:
    """The module that each tensor belongs to; what is in a layer with adapters belongs to that layer."""
    layers, owners = find_adapted_layers(module), dict[str, str]()
    for name, _, _ in iterate_tensors(module):
        around = (layer for layer in layers if name.startswith(layer + "."))
        owners[name] = next(around, name.rpartition(".")[0])
    return owners


def _list_units(
    module: nn.Module, orders: Mapping[str, int], owners: Mapping[str, str], heads: tuple[str, ...]
) -> list[str]:
    """Owners of tensors in order of execution, the head's left out; a container's own tensors are units themselves."""
    parts, units = dict(module.named_modules(remove_duplicate=False)), dict[str, int]()
    first = _first_names(module)
    for name, order in orders.items():
        owner = owners[name]
        if first[name] == name and not _inside(name, heads):
            has_children = any(True for _ in parts[owner].children())
            unit = (
                name if not owner or (has_children and _kind(parts[owner], name) in ("token", "embedding")) else owner
            )
            units[unit] = min(order, units.get(unit, order))
    return sorted(units, key=lambda unit: units[unit])


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a tensor with the first of its names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor, _ in iterate_tensors(module)}


def _inside(name: str, paths: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(path + ".") for path in paths)


def _can_start_stage(module: nn.Module, unit: str) -> bool:
    try:
        part = module.get_submodule(unit)
    except AttributeError:  # a bare tensor
        return False
    part = part.get_submodule("base_layer") if is_adapted(part) else part
    owned = [name for name, _ in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]]
    return any(_kind(part, name) in ("conv", "linear", "attention") for name in owned)


def _list_places(
    module: nn.Module,
    orders: Mapping[str, int],
    owners: Mapping[str, str],
    cuts: tuple[Cut, ...],
    heads: tuple[str, ...],
) -> tuple[TensorPlace, ...]:
    first = _first_names(module)
    stage_of_unit = {unit: index for index, cut in enumerate(cuts) for unit in cut.units}
    parts = dict(module.named_modules(remove_duplicate=False))
    of_head = {id(tensor) for name, tensor, _ in iterate_tensors(module) if _inside(name, heads)}
    places = []
    for name, tensor, is_buffer in iterate_tensors(module):
        owner = name.rpartition(".")[0]
        in_head = id(tensor) in of_head  # under each of its names
        unit = first[name] if first[name] in stage_of_unit else owners[first[name]]
        stage = len(cuts) if in_head else stage_of_unit.get(unit, len(cuts))
        is_adapter = owners[name] != owner and not owner.startswith(owners[name] + ".base_layer")
        kind: Kind = "head" if in_head else "adapter" if is_adapter else _kind(parts[owner], name)
        place = TensorPlace(name=name, module=owner, kind=kind, order=orders[name], stage=stage, is_buffer=is_buffer)
        places.append(place)
    return tuple(sorted(places, key=lambda place: place.order))


def _list_stages(module: nn.Module, cuts: tuple[Cut, ...], tensors: tuple[TensorPlace, ...]) -> tuple[Stage, ...]:
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    stages = []
    for index, cut in enumerate(cuts):
        count = sum(sizes.get(place.name, 0) for place in tensors if place.stage == index and not place.is_buffer)
        stages.append(Stage(index=index, name=cut.name, modules=cut.units, parameters=count))
    return tuple(stages)


_NORMS = (*NORMS_WITH_STATISTICS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDING = re.compile(r"pos(ition)?_?emb|position|rel_pos|relative_position|_pos$|^pos_")


def _kind(owner: nn.Module, name: str) -> Kind:
    """The kind of a tensor, by the type of the module that owns it; a name decides only for bare tensors of other
    modules.
    """
    local, of = name.rpartition(".")[2], type(owner).__name__
    if isinstance(owner, CONVOLUTIONS):
        return "conv"
    if isinstance(owner, (nn.Linear, nn.Bilinear)):
        return "linear"
    if isinstance(owner, _NORMS) or "Norm" in of:
        return "norm"
    if isinstance(owner, nn.Embedding) or _EMBEDDING.search(local):
        return "embedding"
    if "token" in local:
        return "token"
    if isinstance(owner, nn.MultiheadAttention) or re.search(r"Attention|Attn", of):
        return "attention"
    return "other"
