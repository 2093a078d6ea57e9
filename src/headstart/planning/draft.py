"""``Draft``: a run half planned, which every step of the planning takes and gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from headstart.config.schema import Config
from headstart.data.images import Images
from headstart.data.sources.source import Source
from headstart.data.transforms.own import OwnTransforms
from headstart.distributed.processes import current
from headstart.events import Decision, Watch
from headstart.models.sources import OpenedModel
from headstart.planning.need import MemoryNeed
from headstart.surgery.freeze import Fixed
from headstart.surgery.head import HeadSwap
from headstart.surgery.module_copy import InPlace
from headstart.tasks.losses import LossFunction
from headstart.tasks.own_metrics import OwnMetric
from headstart.training.phases import TrainingPlan
from headstart.training.rules import StepRules

Choices = Mapping[str, Any]
"""What was measured and chosen when a run began, by the name of the choice."""


class _Later:
    """Stands for what a later step decides."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is read before the step that decides it")


_LATER: Any = _Later()


@dataclass(frozen=True, kw_only=True)
class Own:
    """What of the user's own a run is given in Python beside a module and a loss.

    Attributes:
        ``data``: A source of images, or None.
        ``transforms``: Functions that change the pixels of training images, and of all others.
        ``metrics``: Functions of outputs and truth with their directions, by name.
    """

    data: Source | None = None
    transforms: OwnTransforms = field(default_factory=OwnTransforms)
    metrics: Mapping[str, OwnMetric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is asked for, and what is decided so far; each step of the planning gives a further one.

    Attributes:
        ``config``: What the user asks for.
        ``own_module``: A module of the user's own, or None.
        ``own_loss``: A loss function of the user's own, or None.
        ``own``: Images, a transform and metrics of the user's own.
        ``emit``: Called with what is found on the way.
        ``recorded``: The choices that were measured when the run began, which stay; empty for a new run.
        ``decisions``: Every decision so far, with its reason.
        ``choices``: What is measured and chosen now, for a resume or a repetition.
        ``document``: Sections of plan.json that a step leaves.
        ``device``: Where the run computes.
        ``opened``: The model; its module is worked on from step to step.
        ``images``: Every image, in splits and batches.
        ``loss``: The loss per image.
        ``swap``: What the head was, and is.
        ``fixed``: What of the module was frozen before.
        ``head_limit``: The largest rate of a head of numbers, by the size of its features; None: there is none.
        ``training_plan``: Phases, optimizer, and the rules of a step, as decided so far.
        ``sharded``: Each process holds a share of every layer, so that nothing can be tried.
        ``need``: The memory of a step, where it could be measured.
        ``need_in``: The precision and the attention that ``need`` was measured with.
        ``can_retain_memory``: There is memory for what is freed and kept, too.
    """

    config: Config
    own_module: nn.Module | InPlace | None = None
    own_loss: LossFunction | None = None
    own: Own = Own()
    emit: Watch
    recorded: Choices = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    choices: Choices = field(default_factory=dict)
    document: Choices = field(default_factory=dict)
    device: torch.device = _LATER
    opened: OpenedModel = _LATER
    images: Images = _LATER
    loss: LossFunction = _LATER
    swap: HeadSwap = _LATER
    fixed: Fixed = _LATER
    head_limit: float | None = None
    training_plan: TrainingPlan = _LATER
    sharded: bool = False
    need: MemoryNeed | None = None
    need_in: tuple[str, str] = ("", "")
    can_retain_memory: bool = True

    @property
    def module(self) -> nn.Module:
        """The model as it is by now."""
        return self.opened.module

    @property
    def rules(self) -> StepRules:
        """How a step is made, as decided so far."""
        return self.training_plan.rules

    @property
    def batch_size(self) -> int:
        """Images of an optimizer step: there may be fewer than asked for."""
        return min(self.images.train.batch_size, max(1, len(self.images.train.samples)))

    @property
    def images_at_once(self) -> int:
        """Images that go through the model at once in this process: those of a micro-batch."""
        return math.ceil(self._share / self.micro_batches)

    @property
    def micro_batches(self) -> int:
        """How many micro-batches a step really has: none is of a single image (see ``training/step.py``)."""
        return max(1, min(self.config.batch.accumulate, self._share // 2))

    @property
    def _share(self) -> int:
        """Images of a step in this process."""
        return math.ceil(self.batch_size / current().world_size)

    def decide(self, *decisions: Decision) -> Draft:
        """The draft with these further decisions."""
        return replace(self, decisions=(*self.decisions, *decisions))

    def choose(self, name: str, choice: object) -> Draft:
        """The draft with a choice that a resume, or a repetition, is to find."""
        return replace(self, choices={**self.choices, name: choice})

    def record(self, name: str, section: object) -> Draft:
        """The draft with a further section of plan.json."""
        return replace(self, document={**self.document, name: section})

    def set_rules(self, rules: StepRules) -> Draft:
        """The draft with these rules of a step."""
        return replace(self, training_plan=replace(self.training_plan, rules=rules))
