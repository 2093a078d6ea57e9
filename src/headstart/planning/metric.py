"""By which metric of the validation images an epoch is the best."""

from __future__ import annotations

from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.tasks.kinds import name_metric
from headstart.tasks.metrics import LABELS
from headstart.tasks.own_metrics import check_own


def choose_metric(draft: Draft) -> Draft:
    """The draft with the decision on what the best epoch is chosen by.

    Raises: ConfigError: the metric that is asked for has no meaning for the task.
    """
    check_own(draft.own.metrics, taken=LABELS)
    task, asked = draft.images.task, draft.config.metric
    key = name_metric(task, asked)
    why = f"auto: the task is {task.kind}" if asked == "auto" else "as asked"
    return draft.decide(Decision("metric", LABELS[key], f"{why}; the epoch that is best in it is kept"))
