"""How fast a head of numbers may learn: its rate is held below what the size of its features allows.

    B images, D features

One step of Adam moves each of D weights by about the rate, and with it an output by the rate times the sum of the
features: 2.5 standard deviations of the target for the 1,280 features of a MobileNet at the rate of a probe. Softmax
cancels what all classes have in common; a single number has nothing to cancel it, and swings. See
``benchmarks/regression_head.py`` for the figures.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from headstart.config.schema import MlpHead, Optimizer, RmsProp, Sgd, TimmOptimizer
from headstart.data.batch import Batch
from headstart.distributed.collectives import broadcast_object
from headstart.planning.draft import Draft
from headstart.surgery.no_trace import no_trace
from headstart.tasks.kinds import find_kind
from headstart.training.evaluate import compute_logits, in_eval

_STEP = 0.4  # standard deviations that a step may move an output by; 0.3 to 0.7 are as good on four sets
_CURVATURE = 2.0  # of SGD, over the mean square of the features; 1 is slower, above 4 nothing is certain to converge
_IMAGES = 16  # whose features are measured, and how many of them at once
_AT_ONCE = 4
_CHOICE = "head_limit"


def limit_head_rate(draft: Draft) -> Draft:
    """The draft with the largest rate of a new head of numbers; without one for other tasks, and for random weights."""
    if draft.recorded and _CHOICE not in draft.recorded:  # the run began with a headstart that knew no limit
        return draft
    rules_out = isinstance(draft.config.head, MlpHead) or isinstance(draft.config.optimizer, TimmOptimizer)
    if not find_kind(draft.images.task.kind).gives_numbers or draft.opened.weights.kind == "none" or rules_out:
        return draft
    limit = draft.recorded.get(_CHOICE) or broadcast_object(_measure_limit(draft))
    if limit is None:
        return draft
    return replace(draft.choose(_CHOICE, limit), head_limit=limit)


def _measure_limit(draft: Draft) -> float | None:
    """The limit by the features of some training images; None where they are none that a layer multiplies."""
    samples = draft.images.train.samples
    chosen = samples[:: max(1, len(samples) // _IMAGES)][:_IMAGES]
    batches = draft.images.train.for_evaluation().with_samples(chosen)
    found = list[Tensor]()
    with no_trace(draft.module), in_eval(draft.module):
        for start in range(0, len(chosen), _AT_ONCE):
            part = batches.with_samples(chosen[start : start + _AT_ONCE])
            found += measure_features(draft.module, draft.swap.path, part.example_batch(len(part.samples)))
    return find_limit(torch.cat(found), draft.config.optimizer) if found else None


def measure_features(module: nn.Module, path: str, batch: Batch) -> list[Tensor]:
    """What reaches the layer at this path, (B, D) per call; over places its mean, where that is a map."""
    found: list[Tensor] = []

    def keep(_part: nn.Module, inputs: tuple[object, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim in (2, 4):
            features = inputs[0].detach().float().cpu()
            found.append(features.mean((2, 3)) if features.ndim == 4 else features)

    handle = module.get_submodule(path).register_forward_pre_hook(keep)
    try:
        compute_logits(module, batch)
    finally:
        handle.remove()
    return found


def find_limit(features: Tensor, optimizer: Optimizer) -> float | None:
    """The rate at which a step moves an output by 0.4 at most, to two digits.  features: (B, D)"""
    if isinstance(optimizer, Sgd):
        size, most = float(features.square().sum(1).mean()), _CURVATURE * (1 - optimizer.momentum)
    else:
        size = float(features.abs().sum(1).mean())
        most = _STEP * (1 - optimizer.momentum if isinstance(optimizer, RmsProp) else 1.0)
    if not math.isfinite(size) or size <= 0 or most <= 0:
        return None
    return float(f"{most / size:.2g}")
