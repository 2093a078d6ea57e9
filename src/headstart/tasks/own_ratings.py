"""How far a metric of the user's own may be off, and what an answer without looking gets: by calling the function.

N images, K classes or tags, T targets.
"""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from headstart.tasks.intervals import Interval, bootstrap
from headstart.tasks.kinds import find_kind
from headstart.tasks.own_metrics import OwnMetric
from headstart.tasks.task import TaskSpec

_SECONDS = 3.0  # for one metric, as long as the bootstrap of headstart's own may take
_SIZES = ((1000, 200), (300, 100), (100, 50))  # resamples, and groups of images that are left out in turn
_FAILURES = 0.1  # share of the resamples without a number above which the others say little


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A metric with its 95 % interval and what the best answer without looking gets on the same images.

    Attributes:
        ``value``: The metric; NaN where these images do not define it.
        ``low``: The interval's lower end; None where there is no interval.
        ``high``: The interval's upper end.
        ``baseline``: What the same answer for every image gets; None where it gets no number.
        ``baseline_says``: Which answer that is.
        ``remarks``: What is missing and why, or how the interval was made where it differs from others.

    Example:
        >>> import headstart as hs
        >>> rating = hs.evaluate("runs/photos", "photos").rate("accuracy")
        >>> rating.low <= rating.value <= rating.high, rating.baseline, rating.baseline_says
        (True, 0.5, 'always cat')
    """

    value: float
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    baseline_says: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def interval(self) -> Interval | None:
        """Both ends; None where there is no interval."""
        return None if self.low is None or self.high is None else Interval(self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON; the value stands among the metrics."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if name != "value"}

    @classmethod
    def from_dict(cls, value: float, fields: object) -> Rating:
        """The rating that :meth:`to_dict` wrote; of another thing the value alone."""
        match fields:
            case {
                "low": float() | int() | None as low, "high": float() | int() | None as high,
                "baseline": float() | int() | None as baseline, "baseline_says": str(says), "remarks": list(remarks),
            }:  # fmt: skip
                said = tuple(map(str, remarks))
                return cls(value=value, low=low, high=high, baseline=baseline, baseline_says=says, remarks=said)
        return cls(value=value)


def rate_own(metric: OwnMetric, task: TaskSpec, outputs: Tensor, truth: Tensor, *, value: float) -> Rating:
    """The rating of a function's ``value`` on these images.

    outputs: (N, K) probabilities or (N, T) numbers; truth: (N,), (N, K) or (N, T).
    """
    calls = _Calls(metric, outputs, truth)
    with _silent():
        interval, remarks = _resample(calls)
        baseline, says, missing = _rate_constants(calls, task)
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Rating(
        value=value, low=low, high=high, baseline=baseline, baseline_says=says, remarks=(*remarks, *missing)
    )  # fmt: skip


@contextmanager
def _silent() -> Iterator[None]:
    """Within, what the function prints and warns of is not told a thousand times more: it was, on the images."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@dataclass
class _Calls:
    """The function's calls on other images than those that came, and why some gave no number."""

    metric: OwnMetric
    outputs: Tensor
    truth: Tensor
    failures: list[str] = field(default_factory=list)

    def on(self, outputs: Tensor, truth: Tensor) -> float:
        """The number; NaN where there is none. Both tensors are the function's to change."""
        try:
            value = float(self.metric.function(outputs, truth))
        except Exception as error:  # a function of the user's own raises anything, and these images are not theirs
            text = " ".join(str(error).split())
            self.failures.append(f"{type(error).__name__}: {text}"[:80] if text else type(error).__name__)
            return math.nan
        if not math.isfinite(value):
            self.failures.append(f"it gives {value}")
        return value

    def on_drawn(self, weights: Tensor) -> Tensor:
        """A number per resample, (R,); weights (R, N) say how often each image was drawn."""
        every = torch.arange(len(self.truth))
        drawn = [every.repeat_interleave(row.long()) for row in weights]
        return torch.tensor([self.on(self.outputs[rows], self.truth[rows]) for rows in drawn], dtype=torch.float64)


def _resample(calls: _Calls) -> tuple[Interval | None, tuple[str, ...]]:
    """The interval, as of headstart's own metrics, and what to know of it; fewer resamples where calls are slow."""
    size = len(calls.truth)
    if size < 2:
        return None, ("no interval of one image",)
    seconds = _time_call(calls)
    few_enough = [pair for pair in _SIZES if sum(pair) * seconds <= _SECONDS]
    if not few_enough:
        return None, (f"no interval: a call takes {1000 * seconds:,.0f} ms, and {sum(_SIZES[-1])} are needed",)
    resamples, groups = few_enough[0]
    calls.failures.clear()
    found = bootstrap(calls.on_drawn, size=size, resamples=resamples, groups=groups)
    failed, total = len(calls.failures), resamples + min(size, groups)
    if failed > _FAILURES * total:
        return None, (f"no interval: on {failed:,} of {total:,} resamples {_blame(calls)}",)
    if found is None:
        return None, ("no interval: the resamples lie beside the value",)
    left_out = (f"interval without {failed:,} of {total:,} resamples, on which {_blame(calls)}",) if failed else ()
    fewer = (f"interval of {resamples} resamples: a call takes {1000 * seconds:,.0f} ms",)
    return found, (*left_out, *(fewer if few_enough != list(_SIZES) else ()))


def _time_call(calls: _Calls) -> float:
    """Seconds that a call takes, the shortest of three: the first may load something."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        calls.on(calls.outputs.clone(), calls.truth.clone())
        times.append(time.perf_counter() - started)
        if times[-1] > _SECONDS:
            break
    return min(times)


def _blame(calls: _Calls) -> str:
    """Why there was no number, the most frequent reason."""
    reason = max(calls.failures, key=calls.failures.count)
    return reason if reason.startswith("it gives") else f"it fails ({reason})"


def _rate_constants(calls: _Calls, task: TaskSpec) -> tuple[float | None, str, tuple[str, ...]]:
    """The best number of the same answer for every image, which answer it is, and why there is none."""
    found = dict[str, float]()
    calls.failures.clear()
    for says, row in find_kind(task.kind).list_constants(task, calls.truth).items():
        value = calls.on(row.to(calls.outputs.dtype).repeat(len(calls.truth), 1), calls.truth.clone())
        if math.isfinite(value):
            found[says] = value
    if not found:
        return None, "", (f"no baseline: on the same answer for every image {_blame(calls)}",)
    says = min(found, key=found.__getitem__) if calls.metric.better == "lower" else next(iter(found))
    if calls.metric.better == "higher":
        says = max(found, key=found.__getitem__)
    return found[says], says, ()


def list_ratings(fields: object, metrics: Mapping[str, float]) -> dict[str, Rating]:
    """The ratings that a result.json holds for these metrics, by name."""
    written = fields if isinstance(fields, dict) else {}
    return {name: Rating.from_dict(value, written.get(name)) for name, value in metrics.items() if name in written}
