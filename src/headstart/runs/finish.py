"""The end of a run: the best weights evaluated, the bundle, the predictions, the result, the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from headstart.config.schema import Config, Head
from headstart.data.images import Images
from headstart.data.loader import Batches
from headstart.data.sources.source import read_content
from headstart.data.used_images import UsedImages
from headstart.distributed.collectives import broadcast_model, collective_errors
from headstart.models.answers import remember_answers
from headstart.models.sources import OpenedModel
from headstart.reports.headline import Findings, summarise
from headstart.reports.run_record import TEST_PREDICTIONS, read_record
from headstart.runs.bundle import Evaluated, bundle_facts, open_run, write_bundle
from headstart.runs.checkpoint import load_best
from headstart.runs.folder import is_complete, read_result, write_predictions
from headstart.runs.log import RunLog
from headstart.runs.run import Run
from headstart.storage.durable import read_json, write_json
from headstart.surgery.freeze import unfreeze
from headstart.surgery.head import HeadSwap
from headstart.surgery.held import detach_held
from headstart.surgery.lora import merge_lora
from headstart.surgery.module_copy import InPlace
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec
from headstart.training.equal_sizes import find_equal_sizes
from headstart.training.evaluate import Evaluation, keep_own_state
from headstart.training.phases import TrainingPlan, evaluate_as_planned, evaluate_best, report_changed_files
from headstart.training.state import TrainState


class Ready(Protocol):
    """What ``complete_run`` needs to know of a prepared run."""

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        ...

    @property
    def opened(self) -> OpenedModel:
        """The model and where it came from."""
        ...

    @property
    def head(self) -> Head:
        """The head's options: as asked, or those of a head that was kept."""
        ...

    @property
    def swap(self) -> HeadSwap:
        """What was replaced for the new head."""
        ...

    @property
    def images(self) -> Images:
        """The images of the run."""
        ...

    @property
    def training_plan(self) -> TrainingPlan:
        """The phases and the rules of a step."""
        ...

    @property
    def document(self) -> Mapping[str, Any]:
        """The content of plan.json."""
        ...

    @property
    def device(self) -> torch.device:
        """The device on which it is trained."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether each of several processes holds a part of every parameter."""
        ...


def complete_run(
    run: Path, state: TrainState, ready: Ready, *, log: RunLog | None, started: float, early: bool = False
) -> Run:
    """Write everything that a finished run holds; result.json comes last but for the report.

    ``log`` is None on all but the first of several processes: these help to evaluate, and write nothing. ``early``: not
    all epochs are done, and the run may go on afterwards.

    Raises: StorageError: a checkpoint is damaged, or a file cannot be written.
    """
    model = state.model if state.unsharded is None else state.unsharded.to(ready.device)
    with collective_errors():
        if log is not None:
            load_best(state, run / "checkpoints", into=model)
    broadcast_model(model)
    merge_lora(model)
    rules, images = ready.training_plan.rules, ready.images
    assert state.best is not None
    evaluations = {"val": evaluate_best(model, images.val, ready.training_plan, epoch=state.best.epoch)}
    if images.test:
        with keep_own_state(model):
            evaluations["test"] = evaluate_as_planned(model, images.test, ready.training_plan)
    changed = [note.text for note in report_changed_files(images.val)]
    seconds = time.monotonic() - started
    metrics = evaluations["val"].metrics
    task = _with_thresholds(images.task, evaluations["val"])
    result: dict[str, Any] = {
        "task": task.kind, "seconds": seconds, "metrics": metrics, "epoch": state.best.epoch,
        "weights": state.best.weights, "test_metrics": evaluations["test"].metrics if "test" in evaluations else None,
    }  # fmt: skip
    if task.thresholds:
        result["thresholds"] = dict(zip(task.classes, task.thresholds, strict=True))
    if early:
        planned = sum(phase.epochs for phase in ready.training_plan.phases)
        result |= {"complete": False, "epochs_done": state.epochs_done, "epochs": planned}
    if log is None:
        return _run(run, result, _plain(model, ready))
    result |= _rate_own_metrics(evaluations, ready.training_plan.own_metrics)
    settings = Evaluated(
        batch_size=images.val.batch_size, precision=rules.evaluated_in, memory_format=rules.memory_format,
        equal_sizes=find_equal_sizes(
            model, images.val, precision=rules.evaluated_in, memory_format=rules.memory_format
        ),
    )  # fmt: skip
    config = replace(ready.config, head=ready.head)
    facts = bundle_facts(ready.opened, ready.swap, config, task=task, evaluated=settings, metrics=metrics)
    if ready.document["began"].get("module") and ready.document["choices"].get("head") == "kept":
        facts["head"] |= {"kept": True}  # the module as it was given has it
    if framing := ready.document["began"].get("framing"):
        facts |= {"framing": framing}
    used = UsedImages.of(images)
    write_bundle(run / "model", model, facts, plan=read_json(run / "plan.json"), result=result, used=used)
    remember_answers(model, facts)
    for name, batches in (("predictions.csv", images.val), (TEST_PREDICTIONS, images.test)):
        if batches:
            contents = {sample.key: sample.digest for sample in batches.samples}
            evaluation = evaluations["val" if batches is images.val else "test"]
            write_predictions(run / name, evaluation, task=task, contents=contents)
    for text in changed:
        log.note(text)
    log.mark("finished", {"step": state.step, "seconds": seconds})
    log.sync()
    write_json(run / "result.json", result)
    log.note(f"finished: step {state.step}")
    findings = _write_page(run, read=_reader_of(images.val, images.test))
    return _run(run, result, _plain(model, ready), findings)


def _rate_own_metrics(evaluations: Mapping[str, Evaluation], own: Collection[str]) -> dict[str, Any]:
    """What result.json keeps of the user's own metrics by split: a report does not have their functions."""
    ratings = {
        split: {name: found.rate(name).to_dict() for name in own if name in found.metrics}
        for split, found in evaluations.items()
    }
    return {"own_metrics": ratings} if own else {}


def _with_thresholds(task: TaskSpec, evaluation: Evaluation) -> TaskSpec:
    """The task with the thresholds that were chosen on the validation images."""
    chosen = find_kind(task.kind).choose_thresholds(task, evaluation.predictions.outputs, evaluation.truth)
    return replace(task, thresholds=chosen)


def _plain(model: nn.Module, ready: Ready) -> nn.Module:
    """The model without what training has put on it: the head trains, and what trained when the model was opened;
    what its parts keep has no history.
    """
    unfreeze(model, fixed=ready.training_plan.phases[-1].fixed)
    model.zero_grad(set_to_none=True)
    detach_held(model)
    return model.eval()


def read_finished_run(run: Path, *, model: nn.Module | InPlace | None) -> Run:
    """A run that was finished before; ``model`` as for ``open_run``.  Raises: StorageError: a file is damaged."""
    result = read_result(run)
    opened = open_run(run, model=model)
    if not (run / "report.html").exists():  # killed before its last file
        return _run(run, result, opened.model, _write_page(run))
    return _run(run, result, opened.model, summarise(read_record(run)))


def _reader_of(*splits: Batches | None) -> Callable[[str], bytes | None]:
    """What gives the bytes of an image by its name."""
    found = {sample.key: (split.source, sample.record) for split in splits if split for sample in split.samples}
    return lambda name: read_content(*found[name])[0] if name in found else None


def _write_page(run: Path, *, read: Callable[[str], bytes | None] | None = None) -> Findings:
    from headstart.reports.report import write_page  # imports matplotlib, 0.5 s, which nothing else needs

    return write_page(run, read=read)


def _run(run: Path, result: Mapping[str, Any], model: nn.Module, findings: Findings | None = None) -> Run:
    note = f"epoch {result['epoch']} ({result['weights']} weights)"
    if not is_complete(result):
        note += f"; the run was stopped after {result['epochs_done']} of {result['epochs']} epochs"
    return Run(
        path=run, task=result["task"], seconds=result["seconds"], metrics=result["metrics"], model=model,
        test_metrics=result["test_metrics"], note=note, headline=findings.headline if findings else "",
        remarks=findings.remarks if findings else (),
    )  # fmt: skip
