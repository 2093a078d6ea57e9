"""How many images at a time are evaluated, and go through what is frozen into the cache: as few as are fast.

On a CPU fewer are often faster, since their tensors stay in its caches, and take less memory: EfficientNet-B0 took 30
ms an image at 8 and 71 at 64, MobileNetV3-large 14 and 43, ResNet-50 128 at 8 and 190 at 32 (one thread, fp32, 224
pixels, freed memory given back).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from headstart.config.schema import Config
from headstart.data.batches import Batch
from headstart.data.images import Images
from headstart.parallel.messages import from_first
from headstart.plan.decisions import Decision
from headstart.train.evaluate import in_eval
from headstart.train.phases import Course
from headstart.train.precision import MEMORY_FORMATS, autocast, device_of, dtype_of
from headstart.train.step import StepRules

_SIZES = (8, 16)  # tried before the training batch's
_MARGIN = 0.95  # of the time an image takes with fewer or more at a time: less is within the noise
_BRIEF_SECONDS, _MOST_PASSES = 0.2, 5  # short passes are timed again: the first one gets its memory
_SHORT_SECONDS, _SHARE = 20.0, 0.05  # less to compute is not worth measuring, nor is a larger share of it


def choose_evaluation(
    config: Config, module: nn.Module, course: Course, images: Images, *, recorded: Mapping[str, Any] | None,
    possible: bool,
) -> tuple[Course, Images, tuple[Decision, ...], dict[str, Any]]:  # fmt: skip
    """Course and images with the size, and the choice as plan.json keeps it.

    ``recorded``: what was chosen when the run began; ``possible``: each process has the whole model.
    """
    asked, usual = config.batch.evaluation, images.train.batch_size
    choice = dict(recorded or {})
    if not choice:
        size, why = (usual, "") if asked == "auto" else (asked, "as asked")
        if asked == "auto" and possible:
            size, why = _measured(module, course, images)
        choice = from_first({"size": size, "why": why})
    size = choice["size"]
    course = replace(course, cache=replace(course.cache, batch_size=size))
    test = None if images.test is None else replace(images.test, batch_size=size)
    images = replace(images, val=replace(images.val, batch_size=size), test=test)
    told = (Decision("evaluation", f"{size} images at a time", choice["why"]),) if choice["why"] else ()
    return course, images, told, choice


def _measured(module: nn.Module, course: Course, images: Images) -> tuple[int, str]:
    usual, passes = images.train.batch_size, _passes(course, images)
    sizes = [*(size for size in _SIZES if size < usual), usual]
    if len(sizes) == 1 or sum(sizes) > _SHARE * passes:
        return usual, ""
    found: dict[int, float] = {}
    best = sizes[0]
    with in_eval(module):
        for size in sizes:
            few = images.train.few(size)
            found[size] = pass_seconds(module, few, course.rules, warm=size == sizes[0]) / len(few.pixels)
            if found[size] * passes < _SHORT_SECONDS:
                return usual, ""
            if size > best and found[size] > _MARGIN * found[best]:
                break
            best = size
    shown = ", ".join(f"{1000 * seconds:.3g} ms an image at {size}" for size, seconds in found.items())
    return best, f"auto: more are not faster; {shown}" if best < usual else ""


def _passes(course: Course, images: Images) -> int:
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
        with autocast(device, rules.precision):
            module(*arguments)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)
