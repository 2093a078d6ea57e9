"""Images from Python with their labels, as a source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from headstart.data.sources.as_given import AnyImages, GivenImages, list_images
from headstart.errors import DataError


def label_images(
    images: AnyImages,
    labels: Sequence[Any] | None = None,
    *,
    numbers: Mapping[str, Sequence[float]] | None = None,
    split: Sequence[str | None] | None = None,
    group: Sequence[Any] | None = None,
) -> GivenImages:
    """Return images from Python with their labels, as a source for ``hs.train``, ``hs.open_images``, ``hs.evaluate``.

    Args:
        ``images``: A list of paths, bytes of image files, PIL images, or arrays and tensors of uint8 pixels (H, W, 3),
            for a model of other bands of numbers (H, W, C); or all of them as one array or tensor (N, H, W, C).
        ``labels``: Per image its class, a text or whole number, or its tags, a list of such. Classes are named and
            sorted as text.
        ``numbers``: Instead of ``labels``, per target the numbers of all images: ``{"price": [1.5, 2.0]}``.
        ``split``: Per image train, val or test; None lets the run hold out a share.
        ``group``: Per image what it has in common with others (a patient, a video): a group stays in one split.

    Returns:
        A source whose images are named ``images[0]``, ``images[1]``, ..., files by their paths.

    Raises:
        DataError: An image is none, or there are not as many labels as images; the message says where.

    Example:
        >>> import headstart as hs, numpy as np
        >>> pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        >>> data = hs.label_images(pixels, ["cat", "dog"] * 3)
        >>> [record.labels for record in data.records()][:2]
        [('cat',), ('dog',)]
    """
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        images = list(images)
    source = list_images(images)
    count = len(source.listed)
    if (labels is None) == (numbers is None):
        raise DataError('labels, numbers: give one of them, e.g. labels=["cat", "dog"] or numbers={"price": [1.5, 2]}')
    columns = {
        **({} if labels is None else {"labels": _plain(labels)}),
        **{f"numbers[{name!r}]": _plain(values) for name, values in (numbers or {}).items()},
        **({} if split is None else {"split": _plain(split)}),
        **({} if group is None else {"group": _plain(group)}),
    }
    for name, values in columns.items():
        if len(values) != count:
            raise DataError(
                f"{name}: {len(values)} for {count} images (a folder counts as the images in it); give one per image"
            )
    rows = tuple(
        replace(
            record,
            labels=_read_labels(columns["labels"][place], place) if labels is not None else (),
            numbers={name: columns[f"numbers[{name!r}]"][place] for name in numbers or {}},
            split=None if split is None else columns["split"][place],
            group=None if group is None else str(columns["group"][place]),
        )
        for place, record in enumerate(source.listed)
    )
    return replace(source, listed=rows)


def _plain(values: Any) -> list[Any]:
    """A list of Python's own values."""
    return list(values.tolist() if isinstance(values, np.ndarray | Tensor) else values)


def _read_labels(value: Any, place: int) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Collection):
        return (_read_label(value, place),)
    return tuple(sorted({_read_label(tag, place) for tag in _plain(value)}))


def _read_label(value: Any, place: int) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise DataError(
        f"labels[{place}]: {value!r} is no label; accepted are a text, a whole number, and a list of such (tags). "
        'Quantities are given as numbers={"price": [1.5, 2.0]}'
    )
