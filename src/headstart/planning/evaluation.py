"""How many images at a time are evaluated, and go through what is frozen into the cache: as few as are fast. And
whether that is done in bf16 where training is faster in fp32.

On a CPU fewer are often faster, since their tensors stay in its caches, and take less memory: EfficientNet-B0 took 30
ms an image at 8 and 71 at 64, MobileNetV3-large 14 and 43, ResNet-50 128 at 8 and 190 at 32 (one thread, fp32, 224
pixels, freed memory given back). MobileNets and EfficientNets train faster in fp32 and are evaluated faster in bf16.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from headstart.config.schema import Config
from headstart.data.batch import Batch
from headstart.data.images import Images
from headstart.distributed.collectives import broadcast_object
from headstart.events import Decision
from headstart.tasks.kinds import find_kind
from headstart.training.evaluate import compute_logits, in_eval
from headstart.training.phases import TrainingPlan
from headstart.training.precision import MEMORY_FORMATS, Precision, autocast, device_of, dtype_of, has_bf16
from headstart.training.rules import StepRules

_SIZES = (8, 16)  # tried before the training batch's
_MARGIN = 0.95  # of the time an image takes with fewer or more at a time: less is within the noise
_BRIEF_SECONDS, _MOST_PASSES = 0.2, 5  # short passes are timed again: the first one gets its memory
_SHORT_SECONDS, _SHARE = 20.0, 0.05  # less to compute is not worth measuring, nor is a larger share of it
_FAR = 0.05  # relative difference of the outputs from fp32's that is too large


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """As plan.json keeps it; ``precision``: None for training's."""

    size: int
    precision: Precision | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{self.size} images at a time{f', {self.precision}' if self.precision else ''}"


def choose_evaluation(
    config: Config, module: nn.Module, course: TrainingPlan, images: Images, *, recorded: Mapping[str, Any] | None,
    possible: bool,
) -> tuple[TrainingPlan, Images, tuple[Decision, ...], dict[str, Any]]:  # fmt: skip
    """Course and images with the size, and the choice as plan.json keeps it.

    ``recorded``: what was chosen when the run began; ``possible``: each process has the whole model.
    """
    asked, usual = config.batch.evaluation, images.train.batch_size
    choice = _Choice(size=usual) if asked == "auto" else _Choice(size=asked, why="as asked")
    if recorded:
        choice = _Choice(size=recorded["size"], precision=recorded.get("precision"), why=recorded["why"])
    elif possible:
        choice = _Choice(**broadcast_object(asdict(_measure_evaluation(config, module, course, images, choice))))
    size, rules = choice.size, replace(course.rules, evaluation_precision=choice.precision)
    course = replace(course, rules=rules, cache=replace(course.cache, batch_size=size))
    test = None if images.test is None else replace(images.test, batch_size=size)
    images = replace(images, val=replace(images.val, batch_size=size), test=test)
    told = (Decision("evaluation", str(choice), choice.why),) if choice.why else ()
    return course, images, told, asdict(choice)


def _measure_evaluation(
    config: Config, module: nn.Module, course: TrainingPlan, images: Images, asked: _Choice
) -> _Choice:
    usual, passes = images.train.batch_size, _passes(course, images)
    sizes = [*(size for size in _SIZES if size < usual), usual] if config.batch.evaluation == "auto" else [asked.size]
    exact = find_kind(images.task.kind).gives_numbers  # which lose digits in bf16
    half = not exact and _may_be_bf16(config, module, course)
    if (len(sizes) == 1 and not half) or sum(sizes) > _SHARE * passes:
        return asked
    found: dict[int, float] = {}
    best = sizes[0]
    with in_eval(module):
        for size in sizes:
            few = images.train.example_batch(size)
            found[size] = pass_seconds(module, few, course.rules, warm=size == sizes[0]) / len(few.pixels)
            if found[size] * passes < _SHORT_SECONDS:
                return asked
            if size > best and found[size] > _MARGIN * found[best]:
                break
            best = size
        precision, about = _precision(module, course, images, best, found[best]) if half else (None, "")
    shown = ", ".join(f"{1000 * seconds:.3g} ms an image at {size}" for size, seconds in found.items())
    fewer = "" if len(sizes) == 1 or best == usual else f"auto: more are not faster; {shown}"
    why = "; ".join(filter(None, (asked.why, fewer, about)))
    return _Choice(size=best, precision=precision, why=why)


def _may_be_bf16(config: Config, module: nn.Module, course: TrainingPlan) -> bool:
    """Where training was left the choice and took fp32, and nothing comes from a cache, which is filled in that."""
    left_open = config.precision == "auto" and course.rules.precision == "fp32"
    return left_open and has_bf16(device_of(module)) and not any(phase.cached for phase in course.phases)


def _precision(
    module: nn.Module, course: TrainingPlan, images: Images, size: int, usual: float
) -> tuple[Precision | None, str]:
    """bf16 where it is faster than the usual seconds an image and its outputs agree; and why."""
    few = images.train.example_batch(size)
    rules = replace(course.rules, evaluation_precision="bf16")
    seconds = pass_seconds(module, few, rules, warm=True) / len(few.pixels)
    if seconds > _MARGIN * usual:
        return None, ""
    exact, rounded = (
        compute_logits(module, few, precision=kind, memory_format=rules.memory_format) for kind in ("fp32", "bf16")
    )
    off = float((rounded - exact).norm() / exact.norm().clamp(min=1e-30))
    if not off <= _FAR:
        return None, ""
    return "bf16", f"auto: {1000 * seconds:.3g} ms an image in bf16, {1000 * usual:.3g} in fp32, outputs {off:.1%} off"


def _passes(course: TrainingPlan, images: Images) -> int:
    """Images that are evaluated or go into the cache."""
    train, val = len(images.train.samples), len(images.val.samples)
    found = 0
    for phase in course.phases:
        found += val if "val" in phase.cached else val * phase.epochs
        found += train * phase.views if "train" in phase.cached else 0
    return found


def pass_seconds(module: nn.Module, batch: Batch, rules: StepRules, *, warm: bool) -> float:
    """Of the fastest of some forward passes; of two at least where the first one is to warm up, else of a slow one
    alone: on a CPU a first long one at another size is not much slower.
    """
    device, found = device_of(module), list[float]()
    arguments = batch.arguments(device, MEMORY_FORMATS[rules.memory_format], dtype_of(module))
    least = 2 if warm or device.type != "cpu" else 1
    while len(found) < least or (sum(found) < _BRIEF_SECONDS and len(found) < _MOST_PASSES):
        started = time.perf_counter()
        with autocast(device, rules.evaluated_in):
            module(*arguments)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)
