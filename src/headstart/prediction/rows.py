"""Predictions as rows of a table and as JSON: one image after the other, the same columns for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstart.tasks.tags import join_tags

if TYPE_CHECKING:
    from headstart.prediction.record import Prediction


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table of predictions.

    Attributes:
        ``names``: Classes, tags or targets, in the order of the outputs.
        ``gives_numbers``: Whether each image has numbers.
        ``gives_tags``: Whether each image has tags.
        ``top``: How many classes a row gives, the likeliest first; of tags it gives all.
    """

    names: tuple[str, ...]
    gives_numbers: bool
    gives_tags: bool
    top: int

    @property
    def header(self) -> list[str]:
        """The columns' names."""
        names = self.names
        if self.gives_numbers:
            return ["path", *(f"value:{name}" if name in ("path", "error") else name for name in names), "error"]
        if self.gives_tags:
            return ["path", "tags", *(f"p:{name}" for name in sorted(names)), "error"]
        return ["path", *name_ranks(min(self.top, len(names))), "error"]

    @property
    def numeric(self) -> list[bool]:
        """Which of the columns hold numbers."""
        if self.gives_numbers:
            inner = [True] * len(self.names)
        elif self.gives_tags:
            inner = [False, *[True] * len(self.names)]
        else:
            inner = [False, True] * min(self.top, len(self.names))
        return [False, *inner, False]

    def row(self, answer: Mapping[str, Any]) -> list[object]:
        """The cells of what ``as_dict`` gave of an image."""
        values, labels = answer.get("values", {}), answer.get("labels", [])
        if self.gives_numbers:
            cells: list[object] = [values.get(name) for name in self.names]
        elif self.gives_tags:
            confidences = {label["name"]: label["confidence"] for label in labels}
            cells = [join_tags(answer.get("tags", ())), *(confidences.get(name) for name in sorted(self.names))]
        else:
            cells = [cell for label in labels for cell in (label["name"], label["confidence"])]
            cells += [None] * (2 * min(self.top, len(self.names)) - len(cells))
        return [answer["path"], *cells, answer.get("error", "")]


def name_ranks(count: int) -> list[str]:
    """Names of the columns of so many labels a row."""
    names = []
    for rank in range(1, count + 1):
        names += [f"label {rank}", f"confidence {rank}"] if count > 1 else ["label", "confidence"]
    return names


def as_dict(prediction: Prediction, *, top: int) -> dict[str, object]:
    """The prediction as plain JSON values, with the ``top`` likeliest classes; of tags with all."""
    facts: dict[str, object] = {"path": str(prediction.path)}
    if prediction.error is not None:
        return {**facts, "error": prediction.error}
    if prediction.values:
        return {**facts, "values": dict(prediction.values)}
    labels = [{"name": name, "confidence": confidence} for name, confidence in prediction.labels or ()]
    if prediction.tags is not None:
        return {**facts, "tags": list(prediction.tags), "labels": labels}
    return {**facts, "labels": labels[:top]}


def list_labels(predictions: Sequence[Any], top: int) -> tuple[list[str], list[list[object]]]:
    """Header and rows: the labels of each image side by side, as many as the image with the most has."""
    count = min(top, max((len(p.labels or ()) for p in predictions), default=0))
    rows = []
    for prediction in predictions:
        row: list[object] = [str(prediction.path)]
        for rank in range(count):
            row += (prediction.labels or ())[rank] if rank < len(prediction.labels or ()) else (None, None)
        rows.append([*row, prediction.error or ""])
    return ["path", *name_ranks(count), "error"], rows
