"""A run that goes on beyond the epochs that it began with: further phases, and the earlier ones stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headstart.config.rules import freeze_text
from headstart.config.schema import Config
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.training.phases import PhasePlan


def list_ends(draft: Draft) -> tuple[int, ...]:
    """After how many epochs the run ends: as it began, and as it was extended each time, now included."""
    asked = sum(phase.epochs for phase in draft.config.phases) or draft.config.epochs
    recorded = tuple(draft.recorded.get("epochs", ()))
    return recorded if recorded and recorded[-1] >= asked else (*recorded, asked)


def extend_phases(
    phases: Sequence[PhasePlan], ends: Sequence[int], config: Config
) -> tuple[tuple[PhasePlan, ...], tuple[Decision, ...]]:
    """The phases with one more per extension, like the last, and the decision on them.

    Phases that were asked for by hand are there already, and are marked.
    """
    phases = tuple(replace(phase, extends=phase.first_epoch >= ends[0]) for phase in phases)
    if len(ends) == 1:
        return phases, ()
    last = phases[-1]
    if not config.phases:
        added = [(f"extension {number}" if number > 1 else "extension") for number in range(1, len(ends))]
        phases += tuple(
            replace(last, name=name, first_epoch=first, epochs=end - first, extends=True)
            for name, first, end in zip(added, ends[:-1], ends[1:], strict=True)
        )
    new = [phase for phase in phases if phase.extends]
    shown = ", ".join(f"{phase.name} {phase.epochs} epoch{'s' * (phase.epochs != 1)}" for phase in new)
    return phases, (Decision("extended", f"{' -> '.join(map(str, ends))} epochs ({shown})", _explain(new[-1], config)),)


def _explain(phase: PhasePlan, config: Config) -> str:
    """What the schedule does in a phase that was added."""
    rates = f"freeze {freeze_text(phase.freeze)}, the head's rate up to {phase.head_lr:.2g}"
    if config.schedule.kind == "constant":
        return f"{rates}, constant; earlier epochs stay as they are"
    return f"{rates} again: the schedule ({config.schedule.kind}) begins anew; earlier epochs stay as they are"
