"""Precision, memory format and attention: a few steps of each candidate, on the real model and images; the fastest
that agrees.

bf16 and channels_last train some networks twice as fast and others half as fast, on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.config.schema import Config
from headstart.data.batch import Batch
from headstart.data.images import Images
from headstart.distributed.collectives import broadcast_object
from headstart.errors import ModelError
from headstart.events import Decision
from headstart.planning.activation_cache import usual_views
from headstart.planning.decisions import check_precision
from headstart.private_names import BATCH_NORMS
from headstart.surgery.head import model_scores
from headstart.surgery.layout import iterate_tensors
from headstart.surgery.module_copy import copy_module
from headstart.tasks.losses import LossFunction, wide
from headstart.training.attention import Attention, attending, has_attention
from headstart.training.phases import PhasePlan, freeze_phase
from headstart.training.precision import MEMORY_FORMATS, Precision, autocast, device_of, dtype_of, has_bf16

_FIRST, _LOOKS, _REPEATS = 2, 3, 3  # images of a first look, how often it is timed, and a step then
_STEP_SECONDS, _FEWEST = 0.08, 4  # a timed step takes at least about as long, on no fewer images
_SHARE = 0.02  # of the run's time for all of them: few images at a time say little about many
_SHORT_SECONDS, _FEW_PASSES = 30.0, 1000  # a run below either is not worth measuring
_HOPELESS = 1.5  # times as slow as the best so far: not timed again
_CHANCES = 2  # but so often it is timed in any case: one moment can be spoiled
_MARGIN = 0.92  # of fp32's time in torch's usual order: less is within the noise
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
    """A candidate on a few images: seconds of a step per image, and its differences from fp32 in the usual order."""

    arithmetic: Arithmetic
    seconds: float
    loss: float = 0.0
    gradient: float = 0.0

    @property
    def agrees(self) -> bool:
        kind = self.arithmetic.precision
        return self.loss <= _LOSS[kind] and self.gradient <= _GRADIENT[kind]

    def __str__(self) -> str:
        text = f"{self.arithmetic} {1 / self.seconds:,.1f} images/s"
        return text + (f" (loss {self.loss:.1%}, gradient {self.gradient:.1%} off)" if self.gradient else "")


_USUAL = Arithmetic(precision="fp32", memory_format="contiguous")
_PARTS = ("precision", "memory_format", "attention")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained, on what, by which loss."""

    phases: tuple[PhasePlan, ...]
    loss: LossFunction
    images: Images

    def passes(self, config: Config) -> int:
        """Images that go through the model, those of a frozen backbone once per view where it may be cached."""
        augmentation, wanted = self.images.train.augmentation, config.cache
        train, val = len(self.images.train.samples), len(self.images.val.samples)
        may = wanted.use != "never" and augmentation is not None and not augmentation.mixes
        found = 0
        for phase in self.phases:
            once = may and phase.freeze == "backbone"
            views = usual_views(config, self.images, phase) if once else phase.epochs
            found += train * views + val * (1 if once else phase.epochs)
        return found


def choose_arithmetic(
    config: Config, module: nn.Module, work: Workload, *, recorded: Mapping[str, Any] | None, possible: bool
) -> tuple[Arithmetic, tuple[Decision, ...], dict[str, Any]]:
    """Precision, memory format and attention as asked, or for ``auto`` the fastest that agrees with fp32; and as
    plan.json keeps them.

    ``recorded``: what was chosen when the run began; ``possible``: each process has the whole model.

    Raises: ConfigError: the device cannot do what is asked.
    """
    asked_why = check_precision(config, device_of(module))
    choice = dict(recorded or {})
    if not choice:
        chosen, why = (
            _measure_precision(config, module, work) if possible else (_read_asked(config), "the model is shared out")
        )
        choice = broadcast_object(asdict(chosen) | {"why": why})
    found = Arithmetic(**{name: choice[name] for name in _PARTS if name in choice})
    left_open = [name for name in _PARTS if getattr(config, name) == "auto"]
    reasons = {name: asked_why if name == "precision" else "as asked" for name in _PARTS}
    if config.attention == "plain" and not has_attention(module):
        reasons["attention"] = "as asked; none of the layers is known to have a choice, so it may change nothing"
    if left_open:
        first, *others = left_open
        reasons |= {first: f"auto: {choice['why']}"} | dict.fromkeys(others, f"auto: see {first}")
    usual = config.attention == "auto" and found.attention == "fused"  # not worth a line
    shown = [name for name in _PARTS if not (name == "attention" and usual)]
    return found, tuple(Decision(name, getattr(found, name), reasons[name]) for name in shown), choice


def _read_asked(config: Config) -> Arithmetic:
    """As asked; ``auto`` is fp32 in the usual order."""
    return Arithmetic(
        precision="fp32" if config.precision == "auto" else config.precision,
        memory_format="contiguous" if config.memory_format == "auto" else config.memory_format,
        attention="fused" if config.attention == "auto" else config.attention,
    )


def _measure_precision(config: Config, module: nn.Module, work: Workload) -> tuple[Arithmetic, str]:
    asked, candidates = _read_asked(config), _candidates(config, module, work.phases[-1])
    if len(candidates) == 1:
        return asked, "nothing else to choose from"
    passes = work.passes(config)
    if passes < _FEW_PASSES:
        return asked, f"{passes:,} image passes are too few to measure others"
    try:
        copies = _copies(module, work.phases[-1], candidates)
    except ModelError as error:
        return asked, f"others cannot be measured; {error}"
    try:
        return _fastest(copies, work, asked, candidates, passes)
    finally:
        empty_copies(copies.values(), but=module)


def _fastest(
    copies: Mapping[Arithmetic, nn.Module], work: Workload, asked: Arithmetic, candidates: list[Arithmetic],
    passes: int,
) -> tuple[Arithmetic, str]:  # fmt: skip
    first = _trials(copies, work, candidates, images=_FIRST, repeats=_LOOKS, compared=False)
    usual = next(trial for trial in first if trial.arithmetic == asked)
    if usual.seconds * passes < _SHORT_SECONDS:
        return asked, f"about {usual.seconds * passes:.0f} s of work are too few to measure others"
    best, hopeful = min(trial.seconds for trial in first), _hopeful({one.arithmetic: one.seconds for one in first})
    if hopeful == [asked]:
        return asked, f"the fastest of {_format_trials(first)}, {_FIRST} images at a time"
    looks = len(hopeful) * (1 + _REPEATS)
    length = max(_STEP_SECONDS, _SHARE * best * passes / looks) if len(hopeful) > 1 else _STEP_SECONDS
    images = max(_FEWEST, min(work.images.train.batch_size // 2, round(length / best)))  # no more memory than the run
    trials = _trials(copies, work, hopeful, images=images, repeats=_REPEATS if len(hopeful) > 1 else 1)
    usual = next((trial for trial in trials if trial.arithmetic == asked), usual)
    trials = [*dict.fromkeys((*trials, usual))]
    fine = [trial for trial in trials if trial.agrees and trial.seconds < _MARGIN * usual.seconds]
    chosen = min(fine, key=lambda trial: trial.seconds, default=usual)
    return chosen.arithmetic, f"the fastest that agrees of {_format_trials(trials)}, {images} images at a time"


def _hopeful(seconds: Mapping[Arithmetic, float]) -> list[Arithmetic]:
    """Those that may turn out to be the fastest."""
    best = min(seconds.values())
    return [candidate for candidate, value in seconds.items() if value <= _HOPELESS * best]


def _format_trials(trials: list[_Trial]) -> str:
    return "; ".join(map(str, sorted(trials, key=lambda trial: trial.seconds)))


def _candidates(config: Config, module: nn.Module, phase: PhasePlan) -> list[Arithmetic]:
    precisions: list[Precision] = ["fp32", "bf16"] if config.precision == "auto" else [config.precision]
    formats = ["contiguous", "channels_last"] if config.memory_format == "auto" else [config.memory_format]
    if config.memory_format == "auto" and not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        formats = ["contiguous"]
    if not has_bf16(device_of(module)):
        precisions = [kind for kind in precisions if kind != "bf16"] or precisions
    attentions = _attentions(config, module, phase)
    return [
        Arithmetic(precision=kind, memory_format=order, attention=how)
        for kind in precisions
        for order in formats
        for how in (attentions if kind == "bf16" else attentions[:1])
    ]


def _attentions(config: Config, module: nn.Module, phase: PhasePlan) -> tuple[Attention, ...]:
    """In bf16; for fp32 the first of them."""
    if config.attention != "auto":
        return (config.attention,)
    learns = phase.freeze != "backbone" and has_attention(module)
    return ("fused", "plain") if learns and device_of(module).type == "cpu" else ("fused",)


def _trials(
    copies: Mapping[Arithmetic, nn.Module],
    work: Workload,
    candidates: list[Arithmetic],
    *,
    images: int,
    repeats: int,
    compared: bool = True,
) -> list[_Trial]:
    """Each candidate on its copy of the model, the same images; interleaved, so that a slow minute hits all. Not
    ``compared``: timed alone.
    """
    count = min(images, len(work.images.train.samples))
    few = work.images.train.example_batch(count)
    with torch.random.fork_rng():
        found = _compare_with_fp32(copies, few, work.loss, candidates) if compared else {}
        seconds: dict[Arithmetic, list[float]] = {candidate: [] for candidate in candidates}
        if device_of(copies[_USUAL]).type != "cpu":  # an accelerator's first step in training mode loads its kernels
            for candidate in candidates:
                _step_seconds(copies[candidate], few, work.loss, candidate)
        for look in range(repeats):
            fastest = {candidate: min(timed, default=0.0) for candidate, timed in seconds.items()}
            for candidate in candidates if look < _CHANCES else _hopeful(fastest):
                seconds[candidate].append(_step_seconds(copies[candidate], few, work.loss, candidate) / count)
    return [
        _Trial(
            arithmetic=candidate, seconds=min(seconds[candidate]), **found.get(candidate, {})
        )
        for candidate in candidates
    ]  # fmt: skip


def _compare_with_fp32(
    copies: Mapping[Arithmetic, nn.Module], few: Batch, loss: LossFunction, candidates: list[Arithmetic]
) -> dict[Arithmetic, dict[str, float]]:
    """Each one's differences from fp32 in the usual order; at most two gradients are in memory at a time."""
    usual = _gradients(copies[_USUAL], few, loss, _USUAL)
    others = [candidate for candidate in candidates if candidate != _USUAL]
    return {one: _differences(_gradients(copies[one], few, loss, one), usual) for one in others}


def _differences(one: tuple[float, Tensor], usual: tuple[float, Tensor]) -> dict[str, float]:
    """Relative, of losses and of gradients."""
    (loss, gradient), (usual_loss, usual_gradient) = one, usual
    return {
        "loss": abs(loss - usual_loss) / max(abs(usual_loss), 1e-12),
        "gradient": float((gradient - usual_gradient).norm() / usual_gradient.norm().clamp(min=1e-30)),
    }


def _copies(module: nn.Module, phase: PhasePlan, candidates: list[Arithmetic]) -> dict[Arithmetic, nn.Module]:
    """The model as the phase freezes it, one per order of memory; both precisions compute with the same weights."""
    found = {}
    freeze_phase(module, phase)  # once, and copied: each copy would be traced anew; the last phase trains most
    for order in dict.fromkeys(candidate.memory_format for candidate in (_USUAL, *candidates)):
        copied = copy_module(module, free_bytes=None, instead="precision, memory_format and attention are as asked")
        found[order] = copied.to(memory_format=MEMORY_FORMATS[order])
        for part in found[order].modules():
            if isinstance(part, BATCH_NORMS):
                part.momentum = 0.0  # type: ignore[assignment]  # a timed step leaves the statistics as they are
    return {candidate: found[candidate.memory_format] for candidate in (_USUAL, *candidates)}


def empty_copies(copies: Iterable[nn.Module], *, but: nn.Module) -> None:
    """Give back what they hold at once: a model that refers to itself waits for Python's collector, which takes as long
    as there are objects. What a copy shares with the model itself stays.
    """
    ours = {value.untyped_storage().data_ptr() for value in (*but.parameters(), *but.buffers())}
    for copied in copies:
        for value in (*copied.parameters(), *copied.buffers()):
            if value.untyped_storage().data_ptr() not in ours:
                value.data, value.grad = value.new_empty(0), None


def _gradients(model: nn.Module, batch: Batch, loss: LossFunction, arithmetic: Arithmetic) -> tuple[float, Tensor]:
    """Loss and gradient without chance or batch statistics; this also warms the kernels up."""
    model.eval()
    value = _backward(model, batch, loss, arithmetic)
    names = sorted((name, tensor.grad) for name, tensor, _ in iterate_tensors(model) if tensor.grad is not None)
    gradient = torch.cat([value.double().reshape(-1).cpu() for _, value in names])
    model.zero_grad()
    return value, gradient


def _step_seconds(model: nn.Module, batch: Batch, loss: LossFunction, arithmetic: Arithmetic) -> float:
    model.train()
    _synchronise()
    started = time.perf_counter()
    _backward(model, batch, loss, arithmetic)
    model.zero_grad()
    _synchronise()
    return time.perf_counter() - started


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


def _synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
