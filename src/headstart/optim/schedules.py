"""Rates as a pure function of the step, so that a resumed run has the same ones."""

from __future__ import annotations

import math

from headstart.config.schema import Schedule

_ONE_CYCLE_RISE = 0.3  # Smith & Topin 2017, as in torch's OneCycleLR
_ONE_CYCLE_START = 0.04


def rate_factor(schedule: Schedule, step: int, *, total: int) -> float:
    """What every group's rate is multiplied by at ``step`` (0-based) of a phase with ``total`` optimizer steps.

    In (0, 1].
    """
    assert 0 <= step < total, (step, total)
    if schedule.kind == "one_cycle":
        return _one_cycle((step + 1) / total)
    warm = math.floor(schedule.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1, total - warm)  # 0 .. just under 1: the last step still learns
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "step":
            return schedule.step_factor ** math.floor(done / schedule.step_share)


def _one_cycle(done: float) -> float:
    if done <= _ONE_CYCLE_RISE:
        return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * 0.5 * (1 - math.cos(math.pi * done / _ONE_CYCLE_RISE))
    fall = (done - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE)
    return max(1e-4, 0.5 * (1 + math.cos(math.pi * fall)))
