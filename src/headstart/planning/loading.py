"""How many processes load images: as many as keep up with the model, by the time of a few images and of a pass."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from headstart.data.images import Images
from headstart.data.loader import available_cores
from headstart.data.workers import check_room
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.planning.evaluation import time_passes
from headstart.planning.memory import images_to_try
from headstart.reports.cells import format_ms
from headstart.timing import Looks, time_calls, wall_seconds
from headstart.training.evaluate import in_eval
from headstart.training.phases import TrainingPlan

_IMAGES = 16  # loaded and timed; on an accelerator a whole batch is computed
_STEP_PASSES = 3.0  # of the time of a forward pass: with the backward pass, where all trains
_SPARE = 1.5  # times what keeps up on average: photos differ, and so do moments
_NEGLIGIBLE = 0.05  # of the model's time: loading that takes no more is not worth another process
_SHORT_SECONDS = 60.0  # of loading in the whole run: less is not worth measuring


def choose_workers(draft: Draft) -> Draft:
    """The draft with a number of loading processes, where it is left open, there are cores, and they are worth it."""
    module, training_plan, images, device = draft.module, draft.training_plan, draft.images, draft.device
    cores, few = available_cores(), images_to_try(draft, min(_IMAGES, len(images.train.samples)))
    if draft.config.workers != "auto" or draft.sharded or cores <= 2 or not few:
        return draft
    read = partial(images.train.example_batch, few)
    loading = time_calls({few: read}, Looks(), clock=wall_seconds)[few].divide(few).median
    if loading * _count_loads(training_plan, images) < _SHORT_SECONDS:
        return draft
    batch = read() if device.type == "cpu" else images.train.example_batch(images.train.largest_batch)
    with in_eval(module):
        trained = replace(training_plan.rules, evaluation_precision=None)
        timing = time_passes(module, {few: batch}, trained, warm=1, clock=wall_seconds)[few]
    if timing.failure:
        return draft
    computing = timing.median
    filling = any("train" in phase.cached for phase in training_plan.phases)  # then each image goes forward only
    computing *= 1.0 if filling else _STEP_PASSES
    count = count_workers(loading, computing, cores=cores, shared=device.type == "cpu")
    count = _limit_to_room(count, images.train.batch_size * batch.pixels[0].nbytes)
    why = f"auto: loading takes {format_ms(loading)} an image, the model {format_ms(computing)}; {cores} cores"
    loaded = replace(images, train=replace(images.train, workers=count), val=replace(images.val, workers=count))
    test = None if images.test is None else replace(images.test, workers=count)
    return replace(draft.decide(Decision("workers", str(count), why)), images=replace(loaded, test=test))


def count_workers(loading: float, computing: float, *, cores: int, shared: bool) -> int:
    """How many processes load images, each in ``loading`` seconds, beside a model that takes ``computing`` for one.

    ``shared``: the model computes on the same cores, so that it gets slower by what they take. 0 where loading is so
    small a part that the main process does it in between.
    """
    if shared and loading <= _NEGLIGIBLE * computing:
        return 0
    return max(1, min(cores, math.ceil(_SPARE * loading / max(computing, 1e-9))))


def _limit_to_room(count: int, batch_bytes: int) -> int:
    """The number of processes, or as many as have room to hand over their batches."""
    for fewer in range(count, 0, -1):
        try:
            check_room(workers=fewer, batch_bytes=batch_bytes)
        except ConfigError:
            continue
        return fewer
    return 0


def _count_loads(training_plan: TrainingPlan, images: Images) -> int:
    """How many images are decoded in the whole run."""
    train, val = len(images.train.samples), len(images.val.samples)
    return sum(
        train * (phase.views if "train" in phase.cached else phase.epochs)
        + val * (1 if "val" in phase.cached else phase.epochs)
        for phase in training_plan.phases
    )
