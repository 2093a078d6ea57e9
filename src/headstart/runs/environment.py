"""environment.json: the facts that decide the bits of a result, compared before a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.errors import ConfigError
from headstart.storage import read_json
from headstart.train.machine import FOR_PEOPLE

_INEXACT = "inexact"
"""Key of what changed between the run's lives: a list of {step, changed: {fact: [before, since]}}."""


def compare(
    path: Path, now: Mapping[str, Any], *, step: int | None, allow_inexact: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What environment.json will say, and each fact that is not as it was where the run goes on, after ``step`` (None:
    it begins).

    Raises: ConfigError: there is one, and ``allow_inexact`` is not set.
    """
    if step is None or not path.exists():
        return dict(now), ()
    before = read_json(path)
    earlier = before.pop(_INEXACT, [])
    for entry in reversed([entry for entry in earlier if entry["step"] >= step]):  # nothing is left of that life
        before |= {name: values[0] for name, values in entry["changed"].items()}
    earlier = [entry for entry in earlier if entry["step"] < step]
    changed = {
        name: [before.get(name), value]
        for name, value in now.items()
        if name not in FOR_PEOPLE and before.get(name) != value
    }
    said = tuple(f"{name} was {_shown(was)}, is {_shown(value)}" for name, (was, value) in changed.items())
    if changed and not allow_inexact:
        raise ConfigError(
            f"{path}: the resume would not be exact to the bit ({'; '.join(said)}); go back to what the run had, or go "
            "on all the same with --allow-inexact (in Python allow_inexact=True), and the report says so"
        )
    if changed:
        earlier.append({"step": step, "changed": changed})
    return {**now, **({_INEXACT: earlier} if earlier else {})}, said


def inexact_text(facts: Mapping[str, Any]) -> str:
    """A sentence on the resumes that were not exact to the bit; "" where all were."""
    entries = facts.get(_INEXACT, [])
    parts = [
        f"after step {entry['step']:,} {name} was {_shown(was)}, then {_shown(now)}"
        for entry in entries
        for name, (was, now) in entry["changed"].items()
    ]
    return f"Not exact to the bit: {'; '.join(parts)}." if parts else ""


def shown_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the last life, for a table."""
    return {name: value for name, value in facts.items() if name != _INEXACT}


def _shown(value: object) -> str:
    return "not recorded" if value is None else str(value) or "none"
