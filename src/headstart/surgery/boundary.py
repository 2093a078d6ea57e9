"""The boundary: a model cut in two where everything before is frozen and a function of the image alone.

B batch, C channels, H and W pixels
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from headstart.errors import ModelError
from headstart.surgery.fixed_nodes import Search, describe_node, drop_refused, find_fixed_nodes, writes
from headstart.surgery.freeze import Frozen
from headstart.surgery.layout import find_trace, iterate_tensors
from headstart.surgery.operation_watch import OperationWatch
from headstart.surgery.trace import (
    MODEL_FAILURES,
    fx_graph,
    graph_constants,
    input_shape,
    meta_copies,
    place_like_weights,
    preserve_module,
)

_BATCH = 11  # images in the run that looks at shapes; no model stacks that many things


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Two halves that share the module's own layers: ``suffix(*prefix(images))`` is what the module gives, to the bit,
    for images of the size that it is built for (some models compute their shapes from that size alone). They are parts
    of the traced graph, or the module itself (see ``headstart.surgery.replay``), in which all its own code runs.

    ``prefix``: images (B, C, H, W) -> tensors with B first, the same in training and evaluation, whatever the batch;
    ``labels``: what made them, in order; ``train_suffix`` and ``eval_suffix`` take them. ``refused``: why frozen
    parts that execute later are not before it, a sentence each.
    """

    prefix: nn.Module
    train_suffix: nn.Module
    eval_suffix: nn.Module
    labels: tuple[str, ...]
    refused: tuple[str, ...] = ()
    mixes_in_evaluation: bool = False
    """Whether the suffix mixes the images of a batch in evaluation mode: then validation must not begin here."""
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The key under which a search knows what a node of ``prefix`` computes, by the node."""
    held: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """Parameters and buffers of the module that the graphs themselves read, by name."""

    def find_replaced(self, module: nn.Module) -> str | None:
        """The name of a tensor that the graphs read and that is not the module's any more; None where all are."""
        return next((name for name, value in self.held.items() if _get_tensor(module, name) is not value), None)


class EvalGraph(nn.Module):
    """The part of a traced graph behind the boundary, in evaluation. Its mode is that of the whole ``module``: hooks
    may ask for it, and a ``train`` of the user's own may do more than set it.
    """

    def __init__(self, graph: fx.GraphModule, module: nn.Module) -> None:
        super().__init__()
        self.module, self.graph = module, graph

    def forward(self, *activations: Tensor) -> Any:
        """Return what the module gives in evaluation mode."""
        return self.graph(*activations)


@dataclass(frozen=True, kw_only=True)
class _Half:
    """A traced graph, its fixed nodes by what they compute, which of these other nodes need, and its constants."""

    graph: fx.Graph
    fixed: Mapping[fx.Node, str]
    boundary: tuple[str, ...]
    constants: Mapping[str, Tensor]


def find_boundary(
    module: nn.Module, frozen: Frozen, *, example: Tensor | None = None, search: Search | None = None
) -> Boundary:
    """Cut a module that was frozen by ``freeze`` (which returned ``frozen``).

    What stands before the boundary is fixed by what its operations are known to do; that both halves are the model,
    and that an image's tensors are its own, is proved by ``headstart.training.boundary_proof`` on real images.

    ``example``: images (B, C, H, W) for a model that carries no input size; ``search``: what an earlier search of this
    module found, with computations that ``refuse_computation`` added since.

    Raises: ModelError: torch.fx cannot trace it, or nothing frozen stands before what trains.
    """
    images = torch.zeros(_BATCH, *(example.shape[1:] if example is not None else input_shape(module)))
    seen = Search() if search is None else search
    training = _make_half(module, frozen, seen, images, training=True)
    evaluation = _make_half(module, frozen, seen, images, training=False, known=set(training.fixed.values()))
    boundary = tuple(dict.fromkeys((*training.boundary, *evaluation.boundary)))
    images_alone = {training.fixed.get(next(iter(training.graph.nodes)))}  # the graph begins with them
    if not set(boundary) - images_alone:
        ended = [*seen.refused.values(), *(f"{what} is random in training mode" for what in seen.random)]
        why = f": {ended[0]}" if ended else ""
        raise ModelError(
            f"freeze {frozen.rule}: nothing that is frozen executes before what trains, so there is no boundary{why}"
        )
    prefix, keys = _make_prefix(module, training, boundary)
    train_suffix, eval_suffix = (_make_suffix(module, half, boundary, seen) for half in (training, evaluation))
    return Boundary(
        prefix=prefix,
        train_suffix=train_suffix,
        eval_suffix=EvalGraph(eval_suffix, module),
        held=_find_held(module, (prefix, train_suffix, eval_suffix)),
        labels=_labels(training, boundary),
        refused=tuple(dict.fromkeys(seen.refused.values())),
        keys=keys,
    )


def refuse_computation(boundary: Boundary, node: fx.Node, why: str, *, search: Search) -> None:
    """Have the next search with ``search`` end before a node of the boundary's prefix."""
    search.refused[boundary.keys[node.name]] = f"{describe_node(node)} {why}"


def _make_half(
    module: nn.Module,
    frozen: Frozen,
    seen: Search,
    images: Tensor,
    *,
    training: bool,
    known: Collection[str] | None = None,
) -> _Half:
    """A half: its graph, and what in it is fixed.

    ``known``: keys of what is fixed in training; what is fixed in evaluation alone belongs to the suffix.
    """
    graph, constants = _trace_module(module, set(frozen.modules) if training else None)
    with preserve_module(module):
        for name, value in constants.items():
            setattr(module, name, value)
        fixed = find_fixed_nodes(module, graph, frozen, constants, seen)
        fixed = {node: key for node, key in fixed.items() if known is None or key in known}
        if not set(fixed.values()) <= seen.looked:
            try:
                _look(module, graph, fixed, seen, images)
            except MODEL_FAILURES as error:
                raise ModelError(f"model: its traced graph does not run, so it has no boundary: {error}") from error
            fixed = drop_refused(fixed, seen)
    rows = {node for node, key in fixed.items() if key in seen.rows}
    counts = {node for node, key in fixed.items() if key in seen.counts}
    behind = set(_sources((node for node in graph.nodes if node not in fixed), until=rows | counts))
    needed = [node for node in graph.nodes if node in rows and not behind.isdisjoint(node.users)]
    boundary = [node for node in needed if not _is_cheap(module, node, set(needed) - {node})]
    keys = tuple(dict.fromkeys(fixed[node] for node in boundary))
    return _Half(graph=graph, fixed=fixed, boundary=keys, constants=constants)


def _trace_module(module: nn.Module, eval_modules: Collection[str] | None) -> tuple[fx.Graph, Mapping[str, Tensor]]:
    """The graph in training but for ``eval_modules``, or in evaluation where these are None, with its constants."""
    trace = find_trace(module)
    reason = trace.reason
    if trace.graph is not None:
        if eval_modules is None:
            return trace.graph, trace.constants
        with preserve_module(module):
            try:
                graph = fx_graph(module, training=lambda path: path not in eval_modules)
                return graph, graph_constants(module, graph)
            except MODEL_FAILURES as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    raise ModelError(f"model: torch.fx cannot trace it, so it has no boundary: {reason}")


def _sources(nodes: Iterable[fx.Node], *, until: Container[fx.Node]) -> Iterator[fx.Node]:
    """The nodes, and all that they are made from, each once; not what is in ``until`` nor what only that needs."""
    waiting, seen = list(nodes), set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node not in seen and node not in until:
            seen.add(node)
            yield node
            waiting += node.all_input_nodes


def _is_cheap(module: nn.Module, node: fx.Node, others: Collection[fx.Node]) -> bool:
    """Whether a tensor that crosses is made without weights from others that cross too."""
    made_by = list(_sources([node], until=others))
    layers = [module.get_submodule(str(source.target)) for source in made_by if source.op == "call_module"]
    return not any(source.op == "placeholder" for source in made_by) and not any(map(_has_tensors, layers))


def _has_tensors(part: nn.Module) -> bool:
    return next(iterate_tensors(part), None) is not None


class _Look(fx.Interpreter):
    """Runs the fixed part of a graph and notes what is a tensor with one row per image, what counts the images, and
    what uses operations that are not known to be fixed.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, fixed: Mapping[fx.Node, str], seen: Search) -> None:
        super().__init__(module, graph=graph)
        self.fixed, self.seen = fixed, seen
        self.device = torch.device("meta")
        self._of_images: set[fx.Node] = set()
        self._run: set[fx.Node] = set()

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor of the module, or a constant of the trace, where the images are."""
        value = super().get_attr(target, args, kwargs)
        return value.to(self.device) if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        """Run a node of the fixed part, and return its value."""
        if n not in self.fixed or any(source not in self._run for source in n.all_input_nodes):
            return None
        with OperationWatch() as watch:
            value = super().run_node(n)
        self.seen.looked.add(self.fixed[n])
        if watch.unknown:
            self.seen.refused[self.fixed[n]] = (
                f"{describe_node(n)} uses {watch.unknown[0]}, which is not known to give the same every time and for "
                "each image alone"
            )
            return None
        self._run.add(n)
        if n.op == "placeholder" or any(source in self._of_images for source in n.all_input_nodes):
            self._of_images.add(n)
            if isinstance(value, Tensor) and value.ndim > 1 and len(value) == _BATCH:
                self.seen.rows.add(self.fixed[n])
            if isinstance(value, int) and value == _BATCH and n.args[1:] == (0,):  # shape[0], size(0)
                self.seen.counts.add(self.fixed[n])
        return value


class _Run(nn.Module):
    """An interpreter as a module, for ``functional_call``."""

    def __init__(self, module: nn.Module, look: _Look) -> None:
        super().__init__()
        self.module, self.look = module, look

    def forward(self, images: Tensor) -> Any:
        """Return what the graph gives."""
        return self.look.run(images)


def _look(module: nn.Module, graph: fx.Graph, fixed: Mapping[fx.Node, str], seen: Search, images: Tensor) -> None:
    """Look at a run on ``meta``, or at a real one where that fails."""
    for part in module.modules():
        part.training = False  # statistics stay
    copies, dtype = meta_copies(module)
    look = _Look(module, graph, fixed, seen)
    try:
        meta = {f"module.{name}": value for name, value in copies.items()}
        functional_call(_Run(module, look), meta, (images.to(device="meta", dtype=dtype),), tie_weights=False)
    except RuntimeError:  # values are needed, or an operation has no shapes-only form
        look = _Look(module, graph, fixed, seen)
        placed = place_like_weights(module, images)
        look.device = placed.device
        look.run(placed)


def _make_prefix(module: nn.Module, half: _Half, boundary: tuple[str, ...]) -> tuple[fx.GraphModule, Mapping[str, str]]:
    """The prefix, and the key of what each of its nodes computes."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in half.graph.nodes:
        if node in half.fixed:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    by_key = {half.fixed[node]: copied for node, copied in copies.items()}
    graph.output(tuple(by_key[key] for key in boundary))
    graph.eliminate_dead_code(is_impure_node=_writes)
    keys = {copied.name: half.fixed[node] for node, copied in copies.items()}
    return _as_module(module, graph, half), keys


def _writes(node: fx.Node) -> bool:
    """Whether a node may change a tensor in place: it stays although nobody uses its result."""
    return node.op in ("output", "call_module") or writes(node)


def _make_suffix(module: nn.Module, half: _Half, boundary: tuple[str, ...], seen: Search) -> fx.GraphModule:
    graph = fx.Graph()
    inputs = {key: graph.placeholder(f"activation_{number}") for number, key in enumerate(boundary)}
    copies = {node: inputs[key] for node, key in half.fixed.items() if key in inputs}
    count = graph.call_method("size", (inputs[boundary[0]], 0))
    copies |= {node: count for node, key in half.fixed.items() if key in seen.counts}
    for node in half.graph.nodes:
        if node not in half.fixed:
            for source in sorted(_sources(node.all_input_nodes, until=copies)):
                copies[source] = graph.node_copy(source, lambda other: copies[other])
            copies[node] = graph.node_copy(node, lambda other: copies[other])
    return _as_module(module, graph, half)


def _as_module(module: nn.Module, graph: fx.Graph, half: _Half) -> fx.GraphModule:
    targets = {str(node.target): node.op for node in graph.nodes if node.op in ("get_attr", "call_module")}
    tensors = {path: tensor for path, tensor, _ in iterate_tensors(module)} | dict(half.constants)
    root = {path: tensors[path] if op == "get_attr" else module.get_submodule(path) for path, op in targets.items()}
    return fx.GraphModule(root, graph)


def _get_tensor(module: nn.Module, name: str) -> object:
    """What the module has under the name of a tensor. It is asked for at every step, and so not found by a walk."""
    path, _, own_name = name.rpartition(".")
    part: object = module
    for child in path.split(".") if path else ():
        part = getattr(part, child, None)
    return getattr(part, own_name, None)


def _find_held(module: nn.Module, graphs: Iterable[fx.GraphModule]) -> dict[str, Tensor]:
    read = {str(node.target) for made in graphs for node in made.graph.nodes if node.op == "get_attr"}
    return {name: value for name, value, _ in iterate_tensors(module) if name in read}


def _labels(half: _Half, boundary: tuple[str, ...]) -> tuple[str, ...]:
    by_key = {key: node for node, key in half.fixed.items()}
    nodes = [by_key[key] for key in boundary]
    return tuple(str(node.target) if node.op == "call_module" else node.name for node in nodes)
