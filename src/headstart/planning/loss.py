"""Which loss is trained with."""

from __future__ import annotations

from dataclasses import replace

from headstart.events import Decision
from headstart.planning.about import details
from headstart.planning.draft import Draft
from headstart.tasks.losses import make_loss, resolve_loss


def choose_loss(draft: Draft) -> Draft:
    """The draft with the loss: the user's own function, the one asked for, or the task's.

    Raises: ConfigError: it does not go with the task.
    """
    own, config, images = draft.own_loss, draft.config, draft.images
    if own is not None:
        decision = Decision("loss", getattr(own, "__name__", "a function"), "as given in Python")
        return replace(draft.decide(decision), loss=own)
    resolved = resolve_loss(config.loss, task=images.task.kind)
    function = make_loss(resolved, classes=images.classes, counts=images.train.class_counts(), task=images.task.kind)
    why = f"auto: the task is {images.task.kind}" if config.loss.kind == "auto" else "as asked"
    return replace(draft.decide(Decision("loss", resolved.kind + details(resolved), why)), loss=function)
