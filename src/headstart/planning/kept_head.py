"""The head of a run, a bundle or a module of one's own: kept where it answers what the images ask, else replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import nn

from headstart.config.schema import Head, LinearHead, MlpHead
from headstart.errors import ConfigError, name_some
from headstart.models.answers import find_answers
from headstart.planning.about import outputs_text
from headstart.planning.draft import Draft
from headstart.surgery.head import HeadSwap, find_head
from headstart.surgery.layout import find_layout
from headstart.surgery.module_copy import InPlace
from headstart.surgery.outputs import declare_scores
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec
from headstart.wording import option

KEPT, NEW = "kept", "new"


def find_kept_head(draft: Draft) -> tuple[tuple[Head, HeadSwap] | None, str]:
    """The head that stays, as options and as what it is, or None for a new one; and the reason.

    Raises: ConfigError: ``head.keep`` is true, and the head cannot stay.
    """
    asked, given = draft.config.head, draft.own_module
    if given is not None:
        bundle = find_answers(given.module if isinstance(given, InPlace) else given)
    else:
        bundle = draft.opened.bundle
    if asked.keep is False:
        return None, "" if bundle is None else "head.keep: false"
    if draft.recorded and draft.recorded.get("head") != KEPT and asked.keep == "auto":
        began_new = "head" not in draft.recorded or given is not None  # as all did before heads were kept
        if began_new:
            return None, "" if bundle is None else "the run began with a new one"
    if bundle is None:
        if given is None and asked.keep is True:
            raise ConfigError(
                f"head.keep: {draft.opened.spec} is no run of headstart, whose head is known to answer the same; "
                f"leave it out, or give a run as the model, e.g. {option('model', 'runs/photos')}"
            )
        if given is None:
            return None, ""
        if asked.keep == "auto" and draft.recorded.get("head") != KEPT:
            return None, ""
        bundle = _take_as_answers(draft)
    there = _read_head(cast("Mapping[str, Any]", bundle["head"]), asked)
    why = _find_obstacle(draft, bundle, there)
    if why and asked.keep is True:
        raise ConfigError(
            f"head.keep: the head of {draft.opened.spec} cannot be kept: {why}; leave it out, and the head is a new one"
        )
    if why:
        return None, why
    if given is not None and asked.scores != "auto":
        declare_scores(draft.module, asked.scores)
    _rescale(draft.module, there, _read_task(bundle), draft.images.task)
    paths, outputs = find_head(draft.module, at=there.at).paths, draft.images.task.num_outputs
    return (there, HeadSwap(path=paths[0], was=outputs, now=outputs, others=paths[1:])), "the same outputs"


def explain_new(draft: Draft, swap: HeadSwap) -> str:
    """Why the head of a module of the user's own was not kept, where it had as many outputs as are asked for."""
    is_unknown = draft.own_module is not None and draft.config.head.keep == "auto" and not draft.recorded
    if not is_unknown or swap.was != swap.now:
        return ""
    names = name_some(draft.images.task.names)
    return f"nothing says that its {swap.was} outputs mean {names}; if so: {option('head.keep', True)}"


def _take_as_answers(draft: Draft) -> Mapping[str, Any]:
    """A module's outputs, taken for what these images have, numbers in their own units.

    Raises: ConfigError: there are more or fewer, or they are not a layer's own.
    """
    task, at = draft.images.task, draft.config.head.at
    head = find_head(draft.module, at=at)
    if head.outputs != task.num_outputs:
        raise ConfigError(
            f"head.keep: {head.paths[0]} of {draft.opened.spec} gives {head.outputs or 'no'} outputs, and these images "
            f"ask for {outputs_text(task.num_outputs)} ({name_some(task.names)}); leave it out, and the head is a new "
            "one"
        )
    behind = find_layout(draft.module).head_activations
    if behind:
        raise ConfigError(
            f"head.keep: {behind[0]} of {draft.opened.spec} clips what the head gives; take it out, e.g. "
            f"model.set_submodule({behind[0]!r}, torch.nn.Identity()), or leave head.keep out"
        )
    ones = (1.0,) * task.num_outputs
    scaled = replace(task, mean=(0.0,) * task.num_outputs, std=ones) if find_kind(task.kind).gives_numbers else task
    return {"task": scaled.to_dict(), "head": {"at": at, "scores": draft.config.head.scores}}


def _read_head(facts: Mapping[str, Any], asked: Head) -> Head:
    """The options that the head was made by."""
    shared = {"at": facts.get("at", "auto"), "scores": facts.get("scores", "auto"), "keep": asked.keep}
    dropout = float(facts.get("dropout") or 0.0)
    if not facts.get("hidden"):
        return LinearHead(dropout=dropout, **shared)
    return MlpHead(
        hidden=tuple(facts["hidden"]), activation=facts.get("activation") or "relu", dropout=dropout, **shared
    )


def _read_task(bundle: Mapping[str, object]) -> TaskSpec:
    return TaskSpec.from_dict(cast("Mapping[str, Any]", bundle["task"]))


def _find_obstacle(draft: Draft, bundle: Mapping[str, object], there: Head) -> str:
    """Why the head that is there cannot answer what is asked; "" where it can."""
    was, now = _read_task(bundle), draft.images.task
    if was.kind != now.kind:
        return f"its task was {was.kind}, now it is {now.kind}"
    if was.names != now.names:
        return f"its outputs are {name_some(was.names)}; these images have {name_some(now.names)}"
    if was.log != now.log:
        return f"data.log was {str(was.log).lower()}, now it is {str(now.log).lower()}"
    asked = draft.config.head
    plain = asked == replace(LinearHead(), keep=asked.keep)  # nothing is asked of the head
    different = [
        field.name for field in fields(asked) if getattr(asked, field.name) != getattr(there, field.name, None)
    ]
    return "" if plain or not different else f"another one is asked for ({', '.join(different)})"


def _rescale(module: nn.Module, head: Head, was: TaskSpec, now: TaskSpec) -> None:
    """Have the outputs mean the same numbers although these images have another mean and deviation.

    A number is output * std + mean, and the last layer is linear: its rows take what differs.
    """
    if (was.mean, was.std) == (now.mean, now.std):
        return
    means, deviations = (
        torch.tensor([before, after]).double() for before, after in ((was.mean, now.mean), (was.std, now.std))
    )
    for path in find_head(module, at=head.at).paths:
        layers = [part for part in module.get_submodule(path).modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        last = layers[-1] if layers else None
        if last is None or last.bias is None:
            raise ConfigError(
                f"head.keep: {path} has no bias, which these numbers' mean would go into; leave it out, and the head "
                "is a new one"
            )
        with torch.no_grad():
            share = (deviations[0] / deviations[1]).to(last.weight.device)
            weight = last.weight.double() * share.view(-1, *[1] * (last.weight.ndim - 1))
            offset = (last.bias.double().cpu() * deviations[0] + means[0] - means[1]) / deviations[1]
            last.weight.copy_(weight)
            last.bias.copy_(offset)
