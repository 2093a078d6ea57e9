"""Whether what is frozen runs once per image instead of in every epoch: times and bytes, measured on a few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from headstart.config.schema import Config
from headstart.data.images import Images
from headstart.data.loader import Batches
from headstart.distributed.collectives import broadcast_object
from headstart.errors import ConfigError, ModelError
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.storage.disk_cache import check_cache_folder
from headstart.surgery.boundary import Boundary
from headstart.timing import Looks, clock_for, time_calls
from headstart.training.activation_cache import through_prefix
from headstart.training.boundary_proof import prove_boundary
from headstart.training.boundary_tensors import make_boundary_spec, record_bytes
from headstart.training.phases import PhasePlan, freeze_phase
from headstart.training.precision import device_of
from headstart.training.rules import StepRules
from headstart.wording import option

AUTO_VIEWS = 4  # within noise of new changes in every epoch where it was tried (docs/measured/speed.md)
_FEW = 256  # image passes: less is not worth a look
_MEASURED = 2  # images
_WRITTEN, _READ = 200e6, 800e6  # bytes per second that a slow disk writes, and that is checked as it is read
_WORTH = 0.1  # of the time that the passes take


@dataclass(frozen=True, kw_only=True)
class FrozenCost:
    """The cost per image of the part before the boundary: seconds to decode and compute it, bytes of what it gives."""

    seconds: float
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """How often a split's images go through the frozen part in a phase: in all, and at least once per view."""

    split: str
    images: int
    needed: int
    views: int

    def seconds(self, cost: FrozenCost) -> tuple[float, float]:
        """Seconds where all is computed every time, and where it is read from a cache."""
        filling = cost.nbytes / _WRITTEN + cost.seconds
        cached = self.views * filling + self.needed * cost.nbytes / _READ
        return self.images * self.needed * cost.seconds, self.images * cached


def choose_cache(draft: Draft) -> Draft:
    """The draft with what each phase reads from the cache, and how many views an image has.

    Raises: ConfigError: the cache is to be used ``always``, and nothing can be cached.
    """
    config, module, training_plan, images = draft.config, draft.module, draft.training_plan, draft.images
    recorded = draft.recorded.get("cache")
    choices = [dict(choice) for choice in recorded or ()]
    if left := training_plan.phases[len(choices) :]:  # all of a new run, the last one of a run that is extended
        why = "each process holds a share of every layer"
        chosen = [(phase, why) for phase in left]
        if not draft.sharded:
            chosen = [_choose_cache(config, module, phase, training_plan.rules, images) for phase in left]
        choices += broadcast_object(
            [{"views": phase.views, "cached": list(phase.cached), "why": why} for phase, why in chosen]
        )
    phases = tuple(
        replace(phase, views=choice["views"], cached=tuple(choice["cached"]))
        for phase, choice in zip(training_plan.phases, choices, strict=True)
    )
    if not recorded and config.cache.use == "always" and not any(phase.cached for phase in phases):
        raise ConfigError(f"cache.use: nothing can be cached: {choices[0]['why']}; give {option('cache.use', 'auto')}")
    shown = "; ".join(f"{phase.name}: {_format_cached(phase)}" for phase in phases)
    reasons = [choice["why"] for choice in choices]
    named = [f"{phase.name}: {why}" for phase, why in zip(phases, reasons, strict=True)]
    why = reasons[0] if len(set(reasons)) == 1 else "; ".join(named)
    if config.cache.decoded or any(phase.cached for phase in phases):
        check_cache_folder(asked=config.cache.use == "always")
    draft = draft.choose("cache", choices)
    return replace(draft.decide(Decision("cache", shown, why)), training_plan=replace(training_plan, phases=phases))


def _format_cached(phase: PhasePlan) -> str:
    views = f" ({phase.views} views)" if phase.views > 1 else ""
    return " and ".join(phase.cached) + views if phase.cached else f"none{views}"


def usual_views(config: Config, images: Images, phase: PhasePlan) -> int:
    """How many views each training image has where training images are cached."""
    augmentation, asked = images.train.augmentation, config.cache.views
    assert augmentation is not None
    if not augmentation.random:
        return 1
    return min(augmentation.distinct or AUTO_VIEWS, phase.epochs) if asked == "auto" else asked


def _choose_cache(
    config: Config, module: nn.Module, phase: PhasePlan, rules: StepRules, images: Images
) -> tuple[PhasePlan, str]:
    """The phase with its views and cached splits, and why they are these."""
    wanted, augmentation = config.cache, images.train.augmentation
    assert augmentation is not None
    asked = 0 if wanted.views == "auto" else wanted.views
    views = asked if augmentation.random else 1
    if wanted.use == "never":
        return replace(phase, views=views), "as asked"
    usual = 0 if augmentation.mixes else usual_views(config, images, phase)
    passes = _list_passes(config, phase, images, views=usual)
    fewer = sum(split_passes.images * (split_passes.needed - split_passes.views) for split_passes in passes)
    if not freeze_phase(module, phase).parameters:
        return replace(phase, views=views), "nothing that is frozen executes before what trains"
    if wanted.use == "auto" and fewer < _FEW:
        spared = f"auto: it would spare {max(0, fewer):,} passes of an image through the frozen part"
        why = f"{spared}; from {_FEW:,} on it is weighed"
        return replace(phase, views=views), why
    try:
        boundary = prove_boundary(module, freeze_phase(module, phase), images.train, rules)
        if next(boundary.prefix.parameters(), None) is None:
            return replace(phase, views=views), "nothing with weights is frozen before what trains"
        cost = measure_frozen_cost(boundary, images.train, rules, as_bf16=wanted.dtype == "bf16")
    except ModelError as error:  # with more images than were looked at it may take another way
        return replace(phase, views=views), str(error)
    if boundary.mixes_in_evaluation:  # then a score depends on what fills its batch up
        passes = [split_passes for split_passes in passes if split_passes.split != "val"]
        not_val = "; not for val: in evaluation a score depends on the other images of its batch"
    else:
        not_val = ""
    chosen, why = _weigh_cache(config, phase, passes, cost, views=views)
    refused = f"; not further: {boundary.refused[0]}" if boundary.refused else ""
    why += not_val
    return chosen, f"{why}, up to {' and '.join(dict.fromkeys(boundary.labels))}{refused}" if refused else why


def _list_passes(config: Config, phase: PhasePlan, images: Images, *, views: int) -> list[_Passes]:
    """The passes of validation, and of training where its images can be cached (``views`` is not 0)."""
    epochs = phase.epochs
    evaluations = epochs * (2 if config.average.kind == "ema" else 1)
    passes = [_Passes(split="val", images=len(images.val.samples), needed=evaluations, views=1)]
    if views:
        train = _Passes(split="train", images=len(images.train.samples), needed=epochs, views=min(views, epochs))
        passes.insert(0, train)
    return passes


def _weigh_cache(
    config: Config, phase: PhasePlan, passes: Sequence[_Passes], cost: FrozenCost, *, views: int
) -> tuple[PhasePlan, str]:
    """The phase with the splits that are worth caching, or with ``always`` all that fit, and why."""
    always, limit = config.cache.use == "always", int(config.cache.limit_gb * 1e9)
    chosen: list[_Passes] = []
    computed = read = 0.0
    size = 0
    for split_passes in passes:
        uncached, cached = split_passes.seconds(cost)
        need = split_passes.images * split_passes.views * cost.nbytes
        if size + need <= limit and (always or uncached - cached > _WORTH * uncached):
            chosen.append(split_passes)
            computed, read, size = computed + uncached, read + cached, size + need
    cached_splits = tuple(split_passes.split for split_passes in chosen)
    if "train" in cached_splits and not views:
        views = next(split_passes.views for split_passes in passes if split_passes.split == "train")
    each = f"{1000 * cost.seconds:.2g} ms and {cost.nbytes / 1024:,.1f} KiB an image before the boundary"
    if not chosen:
        return replace(phase, views=views), f"{each}: recomputed, that is no slower or would not fit in the limit"
    why = "as asked" if always else "auto"
    text = f"{why}: {each}; about {read:,.0f} s instead of {computed:,.0f} s, {size / 2**20:,.0f} MiB"
    return replace(phase, views=views, cached=cached_splits), text


def measure_frozen_cost(boundary: Boundary, batches: Batches, rules: StepRules, *, as_bf16: bool) -> FrozenCost:
    """Seconds and bytes per image, measured on a few; the proof has run before, so nothing is slow for being first."""
    count = min(_MEASURED, batches.batch_size, len(batches.samples))
    values: list[Tensor] = []

    def compute() -> None:
        values[:] = through_prefix(boundary.prefix, batches.example_batch(count), rules)

    timing = time_calls({count: compute}, Looks(), clock=clock_for(device_of(boundary.prefix)))[count]
    if timing.failure:
        raise ModelError(f"{count} images cannot be tried, {timing.failure}")
    nbytes = record_bytes([make_boundary_spec(value, as_bf16=as_bf16) for value in values])
    return FrozenCost(seconds=timing.divide(count).median, nbytes=nbytes)
