"""What ``auto`` came to in a run, as lines for people below its config.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headstart.config.schema import Config


def describe_choices(config: Config, plan: Mapping[str, Any]) -> str:
    """Comments that name each option left to ``auto`` and what was taken; plan.json keeps the choices themselves."""
    lines = [f"#   {name}: {value}\n" for name, value in _list_choices(config, plan)]
    head = "# What auto came to; plan.json has the reasons, and headstart train --repeat takes the same again:\n"
    return head + "".join(lines) if lines else ""


def _list_choices(config: Config, plan: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    choices = plan["choices"]
    if config.model.name == "auto":
        yield "model.name", plan["model"]["spec"]
    if config.batch.size == "auto":
        yield "batch.size", plan["batch_size"]
    for name in ("precision", "memory_format", "attention"):
        if getattr(config, name) == "auto":
            yield name, choices["arithmetic"].get(name, "fused")
    evaluation = choices["evaluation"]
    if config.batch.evaluation == "auto":
        half = f", in {evaluation['precision']}" if evaluation.get("precision") else ""
        yield "batch.evaluation", f"{evaluation['size']}{half}"
    if config.compile == "auto":
        yield "compile", choices["compile"]["how"]
    if len(ends := choices["epochs"]) > 1:
        yield "epochs", f"{ends[0]}, extended to {' and '.join(map(str, ends[1:]))}"
    for phase in plan["phases"]:
        splits = " and ".join(phase["cached"]) or "nothing"
        yield f"cache in phase {phase['name']}", f"{splits}, {phase['views'] or 'new'} views"
