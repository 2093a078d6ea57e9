"""What a run says while it goes on: every event that ``watch`` is called with, and that ``fit`` and the phases yield.

Events are values of plain numbers and texts. Match on their types::

    def show(event: hs.Event) -> None:
        match event:
            case hs.EpochDone():
                print(event.epoch, event.metrics)
            case hs.Note() | hs.DataNote() | hs.CacheNote():
                print(event.text)

    hs.train(config, watch=show)

In the order of a run: ``ScanProgress`` while images are read, ``Decided`` when the plan is made, a ``Note`` where a run
goes on; then for each phase ``PhaseStarted``, ``CacheProgress`` and ``CacheNote`` if something is cached, and a
``StepDone`` for each optimizer step with an ``EpochDone`` after the last one of each epoch. ``Saved``, ``DataNote`` and
``CacheGivenUp`` come between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Decision:
    """Something that the plan decides: what it is called, what was chosen, and why.

    ``name`` and ``value`` say what and which (``precision``, ``bf16``), ``reason`` is a sentence for the user.
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that will happen in a run.

    ``decisions`` are for people, each with its reason; ``document`` is the content of plan.json.
    """

    decisions: tuple[Decision, ...]
    document: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of plan.json."""
        return self.document


@dataclass(frozen=True)
class ScanProgress:
    """So many images were read and checked: ``done`` of ``total``."""

    done: int
    total: int


@dataclass(frozen=True)
class Decided:
    """The ``plan`` is made: the first step comes next, or the end of ``hs.plan``."""

    plan: Plan


@dataclass(frozen=True)
class Note:
    """A sentence on the run as a whole, ``text``: that it goes on from a checkpoint, or is finished already."""

    text: str


@dataclass(frozen=True)
class DataNote:
    """A sentence on the data, ``text``: a file has changed since it was first read."""

    text: str


@dataclass(frozen=True)
class CacheNote:
    """A sentence on a cache, ``text``: what it holds, or why it is not used."""

    text: str


@dataclass(frozen=True)
class CacheProgress:
    """So many images went through the frozen part of the model, to be kept: ``done`` of ``total``."""

    done: int
    total: int


@dataclass(frozen=True)
class CacheGivenUp:
    """The activation cache proved wrong, and nothing is read from it any more.

    The state is again what it was after ``step`` optimizer steps; later steps are done again. ``text`` says why.
    """

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """A phase begins, or goes on after a resume.

    ``name`` is the phase's and ``index`` its number, from 0; ``epochs`` is how many it has; ``trainable`` and
    ``frozen`` are numbers of parameters.
    """

    index: int
    name: str
    epochs: int
    trainable: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """An optimizer step was made.

    ``step`` and ``epoch`` count from 1 over the whole run, and an epoch has ``steps_in_epoch`` steps (0: not known).
    ``loss`` is the mean over the batch, without penalties, and ``weight`` the sum of the weights in that mean.
    ``grad_norm`` is the gradient's norm before clipping. ``lr`` is the highest learning rate of the body (0: it has no
    group) and ``head_lr`` that of the last group, the head. ``images`` is how many were in the batch, those of all
    processes, in ``micro_batches`` parts; ``seconds`` is how long the step took.
    """

    step: int
    epoch: int
    loss: float
    weight: float
    grad_norm: float
    lr: float
    head_lr: float
    images: int
    seconds: float = 0.0
    steps_in_epoch: int = 0
    micro_batches: int = 1


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch is over, and was validated where there is something to validate on.

    ``epoch``, ``step`` and ``phase`` say where the run is: epochs and steps done, and the phase's index from 0.
    ``train_loss`` is the mean over the weights of the epoch's samples, ``lr`` the highest rate of its last step.
    ``metrics`` are those of validation by name, ``average_metrics`` those of the averaged weights; both may be empty.
    Of the ``seconds`` that the epoch took, ``input_seconds`` are those in which the next batch was decoded, read or
    waited for, and ``copy_seconds`` those in which batches went to an accelerator, by the time of the epoch's largest
    one. ``images_per_second`` counts training images.
    """

    epoch: int
    step: int
    train_loss: float
    seconds: float
    images_per_second: float
    input_seconds: float = 0.0
    copy_seconds: float = 0.0
    phase: int = 0
    lr: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    average_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A checkpoint of the state after ``step`` optimizer steps is durable."""

    step: int


TrainingEvent = PhaseStarted | StepDone | EpochDone | CacheProgress | CacheNote | CacheGivenUp | DataNote
"""What training itself yields."""
Event = TrainingEvent | ScanProgress | Decided | Note | Saved
"""Any event of a run."""
Watch = Callable[[Event], None]
"""What is called with every event."""
