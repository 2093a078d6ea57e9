"""How far a number from N images may be off: 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
_BUDGET = 3e8  # numbers touched by one bootstrap: about 3 s on one core
_HELD = 1_000_000  # numbers of resamples in memory at once
_FEWEST = 100  # resamples below which a 2.5 % quantile means little
_MOST_GROUPS = 200  # of images, left out in turn: their sums have the skew of single images
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """Lower end (``low``) and upper end (``high``), in the unit of the number itself."""

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
    statistic: Callable[[Tensor], Tensor],
    *,
    size: int,
    cost: int = 1,
    resamples: int = 1000,
    groups: int = _MOST_GROUPS,
) -> Interval | None:
    """BCa bootstrap (Efron 1987) of a statistic of ``size`` images: percentiles, corrected for bias and for skew.

    Where classes have few images each, a resample lacks some of them, and its macro F1 is lower than that of all
    images: plain percentiles then miss the true value (held at 50 classes of 3 images: 50 %; with BCa 83 %), and may
    lie beside the number itself.

    ``statistic`` gets how often each image was drawn, (R, N) in float64, and returns a number per resample, (R,), NaN
    where it is undefined. ``cost`` is how many numbers it touches per image and resample; ``groups`` in how many parts
    images are left out in turn. None when there are fewer than two images, when the statistic is undefined, when even
    100 resamples would take too long, or when the resamples are so biased that even the corrected interval does not
    hold the number itself. The draws are the same at every call.
    """
    if size < 2:
        return None
    groups = min(size, groups)
    resamples = min(resamples, int(_BUDGET / (size * cost)) - groups)
    if resamples < _FEWEST:
        return None
    rng = np.random.default_rng(0)
    drawn = (np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(resamples))
    values = _compute_values(statistic, drawn, size)
    (number,) = statistic(torch.ones(1, size, dtype=torch.float64)).tolist()
    if len(values) < _FEWEST or not math.isfinite(number):
        return None
    left_out = _compute_values(statistic, (np.arange(size) % groups != group for group in range(groups)), size)
    return correct_percentiles(values, number=number, left_out=left_out)


def _compute_values(
    statistic: Callable[[Tensor], Tensor], weights: Iterable[NDArray[Any]], size: int
) -> NDArray[np.float64]:
    """The statistic with each of these weights (N,), where it is defined; some at once, as memory allows."""
    values, left = list[float](), iter(weights)
    while some := list(islice(left, max(1, _HELD // size))):
        values += statistic(torch.from_numpy(np.stack(some)).double()).tolist()
    found = np.array(values, dtype=np.float64)
    return found[np.isfinite(found)]


def correct_percentiles(
    values: NDArray[np.float64], *, number: float, left_out: NDArray[np.float64]
) -> Interval | None:
    """The BCa interval of ``number`` from its resamples, and from its values with some images left out (jackknife).

    None where it does not hold the number.
    """
    below = (np.mean(values < number) + np.mean(values <= number)) / 2
    if not 0 < below < 1:
        return None
    bias = _NORMAL.inv_cdf(float(below))
    gaps = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float(np.sum(gaps**2)) ** 1.5
    skew = float(np.sum(gaps**3)) / (6 * spread) if spread > 0 else 0.0
    shares = []
    for z in (-Z95, Z95):
        scale = 1 - skew * (bias + z)
        if scale <= 0:  # beyond what the expansion holds for
            return None
        shares.append(_NORMAL.cdf(bias + (bias + z) / scale))
    low, high = (float(end) for end in np.quantile(values, shares))
    slack = 1e-9 * max(abs(low), abs(high))  # of sums in another order
    return Interval(min(low, number), max(high, number)) if low - slack <= number <= high + slack else None
