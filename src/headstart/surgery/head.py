"""The head: the final layer(s) that turn features into scores. Finding it, and putting a new one in its place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import chain

import timm
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from headstart.errors import ModelError
from headstart.isolation import in_own_arithmetic
from headstart.lazy_imports import is_compiler_loaded
from headstart.surgery.head_layers import ACTIVATIONS, RANK, HeadKind, make_head
from headstart.surgery.head_search import is_layer, layer_sizes
from headstart.surgery.head_uses import move_hooks, put_everywhere, refuse_other_uses
from headstart.surgery.layout import Layout, find_layout, find_trace, forget_layout, renew_layout
from headstart.surgery.outputs import declare_scores, read_declared_scores, scores_of
from headstart.surgery.trace import read_facts, run_for_shapes
from headstart.wording import option

_CHEAP = 50_000_000  # parameters of a model that one image takes less than 0.3 s of
_IN_A_HEAD = (nn.Linear, nn.Dropout, nn.Identity, nn.LayerNorm, nn.BatchNorm1d, *ACTIVATIONS.values(), nn.Hardswish)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The layers whose outputs are a model's scores.

    Attributes:
        ``paths``: The path of the main layer, then those of its equals (distillation, auxiliary).
        ``kind``: The kind of the main layer, e.g. linear.
        ``inputs``: How many features it takes.
        ``outputs``: How many scores it gives; 0 where it was removed before.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> hs.find_head(net)
        Head(paths=('fc',), kind='linear', inputs=16, outputs=1000)
    """

    paths: tuple[str, ...]
    kind: HeadKind
    inputs: int
    outputs: int


@dataclass(frozen=True, kw_only=True)
class HeadSwap:
    """What was replaced for a new head.

    Attributes:
        ``path``: The path of the main layer.
        ``was``: How many outputs it had.
        ``now``: How many outputs it has.
        ``others``: The paths of its equals (distillation, auxiliary), which were replaced, too.
        ``removed``: The paths of activations that stood behind the head and are gone.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> hs.replace_head(net, outputs=3)
        HeadSwap(path='fc', was=1000, now=3, others=(), removed=())
    """

    path: str
    was: int
    now: int
    others: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def find_head(module: nn.Module, *, at: str = "auto", example: Tensor | None = None) -> Head:
    """Return the head that a model has: the last layers, whose outputs are the scores.

    Args:
        ``module``: The model.
        ``at``: The path of the head's layer; auto finds it by following an image through the model.
        ``example``: Images (B, C, H, W) that the model takes; None makes some.

    Returns:
        The ``paths`` of the main layer and its equals (distillation, auxiliary), the layer's ``kind``, and how many
        ``inputs`` and ``outputs`` it has; 0 outputs where it was removed before.

    Raises:
        ModelError: It is not clear which layers are the head, or the model applies softmax or sigmoid itself.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> head = hs.find_head(net)
        >>> head.paths, head.inputs, head.outputs
        (('fc',), 16, 1000)
    """
    layout = find_layout(module, example=example)
    if layout.probabilities is not None:
        raise ModelError(
            f"model: its output goes through {layout.probabilities}, but the loss applies softmax or sigmoid itself: "
            "twice is wrong; take it out of the model, e.g. put torch.nn.Identity() in its place"
        )
    paths = _choose_paths(module, layout, at)
    kind, inputs, outputs = _sizes(module, paths[0], example)
    return Head(paths=paths, kind=kind, inputs=inputs, outputs=outputs)


@in_own_arithmetic
def replace_head(
    module: nn.Module,
    *,
    outputs: int,
    hidden: Sequence[int] = (),
    activation: str = "relu",
    dropout: float = 0.0,
    at: str = "auto",
) -> HeadSwap:
    """Put a new head into a model, in place; everything else stays the same object.

    The new values come from torch's global generator: seed it. Names of saved weights are those of a plain layer unless
    there are hidden ones.

    Args:
        ``module``: The model.
        ``outputs``: How many outputs the new head has: classes, tags or numbers.
        ``hidden``: The sizes of hidden layers before the last one; none makes one linear layer.
        ``activation``: What stands between hidden layers: relu, gelu, silu, ...
        ``dropout``: The share of the head's inputs that training sets to zero, 0 to 1.
        ``at``: The path of the layer that is replaced; auto finds it.

    Returns:
        What was replaced: the ``path``, how many outputs there were (``was``) and are (``now``), the ``others`` that
        are its equals, and activations that were ``removed``.

    Raises:
        ModelError: The head is not clear, ``at`` names no layer, or a number is out of range.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> swap = hs.replace_head(net, outputs=3)
        >>> swap.path, swap.was, swap.now
        ('fc', 1000, 3)
    """
    _check(outputs, hidden, activation, dropout)
    head = find_head(module, at=at)
    removed = find_layout(module).head_activations
    _check_removable(module, removed)
    refuse_other_uses(module, find_trace(module), head.paths)
    old = {path: module.get_submodule(path) for path in (*head.paths, *removed)}
    try:
        for rank, path in enumerate(head.paths):
            kind, inputs, _ = _sizes(module, path, None)
            like = next(chain(old[path].parameters(), module.parameters()), None)
            sizes = (inputs, *hidden, outputs)
            new = make_head(kind, sizes, activation=activation, dropout=dropout, like=like)
            vars(new)[RANK] = rank
            move_hooks(old[path], new)
            put_everywhere(module, old[path], new.train(module.training))
        for path in removed:
            put_everywhere(module, old[path], nn.Identity().train(module.training))
        renew_layout(module, replaced=tuple(old))
        _EQUAL_HEADS.pop(module, None)
        _check_shape(module, head, outputs, old=old if at == "auto" and head.outputs else None)
    except ModelError:
        for path, part in old.items():
            if module.get_submodule(path) is not part:
                put_everywhere(module, module.get_submodule(path), part)
        forget_layout(module)
        raise
    for path in head.paths:
        _tell_timm(module, path, outputs)
    return HeadSwap(path=head.paths[0], was=head.outputs, now=outputs, others=head.paths[1:], removed=removed)


_EQUAL_HEADS: MutableMapping[nn.Module, int] = WeakIdKeyDictionary()


def model_scores(model: nn.Module, outputs: object) -> list[tuple[float, Tensor]]:
    """(share of the loss, scores (B, K)) of what the model returned, the main ones first: see ``scores_of``."""
    if isinstance(outputs, Tensor):
        return [(1.0, outputs)]
    if model not in _EQUAL_HEADS:
        _EQUAL_HEADS[model] = _count_heads(model)
    return scores_of(outputs, scores=read_declared_scores(model), equal_heads=_EQUAL_HEADS[model])


def share_scores(model: nn.Module, *parts: nn.Module) -> None:
    """Have parts that give the model's outputs in its place give its scores: what was declared, and its equal heads."""
    for part in parts:
        declare_scores(part, read_declared_scores(model))
        _EQUAL_HEADS[part] = _count_heads(model)


def _count_heads(model: nn.Module) -> int:
    try:
        return max(1, len(find_layout(model).heads))
    except ModelError:  # it does not run on images of the size that it is taken to be built for
        return 1


def head_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the head's parameters, all layers of it.  Raises: ModelError: it is not clear."""
    inside = tuple(path + "." for path in find_head(module).paths)
    return tuple(name for name, _ in module.named_parameters() if name.startswith(inside))


def _check(outputs: int, hidden: Sequence[int], activation: str, dropout: float) -> None:
    if outputs < 1:
        raise ModelError(f"head: {outputs} outputs; give at least 1")
    if any(size < 1 for size in hidden):
        raise ModelError(f"head.hidden: {list(hidden)}; every size is at least 1, e.g. [256]")
    if activation not in ACTIVATIONS:
        raise ModelError(f"head.activation: {activation!r} is unknown; one of {', '.join(ACTIVATIONS)}")
    if not 0 <= dropout < 1:
        raise ModelError(f"head.dropout: {dropout} is out of range; give 0 or more and less than 1, e.g. 0.5")


def _choose_paths(module: nn.Module, layout: Layout, at: str) -> tuple[str, ...]:
    if at == "auto":
        if layout.head_problem is not None:
            hint = _sibling(module) or _how_to_name(module, layout)
            raise ModelError(f"model: {layout.head_problem}; {hint}")
        return layout.heads
    parts = dict(module.named_modules())
    if at not in parts or at == "":
        near = difflib.get_close_matches(at, list(parts), n=4, cutoff=0.4)
        found = f"the head was found at {', '.join(layout.heads)}" if layout.heads else _how_to_name(module, layout)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; {found}"
        raise ModelError(f"head.at: the model has no module {at!r}{hint}")
    part = parts[at]
    if not (is_layer(part) or isinstance(part, nn.Identity) or _is_stack(part)):
        found = type(part).__name__
        raise ModelError(
            f"head.at: {at} is a {found}; name a linear layer, a 1x1 convolution or a Sequential of such, or take it "
            f"out first: model.set_submodule({at!r}, torch.nn.Identity())"
        )
    inside = [path for path in layout.heads if path == at or path.startswith(at + ".")]
    others = tuple(path for path in layout.heads if path not in inside) if inside else ()
    late = [] if inside else _find_later_layers(layout, at, others)
    if late:
        raise ModelError(
            f"head.at: {late[-1]} executes after {at}; the head comes last: name {late[-1]} or a module that holds both"
        )
    return (at, *others)


def _how_to_name(module: nn.Module, layout: Layout) -> str:
    """What to type so that a head is found where none was: the last layer that can be named, or be made to."""
    parts = dict(module.named_modules())
    called = sorted(layout.last_calls, key=lambda path: layout.last_calls[path])
    able = [path for path in called if is_layer(parts[path]) or isinstance(parts[path], nn.Identity)]
    at = next((path for path in reversed(able) if not _find_later_layers(layout, path, ())), None)
    if at is not None:
        what = "the layer to replace" if is_layer(parts[at]) else f"where the new head goes ({at} is an Identity)"
        return f"name {what} with head.at, e.g. {option('head.at', at)}"
    last = max((place for place in layout.tensors if not place.is_buffer), key=lambda place: place.order, default=None)
    if last is None or not last.module or not run_for_shapes(module, names={last.module}).calls:
        of = f" (forward uses {last.name} without one)" if last else ""
        return (
            f"compute the scores with a layer of their own{of}, e.g. self.head = torch.nn.Linear(FEATURES, CLASSES) in "
            "__init__ and self.head(features) in forward"
        )
    return (
        f"{last.module} ({type(parts[last.module]).__name__}) makes the scores in a way of its own, which a new "
        "layer would not have; where that is fine, take it out and name its place: "
        f"model.set_submodule({last.module!r}, torch.nn.Identity()), and {option('head.at', last.module)}"
    )


def _find_later_layers(layout: Layout, at: str, allowed: tuple[str, ...]) -> list[str]:
    inside = [place.order for place in layout.tensors if place.name.startswith(at + ".")]
    last = max(inside, default=layout.last_calls.get(at, -1))
    free = tuple(path + "." for path in (at, *allowed))
    return [place.module for place in layout.tensors if place.order > last and not place.name.startswith(free)]


def _is_stack(part: nn.Module) -> bool:
    """A Sequential of linear layers and what stands between them, a linear layer first and last."""
    if not isinstance(part, nn.Sequential) or not all(isinstance(inner, _IN_A_HEAD) for inner in part):
        return False
    layers = [inner for inner in part if any(True for _ in inner.parameters())]
    return bool(layers) and isinstance(layers[0], nn.Linear) and isinstance(layers[-1], nn.Linear)


def _sizes(module: nn.Module, path: str, example: Tensor | None) -> tuple[HeadKind, int, int]:
    part = module.get_submodule(path)
    if is_layer(part):
        return layer_sizes(part)
    if isinstance(part, nn.Sequential):
        layers = [inner for inner in part if isinstance(inner, nn.Linear)]
        return "linear", layers[0].in_features, layers[-1].out_features
    shapes = [call.inputs for call in run_for_shapes(module, names={path}, example=example).calls]
    shape = shapes[-1] if shapes else None
    if shape is None or len(shape) not in (2, 4):
        raise ModelError(f"head: {path} was removed from this model, and what reaches it is not features: {shape}")
    return ("conv", shape[1], 0) if len(shape) == 4 else ("linear", shape[-1], 0)


def _check_removable(module: nn.Module, activations: Sequence[str]) -> None:
    names = list(module.named_modules(remove_duplicate=False))
    for path in activations:
        part = module.get_submodule(path)
        if sum(other is part for _, other in names) > 1:
            raise ModelError(f"model: {path} follows the head and clips its scores, but is used elsewhere too")


def _tell_timm(module: nn.Module, path: str, outputs: int) -> None:
    """Keep ``num_classes`` true on the model and on the modules that hold the head."""
    names = path.split(".")
    for depth in range(len(names)):
        holder = module.get_submodule(".".join(names[:depth]))
        if isinstance(getattr(holder, "num_classes", None), int):
            holder.num_classes = outputs  # type: ignore[assignment]  # a plain attribute, not a module


def _check_shape(module: nn.Module, head: Head, outputs: int, *, old: Mapping[str, nn.Module] | None) -> None:
    """The model gives one row of ``outputs`` numbers per image; one that did not run on zeros with its ``old`` layers
    either is let through.
    """
    size = sum(parameter.numel() for parameter in module.parameters())
    real = size < _CHEAP and not is_compiler_loaded()  # on meta, torch would load it: 1.2 s
    try:
        shape = run_for_shapes(module, names=(), values=real).outputs
    except ModelError as error:
        if old is None:
            raise
        if _ran_with(module, old):
            raise ModelError(
                f"head: with {outputs} outputs at {head.paths[0]} the model does not run any more ({error}); what "
                "the head gives is used inside the model too: call a layer of its own there, or name another head "
                f"with head.at, e.g. {option('head.at', fill='PATH')}"
            ) from error
        return
    if shape is not None and shape != (1, outputs):
        found = f"with {outputs} outputs at {head.paths[0]} the model gives {shape} for one image, not (1, {outputs})"
        hint = _sibling(module) or (
            f"name the layer that makes scores with head.at, e.g. {option('head.at', fill='PATH')}"
        )
        raise ModelError(f"head: {found}; {hint}")


def _ran_with(module: nn.Module, old: Mapping[str, nn.Module]) -> bool:
    """Whether the model runs with its old layers; the new ones are put back."""
    new = {path: module.get_submodule(path) for path in old}
    for path, part in old.items():
        put_everywhere(module, new[path], part)
    try:
        run_for_shapes(module, names=())
    except ModelError:
        return False
    finally:
        for path, part in old.items():
            put_everywhere(module, part, new[path])
    return True


def _sibling(module: nn.Module) -> str:
    """Where to turn from one of timm's encoders, which give feature maps or tokens and no scores."""
    name = str(read_facts(module).get("architecture", ""))
    plain = name.removesuffix("_enc")
    if plain == name or not timm.is_model(plain):
        return ""
    return f"timm/{name} is an encoder without a classifier: take timm/{plain}, the same with one"
