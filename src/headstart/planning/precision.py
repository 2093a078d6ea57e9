"""Precision, memory format and attention: a few steps of each candidate, on the real model and images; the fastest
that agrees.

bf16 and channels_last train some networks twice as fast and others half as fast, on the same machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from headstart.config.schema import Config
from headstart.data.batch import Batch
from headstart.distributed.collectives import broadcast_object
from headstart.errors import ModelError
from headstart.events import Decision
from headstart.planning.activation_cache import usual_views
from headstart.planning.device import check_precision
from headstart.planning.draft import Draft
from headstart.planning.memory import images_to_try
from headstart.private_names import BATCH_NORMS
from headstart.surgery.head import model_scores
from headstart.surgery.layout import iterate_tensors
from headstart.surgery.module_copy import copy_module
from headstart.tasks.losses import LossFunction, wide
from headstart.timing import Looks, Timing, clock_for, is_faster, time_calls
from headstart.training.attention import Attention, attending, has_attention
from headstart.training.phases import PhasePlan, freeze_phase
from headstart.training.precision import MEMORY_FORMATS, Precision, autocast, device_of, dtype_of, has_bf16

_FIRST, _LOOKS, _REPEATS = 2, 3, 3  # images of a first look, how often it is timed, and a step then
_STEP_SECONDS, _FEWEST = 0.08, 4  # a timed step takes at least about as long, on no fewer images
_SHARE = 0.02  # of the run's time for all of them: few images at a time say little about many
_SHORT_SECONDS, _FEW_PASSES = 30.0, 1000  # a run below either is not worth measuring
_HOPELESS = 1.5  # times as slow as the best so far: not timed again
_CHANCES = 2  # but so often it is timed in any case: one moment can be spoiled
_MARGIN = 0.92  # of the time of what would be taken else: less is within the noise
_LOSS, _GRADIENT = {"fp32": 1e-4, "bf16": 0.02}, {"fp32": 1e-2, "bf16": 0.3}  # largest relative differences


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How the model computes."""

    precision: Precision
    memory_format: str
    attention: Attention = "fused"

    def __str__(self) -> str:
        plain = ", plain attention" if self.attention == "plain" else ""
        return f"{self.precision} {self.memory_format}{plain}"


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A candidate on a few images: its steps' time per image, and its differences from fp32 in the usual order."""

    arithmetic: Arithmetic
    timing: Timing
    loss: float = 0.0
    gradient: float = 0.0

    @property
    def agrees(self) -> bool:
        kind = self.arithmetic.precision
        return self.loss <= _LOSS[kind] and self.gradient <= _GRADIENT[kind]

    def __str__(self) -> str:
        if self.timing.failure:
            return f"{self.arithmetic} not tried, {self.timing.failure}"
        text = f"{self.arithmetic} {1 / self.timing.median:,.1f} images/s"
        return text + (f" (loss {self.loss:.1%}, gradient {self.gradient:.1%} off)" if self.gradient else "")


_USUAL = Arithmetic(precision="fp32", memory_format="contiguous")
_PARTS = ("precision", "memory_format", "attention")


def count_passes(draft: Draft) -> int:
    """How many images go through the model, those of a frozen backbone once per view where it may be cached."""
    images, wanted = draft.images, draft.config.cache
    augmentation, train, val = images.train.augmentation, len(images.train.samples), len(images.val.samples)
    may_cache = wanted.use != "never" and augmentation is not None and not augmentation.mixes
    count = 0
    for phase in draft.training_plan.phases:
        once = may_cache and phase.freeze == "backbone"
        views = usual_views(draft.config, images, phase) if once else phase.epochs
        count += train * views + val * (1 if once else phase.epochs)
    return count


def choose_arithmetic(draft: Draft) -> Draft:
    """The draft with precision, memory format and attention as asked, or for ``auto`` the fastest that agrees with
    fp32; the weights are in that memory order.

    Raises: ConfigError: the device cannot do what is asked.
    """
    config, module = draft.config, draft.module
    asked_why = check_precision(config, device_of(module))
    choice = dict(draft.recorded.get("arithmetic") or {})
    if not choice:
        chosen, why = (_read_asked(draft), "the model is sharded") if draft.sharded else _measure_precision(draft)
        choice = broadcast_object(asdict(chosen) | {"why": why})
    arithmetic = Arithmetic(**{name: choice[name] for name in _PARTS if name in choice})
    left_open = [name for name in _PARTS if getattr(config, name) == "auto"]
    reasons = {name: asked_why if name == "precision" else "as asked" for name in _PARTS}
    if config.attention == "plain" and not has_attention(module):
        reasons["attention"] = "as asked; none of the layers is known to have a choice, so it may change nothing"
    if left_open:
        first, *others = left_open
        reasons |= {first: f"auto: {choice['why']}"} | dict.fromkeys(others, f"auto: see {first}")
    usual = config.attention == "auto" and arithmetic.attention == "fused"  # not worth a line
    shown = [name for name in _PARTS if not (name == "attention" and usual)]
    module.to(memory_format=MEMORY_FORMATS[arithmetic.memory_format])
    draft = draft.decide(*(Decision(name, getattr(arithmetic, name), reasons[name]) for name in shown))
    return draft.choose("arithmetic", choice).set_rules(replace(draft.rules, **asdict(arithmetic)))


def _read_asked(draft: Draft) -> Arithmetic:
    """The arithmetic that was asked for; the rules of a step have a value for what is left open."""
    rules = draft.rules
    return Arithmetic(precision=rules.precision, memory_format=rules.memory_format, attention=rules.attention)


def _measure_precision(draft: Draft) -> tuple[Arithmetic, str]:
    asked, candidates = _read_asked(draft), _list_candidates(draft)
    if draft.config.precision == "auto" and asked.precision != "fp32":
        return asked, "fp32 takes more memory than is free"
    if len(candidates) == 1:
        return asked, "nothing else to choose from"
    passes = count_passes(draft)
    if passes < _FEW_PASSES:
        return asked, f"{passes:,} image passes are too few to measure others"
    if not images_to_try(draft, 1):
        return asked, "there is too little memory to try others"
    try:
        copies = _copy_per_order(draft.module, draft.training_plan.phases[-1], candidates)
    except ModelError as error:
        return asked, f"others cannot be measured; {error}"
    try:
        return _find_fastest(draft, copies, candidates, passes)
    finally:
        empty_copies(copies.values(), but=draft.module)


def _find_fastest(
    draft: Draft, copies: Mapping[Arithmetic, nn.Module], candidates: list[Arithmetic], passes: int
) -> tuple[Arithmetic, str]:
    """The candidate that is faster than the usual one, and than those before it, beyond the noise."""
    asked, count = _read_asked(draft), images_to_try(draft, _FIRST)
    looks = Looks(least=_LOOKS, hopeless=_HOPELESS, chances=_CHANCES)
    first = _try(draft, copies, candidates, images=count, looks=looks, compared=False)
    timed = {trial.arithmetic: trial.timing.median for trial in first if not trial.timing.failure}
    if asked not in timed:
        return asked, _format_trials(first)
    if timed[asked] * passes < _SHORT_SECONDS:
        return asked, f"about {timed[asked] * passes:.0f} s of work are too few to measure others"
    best, hopeful = min(timed.values()), _choose_hopeful(timed)
    if hopeful == [asked]:
        return asked, f"the fastest of {_format_trials(first)}, {count} images at a time"
    steps = len(hopeful) * (1 + _REPEATS)
    length = max(_STEP_SECONDS, _SHARE * best * passes / steps) if len(hopeful) > 1 else _STEP_SECONDS
    images = max(_FEWEST, min(draft.images.train.batch_size // 2, round(length / best)))  # no more memory than the run
    images = images_to_try(draft, images)
    again = Looks(least=_REPEATS if len(hopeful) > 1 else 1, hopeless=_HOPELESS, chances=_CHANCES)
    trials = _try(draft, copies, hopeful, images=images, looks=again)
    usual = next(trial for trial in (*trials, *first) if trial.arithmetic == asked)
    trials = [*dict.fromkeys((*trials, usual))]
    chosen = usual
    for trial in trials:  # in their order, so that of two that are as fast it is always the same one
        if trial.agrees and is_faster(trial.timing, chosen.timing, margin=_MARGIN):
            chosen = trial
    return chosen.arithmetic, f"the fastest that agrees of {_format_trials(trials)}, {images} images at a time"


def _choose_hopeful(seconds: Mapping[Arithmetic, float]) -> list[Arithmetic]:
    """The candidates that may turn out to be the fastest."""
    best = min(seconds.values())
    return [candidate for candidate, value in seconds.items() if value <= _HOPELESS * best]


def _format_trials(trials: list[_Trial]) -> str:
    timed = [trial for trial in trials if not trial.timing.failure]
    failed = [trial for trial in trials if trial.timing.failure]
    return "; ".join(map(str, (*sorted(timed, key=lambda trial: trial.timing.median), *failed)))


def _list_candidates(draft: Draft) -> list[Arithmetic]:
    config, module = draft.config, draft.module
    precisions: list[Precision] = ["fp32", "bf16"] if config.precision == "auto" else [config.precision]
    formats = ["contiguous", "channels_last"] if config.memory_format == "auto" else [config.memory_format]
    if config.memory_format == "auto" and not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        formats = ["contiguous"]
    if not has_bf16(device_of(module)):
        precisions = [kind for kind in precisions if kind != "bf16"] or precisions
    attentions = _attentions(config, module, draft.training_plan.phases[-1])
    return [
        Arithmetic(precision=kind, memory_format=order, attention=how)
        for kind in precisions
        for order in formats
        for how in (attentions if kind == "bf16" else attentions[:1])
    ]


def _attentions(config: Config, module: nn.Module, phase: PhasePlan) -> tuple[Attention, ...]:
    """The ways of attention that are tried in bf16; in fp32 it is the first of them."""
    if config.attention != "auto":
        return (config.attention,)
    learns = phase.freeze != "backbone" and has_attention(module)
    return ("fused", "plain") if learns and device_of(module).type == "cpu" else ("fused",)


def _try(
    draft: Draft, copies: Mapping[Arithmetic, nn.Module], candidates: list[Arithmetic], *, images: int, looks: Looks,
    compared: bool = True,
) -> list[_Trial]:  # fmt: skip
    """Try each candidate on its copy of the model with the same images; not ``compared``, it is only timed."""
    count, device = min(images, len(draft.images.train.samples)), device_of(copies[_USUAL])
    few = draft.images.train.example_batch(count)
    if not compared and device.type != "cpu":  # an accelerator's first step in training mode loads its kernels
        looks = replace(looks, warm=1)
    steps = {one: partial(_make_step, copies[one], few, draft.loss, one) for one in candidates}
    with torch.random.fork_rng():
        differences = _compare_with_fp32(copies, few, draft.loss, candidates) if compared else {}
        timings = time_calls(steps, looks, clock=clock_for(device))
    return [
        _Trial(arithmetic=candidate, timing=timings[candidate].divide(count), **differences.get(candidate, {}))
        for candidate in candidates
    ]


def _compare_with_fp32(
    copies: Mapping[Arithmetic, nn.Module], few: Batch, loss: LossFunction, candidates: list[Arithmetic]
) -> dict[Arithmetic, dict[str, float]]:
    """Each candidate's differences from fp32 in the usual order; at most two gradients are in memory at a time."""
    usual = _compute_gradients(copies[_USUAL], few, loss, _USUAL)
    others = [candidate for candidate in candidates if candidate != _USUAL]
    return {one: _compare(_compute_gradients(copies[one], few, loss, one), usual) for one in others}


def _compare(one: tuple[float, Tensor], usual: tuple[float, Tensor]) -> dict[str, float]:
    """The relative differences of losses and of gradients."""
    (loss, gradient), (usual_loss, usual_gradient) = one, usual
    return {
        "loss": abs(loss - usual_loss) / max(abs(usual_loss), 1e-12),
        "gradient": float((gradient - usual_gradient).norm() / usual_gradient.norm().clamp(min=1e-30)),
    }


def _copy_per_order(module: nn.Module, phase: PhasePlan, candidates: list[Arithmetic]) -> dict[Arithmetic, nn.Module]:
    """The model as the phase freezes it, one per order of memory; both precisions compute with the same weights."""
    copies = {}
    freeze_phase(module, phase)  # once, and copied: each copy would be traced anew; the last phase trains most
    for order in dict.fromkeys(candidate.memory_format for candidate in (_USUAL, *candidates)):
        copied = copy_module(module, free_bytes=None, instead="precision, memory_format and attention are as asked")
        copies[order] = copied.to(memory_format=MEMORY_FORMATS[order])
        for part in copies[order].modules():
            if isinstance(part, BATCH_NORMS):
                part.momentum = 0.0  # type: ignore[assignment]  # a timed step leaves the statistics as they are
    return {candidate: copies[candidate.memory_format] for candidate in (_USUAL, *candidates)}


def empty_copies(copies: Iterable[nn.Module], *, but: nn.Module) -> None:
    """Give back at once what the copies hold: a model that refers to itself waits for Python's collector, which takes
    as long as there are objects. What a copy shares with the model itself stays.
    """
    ours = {value.untyped_storage().data_ptr() for value in (*but.parameters(), *but.buffers())}
    for copied in copies:
        for value in (*copied.parameters(), *copied.buffers()):
            if value.untyped_storage().data_ptr() not in ours:
                value.data, value.grad = value.new_empty(0), None


def _compute_gradients(
    model: nn.Module, batch: Batch, loss: LossFunction, arithmetic: Arithmetic
) -> tuple[float, Tensor]:
    """Loss and gradient without chance or batch statistics; this also warms the kernels up."""
    model.eval()
    value = _backward(model, batch, loss, arithmetic)
    names = sorted((name, tensor.grad) for name, tensor, _ in iterate_tensors(model) if tensor.grad is not None)
    gradient = torch.cat([value.double().reshape(-1).cpu() for _, value in names])
    model.zero_grad()
    return value, gradient


def _make_step(model: nn.Module, batch: Batch, loss: LossFunction, arithmetic: Arithmetic) -> None:
    model.train()
    try:
        _backward(model, batch, loss, arithmetic)
    finally:
        model.zero_grad()


def _backward(model: nn.Module, batch: Batch, loss: LossFunction, arithmetic: Arithmetic) -> float:
    device = device_of(model)
    arguments = batch.arguments(device, MEMORY_FORMATS[arithmetic.memory_format], dtype_of(model))
    with attending(arithmetic.attention):
        with autocast(device, arithmetic.precision):
            outputs = model(*arguments)
        found = loss(wide(model_scores(model, outputs)[0][1]), batch.targets.to(device))
        total = wide(found[0] if isinstance(found, tuple) else found).mean()
        total.backward()  # type: ignore[no-untyped-call]
    return float(total.detach())
