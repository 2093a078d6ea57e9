"""How many images at a time are evaluated, and go through frozen layers into the cache: as few as are fast. And whether
evaluation is in bf16 where training is faster in fp32.

On a CPU fewer are often faster, since their tensors stay in its caches, and take less memory: EfficientNet-B0 took 30
ms an image at 8 and 71 at 64, MobileNetV3-large 14 and 43, ResNet-50 128 at 8 and 190 at 32 (one thread, fp32, 224
pixels, freed memory given back). MobileNets and EfficientNets train faster in fp32 and are evaluated faster in bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

from torch import nn

from headstart.config.schema import Config
from headstart.data.batch import Arguments, Batch
from headstart.data.images import Images
from headstart.data.loader import Batches
from headstart.distributed.collectives import broadcast_object
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.planning.about import count_images
from headstart.planning.draft import Draft
from headstart.planning.memory import has_room_for
from headstart.reports.cells import format_ms
from headstart.tasks.kinds import find_kind
from headstart.timing import Clock, Looks, Timing, clock_for, is_faster, time_calls
from headstart.training.evaluate import compute_logits, in_eval
from headstart.training.phases import TrainingPlan
from headstart.training.precision import MEMORY_FORMATS, Precision, autocast, device_of, dtype_of, has_bf16
from headstart.training.rules import StepRules
from headstart.wording import option

_SIZES = (8, 16)  # tried before the training batch's
_LEAST = 8  # images at a time that few images are padded to: next to nothing, and fewer would be slow for the cache
_MARGIN = 0.95  # of the time an image takes with fewer or more at a time: less is within the noise
_BRIEF_SECONDS, _MOST_PASSES = 0.2, 5  # short passes are timed again: the first one gets its memory
_SHORT_SECONDS, _SHARE = 20.0, 0.05  # less to compute is not worth measuring, nor is a larger share of it
_FAR = 0.05  # relative difference of the outputs from fp32's that is too large


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The choice as plan.json keeps it. ``precision`` None is training's; ``cached``: how many training images go
    through what is frozen at a time, 0 for as many as are evaluated.
    """

    size: int
    precision: Precision | None = None
    why: str = ""
    cached: int = 0

    def __str__(self) -> str:
        return f"{count_images(self.size)} at a time{f', {self.precision}' if self.precision else ''}"


def choose_evaluation(draft: Draft) -> Draft:
    """The draft with how many images are evaluated at a time, and in which precision."""
    recorded, images = draft.recorded.get("evaluation"), draft.images
    if recorded:
        choice = _Choice(
            size=recorded["size"], precision=recorded.get("precision"), why=recorded["why"],
            cached=recorded.get("cached", 0),
        )  # fmt: skip
    else:
        choice = _without_measuring(draft)
        if not draft.sharded:
            choice = _Choice(**broadcast_object(asdict(_measure_evaluation(draft, choice))))
    size = choice.size
    test = None if images.test is None else replace(images.test, batch_size=size)
    images = replace(images, val=replace(images.val, batch_size=size), test=test)
    cache = replace(draft.training_plan.cache, batch_size=choice.cached or size)
    decisions = (Decision("evaluation", str(choice), choice.why),) if choice.why else ()
    draft = replace(draft.decide(*decisions), images=images, training_plan=replace(draft.training_plan, cache=cache))
    draft = draft.set_rules(replace(draft.rules, evaluation_precision=choice.precision))
    return draft.choose("evaluation", asdict(choice))


def _without_measuring(draft: Draft) -> _Choice:
    """The size that was asked for, or that of training; never more than there are, or than there is memory for.

    Raises: ConfigError: there is no memory for what is asked for.
    """
    asked, images = draft.config.batch.evaluation, draft.images
    wanted = images.train.batch_size if asked == "auto" else asked
    size, cached = (min(wanted, max(_LEAST, len(split.samples))) for split in (images.val, images.train))
    why = "" if asked == "auto" else "as asked"
    if why and size < wanted:
        why = f"asked for {wanted:,}, and there are no more"
    fitting = size
    while fitting > 1 and not has_room_for(draft, fitting):
        fitting //= 2
    if fitting < size and asked != "auto":
        raise ConfigError(
            f"batch.evaluation: there is too little memory to evaluate {size:,} images at a time; give "
            f"{option('batch.evaluation', fitting)}"
        )
    if fitting < size:
        return _Choice(size=fitting, why="auto: there is too little memory for more")
    return _Choice(size=size, why=why, cached=cached if cached != size else 0)


def _measure_evaluation(draft: Draft, asked: _Choice) -> _Choice:
    images, usual, passes = draft.images, asked.size, _count_passes(draft.training_plan, draft.images)
    sizes = [*(size for size in _SIZES if size < usual), usual] if asked.why == "" else [usual]
    exact = find_kind(images.task.kind).gives_numbers  # which lose digits in bf16
    half = not exact and _may_be_bf16(draft.config, draft.module, draft.training_plan)
    if (len(sizes) == 1 and not half) or sum(sizes) > _SHARE * passes:
        return asked
    trial = _Trial(draft.module, draft.images.train, draft.rules)
    best, *larger = sizes
    with in_eval(draft.module):
        timings = {best: trial.time(best)}
        if timings[best].failure or timings[best].median * passes < _SHORT_SECONDS:
            return asked
        for size in larger:
            if not has_room_for(draft, size):
                timings[size] = Timing(failure="there is too little memory for it")
                break
            timings |= trial.compare(best, size, known=timings[best])
            if not timings[size].failure and timings[size].median * passes < _SHORT_SECONDS:
                return asked
            if not is_faster(timings[size], timings[best], margin=_MARGIN):
                break
            best = size
        precision, about = _choose_precision(trial, best, timings[best]) if half else (None, "")
    shown = ", ".join(_format_size(size, timing) for size, timing in timings.items())
    fewer = "" if len(sizes) == 1 or best == usual else f"auto: more are not faster; {shown}"
    why = "; ".join(filter(None, (asked.why, fewer, about)))
    return _Choice(size=best, precision=precision, why=why, cached=asked.cached if best == usual else 0)


def _format_size(size: int, timing: Timing) -> str:
    return f"{timing.failure} at {size}" if timing.failure else f"{format_ms(timing.median)} an image at {size}"


def _may_be_bf16(config: Config, module: nn.Module, training_plan: TrainingPlan) -> bool:
    """Whether the precision was left open and is fp32, and nothing comes from a cache, which is filled in that."""
    left_open = config.precision == "auto" and training_plan.rules.precision == "fp32"
    return left_open and has_bf16(device_of(module)) and not any(phase.cached for phase in training_plan.phases)


def _choose_precision(trial: _Trial, size: int, usual: Timing) -> tuple[Precision | None, str]:
    """bf16 where it is faster than the usual seconds an image and its outputs agree; and why."""
    half = replace(trial, rules=replace(trial.rules, evaluation_precision="bf16"))
    timing = half.time(size)
    if timing.failure or not is_faster(timing, usual, margin=_MARGIN):
        return None, ""
    few, order = trial.batches.example_batch(size), trial.rules.memory_format
    exact, rounded = (
        compute_logits(trial.module, few, precision=kind, memory_format=order) for kind in ("fp32", "bf16")
    )
    off = float((rounded - exact).norm() / exact.norm().clamp(min=1e-30))
    if not off <= _FAR:
        return None, ""
    times = f"{format_ms(timing.median)} an image in bf16, {format_ms(usual.median)} in fp32"
    return "bf16", f"auto: {times}, outputs {off:.1%} off"


def _count_passes(training_plan: TrainingPlan, images: Images) -> int:
    """How many images are evaluated or go into the cache in the whole run."""
    train, val = len(images.train.samples), len(images.val.samples)
    count = 0
    for phase in training_plan.phases:
        count += val if "val" in phase.cached else val * phase.epochs
        count += train * phase.views if "train" in phase.cached else 0
    return count


@dataclass(frozen=True)
class _Trial:
    """Forward passes of a model in evaluation, by these rules, on some of these images."""

    module: nn.Module
    batches: Batches
    rules: StepRules

    def time(self, size: int) -> Timing:
        """The time of an image in a pass of ``size``, after one that warms up."""
        return time_passes(self.module, {size: self.batches.example_batch(size)}, self.rules, warm=1)[size]

    def compare(self, best: int, size: int, *, known: Timing) -> dict[int, Timing]:
        """The times of an image at both sizes, in turns; at ``size`` alone where a pass of it will be long: on a CPU a
        first long one is not much slower.
        """
        brief = known.median * size < _BRIEF_SECONDS
        few = {each: self.batches.example_batch(each) for each in ((best, size) if brief else (size,))}
        warm = int(brief or device_of(self.module).type != "cpu")
        return time_passes(self.module, few, self.rules, warm=warm)


def time_passes(
    module: nn.Module, batches: Mapping[int, Batch], rules: StepRules, *, warm: int, clock: Clock | None = None
) -> dict[int, Timing]:
    """The time per image of a forward pass of each batch; short ones are timed again. ``clock`` None: the device's."""
    device = device_of(module)

    def run(arguments: Arguments) -> None:
        with autocast(device, rules.evaluated_in):
            module(*arguments)

    calls = {
        key: partial(run, batch.arguments(device, MEMORY_FORMATS[rules.memory_format], dtype_of(module)))
        for key, batch in batches.items()
    }
    looks = Looks(warm=warm, least=1, most=_MOST_PASSES, seconds=_BRIEF_SECONDS)
    timings = time_calls(calls, looks, clock=clock or clock_for(device))
    return {key: timing.divide(len(batches[key].pixels)) for key, timing in timings.items()}
