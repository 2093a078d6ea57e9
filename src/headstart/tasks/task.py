"""What the model answers: one label, several tags, or numbers, and how its outputs are read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from headstart.errors import DataError

TaskKind = Literal["classify", "multilabel", "regress"]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """The meaning of the model's K outputs, in order.

    ``classes`` are the names of classes or tags, ``targets`` those of the numbers. ``mean`` and ``std``, one each per
    target, scale the numbers (their base-10 logarithms when ``log``); they come from the training split alone.
    """

    kind: TaskKind
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    log: bool = False

    @property
    def num_outputs(self) -> int:
        """How many numbers the model gives per image."""
        return len(self.targets) if self.kind == "regress" else len(self.classes)

    def standardise(self, values: Tensor) -> Tensor:
        """Targets as the model learns them, float32.  values: (..., T) in original units."""
        scaled = torch.log10(values.double()) if self.log else values.double()
        mean, std = (scaled.new_tensor(numbers) for numbers in (self.mean, self.std))
        return ((scaled - mean) / std).float()

    def original(self, values: Tensor) -> Tensor:
        """Numbers in original units, from standardised ones.  values: (..., T)"""
        mean, std = (values.new_tensor(numbers) for numbers in (self.mean, self.std))
        scaled = values * std + mean
        return torch.pow(10.0, scaled) if self.log else scaled

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TaskSpec:
        """The task that :meth:`to_dict` wrote.  Raises: DataError: it is another thing."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        try:
            found = cls(**values)
            names = found.targets if found.kind == "regress" else found.classes
            scales = (*found.mean, *found.std)
            good = found.kind in get_args(TaskKind) and names and len(set(names)) == len(names)
            good = good and all(isinstance(name, str) for name in names)
            good = good and all(isinstance(number, int | float) for number in scales)
        except TypeError as error:
            raise DataError(f"task: {error}; not a task that headstart wrote") from error
        if not good or (found.kind == "regress" and not len(found.mean) == len(found.std) == len(names)):
            raise DataError(f"task: {str(dict(fields))[:200]} is not a task that headstart wrote")
        return found


def regression_task(targets: Sequence[str], rows: Sequence[Sequence[float]], *, log: bool) -> TaskSpec:
    """Regression whose scaling is that of ``rows``, the training split's targets (N, T).

    Raises:
        DataError: a target has the same value in every row.
    """
    mean, std = [], []
    for name, column in zip(targets, zip(*rows, strict=True), strict=True):
        values = [math.log10(value) for value in column] if log else list(column)
        spread = statistics.pstdev(values)
        if min(column) == max(column) or spread == 0:
            raise DataError(
                f"data.target: {name!r} is {column[0]:g} in each of the {len(column)} training images, so there is "
                f"nothing to learn; give a column that varies, e.g. --data.target NAME"
            )
        mean.append(statistics.fmean(values))
        std.append(spread)
    return TaskSpec(kind="regress", targets=tuple(targets), mean=tuple(mean), std=tuple(std), log=log)
