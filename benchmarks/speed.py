"""Speed and memory beside bare PyTorch, timm, fastai, HF Trainer and Lightning: the tables of docs/measured/speed.md.

    python -m benchmarks.speed head             a new head on frozen layers, 10 epochs
    python -m benchmarks.speed suffix           the last stage (ViT: 4 of 12 blocks) trained, the rest frozen, 10 epochs
    python -m benchmarks.speed full             full fine-tuning, images per CPU second
    python -m benchmarks.speed evaluate         evaluation, images per CPU second
    python -m benchmarks.speed growth           1,000 and 10,000 tiny images, 1 and 2 loading processes
    python -m benchmarks.speed memory           the peak memory of all these runs; runs nothing
    python -m benchmarks.speed table            only write docs/measured/speed.md

Every run is a process of its own with one compute thread; repeats are interleaved, so that a slow minute hits all
tools. What counts is CPU time (user and system), from the first image that is read to the last metric, imports aside.
Peers are in benchmarks/peers.txt; one that is not installed is a row with its reason. A peer's epochs all cost the
same, and its images too, so that it runs ``--peer-epochs`` of them on ``--peer-images`` photos and its figure is scaled
to headstart's; what a start costs counts once. CPU time hardly depends on what else runs (2 % with both cores busy), so
that a model's tools can be measured by several commands: of each tool and work (images, epochs, batch, threads,
machine) the last command counts, and the page sets no row beside one of other work. Results:
benchmarks/results/speed.jsonl, one line per run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.speed_job import Job
from benchmarks.speed_page import write_page
from benchmarks.workload import Workload, cpu_name
from headstart.allocator import PRELOAD, find_tcmalloc

RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
PEERS = {"bare": "torch", "timm": "timm", "fastai": "fastai", "hf": "transformers", "lightning": "lightning"}
"""Tool -> the package that it is."""
FROZEN_MODELS = ("resnet18", "resnet50", "vit_tiny_patch16_224")
ALL_MODELS = ("resnet50", "vit_tiny_patch16_224", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto")
THREADS = 1
_LIMIT_SECONDS = 6 * 3600
_VIEWS = 4


@dataclass(frozen=True, kw_only=True)
class Table:
    """What one command measures. ``models`` and ``images`` where none are given."""

    models: tuple[str, ...]
    images: int
    epochs: int
    peer_epochs: int


TABLES = {
    "head": Table(models=FROZEN_MODELS, images=2000, epochs=10, peer_epochs=2),
    "suffix": Table(models=FROZEN_MODELS, images=2000, epochs=10, peer_epochs=2),
    "full": Table(models=ALL_MODELS, images=2000, epochs=1, peer_epochs=1),
    "evaluate": Table(models=ALL_MODELS, images=2000, epochs=1, peer_epochs=1),
    "growth": Table(models=("starter",), images=10_000, epochs=3, peer_epochs=0),
}


def jobs(
    table: str, model: str, arguments: argparse.Namespace, *, data: Path, fewer: Path, weights: Path
) -> Iterator[Job]:
    """One round of a model: headstart's rows on ``data``, then the peers' on ``fewer``."""
    known = TABLES[table]
    ours = Job(
        tool="headstart", work=table, model=model, data=str(data), weights=str(weights),
        epochs=arguments.epochs or known.epochs, batch=arguments.batch,
    )  # fmt: skip
    wanted = arguments.tools
    if "headstart" in wanted:
        yield ours
        yield replace(ours, auto=True)
        if table == "head":
            yield replace(ours, auto=True, views=_VIEWS)
        if table == "evaluate":
            yield replace(ours, bf16=True, channels_last=True)
        if table in ("head", "suffix", "full") and find_tcmalloc():
            yield replace(ours, tcmalloc=True)
            yield replace(ours, auto=True, tcmalloc=True)
    for tool in PEERS:
        if tool in wanted:
            peer = replace(ours, tool=tool, data=str(fewer), epochs=arguments.peer_epochs or known.peer_epochs)
            yield peer
            yield replace(peer, bf16=True, channels_last=True)
            if table in ("full", "evaluate"):  # bf16 slows some networks down
                yield replace(peer, channels_last=True)
    if table == "full" and "tensors" in wanted:
        for bf16, channels_last in ((False, False), (False, True), (True, False), (True, True)):
            yield replace(ours, tool="tensors", bf16=bf16, channels_last=channels_last)


def growth_jobs(arguments: argparse.Namespace, work: Path) -> Iterator[Job]:
    """Tiny images: each number with one and with two loading processes."""
    count = 1000
    while count <= (arguments.images or TABLES["growth"].images):
        data = work / f"tiny-{count}"
        _made("photos", str(data), str(count), "32")
        for workers in (1, 2):
            yield Job(
                tool="headstart", work="growth", model="starter", data=str(data), weights="",
                epochs=arguments.epochs or TABLES["growth"].epochs, batch=arguments.batch, workers=workers,
            )  # fmt: skip
        count *= 10


def run(job: Job, *, scratch: Path) -> dict[str, Any]:
    """One job in a fresh interpreter; what cannot be run is a result with its reason."""
    package = PEERS.get(job.tool, "torch")
    module = "benchmarks.speed_own" if job.tool == "headstart" else "benchmarks.speed_peers"
    facts = {**json.loads(job.text()), "arithmetic": job.arithmetic}
    if find_spec(package) is None:
        return facts | {"reason": f"{package} is not installed: pip install -r benchmarks/peers.txt"}
    threads = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    environment = os.environ | threads | {"SPEED_SCRATCH": str(scratch)}
    environment[PRELOAD] = str(find_tcmalloc() or "") if job.tcmalloc else ""
    command = [sys.executable, "-m", module, job.text()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"tool"')]
    if done.returncode or not lines:
        tail = (done.stderr.strip().splitlines() or ["no result"])[-1]
        return facts | {"reason": tail[:300]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _made(*arguments: str) -> None:
    """Photos or weights, by a process of their own: this one must stay small."""
    subprocess.run([sys.executable, "-m", "benchmarks.speed_photos", *arguments], check=True)


def _machine() -> dict[str, Any]:
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def measure(table: str, arguments: argparse.Namespace) -> None:
    """All rounds of a table; every result is kept as it comes."""
    work = Path(arguments.work).absolute()
    stamp = datetime.now().isoformat(timespec="seconds")
    with TemporaryDirectory(dir=_there(work)) as scratch:
        if table == "growth":
            planned = [(0, job) for job in growth_jobs(arguments, work)]
        else:
            planned = [*_planned(table, arguments, work)]
        for place, (repeat, job) in enumerate(planned, start=1):
            found, machine = run(job, scratch=Path(scratch)), _machine()
            kept = {"table": table, "run": stamp, "repeat": repeat} | found | {"machine": machine}
            kept |= {"workload": workload(job, machine).as_row()}
            kept |= {"data": Path(job.data).name, "weights": Path(job.weights).name}
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(kept) + "\n")
            said = kept.get("reason") or f"{kept['cpu_seconds']:.1f} CPU s, {kept['peak_mib']:,} MiB"
            print(f"{place} of {len(planned)}: {job.tool} {job.work} {job.model} {job.arithmetic}: {said}", flush=True)


def _planned(table: str, arguments: argparse.Namespace, work: Path) -> Iterator[tuple[int, Job]]:
    known = TABLES[table]
    count = arguments.images or known.images
    data = work / f"photos-{count}"
    fewer = work / f"photos-{min(count, arguments.peer_images)}"
    for folder in {data, fewer}:
        _made("photos", str(folder), folder.name.partition("-")[2], "0")
    for model in arguments.models or known.models:
        weights = work / f"{model}.safetensors"
        _made("weights", str(weights), model)
        round_ = [*jobs(table, model, arguments, data=data, fewer=fewer, weights=weights)]
        round_ = [job for job in round_ if job.auto or job.tool != "headstart" or not arguments.auto_only]
        if table in ("head", "suffix") and "headstart" in arguments.tools and not arguments.without_bits:
            yield 0, replace(round_[0], work=f"{table}_same_bits")
        for repeat in range(arguments.repeats):
            shift = repeat % len(round_)  # nobody is always first
            ours = table == "evaluate" or (table == "head" and repeat == 0)
            for job in round_[shift:] + round_[:shift]:
                if job.views > 1 and repeat:
                    continue  # the longest run, once
                yield repeat, replace(job, limit=ours and job.tool == "headstart" and job.views == 1)


def workload(job: Job, machine: dict[str, Any]) -> Workload:
    """What the job does, for the page to compare it with nothing else."""
    return Workload(
        train_images=job.images("train"), val_images=job.images("val"), epochs=job.epochs, batch=job.batch,
        threads=THREADS, cpu=machine["cpu"], cores=machine["cores"],
    )  # fmt: skip


def _there(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_results() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "memory", "table"])
    parser.add_argument("--models", nargs="+", help="timm's names")
    parser.add_argument("--images", type=int, help="photos in all, a fifth of them for validation (2,000)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of headstart, and what peers are scaled to")
    parser.add_argument("--peer-epochs", type=int, help="that peers run (2)")
    parser.add_argument("--peer-images", type=int, default=128, help="photos that peers run on (128)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tools", nargs="+", default=["headstart", *PEERS, "tensors"])
    parser.add_argument("--auto-only", action="store_true", help="of headstart, what it chooses itself")
    parser.add_argument("--without-bits", action="store_true", help="do not compare with a run without the cache")
    parser.add_argument("--work", default="/tmp/headstart-speed", help="where photos and weights are made")
    arguments = parser.parse_args(argv)
    if arguments.table in TABLES:
        measure(arguments.table, arguments)
    write_page(read_results())


if __name__ == "__main__":
    main()
