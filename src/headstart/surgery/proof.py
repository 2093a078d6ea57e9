"""Proof that a module cut in two is the module: both are run and compared, on images that are given.

A prefix makes tensors of images, a suffix goes on from them in the module's place. That this is the module can be
known only by running both: its own code may hold hooks, counters, buffers, or draw random numbers.

B images, C channels, H and W pixels
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from headstart.isolation import own_arithmetic
from headstart.private_names import tree_flatten
from headstart.surgery.generators import seed_generators
from headstart.surgery.halves import Prefix, Suffix
from headstart.surgery.module_state import ModuleState, differences, read_state, restore_state
from headstart.surgery.no_trace import read_before

_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-8, torch.bfloat16: 6e-2, torch.float16: 1e-2}
_MODEL_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError)
Arithmetic = Callable[[], AbstractContextManager[object]]
"""Makes the context that forward passes of a run are in."""


class Halves(Protocol):
    """A module cut in two: see ``headstart.surgery.boundary.Boundary``."""

    @property
    def prefix(self) -> nn.Module:
        """Images (B, C, H, W) -> a tuple of tensors with one row per image."""

    @property
    def train_suffix(self) -> nn.Module:
        """These tensors -> what the module gives in training mode."""

    @property
    def eval_suffix(self) -> nn.Module:
        """These tensors -> what the module gives in evaluation mode."""


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What calls in a row gave, and how they left the module; ``drew``: whether random numbers were taken."""

    outputs: tuple[tuple[Any, tuple[Any, ...]], ...]  # per call its structure and its leaves
    gradients: tuple[Tensor | None, ...]
    after: ModuleState
    drew: bool
    graph: tuple[str, ...]  # buffers that a gradient would go back through


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Calls in a row, each in training mode (True) or in evaluation mode, from one state of the generators."""

    modes: tuple[bool, ...]
    seed: int


WHOLE = (Calls(modes=(True, True, False), seed=20_011), Calls(modes=(True, False, True), seed=77))
"""Both modes, a counter's second call included, from two states: from one a random choice may agree by chance."""


def find_difference(
    module: nn.Module,
    halves: Halves,
    images: Tensor,
    *,
    arithmetic: Arithmetic,
    activations: tuple[Tensor, ...] | None = None,
    rounds: Sequence[Calls] = WHOLE,
) -> str | None:
    """Why the halves are not the module, as a clause; None where nothing differs.

    The module is called, not its ``forward``; in its place then the suffix, on what the prefix made of the same images
    (``activations``, where that is known), from the same buffers, attributes and generators. Outputs, gradients, and
    all that is left behind are compared to the bit. Where no random numbers are drawn, one round is enough.
    The module is left as it was.

    ``images``: (B, C, H, W), at least two, which BatchNorm needs.
    """
    before = read_before(module)
    try:
        activations = activations or compute_activations(halves.prefix, images, arithmetic)
        suffixes = {True: halves.train_suffix, False: halves.eval_suffix}
        for calls in rounds:
            restore_state(module, before)
            own = _run(module, {True: module, False: module}, (images,), calls, arithmetic)
            restore_state(module, before)
            why = _compare_outcomes(own, _run(module, suffixes, activations, calls, arithmetic))
            if why or not own.drew:
                return why
    except _MODEL_FAILURES as error:
        return f"it does not run in two halves ({type(error).__name__}: {_first_line(error)})"
    finally:
        _cut_graph(module)
        restore_state(module, before)
    return None


def compute_activations(prefix: nn.Module, images: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, ...]:
    """What the prefix makes of the images, in evaluation mode; modes are put back and, where it runs the module's own
    code, so is all that this changes: a ``train`` of the user's may clear what forward keeps.
    """
    before = read_before(prefix.module) if isinstance(prefix, Prefix) else None
    modes = {part: part.training for part in prefix.modules()}
    try:
        prefix.eval()
        with own_arithmetic(), torch.no_grad(), arithmetic():
            made = prefix(images)
    finally:
        for part, mode in modes.items():
            part.training = mode
        if before is not None:
            restore_state(before.root, before)
    assert isinstance(made, tuple)
    return made


def _run(
    module: nn.Module,
    callables: Mapping[bool, Callable[..., Any]],
    arguments: Sequence[Tensor],
    calls: Calls,
    arithmetic: Arithmetic,
) -> _Outcome:
    """``callables``: what is called in training mode (True) and in evaluation mode."""
    seed_generators(calls.seed)
    start, outputs = _generators(), list[tuple[Any, tuple[Any, ...]]]()
    gradients: tuple[Tensor | None, ...] = ()
    for training in calls.modes:
        module.train(training)
        with torch.set_grad_enabled(training):
            with arithmetic():
                given = [value.clone() for value in arguments]  # it may write to them
                leaves, structure = tree_flatten(_open_objects(callables[training](*given)))
            if training:
                gradients = (*gradients, *_gradients(module, leaves))
        outputs.append((structure, tuple(map(_detach, leaves))))
    drew, graph = _generators() != start, _cut_graph(module)
    return _Outcome(outputs=tuple(outputs), gradients=gradients, after=read_before(module), drew=drew, graph=graph)


def _cut_graph(module: nn.Module) -> tuple[str, ...]:
    """Make buffers plain again that a write outside of ``no_grad`` tied to the graph; their names."""
    tied = {name: buffer for name, buffer in module.named_buffers() if buffer.grad_fn is not None}
    for buffer in tied.values():
        buffer.detach_()
    return tuple(tied)


def _gradients(module: nn.Module, leaves: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """The gradients of a sum over the outputs in which every number counts differently, by each trainable parameter."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    scores = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not trained or not scores:
        return ()
    total = torch.stack([_sum_weighted(score) for score in scores]).sum()
    return torch.autograd.grad(total, trained, allow_unused=True)


def _open_objects(value: Any) -> Any:
    """Outputs with dataclasses and other plain objects as dictionaries of what they hold."""
    if type(value) in (list, tuple):
        return type(value)([_open_objects(each) for each in value])
    if isinstance(value, dict):
        return {key: _open_objects(each) for key, each in value.items()}
    if isinstance(value, Tensor | tuple | nn.Module | type) or not getattr(value, "__dict__", None):
        return value
    return {"class": type(value).__qualname__} | {name: _open_objects(each) for name, each in vars(value).items()}


def _sum_weighted(values: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, values.numel(), device=values.device, dtype=torch.float32)
    return (values.flatten().float() * weights).sum()


def _compare_outcomes(own: _Outcome, halves: _Outcome) -> str | None:
    """What differs, as a clause."""
    left = differences(own.after, halves.after)
    if left:
        return f"{_list_names(left)} would not change as without a cache"
    for one, other in zip(own.outputs, halves.outputs, strict=True):
        if one[0] != other[0] or not all(map(_is_same, one[1], other[1])):
            return "the model as it is called gives other outputs than in two halves"
    if own.graph != halves.graph:
        return f"{_list_names(own.graph or halves.graph)} would be written to with a gradient"
    if not all(map(_is_same, own.gradients, halves.gradients)):
        return "the model as it is called gives other gradients than in two halves"
    return None


def find_mixing(prefix: nn.Module, images: Tensor, together: tuple[Tensor, ...]) -> str | None:
    """Why a tensor that the prefix makes is not each image's own, as a clause; None where all are.

    ``together``: what it makes of these images (B, C, H, W) as one batch, without autocast, whose rounding would hide a
    small share. They are given again in the other order, and each alone, from different states of the generators.
    """
    try:
        again, mates = _rearrange_images(prefix, images), _among_others(partial(_plain_activations, prefix), (images,))
    except _MODEL_FAILURES as error:
        return f"does not run on each image alone ({type(error).__name__}: {_first_line(error)})"
    own = all(is_close(some, whole[rows]) for rows, made in again for whole, some in zip(together, made, strict=True))
    own = own and all(
        _is_same(whole[place], some[place]) for place, made in mates for whole, some in zip(together, made, strict=True)
    )
    return None if own else "depends on the other images of the batch, or on chance"


def mixes_in_evaluation(suffix: nn.Module, activations: tuple[Tensor, ...]) -> bool:
    """Whether a score depends on the other images of a batch behind the boundary, too, in evaluation mode.

    Then it depends on what fills a batch up, which is not the same before the boundary and behind it.
    """
    module: nn.Module = suffix.module if isinstance(suffix, Suffix) else suffix
    before = read_state(module)

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        suffix.eval()
        try:
            with torch.no_grad():
                leaves = tree_flatten(_open_objects(suffix(*given)))[0]
            return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        finally:
            restore_state(module, before)

    together = outputs(*[value.clone() for value in activations])
    return not all(
        _is_same(whole[place], some[place])
        for place, made in _among_others(outputs, activations)
        for whole, some in zip(together, made, strict=True)
    )


def _among_others(
    call: Callable[..., tuple[Tensor, ...]], given: tuple[Tensor, ...]
) -> list[tuple[int, tuple[Tensor, ...]]]:
    """What ``call`` gives for each place in the batch where all other rows are quite others: at an equal batch shape
    that place's own row is the same to the bit, whatever the others are.
    """
    found = []
    for place in range(len(given[0])):
        changed = [value.clone() for value in given]
        for value in changed:
            rows = [row for row in range(len(value)) if row != place]
            value[rows] = value[rows] * 40 + 7 if value.is_floating_point() else value[rows].flip(-1)
        seed_generators(place)
        found.append((place, call(*changed)))
    return found


def _plain_activations(prefix: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    return compute_activations(prefix, images, nullcontext)


def find_mixing_node(prefix: fx.GraphModule, images: Tensor) -> fx.Node | None:
    """The first node of a traced prefix whose value is not each image's own; None where no node stands out.

    ``images``: (B, C, H, W), B of them different.
    """
    prefix.eval()
    count = len(images)
    with torch.no_grad():
        together = _Values(prefix).of(images)
        for rows in (list(reversed(range(count))), *([place] for place in range(count))):
            seed_generators(len(rows))
            found = _first_other(together, _Values(prefix).of(images[rows]), rows)
            if found is not None:
                return found
        for place, made in _among_others(lambda given: (_Values(prefix).of(given),), (images,)):  # type: ignore[arg-type,return-value]
            found = _find_first_change(together, made[0], place)  # type: ignore[arg-type]
            if found is not None:
                return found
    return None


def _find_first_change(
    together: Mapping[fx.Node, Tensor], made: Mapping[fx.Node, Tensor], place: int
) -> fx.Node | None:
    """The first node whose row at ``place`` is another one among other images."""
    for node, whole in together.items():
        rows = [len(value) if value.ndim else 0 for value in (whole, made[node])]
        if rows[0] == rows[1] > place and node.op != "placeholder" and not _is_same(whole[place], made[node][place]):
            return node
    return None


def _first_other(
    together: Mapping[fx.Node, Tensor], made: Mapping[fx.Node, Tensor], rows: Sequence[int]
) -> fx.Node | None:
    """The first node whose value for these rows is another one than among all of them."""
    for node, whole in together.items():
        some = made[node]
        has_rows = whole.ndim > 0 and some.ndim > 0 and len(some) == len(rows) and some.shape[1:] == whole.shape[1:]
        if has_rows and max(rows) < len(whole) and not is_close(some, whole[rows]):
            return node
    return None


class _Values(fx.Interpreter):
    """The tensors of every node."""

    def of(self, images: Tensor) -> dict[fx.Node, Tensor]:
        self.values: dict[fx.Node, Tensor] = {}
        self.run(images)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, noted before anything writes to it."""
        value = super().run_node(n)
        first = value[0] if isinstance(value, tuple) and value else value  # values and places, of a sort
        if isinstance(first, Tensor) and n.op != "get_attr":
            self.values[n] = first.clone()
        return value


def _rearrange_images(prefix: nn.Module, images: Tensor) -> list[tuple[list[int], tuple[Tensor, ...]]]:
    """Places of images, and what the prefix makes of these alone."""
    alone = 2 if isinstance(prefix, Prefix) else 1  # what runs a module's own code knows batches of two or more
    orders = [list(reversed(range(len(images)))), *([place] * alone for place in range(len(images)))]
    found = []
    for rows in orders:
        seed_generators(len(rows))
        found.append((rows, compute_activations(prefix, images[rows], nullcontext)))
    return found


def is_close(one: Tensor, other: Tensor, *, stored: torch.dtype | None = None) -> bool:
    """Whether every row of two tensors (B, ...) is the same but for rounding in another order of the same sum, and
    that of being ``stored`` in another type.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    allowed = max(_ROUNDING.get(kind, 1e-3) for kind in (one.dtype, stored or one.dtype))
    first, second = (value.detach().double().flatten(1) if value.ndim > 1 else value.double() for value in (one, other))
    apart = (first - second).nan_to_num(0.0).abs()
    if not torch.equal(first.isnan(), second.isnan()):
        return False
    size = second.nan_to_num(0.0).abs()
    if apart.ndim > 1 and apart.shape[1]:
        apart, size = apart.amax(dim=1), size.amax(dim=1)  # of one number, too: it may be another image's
    return bool((apart <= allowed * size + 1e-12).all())


def _is_same(one: Any, other: Any) -> bool:
    """Equal to the bit."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.equal(_bytes(one), _bytes(other))  # NaN is not equal to itself


def _bytes(value: Tensor) -> Tensor:
    return value.contiguous().flatten().view(torch.uint8)


def _detach(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _generators() -> tuple[Any, ...]:
    """The states of the global generators, to be compared."""
    of_numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), of_numpy[1].tobytes(), of_numpy[2:]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
