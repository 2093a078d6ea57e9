"""Rates as a pure function of the step, so that a resumed run has the same ones."""

from __future__ import annotations

import math

from headstart.config.schema import Schedule

_ONE_CYCLE_RISE = 0.3  # Smith & Topin 2017; share of the rise, first and last factor are those of torch's OneCycleLR
_ONE_CYCLE_FIRST, _ONE_CYCLE_LAST = 1 / 25, 1 / 25e4
_ROUNDING = 1e-9  # 0.6 / 0.2 is 2.9999999999999996


def rate_factor(schedule: Schedule, step: int, *, total: int) -> float:
    """What every group's rate is multiplied by at ``step`` (0-based) of a phase with ``total`` optimizer steps.

    In (0, 1].
    """
    assert 0 <= step < total, (step, total)
    if schedule.kind == "one_cycle":
        return _one_cycle(step, total)
    warm = min(math.floor(schedule.warmup * total + _ROUNDING), total - 1)
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
            return schedule.step_factor ** math.floor(done / schedule.step_share + _ROUNDING)


def _one_cycle(step: int, total: int) -> float:
    peak = max(_ONE_CYCLE_RISE * total - 1, 0.0)  # a step, counted from 0, that may lie between two
    if step < peak:
        return _between(_ONE_CYCLE_FIRST, 1.0, share=step / peak)
    return _between(1.0, _ONE_CYCLE_LAST, share=(step - peak) / max(total - 1 - peak, 1.0))


def _between(first: float, last: float, *, share: float) -> float:
    """The value at a ``share`` of the way from ``first`` to ``last`` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))
