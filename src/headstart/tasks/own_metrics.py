"""Metrics that are the user's own: plain functions of what the model says and of the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from headstart.errors import ConfigError

MetricFunction = Callable[[Tensor, Tensor], float]
"""Outputs, probabilities (N, K) or numbers (N, T), and truth, (N,), (N, K) or (N, T), to a number."""


def measure_own(own: Mapping[str, MetricFunction], outputs: Tensor, truth: Tensor) -> dict[str, float]:
    """Each metric by its name; one that is not finite is left out.

    Raises: ConfigError: a function gave no number.
    """
    found = {}
    for name, function in own.items():
        value = function(outputs, truth)
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"metrics: {name} gave type {type(value).__name__}; accepted is one number, e.g. return float(value)"
            ) from error
    return {name: value for name, value in found.items() if math.isfinite(value)}


def check_own(own: Mapping[str, object], *, taken: Mapping[str, object]) -> None:
    """Refuse what is no function, and names that headstart's metrics have.  Raises: ConfigError."""
    for name, function in own.items():
        if not callable(function):
            raise ConfigError(
                f"metrics: {name} is of type {type(function).__name__}; give a function (outputs, truth) of one number"
            )
        if name in taken:
            raise ConfigError(f"metrics: {name} is one of headstart's own; give yours another name, e.g. my_{name}")
