"""Options that were given and change nothing in this run: they are named, so that nobody waits for an effect."""

from __future__ import annotations

from collections.abc import Iterator

from headstart.config.schema import Average, Cache, Config, Penalties, Schedule
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.training.attention import has_attention
from headstart.wording import option


def name_idle_options(draft: Draft) -> Draft:
    """The draft with a decision that names options which differ from their defaults and change nothing."""
    idle = [*_check_schedule(draft.config), *_check_sections(draft.config), *_check_phases(draft), *_check_cache(draft)]
    if not idle:
        return draft
    shown, reasons = zip(*idle, strict=True)
    return draft.decide(Decision("without effect", "; ".join(shown), "; ".join(reasons)))


def _check_schedule(config: Config) -> Iterator[tuple[str, str]]:
    schedule, usual = config.schedule, Schedule()
    if schedule.kind == "one_cycle" and schedule.warmup != usual.warmup:
        yield f"schedule.warmup {schedule.warmup:g}", "one_cycle has a rise of its own, over the first 30 %"
    for name in ("step_share", "step_factor"):
        value = getattr(schedule, name)
        if schedule.kind != "step" and value != getattr(usual, name):
            yield (
                f"schedule.{name} {value:g}",
                f"the schedule {schedule.kind} has no steps; they are {option('schedule.kind', 'step')}",
            )


def _check_sections(config: Config) -> Iterator[tuple[str, str]]:
    average, penalties = config.average, config.penalties
    if average.kind == "none" and average.half_life != Average().half_life:
        yield (
            f"average.half_life {average.half_life:g}",
            f"no average is kept; {option('average.kind', 'ema')} keeps one",
        )
    if not penalties.l1 and penalties.l1_on != Penalties().l1_on:
        on = penalties.l1_on if isinstance(penalties.l1_on, str) else " ".join(penalties.l1_on)
        yield f"penalties.l1_on {on}", f"there is no L1 penalty; {option('penalties.l1', 1e-4)} is one"


def _check_phases(draft: Draft) -> Iterator[tuple[str, str]]:
    config, phases = draft.config, draft.training_plan.phases
    decay, patience, last = config.optimizer.layer_decay, config.stop.patience, phases[-1]
    if decay not in ("auto", 1.0) and all(phase.freeze == "backbone" for phase in phases):
        yield f"optimizer.layer_decay {decay:g}", "the head alone trains"
    if patience >= last.epochs:
        yield f"stop.patience {patience}", f"the last phase has {last.epochs} epoch{'s' * (last.epochs != 1)}"
    if config.attention == "plain" and not has_attention(draft.module):
        yield "attention plain", "no layer of this model is known to have a choice"


def _check_cache(draft: Draft) -> Iterator[tuple[str, str]]:
    cache, phases, augmentation = draft.config.cache, draft.training_plan.phases, draft.images.train.augmentation
    if cache.dtype != Cache().dtype and not any(phase.cached for phase in phases):
        yield f"cache.dtype {cache.dtype}", "no phase reads from the cache"
    if cache.views != "auto" and augmentation is not None and not augmentation.random:
        yield f"cache.views {cache.views}", "images are not changed at random"
    elif cache.views not in ("auto", 0) and all(phase.epochs <= int(cache.views) for phase in phases):
        yield f"cache.views {cache.views}", "no phase has more epochs than that, so each epoch has new changes anyway"
