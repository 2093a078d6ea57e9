"""What goes to stdout: plain tables, JSON and CSV that no class name or file name can break."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.reports.cells import cell
from headstart.reports.csv import csv_text


def write(text: str) -> None:
    """Write a text and a line end to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """Rows as aligned columns, numbers to the right."""
    cells = [[cell(value) for value in row] for row in ([header] if header else [])]
    body = [list(row) for row in rows]
    cells += [[cell(value) for value in row] for row in body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [bool(body) and all(isinstance(row[i], int | float | None) for row in body) for i in range(len(widths))]
    lines = (
        "  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in zip(row, widths, right, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def wrap_lines(lines: Iterable[str], *, width: int = 100) -> str:
    """Lines of words at most ``width`` columns wide; what goes on is indented."""
    broken = (
        textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )
    return "\n".join(line for parts in broken for line in parts)


def to_json(value: object) -> str:
    """One line of strict JSON; what is not finite becomes null."""
    return json.dumps(_finite(value), allow_nan=False, default=str)


def to_csv(rows: Iterable[Sequence[object]], *, header: Sequence[str]) -> str:
    """CSV whose text cells no spreadsheet runs as formulas: a leading = + - @ is quoted with '."""
    return csv_text(rows, header=header).removesuffix("\n")


def result(run: Any, *, as_json: bool) -> str:
    """What ``train`` and ``evaluate`` print: the metrics, and which images and weights they are of."""
    if as_json:
        facts = {"run": str(run.path), "task": run.task, "seconds": run.seconds, "metrics": dict(run.metrics)}
        test = {"test_metrics": dict(run.test_metrics)} if run.test_metrics else {}
        remarks = {"headline": run.headline, "remarks": list(run.remarks)} if run.headline else {}
        return to_json(facts | test | {"note": run.note} | remarks)
    rows: list[Sequence[object]] = [(name, value) for name, value in run.metrics.items()]
    if run.test_metrics:
        rows = [(name, run.test_metrics.get(name), value) for name, value in run.metrics.items()]
    header = ("", "test", "validation") if run.test_metrics else ()
    told = "\n".join(cell(text) for text in (run.headline, *run.remarks) if text)
    return "\n\n".join(text for text in (told, table(rows, header=header), cell(run.note)) if text)


def list_paths(run: Path) -> str:
    """The places of a run and its report, as a table."""
    report = run / "report.html"
    return table([("run", run), *([("report", report)] if report.is_file() else [])])


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
