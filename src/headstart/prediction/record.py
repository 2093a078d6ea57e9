"""What a model says of one image, in words."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.prediction.outputs import Output
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image: labels, numbers, or why the image cannot be read.

    Attributes:
        ``path``: The file's path as text; ``images[2]`` for the third of several where it was in memory, ``image`` for
            a single one.
        ``labels``: Pairs of class or tag and confidence from 0 to 1, likeliest first.
        ``tags``: The tags that are on, likeliest first: those whose confidence is above the tag's threshold, which was
            chosen on the validation images (``task.thresholds``; none: 0.5). None for other tasks.
        ``values``: The numbers by target, in original units (regression); else None.
        ``error``: Why the image cannot be read; else None.

    Example:
        >>> import headstart as hs
        >>> (row,) = hs.predict("runs/photos", "photos/cat/00.png")
        >>> row.path, len(row.labels), row.values, row.error
        ('photos/cat/00.png', 2, None, None)
    """

    path: str
    labels: tuple[tuple[str, float], ...] = ()
    tags: tuple[str, ...] | None = None
    values: dict[str, float] | None = None
    error: str | None = None


def describe_output(output: Output, task: TaskSpec) -> Prediction:
    """The prediction that these outputs of a model mean."""
    if output.values is None:
        return Prediction(path=output.path, error=output.error)
    kind = find_kind(task.kind)
    pairs = kind.pair_outputs(task, output.values)
    if kind.gives_numbers:
        return Prediction(path=output.path, values=dict(pairs))
    return Prediction(path=output.path, labels=pairs, tags=kind.list_tags(task, output.values))
