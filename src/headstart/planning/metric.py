"""The metric of the validation images by which an epoch is the best."""

from __future__ import annotations

from headstart.config.metric import METRICS, refuse_unknown
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.surgery.function_digest import digest_function
from headstart.tasks.kinds import name_metric
from headstart.tasks.metrics import LABELS
from headstart.tasks.own_metrics import require_direction

_KEPT = "the epoch that is best in it is kept"


def check_metric(draft: Draft) -> Draft:
    """The draft as it was, once the metric is known by name and direction: before any image is read.

    Raises: ConfigError: it is not.
    """
    asked, own = draft.config.metric, draft.own.metrics
    refuse_unknown(asked, own=own)
    if asked not in METRICS:
        require_direction(asked, own)
    return draft


def choose_metric(draft: Draft) -> Draft:
    """The draft with the decision on what the best epoch is chosen by, and the directions of metrics of the user's own.

    Raises: ConfigError: the metric that is asked for has no meaning for the task.
    """
    task, asked, own = draft.images.task, draft.config.metric, draft.own.metrics
    if own:
        draft = draft.record("own_metrics", {name: metric.better for name, metric in own.items()})
    if asked not in METRICS:
        better = require_direction(asked, own)
        code = {"metric": digest_function(own[asked].function), "better": better}
        draft = draft.record("began", draft.document["began"] | code)
        return draft.decide(Decision("metric", asked, f"your own, {better} is better; {_KEPT}"))
    why = f"auto: the task is {task.kind}" if asked == "auto" else "as asked"
    return draft.decide(Decision("metric", LABELS[name_metric(task, asked)], f"{why}; {_KEPT}"))
