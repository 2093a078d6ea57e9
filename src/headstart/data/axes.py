"""Which axis of saved arrays their bands are: as asked, or the one that gives all of them the bands of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from headstart.data.decoding.arrays import ORDERS, SPELT, Axes, explain_ends, list_bands
from headstart.data.decoding.raster import Measured
from headstart.errors import DataError
from headstart.wording import option


def choose_axes(
    measured: Mapping[str, Measured],
    *,
    channels: int,
    asked: Literal["auto"] | Axes,
    source: str,
    usual: Axes | None = None,
) -> tuple[Axes | None, dict[str, Measured], tuple[str, ...]]:
    """The order of the axes of all arrays of three, None where there is none; what was ``measured``, with the bands
    that follow; and sentences on how it came about.

    channels: of the model; usual: the order of the run's own arrays, which is taken where both can be meant.

    Raises: DataError: both orders can be meant, or neither fits.
    """
    arrays = {name: found for name, found in measured.items() if found.first is not None}
    if not arrays:
        unused = ("data.axes is not used: no image is an array of three axes",)
        return None, dict(measured), unused if asked != "auto" else ()
    if asked == "auto":
        axes = _find_axes(arrays, channels=channels, source=source, usual=usual)
        why = f"auto: only so they have {' or '.join(map(str, list_bands(channels)))} bands, as the model takes"
    else:
        axes, why = asked, "as given"
    _refuse_other_order(arrays, axes, channels=channels, source=source)
    for name, found in arrays.items():
        if not _count_bands(found, axes):
            raise DataError(
                f"{source}: {name}: as {SPELT[axes]} its sides are not accepted; give the other order: "
                f"{option('data.axes', _other(axes))}, or save it with other axes"
            )
    changed = {name: replace(found, bands=_count_bands(found, axes), first=None) for name, found in arrays.items()}
    count = f"{len(arrays)} arrays are" if len(arrays) > 1 else "an array is"
    return axes, {**measured, **changed}, (f"data.axes: {count} read as {SPELT[axes]}; {why}",)


def _count_bands(found: Measured, axes: Axes) -> int:
    return found.bands if axes == "hwc" else found.first or 0


def _other(axes: Axes) -> Axes:
    return "chw" if axes == "hwc" else "hwc"


def _refuse_other_order(arrays: Mapping[str, Measured], axes: Axes, *, channels: int, source: str) -> None:
    """Raises: DataError: in the other order all arrays have the bands of the model, and in this one none."""
    accepted, name = list_bands(channels), min(arrays)
    wrong = not any(_count_bands(found, axes) in accepted for found in arrays.values())
    if wrong and all(_count_bands(found, _other(axes)) in accepted for found in arrays.values()):
        ours, theirs = (_count_bands(arrays[name], order) for order in (axes, _other(axes)))
        raise DataError(
            f"{source}: {name}: as {SPELT[axes]} it has {ours} bands, as {SPELT[_other(axes)]} {theirs}, as the model "
            f"takes; give this order: {option('data.axes', _other(axes))}"
        )


def _find_axes(arrays: Mapping[str, Measured], *, channels: int, source: str, usual: Axes | None) -> Axes:
    """The only order that gives all arrays the bands of the model.  Raises: DataError: there is none, or both do."""
    accepted = list_bands(channels)
    fitting = {
        axes: [name for name in sorted(arrays) if _count_bands(arrays[name], axes) in accepted] for axes in ORDERS
    }
    possible = [axes for axes in ORDERS if len(fitting[axes]) == len(arrays)]
    example = min(arrays)
    found = arrays[example]
    if len(possible) == 1:
        return possible[0]
    if possible and usual is not None:
        return usual
    if possible:
        raise DataError(
            f"{source}: the first and the last axis of {example} have {found.first} and {found.bands} values, and both "
            f"can be bands of {SPELT['hwc']} or {SPELT['chw']}; say which: {option('data.axes', 'hwc')} or "
            f"{option('data.axes', 'chw')}"
        )
    lost = next((name for name in sorted(arrays) if not any(name in fitting[axes] for axes in ORDERS)), None)
    if lost is None:
        one, other = (next(name for name in fitting[axes] if name not in fitting[_other(axes)]) for axes in ORDERS)
        raise DataError(f"{source}: {one} is {SPELT['hwc']}, and {other} {SPELT['chw']}; save all of them in one order")
    found = arrays[lost]
    raise DataError(f"{source}: {lost}: {explain_ends(found.first or 0, found.bands, channels)}")
