"""What an epoch is the best by: a metric of headstart's, or one of the user's own, which is a function in Python."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import get_args

from headstart.config.schema import HeadstartMetric
from headstart.errors import ConfigError
from headstart.wording import option

METRICS: tuple[str, ...] = get_args(HeadstartMetric)


def refuse_unknown(metric: str, *, own: Iterable[str] = ()) -> None:
    """Raises: ConfigError: the word is none of headstart's metrics, nor a name of the user's ``own``."""
    names = [*METRICS, *own]
    if metric in names:
        return
    near = difflib.get_close_matches(metric.lower(), names, n=1, cutoff=0.6)
    meant = f"; did you mean {near[0]}?" if near else ""
    example = option("metric", near[0] if near else METRICS[1])
    raise ConfigError(
        f"metric: {metric!r} is unknown{meant} (accepted: {', '.join(names)}; and in Python a function of your own: "
        f'hs.train(config, metrics={{"{metric}": (f, "higher")}})), e.g. {example}'
    )
