"""What trackers are given, as plain numbers and texts: a run's options, an epoch, the end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from headstart.config.load import plain
from headstart.config.schema import Config
from headstart.events import EpochDone, Finished

Option = str | int | float | bool


def list_options(config: Config) -> dict[str, Option]:
    """Every option by its dotted name; lists and mappings as JSON, None as an empty text."""
    options: dict[str, Option] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        inner = {f"{item.name}.{each.name}": getattr(value, each.name) for each in fields(value)} if (
            is_dataclass(value)
        ) else {item.name: value}  # fmt: skip
        options |= {name: _write_option(plain(each)) for name, each in inner.items()}
    return options


def _write_option(value: object) -> Option:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def list_epoch_values(event: EpochDone) -> dict[str, float]:
    """The numbers of an epoch by the names of ``metrics.csv``, without those that are not finite."""
    values: dict[str, float] = {
        "epoch": event.epoch, "phase": event.phase, "lr": event.lr, "train_loss": event.train_loss,
        **_prefix("val_", event.metrics), **_prefix("val_average_", event.average_metrics),
        "images_per_second": event.images_per_second, "seconds": event.seconds,
    }  # fmt: skip
    return _select_finite(values)


def list_final_values(event: Finished) -> dict[str, float]:
    """The metrics of the weights that were kept, each with ``final_`` before its name."""
    return _select_finite({**_prefix("final_val_", event.metrics), **_prefix("final_test_", event.test_metrics)})


def _prefix(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in metrics.items()}


def _select_finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
