"""Parameter-efficient fine-tuning in the plan: adapters put in, and the decision on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headstart.config.peft import wants_lora
from headstart.config.schema import Config
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.surgery.lora import add_lora
from headstart.surgery.lora_targets import LoraPlan, SkippedLayer


def add_adapters(draft: Draft) -> Draft:
    """The draft with the adapters that the configuration asks for, put into its module.

    Raises: ConfigError: peft is not there, or no layer fits what was asked.
    """
    if not wants_lora(draft.config):
        return draft.record("lora", None)
    lora = draft.config.lora
    plan = add_lora(draft.module, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets)
    left_out = f"; {len(plan.skipped)} skipped: {_summary(plan.skipped)}" if plan.skipped else ""
    why = "auto: every layer that they fit" if lora.targets == "auto" else "as asked"
    decision = Decision("lora", f"rank {plan.rank} on {_format_layers(plan.layers)}{left_out}", why)
    return draft.decide(decision).record("lora", _lora_document(draft.config, plan))


def _lora_document(config: Config, plan: LoraPlan) -> dict[str, Any]:
    return {
        "rank": plan.rank, "alpha": config.lora.alpha, "dropout": config.lora.dropout, "layers": list(plan.layers),
        "skipped": [vars(layer) for layer in plan.skipped],
    }  # fmt: skip


def _format_layers(layers: Sequence[str]) -> str:
    names = ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "")
    return f"{len(layers)} layer{'s' * (len(layers) != 1)} ({names})"


def _summary(skipped: Sequence[SkippedLayer]) -> str:
    """Each reason with its first layer and how many more there are."""
    found: dict[str, list[str]] = {}
    for layer in skipped:
        found.setdefault(layer.reason, []).append(layer.path)
    each = (f"{paths[0]}{f' and {len(paths) - 1} more' * (len(paths) > 1)}: {why}" for why, paths in found.items())
    return "; ".join(each)
