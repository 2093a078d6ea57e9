"""Metrics that are the user's own: plain functions of what the model says and of the truth, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from headstart.config.metric import METRICS
from headstart.errors import ConfigError
from headstart.tasks.metrics import LABELS

MetricFunction = Callable[[Tensor, Tensor], float]
"""Outputs, probabilities (N, K) or numbers (N, T), and truth, (N,), (N, K) or (N, T), to a number."""
Better = Literal["higher", "lower"]
GivenMetrics = Mapping[str, MetricFunction | tuple[MetricFunction, Better]]
"""Functions by name, or pairs of a function and of which way is better: ``{"top_2": (top_2, "higher")}``."""


@dataclass(frozen=True, kw_only=True)
class OwnMetric:
    """A metric of the user's own: its ``function``, and which way is ``better``; None where that was not said."""

    function: MetricFunction
    better: Better | None = None


def read_own(given: GivenMetrics | None) -> dict[str, OwnMetric]:
    """The metrics as they were given in Python, by name.

    Raises: ConfigError: one is no function, says another direction, or has the name of one of headstart's.
    """
    return {name: _read_one(name, value) for name, value in (given or {}).items()}


def _read_one(name: str, value: object) -> OwnMetric:
    if name in LABELS or name in METRICS:
        raise ConfigError(f"metrics: {name} is one of headstart's own; give yours another name, e.g. my_{name}")
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not name.strip()
        or ":" in name
        or name.startswith("baseline")
    ):
        raise ConfigError(f"metrics: {name!r} is no name; give letters, digits and underscores, e.g. my_metric")
    function, better = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not callable(function):
        raise ConfigError(
            f"metrics: {name} is of type {type(value).__name__}; give a function (outputs, truth) of one number, or a "
            f'pair of it and of which way is better, e.g. {{"{name}": (f, "higher")}}'
        )
    if better not in (None, "higher", "lower"):
        raise ConfigError(f'metrics: {name}: {better!r} says no direction; accepted: "higher" or "lower" is better')
    return OwnMetric(function=cast("MetricFunction", function), better=better)


def measure_own(own: Mapping[str, OwnMetric], outputs: Tensor, truth: Tensor) -> dict[str, float]:
    """Each metric by its name; one that is not finite is left out.

    Raises: ConfigError: a function gave no number.
    """
    found = {}
    for name, metric in own.items():
        value = metric.function(outputs.clone(), truth.clone())  # what it writes in place is not the run's
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"metrics: {name} gave type {type(value).__name__}; accepted is one number, e.g. return float(value)"
            ) from error
    return {name: value for name, value in found.items() if math.isfinite(value)}


def require_direction(name: str, own: Mapping[str, OwnMetric]) -> Better:
    """Which way of the metric is better.

    Raises: ConfigError: no function of this name was given, or it was not said.
    """
    if name not in own:
        raise ConfigError(
            f"metric: {name} is none of headstart's, and no function of this name was given; give it in Python, e.g. "
            f'hs.train(config, metrics={{"{name}": (f, "higher")}})'
        )
    better = own[name].better
    if better is None:
        raise ConfigError(
            f"metric: {name} is to choose the epoch, and whether higher or lower is better is not known; say it beside "
            f'the function: metrics={{"{name}": (f, "higher")}}, or (f, "lower")'
        )
    return better
