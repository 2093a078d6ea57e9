"""Which layers make a model's output: what it says of itself (timm), else a walk from the traced output backwards.

Two answers that are not equals, or none, are a problem put in words, never a guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import fx, nn

from headstart.surgery.head_layers import RANK, HeadKind, MlpHead
from headstart.surgery.origins import is_library
from headstart.surgery.outputs import is_auxiliary, name_outputs, pick_output, read_declared_scores
from headstart.surgery.trace import Trace, read_facts
from headstart.wording import option

_PASSING = frozenset(
    (
        *(
            "flatten",
            "view",
            "reshape",
            "squeeze",
            "unsqueeze",
            "permute",
            "transpose",
            "contiguous",
            "getitem",
            "getattr",
        ),
        *("mean", "sum", "stack", "cat", "add", "iadd", "truediv", "div", "mul", "chunk", "split", "unbind"),
        *("adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool1d", "avg_pool2d", "max_pool2d", "amax"),
        *("dropout", "dropout_", "dropout2d", "to", "type_as", "float", "clone", "detach"),
    )
)
_SHAPES = frozenset(
    (
        *("size", "shape", "dim", "ndim", "len", "device", "dtype"),
        *("rand_like", "randn_like", "randint_like", "zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty"),
    )
)
"""What asks a tensor for its shape or kind only."""
_CLIPPING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus)
_SQUARING = (nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Tanh, nn.PReLU)
_CLIPPING_FUNCTIONS = frozenset({"relu", "relu_", "hardtanh"})
_PROBABILITIES = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid)
_PROBABILITY_FUNCTIONS = frozenset({"softmax", "log_softmax", "sigmoid", "sigmoid_", "logsigmoid", "expit"})


@dataclass(frozen=True, kw_only=True)
class HeadSearch:
    """What a search found. ``paths``: the main head, then its equals; ``activations``: those that follow the head."""

    paths: tuple[str, ...] = ()
    problem: str | None = None
    activations: tuple[str, ...] = ()
    probabilities: str | None = None
    """What turns the output into probabilities (softmax, sigmoid), if something does."""


@dataclass
class _Walk:
    """What a walk from the output has met."""

    heads: list[str] = field(default_factory=list)
    activations: list[str] = field(default_factory=list)
    probabilities: str | None = None
    strange: list[str] = field(default_factory=list)
    nodes: set[fx.Node] = field(default_factory=set)
    emptied: str | None = None
    """The last Identity through which all of the output goes: where a head was, if no layer of scores is before it."""
    behind: int = 0
    """How many of ``activations`` come after it."""
    numbers: frozenset[str] = frozenset()
    """Names of tensors that are no layer's: of a single number, and made by forward itself."""


def search_head(module: nn.Module, trace: Trace) -> HeadSearch:
    """The head's layers, or why they are not clear."""
    scores = read_declared_scores(module)
    graph = trace.graph
    walk = _walk_makers(module, trace, scores) if graph is None else _walk_back(module, trace, graph, scores)
    auxiliary: list[str] = []
    if trace.train_graph is not None and _may_have_auxiliary(module, trace.train_graph, scores):
        auxiliary = _walk_back(module, trace, trace.train_graph, scores).heads
    declared = _ask_timm(module)
    main = declared or tuple(walk.heads)
    problem = None if declared else _judge(module, walk) or _explain_several(module, trace, walk, scores)
    if problem is None and declared and not _equal_outputs(module, declared):
        problem = f"it names heads with different numbers of outputs: {_format_sizes(module, declared)}"
    put_in = _find_put_in(module) if problem is not None else ()
    if put_in:
        main, problem = put_in, None
    activations = walk.activations if set(main) & set(walk.heads) else []
    if walk.emptied and not declared and not put_in and (problem is not None or walk.activations[walk.behind :]):
        main, problem, activations = (walk.emptied,), None, walk.activations[: walk.behind]
    if problem is not None:
        listed = _format_sizes(module, _candidates(module, trace))
        problem = f"the head is not clear: {problem}; layers that could be it: {listed}{_ask_for_output(trace)}"
        return HeadSearch(problem=problem, probabilities=walk.probabilities)
    more = [path for path in [*walk.heads, *auxiliary] if path not in main and is_layer(module.get_submodule(path))]
    equals = [path for path in dict.fromkeys(more) if _equal_outputs(module, (main[0], path))]
    return HeadSearch(
        paths=(*main, *equals),
        activations=tuple(dict.fromkeys(activations)),
        probabilities=walk.probabilities,
    )


def _ask_for_output(trace: Trace) -> str:
    outputs = list(trace.makers if trace.graph is None else name_outputs(_outputs(trace.graph)))
    return (
        f"; if one of the outputs is the scores, say which with {option('head.scores', outputs[0])}"
        if len(outputs) > 1
        else ""
    )


def is_layer(part: nn.Module) -> bool:
    """Whether a module can be a head: linear, a 1x1 convolution, or a head that was put in before."""
    if isinstance(part, nn.Conv2d):
        return tuple(part.kernel_size) == (1, 1)
    return isinstance(part, (nn.Linear, MlpHead))


def layer_sizes(part: nn.Module) -> tuple[HeadKind, int, int]:
    """Kind, inputs and outputs of a layer that can be a head."""
    if isinstance(part, MlpHead):
        (kind, inputs, _), (_, _, outputs) = layer_sizes(part[0]), layer_sizes(part[-1])
        return kind, inputs, outputs
    if isinstance(part, nn.Conv2d):
        return "conv", part.in_channels, part.out_channels
    assert isinstance(part, nn.Linear), type(part)
    return "linear", part.in_features, part.out_features


def _find_put_in(module: nn.Module) -> tuple[str, ...]:
    """Heads that were put in where ``head.at`` said, the main one first: they need not be found again."""
    ranks = {path: vars(part)[RANK] for path, part in module.named_modules() if RANK in vars(part)}
    return tuple(sorted(ranks, key=lambda path: int(ranks[path])))


def _ask_timm(module: nn.Module) -> tuple[str, ...]:
    classifier = read_facts(module).get("classifier") or ()
    paths: list[str] = []
    for path in (classifier,) if isinstance(classifier, str) else tuple(classifier):
        try:
            part = module.get_submodule(path)
        except AttributeError:
            continue
        for inner in ("", ".linear", ".fc", ".l"):
            layer = part if not inner else getattr(part, inner[1:], None)
            if isinstance(layer, nn.Module) and (is_layer(layer) or isinstance(layer, nn.Identity)):
                paths.append(path + inner)
                break
    return tuple(paths)


def _outputs(graph: fx.Graph) -> Any:
    """What the graph returns: a node, or a tuple, list or dictionary of nodes."""
    returned: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    kind = returned.target if isinstance(returned, fx.Node) else None
    if isinstance(kind, type) and (hasattr(kind, "_fields") or dataclasses.is_dataclass(kind)):
        return kind(*returned.args, **returned.kwargs)
    return returned


def _may_have_auxiliary(module: nn.Module, graph: fx.Graph, scores: str | int) -> bool:
    """Whether layers that make outputs in training only are heads: a library's are, others where it was declared."""
    return scores == "all" or (
        scores == "auto" and (is_library(type(module).__module__) or is_auxiliary(_outputs(graph)))
    )


def _explain_several(module: nn.Module, trace: Trace, walk: _Walk, scores: str | int) -> str | None:
    """Why the layers behind several outputs are not all heads, or None: only a declaration makes them so."""
    outputs = trace.makers if trace.graph is None else name_outputs(_outputs(trace.graph))
    known = scores != "auto" or is_library(type(module).__module__)
    if known or len(walk.heads) < 2 or len(outputs) < 2 or (trace.graph and is_auxiliary(_outputs(trace.graph))):
        return None
    return f"the model gives {len(outputs)} outputs, from {_format_sizes(module, walk.heads)}"


def _walk_back(module: nn.Module, trace: Trace, graph: fx.Graph, scores: str | int) -> _Walk:
    outputs, tensors = _outputs(graph), chain(module.named_parameters(), module.named_buffers())
    walk = _Walk(numbers=frozenset((*trace.constants, *(name for name, value in tensors if value.numel() == 1))))
    waiting = list[fx.Node]()
    chosen = outputs if scores in ("auto", "all") else pick_output(outputs, scores)
    fx.node.map_arg(name_outputs(chosen) or chosen, waiting.append)
    while waiting:
        node = waiting.pop(0)
        if node not in walk.nodes:
            walk.nodes.add(node)
            if walk.emptied is None and not waiting and not walk.heads and _is_identity(module, node):
                walk.emptied, walk.behind = str(node.target), len(walk.activations)
            waiting += _step_back(module, node, walk)
    return walk


def _is_identity(module: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and type(module.get_submodule(str(node.target))) is nn.Identity


def calls_inside(module: nn.Module, trace: Trace, paths: Sequence[str]) -> set[str]:
    """The layers of the head that are also called where what they give goes into other layers."""
    inside = set[str]()
    for graph in (graph for graph in (trace.graph, trace.train_graph) if graph is not None):
        last = _walk_back(module, trace, graph, "auto").nodes
        for node in graph.nodes:
            if node.op == "call_module" and node.users and node not in last:
                inside |= {path for path in paths if f"{node.target}.".startswith(path + ".")}
    return inside


def _step_back(module: nn.Module, node: fx.Node, walk: _Walk) -> Iterable[fx.Node]:
    """Where the walk goes from ``node``: to its inputs, or nowhere when it has found something."""
    if node.op == "call_module":
        return _step_back_module(module, node, walk)
    if _is_number(node, walk.numbers):
        return ()
    if node.op in ("get_attr", "placeholder"):
        walk.strange.append(f"the output uses {node.target} directly")
        return ()
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))
    if name in _SHAPES or (name == "getattr" and str(node.args[1]) in _SHAPES):
        return ()
    if name in _PROBABILITY_FUNCTIONS and not _of_weights_alone(node):
        walk.probabilities = f"{name}()"
    elif name in _CLIPPING_FUNCTIONS:
        walk.strange.append(f"{name}() after the last layer clips its scores")
    elif name not in _PASSING:
        walk.strange.append(f"the output comes from {name}()")
    return node.all_input_nodes


def _is_number(node: fx.Node, numbers: Collection[str]) -> bool:
    """Whether the value is made of single numbers and of what forward makes itself: a scale, noise, a temperature."""
    waiting, seen, has_tensor = [node], set[fx.Node](), False
    while waiting:
        reached = waiting.pop()
        if reached.op in ("placeholder", "call_module") or (
            reached.op == "get_attr" and str(reached.target) not in numbers
        ):
            return False
        seen.add(reached)
        has_tensor = has_tensor or reached.op == "get_attr"
        waiting += [source for source in reached.all_input_nodes if source not in seen]
    return has_tensor


def _of_weights_alone(node: fx.Node) -> bool:
    """Whether the value does not depend on the image: the model's own mixing weights, softmaxed."""
    waiting, seen = [node], set[fx.Node]()
    while waiting:
        reached = waiting.pop()
        if reached.op in ("placeholder", "call_module"):
            return False
        seen.add(reached)
        waiting += [source for source in reached.all_input_nodes if source not in seen]
    return True


def _step_back_module(module: nn.Module, node: fx.Node, walk: _Walk) -> Iterable[fx.Node]:
    path = str(node.target)
    part = module.get_submodule(path)
    if any(True for _ in part.parameters()) or any(True for _ in part.buffers()):
        if path not in walk.heads:
            walk.heads.append(path)
        return ()
    if isinstance(part, _PROBABILITIES):
        walk.probabilities = f"{path} ({type(part).__name__})"
    elif isinstance(part, _CLIPPING + _SQUARING):
        walk.activations.append(path)
    return node.all_input_nodes


def _walk_makers(module: nn.Module, trace: Trace, scores: str | int) -> _Walk:
    """The walk to the layers behind the output, by the gradient's graph; else to the last layer executed."""
    last = _last_call(module, trace)
    makers = trace.makers
    chosen = makers if scores in ("auto", "all") or "" in makers else {"": pick_output(makers, scores)}
    if not any(maker.layers for maker in chosen.values()):
        return last
    paths = dict.fromkeys(_with_its_mlp(module, path) for maker in chosen.values() for path in maker.layers)
    if list(paths) == last.heads:
        paths = dict.fromkeys(last.heads)
    else:
        last = _Walk()
    walk = _Walk(heads=list(paths), activations=last.activations, probabilities=last.probabilities)
    for name in (name for maker in chosen.values() for name in maker.functions):
        if name in _PROBABILITY_FUNCTIONS:
            walk.probabilities = walk.probabilities or f"{name}()"
        elif name in _CLIPPING_FUNCTIONS and not walk.activations:
            walk.strange.append(f"{name}() after the last layer clips its scores")
    return walk


def _last_call(module: nn.Module, trace: Trace) -> _Walk:
    """The walk to the last layer that was executed, past what followed it."""
    walk = _Walk()
    for path in reversed(trace.calls):
        part = module.get_submodule(path)
        if any(True for _ in part.parameters()):
            walk.heads.append(_with_its_mlp(module, path))
            return walk
        if isinstance(part, _PROBABILITIES):
            walk.probabilities = f"{path} ({type(part).__name__})"
        elif isinstance(part, _CLIPPING + _SQUARING):
            walk.activations.append(path)
    return walk


def _with_its_mlp(module: nn.Module, path: str) -> str:
    parent = path.rpartition(".")[0]
    return parent if isinstance(module.get_submodule(parent), MlpHead) else path


def _judge(module: nn.Module, walk: _Walk) -> str | None:
    if walk.strange:
        return walk.strange[0]
    if not walk.heads:
        return "no layer leads to the output"
    other = [path for path in walk.heads if not is_layer(module.get_submodule(path))]
    if other:
        return f"the output comes from {_format_types(module, other)}"
    if not _equal_outputs(module, walk.heads):
        return f"the output comes from layers with different numbers of outputs: {_format_sizes(module, walk.heads)}"
    return None


def _equal_outputs(module: nn.Module, paths: Iterable[str]) -> bool:
    parts = [module.get_submodule(path) for path in paths]
    return len({layer_sizes(part)[2] if is_layer(part) else 0 for part in parts}) == 1


def _candidates(module: nn.Module, trace: Trace) -> list[str]:
    """Layers in the last fifth of the execution, at most five, in order."""
    calls = list(dict.fromkeys(trace.calls))
    layers = [name for name in calls if name in dict(module.named_modules()) and is_layer(module.get_submodule(name))]
    late = [name for name in layers if calls.index(name) >= 0.8 * len(calls)]
    return (late or layers)[-5:]


def _format_sizes(module: nn.Module, paths: Iterable[str]) -> str:
    def one(path: str) -> str:
        part = module.get_submodule(path)
        if not is_layer(part):
            return f"{path} ({type(part).__name__})"
        _, inputs, outputs = layer_sizes(part)
        return f"{path} ({inputs} -> {outputs})"

    return ", ".join(one(path) for path in paths) or "none (no linear layer or 1x1 convolution near the output)"


def _format_types(module: nn.Module, paths: Iterable[str]) -> str:
    return ", ".join(f"{path} ({type(module.get_submodule(path)).__name__})" for path in list(paths)[:3])
