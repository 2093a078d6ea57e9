"""From a recipe to phases with everything decided: epochs, freeze rules, rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from headstart.config import peft
from headstart.config.rules import freeze_text
from headstart.config.schema import (
    But,
    Config,
    FreezeRule,
    NormStatistics,
    Optimizer,
    Phase,
    RmsProp,
    Sgd,
    Stages,
    TimmOptimizer,
)
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.optim.penalties import select_l1_parameters
from headstart.planning.draft import Draft
from headstart.planning.extension import extend_phases, list_ends
from headstart.planning.kept_head import KEPT
from headstart.storage.disk_cache import cache_folder
from headstart.surgery.layout import find_layout
from headstart.tasks.losses import LossFunction
from headstart.training.activation_cache import CacheRules
from headstart.training.phases import PhasePlan, TrainingPlan
from headstart.training.rules import StepRules
from headstart.wording import option

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FEW_FOR_BATCH_NORM = 16  # images (Wu and He 2018: the error rises fast below)
_PROBE_SHARE = 0.3
_PROBE_RATE = 5e-3  # of a linear head on frozen features, AdamW, batch 64; 3e-3 .. 1e-2 are as good on three data sets
_MOST_GRADUAL_PHASES = 4
_NEW_HEAD = 10.0  # a fresh head beside pretrained layers learns this much faster


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates that ``auto`` means for this model, batch size and optimizer."""

    probe: float
    body: float
    scratch: float
    peft: float
    layer_decay: float
    reason: str
    head_limit: float | None = None


def choose_phases(draft: Draft) -> Draft:
    """The draft with the run's phases, their rates, and the rules of a step as far as they are asked for.

    Raises: ConfigError: recipe, epochs and freezing do not fit together; ``penalties.l1_on`` matches nothing.
    """
    config, module, ends = draft.config, draft.module, list_ends(draft)
    pretrained = draft.opened.weights.kind != "none"
    began = config if config.phases else replace(config, epochs=ends[0])  # later ones change no phase
    has_new_head = draft.choices.get("head") != KEPT
    phases, decisions = make_phases(
        began, module, batch_size=draft.batch_size, pretrained=pretrained, has_new_head=has_new_head,
        head_limit=draft.head_limit,
    )  # fmt: skip
    phases, extended = extend_phases(phases, ends, config)
    draft = draft.choose("epochs", list(ends))
    select_l1_parameters(module, config.penalties)
    limit = int(config.cache.limit_gb * 1e9)
    training_plan = TrainingPlan(
        phases=tuple(replace(phase, fixed=draft.fixed) for phase in phases),
        optimizer=config.optimizer, schedule=config.schedule, rules=_make_rules(config, draft.loss),
        patience=config.stop.patience, metric=config.metric,
        own_metrics=draft.own.metrics,
        cache=CacheRules(folder=cache_folder(), model=draft.opened.spec, dtype=config.cache.dtype, limit_bytes=limit),
    )  # fmt: skip
    return replace(draft.decide(*decisions, *extended), training_plan=training_plan)


def _make_rules(config: Config, loss: LossFunction) -> StepRules:
    """The rules of a step as asked, and fp32 in torch's usual memory order for what is left open."""
    batch = config.batch
    return StepRules(
        loss=loss, penalties=config.penalties, accumulate=batch.accumulate, clip_norm=batch.clip_norm,
        clip_value=batch.clip_value, seed=config.seed, recompute=config.activation_checkpointing,
        precision="fp32" if config.precision == "auto" else config.precision,
        memory_format="contiguous" if config.memory_format == "auto" else config.memory_format,
        attention="fused" if config.attention == "auto" else config.attention,
    )  # fmt: skip


def make_phases(
    config: Config, module: nn.Module, *, batch_size: int, pretrained: bool, has_new_head: bool = True,
    head_limit: float | None = None,
) -> tuple[tuple[PhasePlan, ...], tuple[Decision, ...]]:  # fmt: skip
    """The run's phases, and what was decided about recipe and rates; ``head_limit`` holds rates of the head that nobody
    asked for.

    Raises: ConfigError: they do not fit together.
    """
    rates = replace(auto_rates(module, config.optimizer, batch_size=batch_size), head_limit=head_limit)
    named, decision = _choose_recipe(config, module, pretrained=pretrained, has_new_head=has_new_head)
    kinds = [_kind(phase, has_new_head and place == 0, pretrained) for place, (_, phase) in enumerate(named)]
    statistics, why = _choose_norm_statistics(config, kinds, batch_size // config.batch.accumulate)
    plans, first = [], 0
    for (name, phase), kind in zip(named, kinds, strict=True):
        if phase.norm_statistics == "auto":
            phase = replace(phase, norm_statistics="frozen" if isinstance(phase.freeze, But) else statistics)
        new = has_new_head and first == 0
        plans.append(_with_rates(config.optimizer, (name, phase), rates, first=first, kind=kind, head_is_new=new))
        first += phase.epochs
    shown = "; ".join(f"{plan.name} {_format_rates(plan)}" for plan in plans)
    held = any(plan.head_lr == head_limit for plan in plans)
    reason = f"{rates.reason}; of a head of numbers at most {head_limit:.2g}, by its features" if held else rates.reason
    return tuple(plans), (decision, Decision("rates", shown, reason), *_about_norms(module, plans, why))


def _choose_norm_statistics(config: Config, kinds: Sequence[str], batch: int) -> tuple[NormStatistics, str]:
    """What BatchNorm layers that train normalise with, over ``batch`` images at a time, and why."""
    noisy = f"{batch} images at a time make noisy statistics"
    if config.norm_statistics != "auto":
        warned = config.norm_statistics == "batch" and batch < _FEW_FOR_BATCH_NORM
        return config.norm_statistics, f"as asked; {noisy}" if warned else "as asked"
    if "scratch" in kinds:
        return "batch", "auto: random weights have no statistics to keep"
    if set(kinds) <= {"peft", "probe"}:
        return "frozen", f"auto: {peft.LONG_NAME} leaves them as they are"
    if "joint" not in kinds:
        return "frozen", "auto: the head was trained on features that they normalise"
    if batch < _FEW_FOR_BATCH_NORM:
        return "frozen", f"auto: {noisy}"
    return "batch", f"auto: {batch} images at a time, and a new head that learns with them"


def _about_norms(module: nn.Module, plans: Sequence[PhasePlan], why: str) -> tuple[Decision, ...]:
    trained = [plan.norm_statistics for plan in plans if plan.freeze not in ("backbone", "norm")]
    if not trained or not any(isinstance(part, _BATCH_NORMS) for part in module.modules()):
        return ()
    shown = {"frozen": "frozen pretrained statistics", "batch": "each batch's statistics"}
    return (Decision("batch norm", ", then ".join(shown[kind] for kind in dict.fromkeys(trained)), why),)


def auto_rates(module: nn.Module, optimizer: Optimizer, *, batch_size: int) -> Rates:
    """Rates by the kind of network, scaled with the square root of the batch size (Malladi et al.

    2022 for adaptive optimizers).
    """
    has_batch_norm = any(isinstance(part, _BATCH_NORMS) for part in module.modules())
    body, decay = (3e-4, 0.85) if has_batch_norm else (1e-4, 0.75)
    kind = "a BatchNorm network" if has_batch_norm else "a network without BatchNorm"
    scale = math.sqrt(batch_size / 64)
    times = 30.0 if isinstance(optimizer, Sgd) else 0.3 if isinstance(optimizer, RmsProp) else 1.0
    body, probe = body * scale * times, _PROBE_RATE * scale * times
    reason = f"{kind}, batch {batch_size}, {optimizer.kind}"
    new = 1e-3 * scale * times
    return Rates(probe=probe, body=body, scratch=new, peft=new, layer_decay=decay, reason=reason)


def _choose_recipe(
    config: Config, module: nn.Module, *, pretrained: bool, has_new_head: bool
) -> tuple[list[tuple[str, Phase]], Decision]:
    if config.phases:
        named = [(freeze_text(phase.freeze), phase) for phase in config.phases]
        return named, Decision("recipe", f"{len(named)} phases", "as asked")
    last: FreezeRule = "none" if config.freeze == "auto" else config.freeze
    recipe, why = config.recipe, "as asked"
    if recipe == "auto":
        recipe, why = _choose_auto_recipe(last, pretrained, config.epochs)
        if recipe == "lp_ft" and not has_new_head:
            recipe, why = "full", "auto: the head is a trained one, and needs no phase of its own"
    if recipe == "gradual" and config.freeze != "auto":
        raise ConfigError(
            f"freeze: {freeze_text(last)} does not apply to the recipe gradual, which unfreezes step by step; use "
            f"{option('recipe', 'lp_ft')}"
        )
    if recipe in peft.RECIPES and not pretrained:
        raise ConfigError(peft.explain_unpretrained(recipe))
    phases = _make_named_phases(recipe, config.epochs, last, module)
    if recipe == "probe" and not pretrained:
        why += (
            "; the weights are random, and so are the features that the head learns on: "
            f"{option('recipe', 'full')} trains them"
        )
    shown = ", ".join(f"{name} {phase.epochs} epoch{'s' * (phase.epochs != 1)}" for name, phase in phases)
    return phases, Decision("recipe", f"{recipe} ({shown})", why)


def _choose_auto_recipe(
    last: FreezeRule, pretrained: bool, epochs: int
) -> tuple[Literal["probe", "full", "lp_ft"], str]:
    if not pretrained:
        return "full", "auto: random weights have no features to probe"
    if last == "backbone":
        return "probe", "auto: the backbone stays frozen"
    if epochs < 2:
        return "probe", "auto: one epoch is for the new head"
    return "lp_ft", "auto: a trained head first, so that the first steps do not damage the backbone (Kumar et al. 2022)"


def _make_named_phases(recipe: str, epochs: int, last: FreezeRule, module: nn.Module) -> list[tuple[str, Phase]]:
    match recipe:
        case "probe":
            return [("probe", Phase(epochs=epochs, freeze="backbone"))]
        case "lp_ft":
            if epochs < 2:
                raise ConfigError(
                    f"epochs: lp_ft needs at least 2 (head, then all); give {option('epochs', 2)} or "
                    f"{option('recipe', 'probe')}"
                )
            probe = max(1, min(epochs - 1, round(_PROBE_SHARE * epochs)))
            return [
                ("probe", Phase(epochs=probe, freeze="backbone")),
                ("finetune", Phase(epochs=epochs - probe, freeze=last)),
            ]
        case "gradual":
            return _unfreeze_gradually(epochs, len(find_layout(module).stages))
        case "lora" | "bias" | "norm":
            return [(recipe, Phase(epochs=epochs, freeze=But(but=recipe)))]
        case _:
            return [("full", Phase(epochs=epochs, freeze=last))]


def _unfreeze_gradually(epochs: int, stages: int) -> list[tuple[str, Phase]]:
    """Phases that train the head first, then ever more stages from the output down; the last has the epochs left."""
    count = min(epochs, stages + 1, _MOST_GRADUAL_PHASES)
    if count < 2:
        raise ConfigError(
            f"epochs: gradual needs at least 2, not {epochs}; give {option('epochs', 4)} or {option('recipe', 'probe')}"
        )
    rules: list[FreezeRule] = ["backbone"]
    rules += [Stages(stages=stages - round(stages * place / (count - 1))) for place in range(1, count - 1)]
    rules.append("none")
    each = epochs // count
    sizes = [each] * (count - 1) + [epochs - each * (count - 1)]
    return [
        (
            "head" if rule == "backbone" else "all" if rule == "none" else f"without {freeze_text(rule)}",
            Phase(epochs=size, freeze=rule),
        )
        for rule, size in zip(rules, sizes, strict=True)
    ]


def _kind(phase: Phase, head_is_new: bool, pretrained: bool) -> str:
    if not pretrained:
        return "scratch"
    if phase.freeze == "backbone":
        return "probe"
    if isinstance(phase.freeze, But):
        return "peft"
    return "joint" if head_is_new else "finetune"


def _with_rates(
    optimizer: Optimizer, named: tuple[str, Phase], rates: Rates, *, first: int, kind: str, head_is_new: bool
) -> PhasePlan:
    """The plan of a phase with its own rates, else the optimizer's, else what ``auto`` means for its kind."""
    name, phase = named
    wanted_lr = phase.lr if phase.lr != "auto" else optimizer.lr
    wanted_head = phase.head_lr if phase.head_lr != "auto" else optimizer.head_lr
    wanted_decay = phase.layer_decay if phase.layer_decay != "auto" else optimizer.layer_decay
    body = {"scratch": rates.scratch, "probe": rates.probe, "peft": rates.peft}.get(kind, rates.body)
    if wanted_head != "auto":
        body = min(body, wanted_head)  # rates do not rise from output to input
    lr = body if wanted_lr == "auto" else wanted_lr
    is_given = isinstance(optimizer, TimmOptimizer) or wanted_lr != "auto"
    head = lr * _NEW_HEAD if kind == "joint" or (kind == "probe" and is_given and phase.lr == "auto") else lr
    if kind == "peft" and head_is_new:
        head = lr * rates.probe / rates.peft
    if rates.head_limit is not None and wanted_lr == "auto" and kind != "scratch":
        head = min(head, rates.head_limit)
    return PhasePlan(
        name=name, freeze=phase.freeze, first_epoch=first, epochs=phase.epochs, lr=lr,
        head_lr=head if wanted_head == "auto" else wanted_head,
        layer_decay=_decay(kind, rates) if wanted_decay == "auto" else wanted_decay,
        norm_statistics="batch" if phase.norm_statistics == "auto" else phase.norm_statistics,
    )  # fmt: skip


def _decay(kind: str, rates: Rates) -> float:
    return 1.0 if kind in ("scratch", "peft") else rates.layer_decay


def _format_rates(plan: PhasePlan) -> str:
    if plan.freeze == "backbone":
        return f"head {plan.head_lr:.2g}"
    decay = f", x{plan.layer_decay:g} per stage towards the input" if plan.layer_decay != 1 else ""
    return f"{plan.lr:.2g}{decay}, head {plan.head_lr:.2g}"
