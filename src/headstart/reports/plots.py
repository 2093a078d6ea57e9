"""Curves as inline SVG: matplotlib's Figure without pyplot, colours from the page's style sheet, equal bytes for equal
data.

No text of the user's enters a picture but phase names, and those only when they are plain ASCII.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

# Stand-ins that matplotlib writes and the page's CSS variables replace, so that a figure follows light and dark.
_COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "accent": "#040404",
    "second": "#050505",
    "paper": "#060606",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headstart",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _COLOURS["line"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": _COLOURS["ink"],
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "lines.linewidth": 1.6,
}
_MOST_POINTS = 400  # per line; longer ones are averaged in bins
_MOST_DOTS = 2000  # in a scatter plot
_MOST_LABELS = 8  # phases that get their name in a figure


@dataclass(frozen=True)
class Line:
    """One curve; ``colour`` is a name of the style sheet (ink, muted, accent, second)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "accent"
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """Where a phase starts on the x axis, and its name."""

    x: float
    name: str


def curves(
    lines: Sequence[Line],
    *,
    x_label: str,
    title: str,
    marks: Sequence[Mark] = (),
    log: bool = False,
    wide: bool = False,
) -> Markup:
    """Lines over epochs or steps, with the phases' starts marked; ``title`` is the text for who cannot see it.

    The caption beside the figure names the lines. ``log``: a logarithmic axis where the values span a factor of 30.
    """
    dotted = max(len(line.x) for line in lines) <= 30
    with _figure((10.4, 2.9) if wide else (5.1, 3.0)) as (figure, axes):
        for line in lines:
            x, y = _thin_line(line)
            style = "--" if line.dashed else "-"
            dot = "o" if dotted and not line.dashed else ""
            axes.plot(x, y, color=_COLOURS[line.colour], linestyle=style, marker=dot, markersize=3)
        positive = [y for line in lines for y in line.y if math.isfinite(y) and y > 0]
        if log and positive and max(positive) > 30 * min(positive):
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            _plain_numbers(axes, "y")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _mark(axes, marks)
        return _svg(figure, title)


def scatter(truths: Sequence[float], predictions: Sequence[float], *, title: str) -> Markup:
    """Truth against prediction with the line on which both are equal."""
    with _figure((5.1, 4.0)) as (figure, axes):
        x, y = _few(np.asarray(truths), np.asarray(predictions))
        finite = np.concatenate([x, y])
        finite = finite[np.isfinite(finite)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        axes.plot([low, high], [low, high], color=_COLOURS["muted"], linewidth=1, linestyle="--")
        axes.plot(x, y, "o", color=_COLOURS["accent"], markersize=3.5, alpha=0.55, markeredgewidth=0)
        axes.set_xlabel("truth")
        axes.set_ylabel("prediction")
        _plain_numbers(axes)
        return _svg(figure, title)


def residuals(truths: Sequence[float], predictions: Sequence[float], *, title: str) -> Markup:
    """How often each error (prediction minus truth) occurs."""
    errors = np.asarray(predictions) - np.asarray(truths)
    errors = errors[np.isfinite(errors)]
    bins = min(40, max(8, round(math.sqrt(len(errors)))))
    with _figure((5.1, 4.0)) as (figure, axes):
        axes.hist(errors, bins=bins, color=_COLOURS["accent"], edgecolor=_COLOURS["paper"], linewidth=1)
        axes.axvline(0, color=_COLOURS["muted"], linewidth=1, linestyle="--")
        axes.set_xlabel("prediction - truth")
        axes.set_ylabel("images")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        _plain_numbers(axes, "x")
        return _svg(figure, title)


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of that many inches, drawn in our style whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _mark(axes: Axes, marks: Sequence[Mark]) -> None:
    for place, mark in enumerate(marks):
        if place:
            axes.axvline(mark.x, color=_COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 3)))
        if 1 < len(marks) <= _MOST_LABELS:
            plain = mark.name.isascii() and mark.name.isprintable() and len(mark.name) <= 24
            axes.annotate(
                mark.name if plain else f"phase {place + 1}",
                (mark.x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3 * (place > 0), 3),
                textcoords="offset points",
                fontsize=8,
                color=_COLOURS["muted"],
            )


def _plain_numbers(axes: Axes, which: str = "xy") -> None:
    """Axis labels as 200,000 or 0.25, at most 6 of them."""
    for axis in [axes.xaxis] * ("x" in which) + [axes.yaxis] * ("y" in which):
        axis.set_major_locator(MaxNLocator(5))
        low, high = axis.get_view_interval()
        if max(abs(low), abs(high)) >= 1000:
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "\N{MINUS SIGN}"))


def _thin_line(line: Line) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The line, or the means of at most 400 bins of it."""
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    if len(x) <= _MOST_POINTS:
        return x, y
    bins = np.linspace(0, len(x), _MOST_POINTS + 1).astype(np.int64)
    sizes = np.diff(bins)
    return np.add.reduceat(x, bins[:-1]) / sizes, np.add.reduceat(y, bins[:-1]) / sizes


def _few(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(x) <= _MOST_DOTS:
        return x, y
    chosen = np.random.default_rng(0).choice(len(x), _MOST_DOTS, replace=False)
    return x[chosen], y[chosen]


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an <svg> element without metadata, ids of groups, fonts or colours of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    box = re.search(r'viewBox="([\d. ]+)"', text)
    assert box, text[:500]
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r">\s+<", "><", body)
    for name, colour in _COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    opening = f'<svg role="img" aria-label="{escape(title)}" viewBox="{box[1]}">'
    return Markup(f"{opening}{body.strip()}</svg>")


def phase_marks(events: Sequence[Mapping[str, object]], *, at: str, names: Sequence[str]) -> tuple[Mark, ...]:
    """Where each phase starts, from step or epoch events; ``at`` is their field for the x axis."""
    marks: list[Mark] = []
    previous: object = None
    for event in events:
        phase, place = event.get("phase"), event.get(at)
        if phase != previous and isinstance(phase, int) and isinstance(place, int):
            name = names[phase] if 0 <= phase < len(names) else f"phase {phase + 1}"
            marks.append(Mark(place - 0.5 if marks else place, name))
        previous = phase
    return tuple(marks)
