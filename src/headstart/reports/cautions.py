"""The warnings of a plan as a block of lines for a terminal: each with its count and example, then what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstart.reports.cells import cell


def list_warnings(plan: Mapping[str, Any]) -> list[str]:
    """The block's lines; none where there is no warning. ``plan``: the content of plan.json."""
    found = plan.get("warnings") or []
    head = f"{len(found)} warning{'s' * (len(found) != 1)}:"
    lines = [line for one in found for line in (f"- {cell(one['text'])}", f"  -> {cell(one['advice'])}")]
    return [head, *lines] if found else []
