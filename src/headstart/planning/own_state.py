"""What forward passes of a user's own module change besides its weights, and whether a run can keep it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from headstart.errors import ModelError
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.surgery.freeze import Frozen
from headstart.surgery.head import model_scores
from headstart.surgery.members import member_names, refuse_new_members
from headstart.surgery.module_state import differences, restore_state
from headstart.surgery.no_trace import read_before
from headstart.surgery.own_state import OwnState, covers, has_own_code, read_own_state, read_saved_tensors
from headstart.training.boundary_proof import example_images
from headstart.training.phases import TrainingPlan, freeze_phase
from headstart.training.precision import autocast, device_of
from headstart.wording import option

_MODES = (True, True, False, False)  # of the calls: what a first one sets and a second one changes shows


def check_own_state(draft: Draft) -> Draft:
    """The draft with the buffers that move in each phase although nothing around them trains, a decision on state that
    forward changes, and the names of what no checkpoint can hold.

    A module without code or hooks of the user's own is not run.

    Raises: ModelError: forward changes a buffer of a module that a phase freezes, or something cannot be saved.
    """
    module, training_plan, images = draft.module, draft.training_plan, draft.images
    read_saved_tensors(module)
    if not has_own_code(module):
        return draft
    given, found, phases = example_images(images.train, module, training_plan.rules), dict[str, None](), []
    for phase in training_plan.phases:
        frozen = freeze_phase(module, phase)
        names, state = _find_changes_by_forward(module, training_plan, given, outputs=images.task.num_outputs)
        for name in names:
            _refuse_frozen_in_eval(frozen, name)
        still = [name for name in map(_tensor_name, names) if name in frozen.tensors]
        phases.append(replace(phase, moving=frozenset(still)))
        found |= dict.fromkeys(names)
    persistent = {f"{kind} {name}" for name in module.state_dict() for kind in ("buffer", "parameter")}
    kept = [name for name in found if name not in persistent and covers(state, name)]
    lost = tuple(name for name in found if name not in persistent and not covers(state, name))
    decisions = []
    if kept:
        decisions.append(Decision("own state", ", ".join(kept), "changed by forward, saved with every checkpoint"))
    if lost:
        why = "changed by forward and not saved, not in the bundle: a resume and predictions begin with its first value"
        decisions.append(Decision("own state", ", ".join(lost), why))
    draft = draft.choose("unsaved_state", list(lost)) if lost else draft
    return replace(draft.decide(*decisions), training_plan=replace(training_plan, phases=tuple(phases)))


def _refuse_frozen_in_eval(frozen: Frozen, name: str) -> None:
    """Raises: ModelError: the buffer is of a module that is frozen in evaluation mode."""
    plain = _tensor_name(name)
    if name.startswith("buffer ") and plain in frozen.tensors and plain.rpartition(".")[0] in frozen.modules:
        raise ModelError(
            f"freeze {frozen.rule}: {plain} is frozen, but forward writes to it in evaluation mode, too; write to it "
            f"only if self.training, or train everything: {option('freeze', 'none')}"
        )


def _check_columns(scores: torch.Tensor, outputs: int, *, training: bool) -> None:
    """Raises: ModelError: the scores are not one row of so many numbers for each image."""
    if scores.ndim != 2 or scores.shape[1] != outputs:
        raise ModelError(
            f"model: in {'training' if training else 'evaluation'} mode its scores have the shape "
            f"{tuple(scores.shape[1:])} for an image, and the head gives ({outputs},); name the output that is the "
            f"head's with head.scores, e.g. {option('head.scores', '0')}"
        )


def _tensor_name(name: str) -> str:
    """The name of a buffer or parameter, without the kind that ``differences`` puts before it."""
    return name.removeprefix("buffer ").removeprefix("parameter ")


def _find_changes_by_forward(
    module: nn.Module, training_plan: TrainingPlan, images: torch.Tensor, *, outputs: int
) -> tuple[list[str], OwnState]:
    """Names of what is not as before after calls in both modes, without the generators of random numbers; and what a
    checkpoint would hold then, with what forward makes.

    Raises: DataError, ModelError: it is not clear which output is the scores, or they are not ``outputs`` columns.
    """
    modes = [part.training for part in module.modules()]
    members = member_names(module)
    before, arithmetic = read_before(module), partial(autocast, device_of(module), training_plan.rules.precision)
    try:
        for training in _MODES:
            module.train(training)
            with torch.set_grad_enabled(training), arithmetic():
                made = module(images.clone())
            _check_columns(model_scores(module, made)[0][1], outputs, training=training)
        refuse_new_members(module, members, batch=tuple(images.shape))
        for part, mode in zip(module.modules(), modes, strict=True):
            part.training = mode
        after, state = read_before(module), read_own_state(module)
    finally:
        restore_state(module, before)
    return [name for name in differences(before, after) if not name.endswith("random generator")], state
