"""What a model executes, in order: traced with torch.fx, or seen through hooks where that fails.

Looking changes nothing: modes, buffers, attributes and random generators are put back.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torchvision
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import LeafModuleAwareTracer

from headstart.errors import ModelError
from headstart.private_names import CONVOLUTIONS, NORMS_WITH_STATISTICS
from headstart.surgery.head_layers import DropoutConv2d, DropoutLinear, MlpHead
from headstart.surgery.makers import Maker, find_makers
from headstart.surgery.members import member_names, refuse_new_members
from headstart.surgery.no_trace import no_trace
from headstart.surgery.outputs import pick_output, read_declared_scores
from headstart.surgery.own_state import has_own_code
from headstart.surgery.replaced_forward import class_with

How = Literal["fx", "hooks"]
_LEAVES = (
    *(DropoutConv2d, DropoutLinear, MlpHead),
    *(torchvision.ops.StochasticDepth, torchvision.ops.FrozenBatchNorm2d, torchvision.ops.DeformConv2d),
    *(torchvision.ops.DropBlock2d, torchvision.ops.DropBlock3d),
    # libraries subclass these; torch.fx would look inside, and a linear layer would be no layer any more
    *(nn.Linear, *CONVOLUTIONS, *NORMS_WITH_STATISTICS, nn.LayerNorm, nn.GroupNorm),
)
MODEL_FAILURES = (
    *(RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError),
    NameError,  # torch.fx: a module or parameter that is not registered
)
"""What a model's own code raises when it is run on proxies, on meta, or on images of a wrong size."""
_MOST_CHANNELS = 15  # Sentinel-2 has 13; a first convolution of more sees a rearranged image (space to depth, DCT)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """``calls``: leaf modules and bare tensors by name, as they are used, repeats included; ``constants``: tensors that
    the graphs use and the module does not hold; ``insides``: of modules that are one node of the graph, what they hold
    in the order of its execution.
    """

    how: How
    calls: tuple[str, ...]
    graph: fx.Graph | None = None
    train_graph: fx.Graph | None = None
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    insides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    makers: Mapping[str, Maker] = field(default_factory=dict)
    """Without a graph, of a module of the user's own: the layers behind each output."""
    reason: str = ""
    """Why it was not traced with torch.fx; empty when it was."""


def trace_module(module: nn.Module, *, example: Tensor | None = None) -> Trace:
    """The order of execution. Parts that run in training only (auxiliary heads) are at their place in it."""
    try:
        with preserve_module(module):
            graph, train_graph, constants = _trace_both(module)
    except _NotTraceable as error:
        with preserve_module(module):  # anew: the trace may have left its own values in what the module keeps
            calls, makers = _find_hooked(module, example), _makers(module, example)
        return Trace(how="hooks", calls=calls, makers=makers, reason=str(error))
    insides = _insides(module, [graph] if train_graph is None else [graph, train_graph], example)
    calls = _calls(module, graph, train_graph, insides)
    return Trace(how="fx", calls=calls, graph=graph, train_graph=train_graph, constants=constants, insides=insides)


class _NotTraceable(Exception):
    """Why torch.fx cannot trace a module."""


def _trace_both(module: nn.Module) -> tuple[fx.Graph, fx.Graph | None, dict[str, Tensor]]:
    """The graphs of evaluation and, where there is one, of training, and the tensors that tracing made.

    Raises: _NotTraceable: there is none of evaluation.
    """
    try:
        graph = fx_graph(module, training=lambda _: False)
    except MODEL_FAILURES as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise _NotTraceable(reason) from error
    try:
        train_graph = fx_graph(module, training=lambda _: True)
    except MODEL_FAILURES:  # the order in evaluation is known
        return graph, None, graph_constants(module, graph)
    return graph, train_graph, graph_constants(module, graph) | graph_constants(module, train_graph)


def with_new_leaves(module: nn.Module, trace: Trace, paths: Collection[str]) -> Trace | None:
    """The trace after the modules at ``paths`` were replaced; None where another graph may have come of it."""
    called = _find_called([graph for graph in (trace.graph, trace.train_graph) if graph is not None])
    if trace.graph is None or not set(paths) <= called:
        return None
    insides = {path: names for path, names in trace.insides.items() if path not in paths}
    calls = _calls(module, trace.graph, trace.train_graph, insides)
    return replace(trace, calls=calls, insides=insides)


def _find_called(graphs: Sequence[fx.Graph]) -> set[str]:
    return {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}


def _insides(module: nn.Module, graphs: Sequence[fx.Graph], example: Tensor | None) -> dict[str, tuple[str, ...]]:
    """What modules hold that torch.fx does not look into and that have several layers, by path, as hooks see it."""
    held: dict[str, list[str]] = {}
    for path in sorted(_find_called(graphs)):
        part = module.get_submodule(path)
        if not isinstance(part, nn.Sequential) and not is_adapted(part):
            names = leaf_names(part, path)
            held |= {path: names} if len(names) > 2 else {}
    if not held:
        return {}
    inner = {name for path, names in held.items() for name in names if name != path}
    try:
        calls = run_for_shapes(module, names=inner, example=example).calls
    except ModelError:  # the order of the code is what is left
        return {}
    first: dict[str, int] = {}
    for position, call in enumerate(calls):
        first.setdefault(call.name, position)
    return {path: _by_call(names, first) for path, names in held.items()}


def _by_call(names: Sequence[str], first: Mapping[str, int]) -> tuple[str, ...]:
    """The names in order of the first call; one that is not called stays behind its neighbour in the code."""
    places, place = dict[str, int](), -1
    for name in names:
        place = places[name] = first.get(name, place)
    return tuple(sorted(names, key=lambda name: places[name]))


def _calls(
    module: nn.Module, graph: fx.Graph, train_graph: fx.Graph | None, insides: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    calls = _graph_calls(module, graph, insides)
    if train_graph is not None:
        train_calls = _graph_calls(module, train_graph, insides)
        if set(calls) <= set(train_calls):
            calls = train_calls
    return tuple(calls)


def graph_constants(module: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """Tensors that tracing made; they are there within ``preserve_module`` only."""
    tensors = {name for name, _ in _iterate_tensors(module)}
    made = {str(node.target) for node in graph.nodes if node.op == "get_attr"} - tensors
    return {name: _tensor_at(module, name) for name in sorted(made)}


def _tensor_at(module: nn.Module, name: str) -> Tensor:
    """One that tracing made, or a plain attribute of a module inside."""
    parent, _, local = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(parent), local)
    return found


class _ImagesAlone(LeafModuleAwareTracer):  # type: ignore[misc]  # torchvision has no types
    """Traces a model as it is called: with images. Its other arguments (a mask, coordinates) keep their defaults;
    torch.fx would take each for given.
    """

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The function to trace, and what it is called with."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        if function is not root_fn or not is_module:  # *args or **kwargs: it takes exactly these
            return function, args
        for node in [node for node in self.graph.nodes if node.op == "placeholder"][1:]:
            self.graph.erase_node(node)
        return function, args[:2]


def fx_graph(module: nn.Module, *, training: Callable[[str], bool]) -> fx.Graph:
    """The graph that is executed where ``training`` says of every module's path whether it is in training mode.

    Call it within ``preserve_module``.
    """
    for path, part in module.named_modules():
        part.training = training(path)
    adapted = {type(part) for part in module.modules() if is_adapted(part)}  # their code branches on what they hold
    if (replaced := vars(module).get("forward")) is not None:  # torch.fx would trace the class's
        module.__class__ = class_with(module, replaced)
    tracer = _ImagesAlone(
        leaf_modules=[*get_notrace_modules(), *_LEAVES, *adapted],  # type: ignore[no-untyped-call]
        autowrap_functions=tuple(get_notrace_functions()),  # type: ignore[no-untyped-call]
        autowrap_modules=(math, torchvision.ops),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph: fx.Graph = tracer.trace(module)
    return graph


def is_adapted(part: nn.Module) -> bool:
    """Whether it is one of peft's: a layer (``base_layer``) with low-rank adapters beside it."""
    layers = (getattr(part, name, None) for name in ("base_layer", "lora_A", "lora_B"))
    return all(isinstance(layer, nn.Module) for layer in layers)


def find_adapted_layers(module: nn.Module) -> tuple[str, ...]:
    """Paths of the layers that have adapters, every name of a shared one."""
    return tuple(path for path, part in module.named_modules(remove_duplicate=False) if is_adapted(part))


@contextlib.contextmanager
def preserve_module(module: nn.Module) -> Iterator[None]:
    """Within it a module may be traced and run, without gradients, and everything is put back: see ``no_trace``.

    Raises: ModelError: a forward pass made parts, parameters or buffers that the module does not have otherwise.
    """
    before = member_names(module)
    with no_trace(module), torch.no_grad():
        yield
        refuse_new_members(module, before, batch=(2, *input_shape(module)))


def _graph_calls(module: nn.Module, graph: fx.Graph, insides: Mapping[str, tuple[str, ...]]) -> list[str]:
    tensors = {name for name, _ in _iterate_tensors(module)}
    calls: list[str] = []
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            calls += insides.get(target) or leaf_names(module.get_submodule(target), target)
        elif node.op == "get_attr" and target in tensors:
            calls.append(target)
    return calls


def _iterate_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def leaf_names(part: nn.Module, path: str) -> list[str]:
    """The modules under ``path`` that have tensors of their own or no children."""
    names = []
    for name, inner in part.named_modules(prefix=path):
        own = next(inner.parameters(recurse=False), None) is not None or any(True for _ in inner.buffers(recurse=False))
        if own or not any(True for _ in inner.children()):
            names.append(name)
    return names


def _find_hooked(module: nn.Module, example: Tensor | None) -> tuple[str, ...]:
    names = {name for name in leaf_names(module, "") if name}
    return tuple(call.name for call in run_for_shapes(module, names=names, example=example).calls)


def _makers(module: nn.Module, example: Tensor | None) -> dict[str, Maker]:
    if not has_own_code(module):
        return {}
    try:
        return find_makers(module, place_like_weights(module, _images(module, example, None)))
    except MODEL_FAILURES:
        return {}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One execution of a module: shapes of its first input and of its output, None for what is not a tensor."""

    name: str
    inputs: tuple[int, ...] | None
    outputs: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class ShapeRun:
    """A forward pass: its calls in order of their ends, the output's shape, and multiply-adds (None: not counted)."""

    calls: tuple[Call, ...]
    outputs: tuple[int, ...] | None
    multiply_adds: int | None


def run_for_shapes(
    module: nn.Module,
    *,
    names: Collection[str],
    example: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
    count: bool = False,
    values: bool = False,
) -> ShapeRun:
    """One forward pass in evaluation mode, recorded at the modules named; ``count``: multiply-adds too.

    Executed on ``meta`` (shapes without values), or, with ``values`` and where a model does not run there, on its own
    weights.
    ``example``: images (B, C, H, W), the first is used; else zeros of ``shape`` (C, H, W), else of the model's own.

    Raises: ModelError: the model does not run on such images.
    """
    images = _images(module, example, shape)
    calls: list[Call] = []
    try:
        try:
            with _in_eval(module), _hooks(module, names, calls):
                on_meta = None if values else _run_on_meta(module, images, count=count)
                outputs, made = on_meta or (_run_for_real(module, images), None)
        except RuntimeError:  # values are needed, or an operation has no shapes-only form
            calls.clear()
            with _in_eval(module), _hooks(module, names, calls):  # anew: it may have kept tensors without values
                outputs, made = _run_for_real(module, images), None
    except MODEL_FAILURES as error:
        raise ModelError(f"model: does not run on images of shape {tuple(images.shape)}: {error}") from error
    scores = read_declared_scores(module)
    outputs = outputs if scores in ("auto", "all") else pick_output(outputs, scores)
    return ShapeRun(calls=tuple(calls), outputs=_shape(outputs), multiply_adds=made)


@contextlib.contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    with preserve_module(module):
        for part in module.modules():
            part.training = False
        yield


@contextlib.contextmanager
def _hooks(module: nn.Module, names: Collection[str], calls: list[Call]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, inputs: Any, outputs: Any) -> None:
            calls.append(Call(name=name, inputs=_shape(inputs[0] if inputs else None), outputs=_shape(outputs)))

        return note

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shape(value: Any) -> tuple[int, ...] | None:
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else None


def meta_copies(module: nn.Module) -> tuple[dict[str, Tensor], torch.dtype]:
    """Every tensor of the module as one without values, for ``functional_call``, and the dtype of its images."""
    own = _own_tensors(module)
    copies = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in own.values()}
    return {name: copies[id(tensor)] for name, tensor in own.items()}, image_dtype(module)


def _run_on_meta(module: nn.Module, images: Tensor, *, count: bool) -> tuple[Any, int | None]:
    meta, dtype = meta_copies(module)
    counter = None
    if count:
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
    with counter or contextlib.nullcontext():
        outputs = functional_call(module, meta, (images.to(device="meta", dtype=dtype),), tie_weights=False)
    return outputs, counter.get_total_flops() // 2 if counter else None


def _run_for_real(module: nn.Module, images: Tensor) -> Any:
    buffers = {name for name, _ in module.named_buffers()}
    copies = {name: tensor.clone() for name, tensor in _own_tensors(module).items() if name in buffers}
    return functional_call(
        module, copies, (place_like_weights(module, images),), tie_weights=False
    )  # it may write to them


def _images(module: nn.Module, example: Tensor | None, shape: tuple[int, ...] | None) -> Tensor:
    return example[:1] if example is not None else torch.zeros(1, *(shape or input_shape(module)))


def place_like_weights(module: nn.Module, images: Tensor) -> Tensor:
    """The images where the module's parameters are, in the type of its first one of floating numbers."""
    first = next(module.parameters(), images)
    return images.to(device=first.device, dtype=image_dtype(module))


def image_dtype(module: nn.Module) -> torch.dtype:
    """The type of the module's first parameter of floating numbers; float32 where it has none."""
    return next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every place that holds a tensor, once: of a module under two names, ``functional_call`` would put back the
    substitute (its second swap takes the first one's tensor for the original)."""
    own: dict[str, Tensor] = {}
    for path, part in module.named_modules():
        prefix = path + "." if path else ""
        tensors = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        own.update({prefix + name: tensor for name, tensor in tensors})
    return own


def read_facts(module: nn.Module) -> Mapping[str, Any]:
    """What timm's models say of themselves; nothing of a module whose ``__getattr__`` answers to any name."""
    given = getattr(module, "pretrained_cfg", None)
    return given if isinstance(given, Mapping) else {}


def input_shape(module: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the model is built for: what it says of itself, else 224."""
    facts = read_facts(module)
    channels, height, width = facts.get("input_size") or (3, 224, 224)
    size = getattr(getattr(module, "patch_embed", None), "img_size", None) or getattr(module, "image_size", None)
    height, width = _pair(size) or read_config_size(module) or (height, width)
    first = facts.get("first_conv") if facts else _first_conv(module)
    if isinstance(first, str) and isinstance(part := _find_part(module, first), nn.Conv2d):
        channels = part.in_channels if part.in_channels <= _MOST_CHANNELS else channels
    return int(channels), int(height), int(width)


def read_config_size(module: nn.Module) -> tuple[int, int] | None:
    """(height, width) that the config of a model of transformers names."""
    return _pair(getattr(getattr(module, "config", None), "image_size", None))


def _pair(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, (tuple, list)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


def _first_conv(module: nn.Module) -> str | None:
    return next((name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)), None)


def _find_part(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
