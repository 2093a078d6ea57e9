"""One value, a time, a run's metrics, as people read them: in terminals, notebooks and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping


def cell(value: object) -> str:
    """One value: numbers as people write them (224,900; 0.9731; 2.5e-5), control characters made visible."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return _write_number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(value)
    )


def _write_number(value: float) -> str:
    size = abs(value)
    if not math.isfinite(value) or size >= 1e15:
        return f"{value:.4g}"
    if size >= 1e3:
        return f"{value:,.0f}" if size >= 1e4 else f"{value:,.1f}"
    if 0 < size < 1e-3:
        return re.sub(r"e([-+])0*", lambda match: f"e{match[1].replace('+', '')}", f"{value:.4g}")
    return f"{value:.4f}"


def select_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics but for what does not change from epoch to epoch, and what is each target's own."""
    return {name: value for name, value in metrics.items() if not name.startswith("baseline") and ":" not in name}


def format_ms(seconds: float) -> str:
    """Seconds as milliseconds with three digits: 7.25 ms, 140 ms, 25,300 ms."""
    digits = 1000 * seconds
    return f"{float(f'{digits:.3g}'):,.0f} ms" if digits >= 100 else f"{digits:.3g} ms"


def duration(seconds: float) -> str:
    """Seconds as 140 ms, 5 s, 3 min 20 s or 2 h 05 min."""
    if 0 < seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
