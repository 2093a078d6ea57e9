"""The run folder: whether it may be used, what is recorded before the first step, and what at the end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from headstart.config.load import is_of_run, load_config, write_yaml
from headstart.config.metric import METRICS
from headstart.config.schema import Config
from headstart.errors import ConfigError, StorageError
from headstart.machine import environment
from headstart.reports.csv import csv_text
from headstart.reports.environment import Facts, compare
from headstart.runs.checkpoint import newest_step, read_checkpoint
from headstart.runs.choices import describe_choices
from headstart.runs.plan_file import read_plan, write_plan
from headstart.storage.durable import (
    json_bytes,
    make_folder,
    read_json,
    read_text,
    refuse_links,
    sweep,
    write_file,
    write_json,
)
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec
from headstart.training.evaluate import Evaluation, write_rows
from headstart.wording import option, switch

MOST_PROBABILITIES = 2_000_000
_FREE = (  # may be others when a run goes on: a folder that moved is the same run; data are compared by their digest,
    # the number of processes and how they share the model as facts that decide bits
    "workers", "cache.limit_gb", "data.changed", "out", "data.source", "data.images", "data.tags_separator", "devices",
    "device", "parallel.timeout_seconds", "parallel.kind", "trackers",
)  # fmt: skip


def default_out(config: Config) -> Path:
    """The run folder: as asked, or runs/ and the data's name."""
    return Path(config.out or Path("runs", Path(config.data.source or "run").stem or "run"))


def check_free(run: Path, config: Config, *, resume: bool) -> bool:
    """Check that a run may use the folder, and return whether the run in it is finished already.

    Raises: ConfigError: a run is there and ``resume`` was not asked for, it had another configuration, or the folder
    is not a run's.
    """
    old = run / "config.yaml"
    source = Path(os.path.realpath(config.data.source)) if config.data.source else None  # resolve() raises on a loop
    if source is not None and source.is_dir() and source in (run.resolve(), *run.resolve().parents):
        raise ConfigError(
            f"out: {run} is inside the data ({source}); choose another folder, e.g. "
            f"{option('out', source.parent / 'runs' / source.name)}"
        )
    if run.exists() and not run.is_dir():
        raise ConfigError(f"out: {run} is a file; choose another run folder, e.g. {option('out', f'{run}-run')}")
    if not os.path.lexists(old):
        strangers = [path.name for path in run.iterdir() if not path.name.startswith(".")] if run.is_dir() else []
        if strangers:
            raise ConfigError(
                f"out: {run} holds other files ({', '.join(sorted(strangers)[:3])}); choose another folder, e.g. "
                f"{option('out', f'runs/{run.name}')}"
            )
        return False
    if not resume:
        raise ConfigError(
            f"out: a run is in {run} already; go on with it by {switch('resume')}, or choose another folder with "
            f"{option('out')} (to train its model further: {option('model', run)} and another {option('out')})"
        )
    extends = False
    if read_text(old) != write_yaml(config):
        extends = is_extension(load_config(old), config)
        different = list_differences(old, config, besides=("epochs", "phases") if extends else ())
        if different:
            raise ConfigError(
                f"{old}: the run was made with other options ({'; '.join(different)}); resume it with the same ones, "
                f"or choose another folder with {option('out')}"
            )
    if not extends or not is_finished(run):
        return is_finished(run)
    if newest_step(run / "checkpoints") is None:
        raise ConfigError(
            f"{run / 'checkpoints'}: the run has finished, and no checkpoint is left to go on from; train its model "
            f"further in another run: {option('model', run)} and another {option('out')}"
        )
    return False


def is_extension(before: Config, config: Config) -> bool:
    """Whether a run is asked for more epochs than it has, and its earlier ones stay: more phases where it has some."""
    if before.phases or config.phases:
        count = len(before.phases)
        return 0 < count < len(config.phases) and config.phases[:count] == before.phases
    return config.epochs > before.epochs


def is_finished(run: Path) -> bool:
    """Whether the run there is through all its epochs.  Raises: StorageError: its result is damaged."""
    return (run / "result.json").exists() and is_complete(read_result(run))


def read_config(run: Path) -> Config:
    """The configuration of the run there.  Raises: ConfigError: no run is there."""
    if not is_of_run(run / "config.yaml"):
        raise ConfigError(f"{run}: no run is there; give the folder that headstart train wrote, e.g. runs/photos")
    return load_config(run / "config.yaml")


def check_stopped(run: Path, *, own: bool, metrics: Collection[str] = ()) -> None:
    """Refuse to finish a run that has no weights worth keeping, or whose module (``own``: one is given) or own metric
    is not among what is given.

    Raises: ConfigError. StorageError: its checkpoints or records are damaged.
    """
    checkpoint = read_checkpoint(run / "checkpoints")
    if checkpoint is None or checkpoint.counters["best"] is None:
        raise ConfigError(
            f"{run}: no epoch of the run has been validated, so that it has no best weights; go on with: "
            f"headstart train --config {run / 'config.yaml'} --resume"
        )
    plan, metric = read_plan(run) or {}, read_config(run).metric
    began = plan.get("began") or {}
    missing = {"model=net": "a module"} if began.get("module") and not own else {}
    if metric not in METRICS and metric not in metrics:
        pair = f'metrics={{"{metric}": (f, "{began.get("better", "higher")}")}}'
        missing |= {pair: f"{metric}, the metric that chooses the epoch"}
    if missing:
        raise ConfigError(
            f"{run}: was given {' and '.join(missing.values())} of your own; finish it in Python, with what hs.train "
            f"was given: hs.finish({str(run)!r}, {', '.join(missing)})"
        )


def list_differences(old: Path, config: Config, *, besides: Sequence[str] = ()) -> list[str]:
    """Each option that differs, with both values, leaving out those that no bit depends on, and ``besides``."""
    before, now = (_leaves(asdict(each)) for each in (load_config(old), config))
    free = (*_FREE, *besides)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name) and name not in free]
    return [f"{name}: the run has {before.get(name)}, now {now.get(name)}" for name in changed[:5]]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


def record_start(
    run: Path, config: Config, plan: Mapping[str, Any], device: torch.device, *, allow_inexact: bool = False
) -> tuple[str, ...]:
    """Write config.yaml, plan.json and environment.json, under the run's lock; what a crash left half-done is swept.

    What differs from the machine and the versions that the run had is returned: it can change the bits.

    Raises: ConfigError: a run to go on with began with other data, or (without ``allow_inexact``) something differs;
    nothing is written. StorageError: they cannot be written.
    """
    refuse_links(run, "checkpoints", "model")
    checkpoints, facts, step = run / "checkpoints", run / "environment.json", newest_step(run / "checkpoints")
    before = read_plan(run)
    _check_data(run / "plan.json", before, plan)
    if step is not None and not allow_inexact:
        _check_there(run / "plan.json", facts)
    now, changed = compare(
        facts, Facts(environment=environment(device), plan=plan), before_plan=before, step=step,
        allow_inexact=allow_inexact,
    )  # fmt: skip
    if step:
        changed = (*changed, *_check_unsaved(run, plan, allow_inexact=allow_inexact))
    sweep(run)
    (run / "result.json").unlink(missing_ok=True)  # of ``headstart finish``: the run goes on, and will have another
    text = write_yaml(config) + describe_choices(config, plan)
    write_file(run / "config.yaml", text.encode("utf-8", "surrogateescape"))  # from here on it is a run
    unreadable = [(image["path"], image["reason"]) for image in plan["data"]["unreadable"]]
    if unreadable:
        write_file(run / "unreadable.csv", csv_text(unreadable, header=("path", "reason")).encode("utf-8", "replace"))
    make_folder(checkpoints)
    sweep(checkpoints)
    begins = before is None or step is None
    write_plan(run, {**plan, "run": _run_digest(config, plan)} if begins else _keep_beginning(plan, before or {}))
    write_json(facts, now)
    return changed


def compare_start(run: Path, plan: Mapping[str, Any], device: torch.device) -> tuple[str, ...]:
    """What differs between the plan that the run began with and this one of it, machine and versions included.

    Raises: ConfigError: the data do. StorageError: a record is damaged.
    """
    before = read_plan(run)
    _check_data(run / "plan.json", before, plan)
    facts = Facts(environment=environment(device), plan=plan)
    step = newest_step(run / "checkpoints")
    return compare(run / "environment.json", facts, before_plan=before, step=step, allow_inexact=True)[1]


def _check_unsaved(run: Path, plan: Mapping[str, Any], *, allow_inexact: bool) -> tuple[str, ...]:
    """What begins with its first value again, as sentences.  Raises: ConfigError: something does, and nobody allowed
    it.
    """
    names = ", ".join(plan["choices"].get("unsaved_state", ()))
    if names and not allow_inexact:
        raise ConfigError(
            f"{run}: {names}: changed by the module's own forward and saved in no checkpoint, so a resume would "
            "begin with its first value; keep it as a number, a list or a buffer of the module, or go on all the "
            f"same: {switch('allow_inexact')}"
        )
    return (f"{names}: begins with its first value",) if names else ()


def _keep_beginning(plan: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a run that goes on, with the run's digest and the weights that it began with."""
    first = before.get("model") or {}
    beginning = {name: first[name] for name in ("weights", "coverage") if name in first}
    return {**plan, "model": {**plan["model"], **beginning}} | ({"run": before["run"]} if "run" in before else {})


def _run_digest(config: Config, plan: Mapping[str, Any]) -> str:
    """SHA-256 over options, data, weights and code, by which a checkpoint is known as one of this run."""
    options = {name: value for name, value in _leaves(asdict(config)).items() if name not in _FREE}
    return hashlib.sha256(json_bytes([options, plan["data"]["digest"], plan.get("began")])).hexdigest()


def read_choices(run: Path) -> dict[str, Any] | None:
    """What was measured and chosen when the run there began; None where there is none.

    Raises: StorageError: plan.json is damaged, or was edited.
    """
    plan = read_plan(run)
    if plan is None:
        return None
    choices = _section(run / "plan.json", plan, "choices")
    epochs = sum(phase["epochs"] for phase in plan.get("phases") or ())
    return {"epochs": [epochs], **choices} if epochs else choices  # headstart 0.1 did not record them


def forget_cache(run: Path) -> None:
    """Have a resume read nothing from the activation cache.  Raises: StorageError."""
    plan = read_plan(run)
    assert plan is not None, run
    for choice in plan["choices"]["cache"]:
        choice["cached"] = []
    write_plan(run, plan)


def describe_move(run: Path, plan: Mapping[str, Any]) -> str:
    """A sentence that the data of a run which goes on lie elsewhere now, and are the same; "" where they do not."""
    before = read_plan(run)
    if before is None or list_data_changes(run / "plan.json", before, plan):
        return ""
    was, now = before["data"].get("source"), plan["data"]["source"]
    return "" if was == now else f"the data lie in {now} now, in {was} before: the same by names, contents and labels"


def _check_there(*paths: Path) -> None:
    """Refuse to go on without what the run wrote before its first step: what it had could not be compared."""
    for path in paths:
        if not path.exists():
            raise ConfigError(
                f"{path}: is missing, so that nothing says what the run began with; put it back, or go on all the "
                f"same with {switch('allow_inexact')}"
            )


def _check_data(path: Path, before: Mapping[str, Any] | None, plan: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose data have changed: its history would be of neither."""
    if before is None:
        return
    if changed := list_data_changes(path, before, plan):
        raise ConfigError(
            f"{path}: the data have changed since the run began ({'; '.join(changed)}); put them back, or start a "
            f"new run with another {option('out')}"
        )


def list_data_changes(path: Path, before: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Each fact about the data that is not as the earlier plan (``path``) has it.  Raises: StorageError: the plan is
    damaged.
    """
    was, now = _section(path, before, "data"), json.loads(json_bytes(plan))["data"]
    return [
        f"{name} was {was.get(name)}, is {now[name]}"
        for name in ("train", "val", "test", "class_counts", "unreadable", "duplicates", "digest")
        if was.get(name) != now[name]
    ]


def _section(path: Path, plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = plan.get(name)
    if not isinstance(section, dict):
        raise StorageError(f"{path}: is damaged, {name} is missing; start a new run with another {option('out')}")
    return section


def write_predictions(path: Path, evaluation: Evaluation, *, task: TaskSpec, contents: Mapping[str, str]) -> None:
    """Write predictions.csv: id, truth, prediction, probabilities, SHA-256 (``contents``, by id) of every image. Names
    that are formulas get a leading ', tags are joined by ";" (see ``join_tags``). Of more than two million
    probabilities of classes only each image's largest is written: the table would be larger than what it is read with.
    """
    rows = [row | {"sha256": contents[row["id"]]} for row in write_rows(evaluation, task)]
    if find_kind(task.kind).one_label and len(rows) * task.num_outputs > MOST_PROBABILITIES:
        rows = [{name: value for name, value in row.items() if not name.startswith("p:")} for row in rows]
    text = csv_text(([*row.values()] for row in rows), header=list(rows[0]))
    write_file(path, text.encode("utf-8", "surrogateescape"))


def is_complete(result: Mapping[str, Any]) -> bool:
    """Whether all epochs of the run are done: a run that was stopped may have a result by ``headstart finish``."""
    return result.get("complete", True) is True


def read_result(run: Path) -> dict[str, Any]:
    """The content of a finished run's result.json.  Raises: StorageError: it is missing or damaged."""
    result: dict[str, Any] = read_json(run / "result.json")
    match result:
        case {"task": str(), "seconds": float() | int(), "metrics": dict(), "test_metrics": dict() | None}:
            if {"epoch", "weights"} <= result.keys():
                return dict(result)
    raise StorageError(
        f"{run / 'result.json'}: is damaged, it is not a result; remove it, and go on with {switch('resume')}"
    )
