"""One run of headstart for ``benchmarks.speed``, in this process; the last line printed is the result.

The clock starts with the first image that is read (the scan before training) and ends when the run folder is whole:
planning with its trial steps, the cache, the best model's evaluation, the bundle and the report are in it. With
SPEED_PROFILE=1 in the environment it also says which functions took it.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub  # noqa: F401  this and the next two: imported before the clock starts, as the peers' parts are
import matplotlib.pyplot  # noqa: F401
import torch
import torch._dynamo  # which timm imports, and headstart with its first optimizer step
from torch import nn

import headstart as hs
from benchmarks.speed_job import CROP, FROZEN, MEAN, SIZE, STD, Job, Laps, cpu_seconds, peak_mib, read_job, report
from headstart.allocator import keep_freed_memory
from headstart.app import plan
from headstart.config.schema import Config, Data
from headstart.data.labelled import Subject, choose_labelled_batches
from headstart.data.loader import Batches
from headstart.events import CacheProgress, Decided, ScanProgress, StepDone
from headstart.planning.preflight import Prepared, prepare
from headstart.runs.bundle import OpenedRun, open_run
from headstart.surgery.boundary import find_boundary
from headstart.training.activation_cache import through_prefix
from headstart.training.evaluate import evaluate
from headstart.training.phases import freeze_phase
from headstart.training.precision import MEMORY_FORMATS, autocast, dtype_of

_SHOWN = ("precision", "memory_format", "attention", "cache", "evaluation")
_LONG = 50  # epochs, for which evaluation is worth measuring


class _Enough(Exception):
    """The first epoch is over."""


def settings(job: Job, folder: Path) -> dict[str, Any]:
    """The job as headstart's options."""
    formed = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": CROP}
    model = {"name": f"timm/{job.model}", "weights": job.weights, "image_size": SIZE, "preprocess": formed}
    found: dict[str, Any] = {
        "data": {"source": job.data}, "model": model, "epochs": job.epochs, "batch": {"size": job.batch},
        "workers": job.workers, "device": "cpu", "out": str(folder / "run"),
        "recipe": "probe" if job.work in ("head", "head_same_bits", "growth") else "full",
    }  # fmt: skip
    if job.work == "growth":
        found["model"] = {"name": "starter", "image_size": 32}
    if job.work.startswith("suffix"):
        found |= {"freeze": f"until:{FROZEN[job.model]}"}
    if job.work not in ("full", "evaluate"):
        found["augment"] = {"preset": "standard" if job.views > 1 else "none"}
    if job.views > 1:
        found["cache"] = {"views": job.views}
    if job.work.endswith("same_bits"):
        found["batch"]["evaluation"] = job.batch  # bits are equal at equal shapes
    if not job.auto:
        found["precision"] = "bf16" if job.bf16 else "fp32"
        found["memory_format"] = "channels_last" if job.channels_last else "contiguous"
    return found


class Watch:
    """CPU seconds between a run's events, by part."""

    def __init__(self) -> None:
        self.laps: Laps | None = None
        self.cache = 0

    def __call__(self, event: object) -> None:
        """See ``headstart.app.train``."""
        if isinstance(event, ScanProgress):
            self.laps = self.laps or Laps()
            if event.done == event.total:
                self.laps.lap("scan")
            return
        assert self.laps is not None
        if isinstance(event, Decided):
            self.laps.lap("plan")
        elif isinstance(event, CacheProgress):
            if event.done == event.total:
                self.laps.lap("cache")
        elif isinstance(event, StepDone):
            if event.step % event.steps_in_epoch == 0:
                self.laps.lap("train")
        elif isinstance(event, hs.EpochDone):
            self.laps.lap("eval")


def run_whole(job: Job, folder: Path) -> None:
    """``headstart train``, and the limit of the same work."""
    wanted = settings(job, folder)
    chosen = _chosen(job, wanted, folder) if job.auto and job.work == "full" else {}
    watch, started = Watch(), cpu_seconds()
    profile = cProfile.Profile(time.process_time)
    if os.environ.get("SPEED_PROFILE"):
        profile.enable()
    done = hs.train(hs.load_config(wanted | chosen), watch=watch)
    profile.disable()
    assert watch.laps is not None
    watch.laps.lap("finish")
    if os.environ.get("SPEED_PROFILE"):
        found = pstats.Stats(profile, stream=sys.stderr)
        found.sort_stats("tottime").print_stats(30)
        found.sort_stats("cumulative").print_stats("headstart|forward", 60)
    peak = peak_mib()
    before = round(watch.laps.first - started, 3)
    more: dict[str, Any] = {"before_first_image": before, "decided": _decisions(done.path)}
    if job.limit:
        with keep_freed_memory():  # as the run has it
            recorded = json.loads((done.path / "plan.json").read_text())["choices"]
            more["limit"] = limit(hs.load_config(wanted | chosen), recorded)
    report(job, watch.laps, accuracy=done.metrics["accuracy"], **more | {"peak_mib": peak})


def _decisions(run: Path) -> dict[str, str]:
    found = json.loads((run / "plan.json").read_text())["decisions"]
    return {one["name"]: f"{one['value']} ({one['reason']})" for one in found if one["name"] in _SHOWN}


def _chosen(job: Job, wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What ``auto`` chooses for a run that is long enough to be measured for; the one here is shorter."""
    made = plan(hs.load_config(wanted | {"epochs": _epochs(job), "out": str(folder / "plan")}))
    return _arithmetic(made.to_dict()["choices"])


def _epochs(job: Job) -> int:
    return max(10, 20_000 // max(1, job.images("train")))


def _arithmetic(choices: dict[str, Any]) -> dict[str, Any]:
    return {name: choices["arithmetic"][name] for name in ("precision", "memory_format", "attention")}


def limit(config: Config, chosen: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of what cannot be spared: a decode and a forward pass of every image and view, the head's steps; in
    the arithmetic and the batches that were chosen.
    """
    ready = prepare(config, module=None, loss=None, emit=lambda _: None, recorded=chosen)
    training_plan, phase = ready.training_plan, ready.training_plan.phases[0]
    frozen = freeze_phase(ready.opened.module, phase)
    prefix = find_boundary(ready.opened.module, frozen).prefix
    laps, features = Laps(), []
    train, val = (
        replace(split, batch_size=training_plan.cache.batch_size) for split in (ready.images.train, ready.images.val)
    )
    for batches, view in [*((train, view) for view in range(phase.views)), (val, 0)]:
        order = list(range(len(batches.samples)))
        groups = [order[start : start + batches.batch_size] for start in range(0, len(order), batches.batch_size)]
        made = batches.pad_batches(groups, epoch=view)
        while True:
            batch = next(made, None)
            if batch is None:
                break
            laps.lap("decode")
            features.append(through_prefix(prefix, batch, training_plan.rules)[0].float()[: batch.size])
            laps.lap("forward")
    size, count = ready.images.train.batch_size, len(train.samples) * phase.views
    rows = torch.cat(features)
    _head_steps(ready, [*rows[:count].split(size), *rows[count:].split(size)])
    laps.lap("head")
    return {name: round(sum(values), 3) for name, values in laps.parts.items()} | {"total": round(laps.total, 3)}


def _head_steps(ready: Prepared, features: list[torch.Tensor]) -> None:
    """A bare loop over the features, validation included."""
    head = nn.Linear(features[0].flatten(1).shape[1], 2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    steps = len(ready.images.train)
    judged = -(-len(ready.images.val.samples) // ready.images.train.batch_size)
    for _ in range(ready.config.epochs):
        for rows in features[:steps]:
            loss = nn.functional.cross_entropy(head(rows.flatten(1)), torch.arange(len(rows)) % 2)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.inference_mode():
            for rows in features[-judged:]:
                head(rows.flatten(1)).argmax(1)


def run_same_bits(job: Job, folder: Path) -> None:
    """The losses of the first epoch with the cache and without it."""
    losses: dict[str, list[str]] = {}
    laps = Laps()
    for use in ("always", "never"):
        found: list[str] = []

        def watch(event: object, found: list[str] = found) -> None:
            if isinstance(event, StepDone):
                found.append(event.loss.hex())
            elif isinstance(event, hs.EpochDone):
                raise _Enough

        try:
            hs.train(hs.load_config(settings(job, folder / use) | {"cache": {"use": use}}), watch=watch)
        except _Enough:
            losses[use] = found
        laps.lap(use)
    report(job, laps, accuracy=None, steps=len(losses["never"]), equal=losses["always"] == losses["never"])


def run_evaluate(job: Job, folder: Path) -> None:
    """What ``headstart evaluate`` does once the bundle is open, with what a long fine-tuning run would choose."""
    wanted = settings(job, folder)
    made = plan(hs.load_config(wanted | {"epochs": max(_LONG, _epochs(job))})).to_dict()["choices"]
    size, chosen = made["evaluation"]["size"], _arithmetic(made) if job.auto else {}
    chosen |= {"precision": made["evaluation"]["precision"]} if made["evaluation"]["precision"] else {}
    few = folder / "few"
    for split in ("train", "val"):
        for name in "ab":
            Path(few, split, name).mkdir(parents=True)
            for path in sorted(Path(job.data, split, name).iterdir())[:4]:
                shutil.copy(path, few / split / name)
    wanted |= {"data": {"source": str(few)}, "recipe": "probe", "epochs": 1, "augment": {"preset": "none"}}
    wanted["batch"] = {"size": job.batch, "evaluation": size}
    done = hs.train(hs.load_config(wanted | chosen))
    opened = open_run(done.path)  # outside the clock, as the peers' model is
    how, laps = opened.evaluated, Laps()
    labelled = choose_labelled_batches(
        Data(source=job.data),
        own_source=None,
        subject=Subject(task=opened.task, preprocess=opened.preprocess, used=None),
        batch_size=size,
        scanned=False,
    )
    batches, note = labelled.batches, labelled.which
    found = evaluate(opened.model, batches, precision=how.precision, memory_format=how.memory_format)
    laps.lap("eval")
    more = {"decided": chosen | {"evaluation": f"{size}"}, "note": note, "peak_mib": peak_mib()}
    more |= {"limit": evaluation_limit(opened, batches)} if job.limit else {}
    report(job, laps, accuracy=found.metrics["accuracy"], **more)


def evaluation_limit(opened: OpenedRun, batches: Batches) -> dict[str, float]:
    """CPU seconds of what cannot be spared, a decode and a pass of every image in the same arithmetic and batches, and
    of headstart's ``evaluate`` between two such rounds.
    """
    how, laps = opened.evaluated, Laps()
    for again in (False, True):
        with keep_freed_memory(), torch.inference_mode():
            made = batches.epoch(0)
            while (batch := next(made, None)) is not None:
                laps.lap("decode")
                with autocast(torch.device("cpu"), how.precision):
                    arguments = batch.arguments(
                        torch.device("cpu"), MEMORY_FORMATS[how.memory_format], dtype_of(opened.model)
                    )
                    opened.model(*arguments).argmax(1)
                laps.lap("forward")
        if not again:
            laps.lap("between")
            evaluate(opened.model, batches, precision=how.precision, memory_format=how.memory_format)
            laps.lap("evaluate")
    decode, forward = (sum(laps.parts[name]) / 2 for name in ("decode", "forward"))
    return {
        "decode": round(decode, 3), "forward": round(forward, 3), "total": round(decode + forward, 3),
        "evaluate": laps.parts["evaluate"][0],
    }  # fmt: skip


if __name__ == "__main__":
    _job = read_job()
    with TemporaryDirectory(dir=os.environ["SPEED_SCRATCH"]) as _folder:
        os.environ["HEADSTART_CACHE"] = str(Path(_folder, "cache"))
        if _job.work.endswith("same_bits"):
            run_same_bits(_job, Path(_folder))
        elif _job.work == "evaluate":
            run_evaluate(_job, Path(_folder))
        else:
            run_whole(_job, Path(_folder))
