"""Which nodes of a traced graph are fixed: functions of the image and of frozen tensors alone, the same every time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from torch import fx, nn

from headstart.errors import ModelError
from headstart.private_names import DROPOUTS, NORMS_WITH_STATISTICS
from headstart.surgery.freeze import Frozen
from headstart.surgery.layout import iterate_tensors

_DROPOUTS = frozenset(
    ("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
)
_MODAL = (*DROPOUTS, nn.RReLU, nn.FractionalMaxPool2d, *NORMS_WITH_STATISTICS)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What all traces of one module share, and what a search that begins again knows already.

    ``keys``: a name for every computation; by these names ``rows``: the tensors with one row per image, ``counts``: the
    numbers that count the images, ``looked``: all that were looked at, ``refused``: why the value must not be stored.
    ``random``: what is random in training by its own word, dropouts for one.
    """

    keys: dict[str, str] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    counts: set[str] = field(default_factory=set)
    looked: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    random: dict[str, None] = field(default_factory=dict)


def find_fixed_nodes(
    module: nn.Module, graph: fx.Graph, frozen: Frozen, constants: Collection[str], search: Search
) -> dict[fx.Node, str]:
    """Nodes that are a function of the image and of frozen tensors alone, with a key of what they compute: equal
    computations of all traces of the module get equal keys.
    """
    fixed: dict[fx.Node, str] = {}
    seen: defaultdict[str, Iterator[int]] = defaultdict(count)
    tensors, eval_modules = {*frozen.tensors, *constants}, set(frozen.modules)
    for node in graph.nodes:
        _refuse_writes(node)
        if node.op == "output" or not all(source in fixed for source in node.all_input_nodes):
            continue
        if not _is_fixed(module, node, tensors, eval_modules):
            if _is_untrained(module, node, tensors):
                search.random.setdefault(describe_node(node))
            continue
        if _is_identity(module, node, eval_modules):
            fixed[node] = fixed[node.all_input_nodes[0]]
            continue
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: _Key(fixed[source]))
        text = repr((node.op, str(node.target), arguments))
        key = search.keys.setdefault(f"{text} #{next(seen[text])}", f"%{len(search.keys)}")
        if key not in search.refused:
            fixed[node] = key
    return fixed


def writes(node: fx.Node) -> bool:
    """Whether a function or method may change a tensor in place."""
    return node.op in ("call_function", "call_method") and name_of(node).endswith("_")


def _refuse_writes(node: fx.Node) -> None:
    """Raises: ModelError: it writes to a tensor that the module holds: a graph that is split would do so elsewhere."""
    if not writes(node):
        return
    source = node
    while source.op in ("call_function", "call_method") and source.all_input_nodes:
        source = source.all_input_nodes[0]
    if source.op == "get_attr":
        raise ModelError(f"model: forward writes to {source.target}, so its traced graph is not split")


def drop_refused(fixed: Mapping[fx.Node, str], search: Search) -> dict[fx.Node, str]:
    """The fixed nodes without those whose computation was refused, and without all that is made from them."""
    left: dict[fx.Node, str] = {}
    for node, key in fixed.items():  # in order of execution
        if key not in search.refused and all(source in left for source in node.all_input_nodes):
            left[node] = key
    return left


def _is_untrained(module: nn.Module, node: fx.Node, frozen: Collection[str]) -> bool:
    """Whether nothing of a node trains: it is not fixed for what it does in training mode."""
    if node.op != "call_module":
        return node.op != "get_attr"
    path = str(node.target)
    return all(f"{path}.{name}" in frozen for name, _, _ in iterate_tensors(module.get_submodule(path)))


class _Key(str):
    """Stands for a node in the text of another one."""

    def __repr__(self) -> str:
        return str(self)


def _is_fixed(module: nn.Module, node: fx.Node, frozen: Collection[str], eval_modules: Collection[str]) -> bool:
    target = str(node.target)
    match node.op:
        case "get_attr":
            return target in frozen
        case "call_module":
            return _is_fixed_module(module.get_submodule(target), target, frozen, eval_modules)
        case _:
            return not _is_random(node)


def _is_fixed_module(part: nn.Module, path: str, frozen: Collection[str], eval_modules: Collection[str]) -> bool:
    own = [f"{path}.{name}" for name, _, _ in iterate_tensors(part)]
    inside = {f"{path}.{name}" if name else path: inner for name, inner in part.named_modules()}
    awake = [inner for name, inner in inside.items() if name not in eval_modules]
    return set(own) <= set(frozen) and all(map(_is_deterministic, awake))


def _is_identity(module: nn.Module, node: fx.Node, eval_modules: Collection[str]) -> bool:
    """Whether a fixed node gives its input as it is; a fixed dropout does."""
    if node.op != "call_module":
        return name_of(node) in _DROPOUTS
    path = str(node.target)
    part = module.get_submodule(path)
    is_dropout = isinstance(part, DROPOUTS) and (path in eval_modules or part.p == 0)
    return isinstance(part, nn.Identity) or bool(is_dropout)


def _is_deterministic(part: nn.Module) -> bool:
    """A plain layer of torch that does in training what it does in evaluation, random or not by its own word."""
    if isinstance(part, DROPOUTS):
        return bool(part.p == 0)
    return type(part).__module__.startswith("torch.nn.modules.") and not isinstance(part, _MODAL)


def _is_random(node: fx.Node) -> bool:
    """Whether a function is a dropout in training mode; what else is random shows in its operations."""
    is_awake, share = _argument(node, 2, "training"), _argument(node, 1, "p")  # by default True, and more than 0
    return name_of(node) in _DROPOUTS and is_awake is not False and share != 0


def name_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def _argument(node: fx.Node, position: int, name: str) -> object:
    """An argument of a node, by position or name; None where it is not given."""
    return node.kwargs.get(name, next(iter(node.args[position:]), None))


def describe_node(node: fx.Node) -> str:
    """What a node of a prefix is to its user: the module's path, or the function and the module that calls it."""
    if node.op not in ("call_function", "call_method"):
        return str(node.target)
    around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"{name_of(node)}() in {around[-1]}" if around else f"{name_of(node)}()"
