"""The facts that decide the bits of a result, compared before a run goes on: machine and versions (environment.json),
and the model with its weights and code (plan.json).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.errors import ConfigError
from headstart.machine import FOR_PEOPLE
from headstart.storage.durable import json_bytes, read_json
from headstart.wording import switch

_INEXACT = "inexact"
"""Key of what changed between the run's attempts: a list of {step, changed: {fact: [before, since]}}."""
_BEGAN = {
    "weights": "weights",
    "module": "the module's own code",
    "loss": "the loss's own code",
    "transform": "the transform's own code",
    "framing": "the code of the transform for validation",
    "metric": "the metric's own code",
    "better": "the metric's direction",
}
_UNUSUAL = {"switches": ""}  # headstart 0.1 did not record it
_NAMED = {("model", "weights"), ("model", "coverage")}
_CHOSEN = ("cached",)  # where activations are kept decides no bit
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about the machine and the versions, and about what is trained from what."""

    environment: Mapping[str, Any]
    plan: Mapping[str, Any]


def plan_facts(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a plan that must be as they were, by name; those of a section that the plan lacks are left out."""
    plan = json.loads(json_bytes(plan))  # as it is read again: lists for tuples
    weights = _section(_section(plan, "model"), "weights").get("sha256")
    facts = {"weights": weights} if weights and "began" not in plan else {}
    facts |= {_BEGAN.get(name, name): value for name, value in _section(plan, "began").items()}
    for section in ("model", "task", "preprocess", "head", "lora", "parallel"):
        values = _section(plan, section)
        facts |= {f"{section}.{name}": value for name, value in values.items() if (section, name) not in _NAMED}
    for number, phase in enumerate(plan.get("phases") or (), 1):
        facts |= {f"phase {number}: {name}": value for name, value in phase.items() if name not in _CHOSEN}
    return facts | {name: plan[name] for name in ("steps_per_epoch", "batch_size", "precision") if name in plan}


def _section(plan: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = plan.get(name)
    return section if isinstance(section, Mapping) else {}


def compare(
    path: Path, now: Facts, *, before_plan: Mapping[str, Any] | None, step: int | None, allow_inexact: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content for environment.json (``path``), and each fact that is not as it was where the run goes on, after
    ``step`` (None: it begins).

    Raises: ConfigError: there is one, and ``allow_inexact`` is not set.
    """
    if step is None or not path.exists():
        return dict(now.environment), ()
    before = read_json(path)
    earlier = before.pop(_INEXACT, [])
    planned, known = plan_facts(now.plan), plan_facts(before_plan or {})
    facts = {**now.environment, **{name: value for name, value in planned.items() if name in known}}
    before = _UNUSUAL | before | {name: value for name, value in known.items() if name in planned}
    for entry in reversed([entry for entry in earlier if entry["step"] >= step]):  # nothing is left of that attempt
        before |= {name: values[0] for name, values in entry["changed"].items()}
    earlier = [entry for entry in earlier if entry["step"] < step]
    changed = {
        name: [before.get(name), value]
        for name, value in facts.items()
        if name not in FOR_PEOPLE and before.get(name) != value
    }
    sentences = tuple(_change(name, was, value, now="is") for name, (was, value) in changed.items())
    if changed and not allow_inexact:
        where = path if changed.keys() & now.environment.keys() else path.with_name("plan.json")
        raise ConfigError(
            f"{where}: the resume would not be exact to the bit ({'; '.join(sentences)}); go back to what the run "
            f"had, or go on all the same with {switch('allow_inexact')}, and the report says so"
        )
    if changed:
        earlier.append({"step": step, "changed": changed})
    return {**now.environment, **({_INEXACT: earlier} if earlier else {})}, sentences


def was_inexact(facts: Mapping[str, Any]) -> bool:
    """Whether the run went on, at some time, after a change that can be seen in its bits."""
    return bool(facts.get(_INEXACT))


def inexact_text(facts: Mapping[str, Any]) -> str:
    """A sentence on the resumes that were not exact to the bit; "" where all were."""
    entries = facts.get(_INEXACT, [])
    parts = [
        f"after step {entry['step']:,} {_change(name, was, now, now='then')}"
        for entry in entries
        for name, (was, now) in entry["changed"].items()
    ]
    return f"Not exact to the bit: {'; '.join(parts)}." if parts else ""


def _change(name: str, was: object, value: object, *, now: str) -> str:
    """What a fact was, and what it is ``now``: a word between the two."""
    if any(_SHA256.fullmatch(str(each)) for each in (was, value)):
        name = f"the SHA-256 of {'the ' if not name.startswith('the ') else ''}{name}"
    return f"{name} was {_format_fact(was)}, {now} {_format_fact(value)}"


def format_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the last attempt, for a table."""
    return {name: value for name, value in facts.items() if name != _INEXACT}


def _format_fact(value: object) -> str:
    if value is None:
        return "not recorded"
    text = str(value) or "none"
    if _SHA256.fullmatch(text):
        return text[:12]
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
