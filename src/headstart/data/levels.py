"""Which stored values become black and white: of pictures of more than 8 bits, as asked, or by what the scan found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import quantiles

from headstart.data.decoding.decode import DARK
from headstart.data.decoding.raster import Levels, Measured, explain_bands
from headstart.data.sources.caution import Caution
from headstart.data.sources.samples import some
from headstart.errors import DataError
from headstart.wording import option

_BITS = (8, 10, 12, 14, 16)
_USUAL: Levels = (0.0, 65535.0)
_TAIL = 50  # pictures: of so many, one may be brighter than all others without setting the range
_LEVELS = 255  # of a picture of 8 bits, above black
_HALF = 0.5  # of all pictures: what is told of them is told as of the set


def choose_levels(
    measured: Mapping[str, Measured], *, count: int, asked: Levels | None
) -> tuple[Levels | None, tuple[str, ...], tuple[Caution, ...]]:
    """The range of stored values, None where it is that of all bits, sentences on how it came about, and warnings.

    ``measured``: by name, the pictures of ``count`` that have more than 8 bits, or are dark.
    """
    deep = {name: found for name, found in measured.items() if found.kind != "uint8"}
    if not deep:
        unused = ("data.range is not used: all images have 8 bits",) if asked not in (None, _USUAL) else ()
        return None, unused, _warn_of_dark(measured, count=count)
    how = f"{_count(deep, count)} more than 8 bits ({', '.join(sorted({found.kind for found in deep.values()}))})"
    levels, why = (asked, "as given") if asked is not None else _find_levels(tuple(deep.values()))
    note = f"data.range: {how}: {levels[0]:g} becomes black and {levels[1]:g} white; {why}"
    cautions = (
        *_warn_of_range(deep, levels, count=count, given=asked is not None),
        *_warn_of_dark(measured, count=count),
    )
    usual = levels == _USUAL and all(found.kind == "uint16" for found in deep.values())
    return None if usual else levels, (note,), cautions


def _warn_of_range(deep: Mapping[str, Measured], levels: Levels, *, count: int, given: bool) -> list[Caution]:
    """Warnings of values that the range cuts off, leaves black, or makes one."""
    cautions, (low, high) = list[Caution](), levels
    clipped = sorted(name for name, found in deep.items() if found.low < low or found.high > high)
    if clipped:
        ends = (min(deep[name].low for name in clipped), max(deep[name].high for name in clipped))
        wider = option("data.range", min(low, ends[0]), max(high, ends[1]))
        text = f"{_count(clipped, count)} values beyond the range {low:g} to {high:g}, which are cut off"
        cautions.append(_warn(text, clipped, f"where they matter, give a wider range: {wider}"))
    dark = sorted(name for name, found in deep.items() if found.high - low <= (high - low) * DARK / 255)
    if len(dark) >= _HALF * len(deep):
        most = max(deep[name].high for name in dark)
        text = f"{_count(dark, count)} nearly all values below an eighth of the range, black to the model"
        advice = f"give a narrower range: {option('data.range', low, most)}" if most > low else "look at them"
        cautions.append(_warn(text, dark, advice))
    kinds = {"floating-point" if found.kind.startswith("f") else "whole" for found in deep.values()}
    if len(kinds) > 1:
        text = (
            f"{_count(deep, count)} one range, {low:g} to {high:g}, though some hold floating-point numbers, some whole"
        )
        cautions.append(_warn(text, sorted(deep), "save all of them as one kind, on one scale"))
    if len(deep) < count:
        text = (
            f"{_count(deep, count)} more than 8 bits, shown from {low:g} to {high:g}, and the others 8, from 0 to 255"
        )
        advice = (
            "save all of them alike, where they show the same things: else the model may learn to tell the two apart"
        )
        cautions.append(_warn(text, sorted(deep), advice))
    whole = sorted(name for name, found in deep.items() if "int" in found.kind)
    if not given and len(whole) >= _HALF * count and high - low > _LEVELS:
        text = (
            f"of the {high - low + 1:,.0f} values of {len(whole)} of {count} images the model sees {_LEVELS + 1} levels"
        )
        cautions.append(
            _warn(text, whole, f"where a part of them matters, give it: {option('data.range', fill='LOW HIGH')}")
        )
    return cautions


def _find_levels(found: Sequence[Measured]) -> tuple[Levels, str]:
    """The range that the values of most pictures fill, and why."""
    low = _quantile([each.low for each in found], upper=False)
    high = _quantile([each.high for each in found], upper=True)
    whole = all("int" in each.kind for each in found)
    if whole and low >= 0 and high <= _USUAL[1]:
        bits = next(bits for bits in _BITS if high < 2**bits)
        return (0.0, 2.0**bits - 1), f"auto: nearly all values need {bits} bits"
    if not whole and low >= 0 and high <= 1:
        return (0.0, 1.0), "auto: nearly all values lie between 0 and 1"
    if not whole and low >= 0 and high <= 255:
        return (0.0, 255.0), "auto: nearly all values lie between 0 and 255"
    if high <= low:
        return (low, low + 1), "auto: nearly all values are the same"
    return (low, high), (
        f"auto: nearly all values lie between these; give {option('data.range', fill='LOW HIGH')} where others matter"
    )


def _quantile(values: Sequence[float], *, upper: bool) -> float:
    """The last value but for one in fifty pictures, which may have broken pixels."""
    if len(values) < _TAIL:
        return max(values) if upper else min(values)
    cut = quantiles(values, n=_TAIL, method="inclusive")
    return cut[-1] if upper else cut[0]


def _warn_of_dark(measured: Mapping[str, Measured], *, count: int) -> tuple[Caution, ...]:
    """A warning of pictures of 8 bits that look black."""
    dark = sorted(name for name, found in measured.items() if found.kind == "uint8" and found.most <= DARK)
    if not dark:
        return ()
    most = max(measured[name].most for name in dark)
    text = f"{_count(dark, count)} no pixel brighter than {most:g} of 255, black to the model"
    advice = "look at them, and remove those that show nothing"
    if len(dark) >= _HALF * count:
        advice = "save them with their whole range; masks of class numbers are no pictures, give those instead"
    return (_warn(text, dark, advice),)


def _warn(text: str, names: Sequence[str], advice: str) -> Caution:
    shown = f"{text}, e.g. {some(names, limit=2)}"
    return Caution(text=shown, count=len(names), example=names[0], advice=advice)


def refuse_bands(measured: Mapping[str, Measured], *, channels: int, source: str) -> None:
    """Raises: DataError: pictures have more bands than the model takes, or others than it takes."""
    wrong = {
        name: found.bands
        for name, found in measured.items()
        if found.bands not in ((1, 3) if channels in (1, 3) else (channels,))
    }
    if wrong:
        name, bands = min(wrong.items())
        many = f"{len(wrong)} images have" if len(wrong) > 1 else "an image has"
        raise DataError(f"{source}: {many} other bands than the model takes: {name}: {explain_bands(bands, channels)}")


def _count(names: Collection[str], count: int) -> str:
    return f"{len(names)} of {count} images {'have' if len(names) != 1 else 'has'}"
