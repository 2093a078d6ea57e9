"""``train``: prepare, go through the phases, save, finish; ``repeat`` again; ``plan`` and ``finish``, parts of it.

Each line is a public function that you can call yourself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from headstart.allocator import keep_freed_memory, keep_no_memory, release_memory, return_freed_memory
from headstart.config.home import expand_home
from headstart.config.load import check
from headstart.config.schema import Config
from headstart.data.sources.source import Source
from headstart.data.transforms.own import GivenTransform, read_transforms
from headstart.data.workers import explain_deaths
from headstart.distributed.collectives import broadcast_object, collective_errors
from headstart.distributed.process_group import check_devices, join_group, was_restarted
from headstart.distributed.processes import current
from headstart.events import Finished, Note, Plan, TrainingEvent, Watch
from headstart.isolation import only_run, own_arithmetic, own_turn
from headstart.planning.disk_space import refuse_small_disk
from headstart.planning.draft import Choices, Own
from headstart.planning.preflight import Prepared, prepare
from headstart.reports.progress import open_watch
from headstart.reports.run_record import read_record
from headstart.runs.finish import complete_run, read_finished_run
from headstart.runs.folder import (
    check_free,
    check_stopped,
    compare_start,
    default_out,
    describe_move,
    is_finished,
    read_choices,
    read_config,
    record_start,
)
from headstart.runs.log import RunLog
from headstart.runs.repeat import check_repeat, refuse_other_options, repeat_config
from headstart.runs.resume import begin
from headstart.runs.run import Run
from headstart.runs.saving import Saver, interruptible
from headstart.storage.durable import lock_folder
from headstart.surgery.generators import keep_generators
from headstart.surgery.module_copy import InPlace
from headstart.tasks.losses import LossFunction
from headstart.tasks.own_metrics import GivenMetrics, read_own
from headstart.trackers.installed import refuse_missing_trackers
from headstart.trackers.tracking import log_to_trackers
from headstart.training.phases import train_phases
from headstart.training.precision import keep_kernels, usable_device
from headstart.training.state import TrainState
from headstart.wording import option


def train(
    config: Config,
    *,
    model: nn.Module | InPlace | None = None,
    loss: LossFunction | None = None,
    data: Source | None = None,
    transform: GivenTransform | None = None,
    metrics: GivenMetrics | None = None,
    resume: bool = False,
    allow_inexact: bool = False,
    watch: Watch | Literal["progress"] | None = "progress",
) -> Run:
    """Fine-tune as ``config`` says, and leave a run folder with the model, its records and a report.

    Where there are several processes (torchrun, SLURM), each calls this, and the first one writes and tells. The global
    generators of torch, Python and NumPy are afterwards as they were before.

    Args:
        ``config``: Everything that the run is told, as ``hs.load_config`` gives it.
        ``model``: Your own module instead of ``config.model.name``. A copy of it is trained, and it stays as it is,
            with what its hooks and closures keep (globals that its code changes are one for both).
            ``hs.InPlace(module)`` trains the module itself, which takes less memory and can be done once.
        ``loss``: Your own function (outputs, targets) that returns one loss per sample (B,), or (losses, weights). None
            takes ``config.loss``.
        ``data``: Your own images instead of ``config.data.source``: ``hs.label_images(images, labels)``, or an object
            with ``name``, ``records``, ``read`` and ``where`` as ``hs.Source`` describes it. A resume needs it again.
        ``transform``: Your own change of each training image after headstart's: a function of pixels, uint8 (C, H, W),
            that returns as many. What it draws from torch, NumPy or ``random`` is a function of seed, image and epoch.
            ``{"train": f, "val": g}``: ``g`` changes the images of validation and test, and ``hs.evaluate`` and
            ``hs.predict`` need it again.
        ``metrics``: Your own metrics beside the task's, ``{"top_2": f}``: functions (outputs, truth) of one number, of
            probabilities (N, K) and labels (N,), or of tags or numbers (N, K) both. ``{"top_2": (f, "higher")}`` says
            which way is better; then ``config.metric`` may be "top_2", and the epoch that is best in it is kept.
        ``resume``: Go on from the last good checkpoint in the run folder; the result is the same to the bit as without
            the interruption.
        ``allow_inexact``: Resume even where something that decides the bits (versions, threads, device, ...) has
            changed.
        ``watch``: A function that is called with every event of the run, such as ``hs.StepDone`` and ``hs.EpochDone``.
            Left out, decisions and a line per epoch go to stderr, in a notebook a table below the cell; None is silent.

    Returns:
        The finished run: its ``path``, ``task``, ``seconds``, ``metrics`` of validation, ``test_metrics`` or None, the
        ``model`` in evaluation mode, and a ``note`` on the epoch and weights that were kept.

    Raises:
        ConfigError, ModelError, DataError: An option, the model or the data are wrong; nothing has been written.
        StorageError: There is too little space on the disk, or a file is damaged.
        RunError: The run failed after it had started; resume it once the cause is mended.

    Example:
        >>> import headstart as hs
        >>> run = hs.train(hs.load_config({
        ...     "data": {"source": "photos"},
        ...     "model": {"name": "timm/resnet18", "weights": "none", "options": {"channels": [8, 8, 16, 16]},
        ...               "image_size": 32},
        ...     "epochs": 1, "device": "cpu", "out": "runs/first",
        ... }))
        >>> sorted(run.metrics)
        ['accuracy', 'macro_f1', 'nll']
    """
    own = Own(data=data, transforms=read_transforms(transform), metrics=read_own(metrics))
    return _train(
        _Asked(config=config, model=model, loss=loss, own=own, allow_inexact=allow_inexact, watch=watch, resume=resume)
    )


def repeat(
    run: str | Path,
    *,
    config: Config | None = None,
    model: nn.Module | InPlace | None = None,
    loss: LossFunction | None = None,
    data: Source | None = None,
    transform: GivenTransform | None = None,
    metrics: GivenMetrics | None = None,
    allow_inexact: bool = False,
    watch: Watch | Literal["progress"] | None = "progress",
) -> Run:
    """Train once more what was trained in the folder ``run``, into another folder, with the same bits.

    What ``auto`` came to by measuring is taken from the run, so that no other load of the machine changes it. The same
    bits need the same kind of machine, versions, number of threads and processes, data and weights; what differs is
    refused by name.

    Args:
        ``run``: The folder of a run.
        ``config``: Its options with another ``out``, or other places of the data; None takes them as they are, and
            writes to ``RUN-repeat``.
        ``model``: The module that the run was given, if it was given one.
        ``loss``: The loss that the run was given, if it was given one.
        ``data``: The images that the run was given, if it was given some.
        ``transform``: The transform or transforms that the run was given, if it was given any.
        ``metrics``: Metrics of your own, as for ``hs.train``.
        ``allow_inexact``: Train even where something that decides the bits (versions, threads, device, ...) differs.
        ``watch``: A function that is called with every event of the run; left out, progress is shown, and None is
            silent.

    Returns:
        The finished run, as ``hs.train`` gives it.

    Raises:
        ConfigError, ModelError, DataError: There is no such run, or something is not as it was; nothing has been
            written.

    Example:
        >>> import headstart as hs
        >>> first = hs.train(hs.load_config({
        ...     "data": {"source": "photos"},
        ...     "model": {"name": "timm/resnet18", "weights": "none", "options": {"channels": [8, 8, 16, 16]},
        ...               "image_size": 32},
        ...     "epochs": 1, "device": "cpu", "out": "runs/once",
        ... }))
        >>> hs.repeat("runs/once").metrics == first.metrics
        True
    """
    repeated = expand_home(run)
    asked = _Asked(
        config=config or repeat_config(repeated), model=model, loss=loss,
        own=Own(data=data, transforms=read_transforms(transform), metrics=read_own(metrics)),
        allow_inexact=allow_inexact, watch=watch, repeated=repeated,
    )  # fmt: skip
    refuse_other_options(repeated, asked.config)
    return _train(asked)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a run is told, as ``train`` and ``repeat`` are; ``repeated``: the run that is made again."""

    config: Config
    model: nn.Module | InPlace | None
    loss: LossFunction | None
    own: Own
    allow_inexact: bool
    watch: Watch | Literal["progress"] | None
    resume: bool = False
    repeated: Path | None = None


def _train(asked: _Asked) -> Run:
    config = check(asked.config)
    refuse_missing_trackers(config)
    run, resume = default_out(config), asked.resume or was_restarted()
    joined = join_group(usable_device(config.device), timeout_seconds=config.parallel.timeout_seconds)
    with _isolate_call("hs.train"), joined as ours, open_watch(asked.watch if ours.is_first else None) as emit:
        if _is_finished(run, config, resume=resume):
            emit(_note_finished(run))
            return read_finished_run(run, model=asked.model)
        started = time.monotonic()
        with collective_errors():
            recorded = broadcast_object(_read_recorded(run, asked, resume=resume) if ours.is_first else None)
            with own_turn():  # what it draws, no step of another thread draws
                prepared = prepare(
                    config, module=asked.model, loss=asked.loss, own=asked.own, emit=emit, recorded=recorded
                )
            if ours.is_first:
                _check_repeat(prepared, asked, emit)
                refuse_small_disk(run, prepared)
        release_memory()  # the trial steps'
        if not prepared.can_retain_memory:
            keep_no_memory()
        with lock_folder(run) if ours.is_first else nullcontext():
            if _is_finished(run, config, resume=resume):  # again: another process may have had it until now
                return read_finished_run(run, model=asked.model)
            changed = _record_start(run, prepared, emit, allow_inexact=asked.allow_inexact)
            return _train_to_report(run, prepared, changed, emit=emit, started=started)


def _note_finished(run: Path) -> Note:
    further, anew = f"more {option('epochs')}", f"another {option('out')}"
    return Note(f"{run} is finished already; go on with {further}, or begin anew with {anew}")


def _note_complete(run: Path) -> Note:
    from headstart.reports.report import find_prediction  # imports matplotlib, 0.5 s

    record = read_record(run)
    best = (record.result or {}).get("epoch", "-")
    line = find_prediction(record)
    return Note(f"{run} is complete, its best epoch is {best}: nothing is left to finish; to predict: {line}")


def _read_recorded(run: Path, asked: _Asked, *, resume: bool) -> Choices | None:
    """The choices that were measured when this run began, or the one that is made again."""
    found = read_choices(run) if resume else None
    return read_choices(asked.repeated) if found is None and asked.repeated is not None else found


def _check_repeat(prepared: Prepared, asked: _Asked, emit: Watch) -> None:
    """Check a repetition against the run that is made again, and emit what is not exact.

    Raises: ConfigError: the data, or what decides the bits, are not those of that run.
    """
    if asked.repeated is None:
        return
    for text in check_repeat(
        asked.repeated, prepared.document, prepared.device, config=prepared.config, allow_inexact=asked.allow_inexact
    ):
        emit(Note(f"not exactly {asked.repeated} again: {text}"))


def _train_to_report(run: Path, prepared: Prepared, changed: tuple[str, ...], *, emit: Watch, started: float) -> Run:
    """Train from the first step, or the last good checkpoint, and finish with the report."""
    with explain_deaths(), interruptible() as interrupted:
        state, notes = begin(run, prepared, changed)
        with closing(RunLog(run, state)) if current().is_first else nullcontext() as log:
            saver = Saver(run, prepared.config.checkpoint, log=log, interrupted=interrupted, watch=emit)
            saver.note(*notes)
            with _track(run, prepared.config, say=saver.note) as track:
                events = train_phases(state, prepared.training_plan, prepared.images.train, prepared.images.val)
                _follow(events, state, saver=saver, track=track)
                done = complete_run(run, state, prepared, log=log, started=started)
                _tell_finished(done, (emit, track) if log is not None else (), step=state.step)
                return done


def _follow(events: Iterable[TrainingEvent], state: TrainState, *, saver: Saver, track: Watch) -> None:
    """Have each event recorded, saved where it is time, and then logged by trackers."""
    for event in events:
        saver.after(event, state)
        track(event)


def _track(run: Path, config: Config, *, say: Callable[[Note], None]) -> AbstractContextManager[Watch]:
    """What logs a run's events, as the first process; the others log nothing."""
    return log_to_trackers(run, config, say=say) if current().is_first else nullcontext(lambda _: None)


def _tell_finished(run: Run, watchers: Iterable[Watch], *, step: int) -> None:
    event = Finished(
        path=run.path, step=step, metrics=run.metrics, test_metrics=run.test_metrics or {}, headline=run.headline
    )
    for watch in watchers:
        watch(event)


def _is_finished(run: Path, config: Config, *, resume: bool) -> bool:
    """Whether there is nothing left to do; every process learns it from the first one."""
    with collective_errors():
        check_devices(config.devices)
        found = current().is_first and check_free(run, config, resume=resume)
    return bool(broadcast_object(found))


def _record_start(run: Path, prepared: Prepared, emit: Watch, *, allow_inexact: bool) -> tuple[str, ...]:
    """Have the first process record the start of the run, and return what has changed since it began."""
    with collective_errors():
        if not current().is_first:
            return ()
        if moved := describe_move(run, prepared.document):
            emit(Note(moved))
        return record_start(run, prepared.config, prepared.document, prepared.device, allow_inexact=allow_inexact)


@contextmanager
def _isolate_call(what: str) -> Iterator[None]:
    """Within, none of the caller's arithmetic, and no run or plan of another thread; afterwards the caller's
    generators and choice of kernels, and free memory given back.
    """
    with (
        only_run(what),
        own_arithmetic(),
        keep_kernels(),
        keep_generators(),
        return_freed_memory(),
        keep_freed_memory(),
    ):
        yield


def finish(
    run: str | Path,
    *,
    model: nn.Module | InPlace | None = None,
    loss: LossFunction | None = None,
    data: Source | None = None,
    transform: GivenTransform | None = None,
    metrics: GivenMetrics | None = None,
    device: str | None = None,
    watch: Watch | Literal["progress"] | None = "progress",
) -> Run:
    """Return the model of a run that was stopped, at its best epoch so far, with a bundle and a report as at the end.

    The best epoch's weights are evaluated on the run's own validation images. The run can go on afterwards:
    ``hs.train(..., resume=True)`` takes it up where it was stopped, and writes another result at its end.

    Args:
        ``run``: The folder of a run of which one epoch has been validated.
        ``model``: For an architecture of your own, the module as it was given to ``hs.train``.
        ``loss``: Your own function, if the run was given one.
        ``data``: Your own images, if the run was given them.
        ``transform``: Your own transform or transforms, if the run was given any.
        ``metrics``: Your own metrics, if the run was given some.
        ``device``: Where it is evaluated, such as cpu or cuda; None takes the run's.
        ``watch``: A function that is called with what is found on the way; left out, it is shown, and None is silent.

    Returns:
        The run with its ``metrics`` and ``model``, and a ``note`` that says after how many epochs it was stopped. A run
        that has finished is returned as it is.

    Raises:
        ConfigError: No run is there, no epoch of it has been validated, or the data have changed.
        StorageError: A file is damaged, another process is using the run, or the disk is full.

    Example:
        >>> import headstart as hs
        >>> hs.finish("runs/photos").note.startswith("epoch ")
        True
    """
    run = expand_home(run)
    config = replace(read_config(run), out=str(run), devices=1)
    config = config if device is None else replace(config, device=device)
    started = time.monotonic()
    with _isolate_call("hs.finish"), lock_folder(run), open_watch(watch) as emit:
        if is_finished(run):
            emit(_note_complete(run))
            return read_finished_run(run, model=model)
        check_stopped(run, own=model is not None, metrics=metrics or ())
        with own_turn():
            prepared = prepare(
                config,
                module=model,
                loss=loss,
                own=Own(data=data, transforms=read_transforms(transform), metrics=read_own(metrics)),
                emit=emit,
                recorded=read_choices(run),
            )
        changed = compare_start(run, prepared.document, prepared.device)
        state, notes = begin(run, prepared, changed)
        with closing(RunLog(run, state)) as log:
            for note in notes:
                log.note(note.text)
                emit(note)
            return complete_run(run, state, prepared, log=log, started=started, early=True)


def plan(
    config: Config,
    *,
    model: nn.Module | None = None,
    loss: LossFunction | None = None,
    data: Source | None = None,
    transform: GivenTransform | None = None,
    metrics: GivenMetrics | None = None,
    watch: Watch | None = None,
) -> Plan:
    """Decide everything that ``hs.train`` would decide, and write nothing.

    ``model`` and the global generators of torch, Python and NumPy stay as they are.

    Args:
        ``config``: Everything that the run is told, as ``hs.load_config`` gives it.
        ``model``: Your own module instead of ``config.model.name``.
        ``loss``: Your own function (outputs, targets) that returns one loss per sample (B,), or (losses, weights).
        ``data``: Your own images instead of ``config.data.source``, as for ``hs.train``.
        ``transform``: Your own change of training images, as for ``hs.train``.
        ``metrics``: Your own metrics, as for ``hs.train``.
        ``watch``: A function that is called with what is found on the way, such as the progress of the data's scan.

    Returns:
        The plan: its ``decisions``, each with its reason, and ``document``, the content of the run's ``plan.json``.

    Raises:
        ConfigError, ModelError, DataError: An option, the model or the data are wrong, as in ``hs.train``.

    Example:
        >>> import headstart as hs
        >>> plan = hs.plan(hs.load_config({
        ...     "data": {"source": "photos"},
        ...     "model": {"name": "timm/resnet18", "weights": "none", "options": {"channels": [8, 8, 16, 16]},
        ...               "image_size": 32},
        ...     "epochs": 1, "device": "cpu",
        ... }))
        >>> plan.to_dict() == plan.document
        True
    """
    with _isolate_call("hs.plan"), own_turn(), open_watch(watch) as emit:
        own = Own(data=data, transforms=read_transforms(transform), metrics=read_own(metrics))
        refuse_missing_trackers(config)
        return prepare(check(config), module=model, loss=loss, own=own, emit=emit).plan
