"""What happens in a run: every event that ``watch`` is called with, and that ``fit`` and the phases yield.

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
``CacheGivenUp`` come between, ``Finished`` at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Decision:
    """Something that the plan decides: what it is called, what was chosen, and why.

    Attributes:
        ``name``: What is decided, such as precision.
        ``value``: What was chosen, such as bf16.
        ``reason``: A sentence on why.

    Example:
        >>> import headstart as hs
        >>> decision = hs.Decision("precision", "bf16", "this CPU has AVX512-BF16")
        >>> f"{decision.name}: {decision.value} ({decision.reason})"
        'precision: bf16 (this CPU has AVX512-BF16)'
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that will happen in a run, as ``hs.plan`` returns it.

    Attributes:
        ``decisions``: What was decided, each with its reason, for people.
        ``document``: The content of ``plan.json``, for programs.

    Example:
        >>> import headstart as hs
        >>> plan = hs.Plan(decisions=(hs.Decision("device", "cpu", "no accelerator"),), document={"device": "cpu"})
        >>> plan.decisions[0].value
        'cpu'
    """

    decisions: tuple[Decision, ...]
    document: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        """The decisions, one per line."""
        return "\n".join(f"{decision.name}: {decision.value}  ({decision.reason})" for decision in self.decisions)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return self.document


@dataclass(frozen=True)
class ScanProgress:
    """The event while images are read and checked, before the plan is made.

    Attributes:
        ``done``: How many images have been read.
        ``total``: How many there are.

    Example:
        >>> import headstart as hs
        >>> seen = hs.ScanProgress(50, 200)
        >>> f"{seen.done / seen.total:.0%}"
        '25%'
    """

    done: int
    total: int


@dataclass(frozen=True)
class Decided:
    """The event when the plan is made: the first step comes next, or the end of ``hs.plan``.

    Attributes:
        ``plan``: The plan.

    Example:
        >>> import headstart as hs
        >>> event = hs.Decided(hs.Plan(decisions=(), document={}))
        >>> event.plan.decisions
        ()
    """

    plan: Plan


@dataclass(frozen=True)
class Note:
    """A sentence on the run as a whole: that it goes on from a checkpoint, or is finished already.

    Attributes:
        ``text``: The sentence.

    Example:
        >>> import headstart as hs
        >>> hs.Note("goes on from step 12").text
        'goes on from step 12'
    """

    text: str


@dataclass(frozen=True)
class DataNote:
    """A sentence on the data: a file has changed since it was first read.

    Attributes:
        ``text``: The sentence.

    Example:
        >>> import headstart as hs
        >>> hs.DataNote("data: photos/cat/01.png: the file has changed").text
        'data: photos/cat/01.png: the file has changed'
    """

    text: str


@dataclass(frozen=True)
class CacheNote:
    """A sentence on a cache: what it holds, or why it is not used.

    Attributes:
        ``text``: The sentence.

    Example:
        >>> import headstart as hs
        >>> hs.CacheNote("cache: 200 images in 12 MB").text
        'cache: 200 images in 12 MB'
    """

    text: str


@dataclass(frozen=True)
class CacheProgress:
    """The event while images go through the frozen part of the model, whose outputs are kept.

    Attributes:
        ``done``: How many images have gone through.
        ``total``: How many there are.

    Example:
        >>> import headstart as hs
        >>> seen = hs.CacheProgress(done=50, total=200)
        >>> seen.total - seen.done
        150
    """

    done: int
    total: int


@dataclass(frozen=True)
class CacheGivenUp:
    """The event when the activation cache has proved wrong, and nothing is read from it any more.

    The state is again what it was after ``step`` optimizer steps; later steps are done again.

    Attributes:
        ``step``: How many optimizer steps stand.
        ``text``: Why it was given up.

    Example:
        >>> import headstart as hs
        >>> event = hs.CacheGivenUp(step=0, text="the kept tensors differ")
        >>> event.step
        0
    """

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """The event when a phase begins, or goes on after a resume.

    Attributes:
        ``index``: The phase's number, counted from 0.
        ``name``: The phase's name.
        ``epochs``: How many epochs it has.
        ``trainable``: How many parameters train.
        ``frozen``: How many parameters are frozen.

    Example:
        >>> import headstart as hs
        >>> phase = hs.PhaseStarted(index=0, name="head", epochs=2, trainable=34, frozen=5600)
        >>> f"{phase.name}: {phase.trainable} of {phase.trainable + phase.frozen} parameters"
        'head: 34 of 5634 parameters'
    """

    index: int
    name: str
    epochs: int
    trainable: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """The event after an optimizer step: its loss, its gradient and its rates.

    Attributes:
        ``step``: How many optimizer steps have been made in all, this one included.
        ``epoch``: The epoch's number, counted from 1.
        ``loss``: The mean loss over the batch, without penalties.
        ``weight``: The sum of the weights in that mean.
        ``grad_norm``: The norm of the gradient before it was clipped.
        ``lr``: The highest learning rate of the body; 0 where the body has no group.
        ``head_lr``: The rate of the last group, the head.
        ``images``: How many images were in the batch, those of all processes.
        ``seconds``: How long the step took.
        ``steps_in_epoch``: How many steps the epoch has; 0 where that is not known.
        ``micro_batches``: How many parts the batch was cut into.

    Example:
        >>> import headstart as hs
        >>> done = hs.StepDone(step=3, epoch=1, loss=0.5, weight=8.0, grad_norm=1.2, lr=1e-4, head_lr=1e-3, images=8)
        >>> done.loss * done.weight
        4.0
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
    """The event after an epoch, counted from 1: what training and validation measured.

    Attributes:
        ``epoch``: The epoch's number, counted from 1.
        ``step``: How many optimizer steps have been made in all.
        ``train_loss``: The mean training loss over the weights of the epoch's samples.
        ``seconds``: How long the epoch took.
        ``images_per_second``: How many training images were gone through per second.
        ``input_seconds``: The part of ``seconds`` in which the next batch was decoded, read or waited for.
        ``copy_seconds``: The part of ``seconds`` in which batches went to an accelerator, by the time of the epoch's
            largest batch.
        ``phase``: The index of the phase, counted from 0.
        ``lr``: The highest rate of the epoch's last step.
        ``metrics``: What validation measured, by name; empty where there was no validation.
        ``average_metrics``: The same of the averaged weights, where there are some.

    Example:
        >>> import headstart as hs
        >>> done = hs.EpochDone(epoch=1, step=12, train_loss=0.7, seconds=2.0, images_per_second=48.0)
        >>> f"epoch {done.epoch}: loss {done.train_loss}"
        'epoch 1: loss 0.7'
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
    """The event when a checkpoint is durable on the disk.

    Attributes:
        ``step``: How many optimizer steps the saved state has made.

    Example:
        >>> import headstart as hs
        >>> hs.Saved(step=12).step
        12
    """

    step: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a run: its model, predictions and report are written.

    Attributes:
        ``path``: The run's folder, which holds ``report.html``.
        ``step``: How many optimizer steps have been made in all.
        ``metrics``: The metrics of the validation images by the weights that were kept.
        ``test_metrics``: The same of the test images; empty where there are none.
        ``headline``: The main metric in a line, with interval and baseline.

    Example:
        >>> import headstart as hs
        >>> from pathlib import Path
        >>> done = hs.Finished(path=Path("runs/photos"), step=24, metrics={"accuracy": 0.9})
        >>> (done.path / "report.html").as_posix()
        'runs/photos/report.html'
    """

    path: Path
    step: int
    metrics: dict[str, float]
    test_metrics: dict[str, float] = field(default_factory=dict)
    headline: str = ""


TrainingEvent = PhaseStarted | StepDone | EpochDone | CacheProgress | CacheNote | CacheGivenUp | DataNote
"""What training itself yields."""
Event = TrainingEvent | ScanProgress | Decided | Note | Saved | Finished
"""Any event of a run."""
Watch = Callable[[Event], None]
"""What is called with every event."""
