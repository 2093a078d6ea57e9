"""The boundary of a run's model, used only where it is proved on the run's own images.

What is cached must be each image's own and the same every time, and the part behind it must do all that the model does
when it is called. ``headstart.surgery.proof`` compares; here is what it compares on, and what is tried next.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO

import torch
from torch import Tensor, fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from headstart.data.batch import Batch
from headstart.data.loader import Batches
from headstart.distributed.collectives import all_gather_object
from headstart.errors import ModelError
from headstart.isolation import own_turn
from headstart.private_names import find_unwatchable
from headstart.surgery.boundary import Boundary, find_boundary, refuse_computation
from headstart.surgery.culprit import find_culprit
from headstart.surgery.fixed_nodes import Search
from headstart.surgery.fixed_values import NotReplayable
from headstart.surgery.freeze import Frozen
from headstart.surgery.head import share_scores
from headstart.surgery.module_state import code_digest
from headstart.surgery.no_trace import no_trace
from headstart.surgery.origins import is_library
from headstart.surgery.proof import (
    Calls,
    compute_activations,
    find_difference,
    find_mixing,
    find_mixing_node,
    is_close,
    mixes_in_evaluation,
)
from headstart.surgery.replay import Replay, find_replay
from headstart.training.activation_cache import ActivationDataset
from headstart.training.evaluate import in_eval
from headstart.training.precision import MEMORY_FORMATS, autocast, device_of, dtype_of
from headstart.training.rules import StepRules

_IMAGES = 2  # together, in the other order, and each alone: what mixes them shows
_SHARE = 0.005  # of a phase's time, for looks after the first one
_MOST_PLACES = 8  # that are tried, each earlier than the one before


@dataclass(frozen=True, kw_only=True)
class _Proved:
    """What a proof was of, and what it found."""

    of: object
    boundary: Boundary | None
    why: str


_PROVED: MutableMapping[nn.Module, _Proved] = WeakIdKeyDictionary()


def prove_boundary(module: nn.Module, frozen: Frozen, batches: Batches, rules: StepRules) -> Boundary:
    """The last place before which everything is fixed and each image's own, where both halves are the module.

    Proved on two of the batches' images, once for a module with this code, these frozen parts and this arithmetic.

    Raises: ModelError: there is none; says which module or function it is. Or this torch shows no operations.
    """
    if missing := find_unwatchable():
        raise ModelError(f"model: operations cannot be watched, since torch {torch.__version__} has no {missing}")
    what = (frozen, code_digest(module), rules.precision, rules.memory_format, device_of(module), batches.preprocess)
    known = _PROVED.get(module)
    stale = known is not None and known.boundary is not None and known.boundary.find_replaced(module)
    if known is None or known.of != what or stale:
        known = _prove(module, frozen, example_images(batches, module, rules), rules, what)
        refused = next((why for why in all_gather_object(known.why) if why), "")  # one refuses for all processes
        if known.boundary is not None:
            share_scores(module, known.boundary.train_suffix, known.boundary.eval_suffix)
        known = _PROVED[module] = replace(known, boundary=None if refused else known.boundary, why=refused)
    if known.boundary is None:
        raise ModelError(known.why)
    return known.boundary


def _freezes_nothing(module: nn.Module, frozen: Frozen) -> bool:
    """Whether no weights are frozen, and no buffers but statistics of layers that train: then nothing that is worth
    keeping stands before what trains, and looking for it by the module's own code takes eight passes or more.
    """
    if frozen.parameters:
        return False
    trained = {
        path
        for path, part in module.named_modules()
        if is_library(type(part).__module__) and next(part.parameters(recurse=False), None) is not None
    }
    return trained.issuperset(name.rpartition(".")[0] for name in frozen.tensors)


def forget_boundary(module: nn.Module) -> None:
    """Have the next ``prove_boundary`` of this module prove anew: its state was put back from a file."""
    _PROVED.pop(module, None)


def refute_boundary(module: nn.Module, why: str) -> None:
    """Have ``prove_boundary`` refuse this module as it is from now on."""
    known = _PROVED.get(module)
    if known is not None:
        _PROVED[module] = replace(known, boundary=None, why=why)


@own_turn()  # it seeds and draws
def _prove(module: nn.Module, frozen: Frozen, images: Tensor, rules: StepRules, what: object) -> _Proved:
    """Prove the halves of the traced graph, which cost nothing at a step; else those of the module's own code."""
    try:
        with no_trace(module), redirect_stderr(StringIO()):  # torch.fx prints what a graph that fails raises, too
            return _Proved(of=what, boundary=_trace_boundary(module, frozen, images, rules), why="")
    except ModelError as error:
        reason = str(error).partition(". ")[0]
    if _freezes_nothing(module, frozen):
        return _Proved(of=what, boundary=None, why=reason)
    try:
        with no_trace(module):
            return _Proved(of=what, boundary=_replay_boundary(module, frozen, images, rules), why="")
    except ModelError as error:
        own = str(error).removeprefix("model: ")
    return _Proved(of=what, boundary=None, why=reason if own in reason else f"{reason}; by its own code: {own}")


def _trace_boundary(module: nn.Module, frozen: Frozen, images: Tensor, rules: StepRules) -> Boundary:
    """The halves of the traced graph.  Raises: ModelError: they are not the module."""
    search = Search()
    for _ in range(_MOST_PLACES):
        boundary = find_boundary(module, frozen, example=images, search=search)
        assert isinstance(boundary.prefix, fx.GraphModule)
        with in_eval(module):
            together = compute_activations(boundary.prefix, images, nullcontext)
            mixing = find_mixing(boundary.prefix, images, together)
            node = find_mixing_node(boundary.prefix, images) if mixing else None
        if node is None:
            _check(module, boundary, images, rules, together, mixing)
            return replace(boundary, mixes_in_evaluation=mixes_in_evaluation(boundary.eval_suffix, together))
        refuse_computation(boundary, node, str(mixing), search=search)
    raise ModelError(f"model: {boundary.refused[0]}")


def _replay_boundary(module: nn.Module, frozen: Frozen, images: Tensor, rules: StepRules) -> Boundary:
    """The module itself as both halves: run until everything fixed is there, and run from that.

    A module that reads numbers of the images, which other images may have go another way, is cut before it does so
    where what follows is not the same for images of any kind.

    Raises: ModelError: it cannot be cut.
    """
    with autocast(device_of(module), rules.precision):
        replay = find_replay(module, images, frozen.tensors)
    try:
        if replay.decides:
            compute_activations(replay.prefix, torch.zeros_like(images), nullcontext)
        return _check_replay(module, replay, images, rules)
    except ModelError:
        if not replay.decides:
            raise
    with autocast(device_of(module), rules.precision):
        replay = find_replay(module, images, frozen.tensors, before_decisions=True)
    return _check_replay(module, replay, images, rules)


def _check_replay(module: nn.Module, replay: Replay, images: Tensor, rules: StepRules) -> Boundary:
    """The module cut as was found.  Raises: ModelError: the halves are not the module, or mix images."""
    boundary = Boundary(
        prefix=replay.prefix,
        train_suffix=replay.suffix,
        eval_suffix=replay.suffix,
        labels=replay.labels,
        refused=tuple(map(str, replay.obstacles)),
    )
    together = compute_activations(boundary.prefix, images, nullcontext)
    mixing = find_mixing(boundary.prefix, images, together)
    _check(module, boundary, images, rules, together, mixing)
    return replace(boundary, mixes_in_evaluation=mixes_in_evaluation(boundary.eval_suffix, together))


def _check(
    module: nn.Module,
    boundary: Boundary,
    images: Tensor,
    rules: StepRules,
    together: tuple[Tensor, ...],
    mixing: str | None,
) -> None:
    """Raises: ModelError: what is frozen mixes images, or the halves are not the module.

    ``together``: what crosses, computed without autocast.
    """
    if mixing:
        raise ModelError(f"model: what is frozen {mixing}")
    arithmetic = partial(autocast, device_of(module), rules.precision)
    known = together if rules.precision == "fp32" else None
    why = find_difference(module, boundary, images, arithmetic=arithmetic, activations=known)
    if why:
        raise ModelError(f"model: {why}")


def example_images(batches: Batches, module: nn.Module, rules: StepRules) -> Tensor:
    """Two of the batches' images as the model takes them, (2, C, H, W), different from one another."""
    places = sorted({0, len(batches.samples) - 1})
    batch = next(_in_pixels(batches, count=_IMAGES).pad_batches([places], epoch=0))
    pixels = batch.pixels.clone()
    for place in range(_IMAGES):
        if any(torch.equal(pixels[place], pixels[other]) for other in range(place)) or place >= len(places):
            generator = torch.Generator().manual_seed(place)
            pixels[place] = torch.randint(0, 256, pixels[place].shape, generator=generator, dtype=torch.uint8)
    return inputs_of(replace(batch, pixels=pixels), module, rules)


def _in_pixels(batches: Batches, *, count: int) -> Batches:
    """Batches of so many images, read by this process, with all random changes made."""
    images = replace(batches.images, augment_on_device=False)
    return replace(batches, dataset=images, batch_size=count, workers=0)


class CacheCheck:
    """Looks now and then whether what a phase reads from the cache still is what its model computes.

    It is due after the first step, and then when all looks together took at most half a percent of the time since; of
    several processes, which must look at once, after the first step and at the end of each epoch.
    """

    def __init__(self, module: nn.Module, boundary: Boundary, batches: Batches, rules: StepRules) -> None:
        assert isinstance(batches.dataset, ActivationDataset)
        self._cached, self._specs = batches.dataset, batches.dataset.boundary_specs
        self._module, self._boundary, self._batches, self._rules = module, boundary, batches, rules
        self._begun, self._spent, self._looks = time.monotonic(), 0.0, 0

    def is_due(self, *, epoch_ends: bool) -> bool:
        """Whether it is time to look: at once where a tensor that the graphs read was replaced."""
        if self._looks == 0:
            return True
        if self._batches.processes.is_distributed:
            return epoch_ends
        if self._boundary.find_replaced(self._module):
            return True
        each = self._spent / self._looks
        return self._spent + each <= _SHARE * (time.monotonic() - self._begun)

    @own_turn()
    def find_difference(self, epoch: int) -> str | None:
        """What differs, as a clause, for two images of this epoch, in training and in evaluation mode by turns."""
        started = time.monotonic()
        try:
            why_here = self._find_difference_here(epoch)
        except NotReplayable as error:
            why_here = str(error).removeprefix("model: ")
        self._looks += 1
        self._spent += time.monotonic() - started
        return next((why for why in all_gather_object(why_here) if why), None)

    def _find_difference_here(self, epoch: int) -> str | None:
        rules = self._rules
        if replaced := self._boundary.find_replaced(self._module):
            return f"{replaced} is another tensor than the one that the part behind the cache reads"
        count = len(self._batches.samples)
        places = sorted({(self._looks * 7919) % count, (self._looks * 7919 + count // 2) % count})
        pixels = _in_pixels(self._batches, count=len(places))
        images = inputs_of(next(pixels.pad_batches([places], epoch=epoch)), self._module, rules)
        arithmetic = partial(autocast, device_of(self._module), rules.precision)
        computed = compute_activations(self._boundary.prefix, images, arithmetic)
        (rows,) = self._cached.read_batches([places], epoch=epoch)
        as_stored = [getattr(torch, spec.stored) for spec in self._specs]
        pairs = zip(rows, computed, as_stored, strict=True)
        same = [is_close(row.to(value.device), value, stored=kind) for row, value, kind in pairs]
        if not all(same):
            label = self._boundary.labels[same.index(False)]
            return f"what is read for an image is not what the frozen part up to {label} makes of it"
        calls = Calls(modes=(self._looks % 2 == 0,), seed=self._looks)
        why = find_difference(
            self._module, self._boundary, images, arithmetic=arithmetic, activations=computed, rounds=(calls,)
        )
        if why is None or self._batches.processes.is_distributed:  # a layer may wait for those of other processes
            return why
        where = find_culprit(self._module, self._boundary, images, computed, arithmetic=arithmetic, calls=calls)
        return f"{why}, first seen in {where}"


def inputs_of(batch: Batch, module: nn.Module, rules: StepRules) -> Tensor:
    """The batch's images as the model takes them, (B, C, H, W)."""
    (images,) = batch.arguments(device_of(module), MEMORY_FORMATS[rules.memory_format], dtype_of(module))
    return images
