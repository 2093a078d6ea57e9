"""Which stored values become black and white: of pictures of more than 8 bits, as asked, or by what the scan found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import quantiles

from headstart.data.decoding.decode import DARK
from headstart.data.decoding.raster import Levels, Measured, explain_bands
from headstart.data.sources.samples import some
from headstart.errors import DataError
from headstart.wording import option

_BITS = (8, 10, 12, 14, 16)
_USUAL: Levels = (0.0, 65535.0)
_TAIL = 50  # pictures: of so many, one may be brighter than all others without setting the range
_HALF = 0.5  # of all pictures: what is told of them is told as of the set


def choose_levels(
    measured: Mapping[str, Measured], *, count: int, asked: Levels | None
) -> tuple[Levels | None, tuple[str, ...]]:
    """The range of stored values, None where it is that of all bits, and sentences on how it came about.

    ``measured``: by name, the pictures of ``count`` that have more than 8 bits, or are dark.
    """
    deep = {name: found for name, found in measured.items() if found.kind != "uint8"}
    if not deep:
        return None, _tell_dark(measured, count=count, unused=asked not in (None, _USUAL))
    how = f"{_count(deep, count)} more than 8 bits ({', '.join(sorted({found.kind for found in deep.values()}))})"
    if asked is not None:
        levels, why = asked, "as given"
    else:
        levels, why = _find_levels(tuple(deep.values()))
    notes = [f"data.range: {how}: {levels[0]:g} becomes black and {levels[1]:g} white; {why}"]
    clipped = [name for name, found in deep.items() if found.low < levels[0] or found.high > levels[1]]
    if clipped:
        notes.append(
            f"{_count(clipped, count)} values beyond that range, which are cut off: {some(sorted(clipped), limit=2)}"
        )
    dark = [name for name, found in deep.items() if found.high - levels[0] <= (levels[1] - levels[0]) * DARK / 255]
    if len(dark) >= _HALF * len(deep):
        most = max(deep[name].high for name in dark)
        notes.append(
            f"{_count(dark, count)} nearly all values below an eighth of that range, and look black to the model; a "
            f"narrower one: {option('data.range', levels[0], most)}"
        )
    usual = levels == _USUAL and all(found.kind == "uint16" for found in deep.values())
    return None if usual else levels, (*notes, *_tell_dark(measured, count=count, unused=False))


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


def _tell_dark(measured: Mapping[str, Measured], *, count: int, unused: bool) -> tuple[str, ...]:
    """Sentences on pictures of 8 bits that look black, and on an option that no picture has a use for."""
    dark = {name: found for name, found in measured.items() if found.kind == "uint8" and found.most <= DARK}
    notes = ["data.range is not used: all images have 8 bits"] if unused else []
    if len(dark) >= _HALF * count:
        most = max(found.most for found in dark.values())
        notes.append(
            f"{_count(dark, count)} no pixel brighter than {most:g} of 255, and look black to the model, e.g. "
            f"{some(sorted(dark), limit=2)}; save them with their whole range, or are these masks?"
        )
    return tuple(notes)


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
