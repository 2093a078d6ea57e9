"""The warnings of a plan as a block: each with its count and example, then what to do; for terminals and notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from headstart.reports.cells import cell


def list_warnings(plan: Mapping[str, Any]) -> list[str]:
    """The block's lines; none where there is no warning. ``plan``: the content of plan.json."""
    found = _read(plan)
    lines = [line for text, advice in found for line in (f"- {text}", f"  -> {advice}")]
    return [_head(found), *lines] if found else []


def mark_up_warnings(plan: Mapping[str, Any]) -> str:
    """The block as HTML; "" where there is no warning. ``plan``: the content of plan.json."""
    found = [tuple(map(html.escape, pair)) for pair in _read(plan)]
    items = "".join(f"<li>{text}<br><i>What to do:</i> {advice}</li>" for text, advice in found)
    return f"<div><b>{_head(found)}</b><ul>{items}</ul></div>" if found else ""


def _read(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each warning, and what to do."""
    return [(cell(one["text"]), cell(one["advice"])) for one in plan.get("warnings") or []]


def _head(found: list[Any]) -> str:
    return f"{len(found)} warning{'s' * (len(found) != 1)}:"
