"""The head replaced by one for the task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headstart.config.schema import Head, MlpHead
from headstart.events import Decision
from headstart.models.sources import OpenedModel
from headstart.planning.about import details, outputs_text
from headstart.planning.draft import Draft
from headstart.planning.kept_head import KEPT, NEW, explain_new, find_kept_head
from headstart.planning.own_module import mark_changed
from headstart.surgery.freeze import find_frozen
from headstart.surgery.generators import seed_generators
from headstart.surgery.head import HeadSwap, head_parameters, replace_head
from headstart.surgery.module_copy import InPlace
from headstart.surgery.outputs import declare_scores
from headstart.surgery.whole_module import refuse_half
from headstart.wording import option


def choose_head(draft: Draft) -> Draft:
    """The draft with a new head, a function of the seed, or that of a run which is trained further; and with what of
    the rest was frozen before.

    Raises: ConfigError, ModelError: it is not clear what the head is.
    """
    seed_generators(draft.config.seed)
    fixed = find_frozen(draft.module)
    kept, why = find_kept_head(draft)
    draft = draft.choose("head", KEPT if kept else NEW)
    if kept is not None:
        draft, swap = replace(draft, config=replace(draft.config, head=kept[0])), kept[1]
    else:
        swap = _replace(draft.opened, draft.config.head, draft.images.task.num_outputs)
    refuse_half(draft.module)
    fixed = fixed.without(head_parameters(draft.module))
    if isinstance(draft.own_module, InPlace):
        mark_changed(draft.own_module.module)
    draft = draft.record("head", _head_document(draft.config.head, swap))
    about = _about_head(swap, draft.config.head)
    if kept is not None:
        value = f"{swap.path}: kept, {outputs_text(swap.now)}{details(draft.config.head)}"
        about = Decision("head", value, f"that of {draft.opened.spec}, {why}; a new one: {option('head.keep', False)}")
    elif why or (why := explain_new(draft, swap)):
        about = replace(about, reason=f"{about.reason}; that of {draft.opened.spec} is not kept: {why}")
    return replace(draft.decide(about), swap=swap, fixed=fixed)


def _replace(opened: OpenedModel, head: Head, outputs: int) -> HeadSwap:
    if head.scores != "auto":
        declare_scores(opened.module, head.scores)
    had_none = set(head_parameters(opened.module)) <= set(opened.coverage.missing) if head.at == "auto" else False
    mlp = head if isinstance(head, MlpHead) else MlpHead(hidden=())
    swap = replace_head(
        opened.module, outputs=outputs, hidden=mlp.hidden, activation=mlp.activation, dropout=head.dropout, at=head.at
    )
    return replace(swap, was=0) if had_none else swap


def _about_head(swap: HeadSwap, head: Head) -> Decision:
    also = "".join(f", also {path}" for path in swap.others) + "".join(
        f", without the activation {path}" for path in swap.removed
    )
    before = f"{swap.was:,} -> " if swap.was else "new, "
    value = f"{swap.path}: {before}{outputs_text(swap.now)}{details(head)}{also}"
    return Decision("head", value, "found in the traced graph")


def _head_document(head: Head, swap: HeadSwap) -> dict[str, Any]:
    mlp = head if isinstance(head, MlpHead) else None
    return {
        "kind": head.kind, "hidden": list(mlp.hidden) if mlp else [], "activation": mlp.activation if mlp else None,
        "dropout": head.dropout, "at": head.at, "path": swap.path, "was": swap.was, "now": swap.now,
        "others": list(swap.others), "removed": list(swap.removed),
    }  # fmt: skip
