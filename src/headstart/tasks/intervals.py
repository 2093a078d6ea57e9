"""How far a number from N images may be off: 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
_BUDGET = 3e8  # numbers touched by one bootstrap: about 3 s on one core
_HELD = 1_000_000  # numbers of resamples in memory at once
_FEWEST = 100  # resamples below which a 2.5 % quantile means little


@dataclass(frozen=True)
class Interval:
    """Lower and upper end, in the unit of the number itself."""

    low: float
    high: float


def wilson(successes: int, total: int) -> Interval | None:
    """Wilson's score interval for a share (Wilson 1927); None when there is nothing to divide by.

    Unlike the normal interval it stays within 0..1 and is not empty at 0 or ``total`` successes.
    """
    if total <= 0:
        return None
    assert 0 <= successes <= total, (successes, total)
    share = successes / total
    scale = 1 + Z95**2 / total
    centre = (share + Z95**2 / (2 * total)) / scale
    half = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2)) / scale
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == total else min(1.0, centre + half)
    return Interval(low, high)


def bootstrap(
    statistic: Callable[[Tensor], Tensor], *, size: int, cost: int = 1, resamples: int = 1000
) -> Interval | None:
    """Percentile bootstrap (Efron 1979) of a statistic of ``size`` images.

    ``statistic`` gets how often each image was drawn, (R, N) in float64, and returns a number per resample, (R,), NaN
    where it is undefined. ``cost`` is how many numbers it touches per image and resample. None when there are fewer
    than two images, when the statistic is undefined, or when even 100 resamples would take too long. The draws are
    the same at every call.
    """
    if size < 2:
        return None
    resamples = min(resamples, int(_BUDGET / (size * cost)))
    if resamples < _FEWEST:
        return None
    rng = np.random.default_rng(0)
    at_once = max(1, _HELD // size)
    values: list[float] = []
    for start in range(0, resamples, at_once):
        rows = range(start, min(resamples, start + at_once))
        drawn = np.stack([np.bincount(rng.integers(size, size=size), minlength=size) for _ in rows])
        values += statistic(torch.from_numpy(drawn).double()).tolist()
    defined = [value for value in values if math.isfinite(value)]
    if len(defined) < _FEWEST:
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return Interval(float(low), float(high))
