"""How long models' forward passes take on this machine, and which models no other one beats."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from headstart.allocator import keep_freed_memory
from headstart.errors import ModelError
from headstart.machine import processor_name
from headstart.models.catalog import ModelRow
from headstart.models.factory import build
from headstart.models.origins import find_origin
from headstart.models.spec import FolderSpec, HubSpec, parse_spec
from headstart.models.weights import refuse_memory
from headstart.surgery.generators import keep_generators
from headstart.surgery.trace import MODEL_FAILURES
from headstart.timing import Looks, time_calls, wall_seconds

MOST_CANDIDATES = 50
_LOOKS = Looks(  # three passes before: allocation, thread start, kernel choice; a slow model stops early
    warm=3, least=10, most=10**9, seconds=1.0, budget_seconds=10.0, few=3
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how models were timed: fp32, inference mode, ``batch_size`` images at a time; ``load`` before, per
    core.
    """

    device: torch.device
    name: str
    batch_size: int
    threads: int
    load: float | None

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.device.type == "cpu" else ""
        busy = f"; the machine was busy: load {self.load:.1f} per core" if self.load and self.load > 0.5 else ""
        return f"{self.name}{threads}, fp32, batch {self.batch_size}, PyTorch {torch.__version__}{busy}"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per forward pass of one batch: median, 10th and 90th percentile over ``repeats``."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One architecture at one input size: its weights with the highest top-1, and how many ``others`` share it.

    ``latency`` is None where it could not be timed, and ``reason`` says why.
    """

    row: ModelRow
    others: int
    latency: Latency | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a measurement means: ``best`` of those in time, or else ``why`` it is not."""

    measured: Measured
    best: bool
    why: str


def candidates(rows: Iterable[ModelRow]) -> tuple[tuple[ModelRow, int], ...]:
    """One row per architecture and input size (highest top-1), with the number of other weights for it.

    Raises: ModelError: more than ``MOST_CANDIDATES``.
    """
    groups: dict[tuple[object, ...], list[ModelRow]] = {}
    for row in rows:
        form = row.preprocess
        groups.setdefault((row.library, row.architecture, form.height, form.width), []).append(row)
    if len(groups) > MOST_CANDIDATES:
        raise ModelError(
            f"--measure: {len(groups):,} architectures and input sizes are left, and at most {MOST_CANDIDATES} are "
            "timed (1 to 10 s each); narrow them down by PATTERN, --family, --min-top1, --min-cpu-speed or "
            f"--max-params, or take the best: --sort top1 --limit {MOST_CANDIDATES}"
        )
    best = (max(group, key=lambda row: row.published.top1 or 0.0) for group in groups.values())
    return tuple((row, len(group) - 1) for row, group in zip(best, groups.values(), strict=True))


def this_machine(device: torch.device, *, batch_size: int, threads: int | None) -> Machine:
    """The machine as it is now; ``threads`` None: as many as torch would use."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else processor_name()
        if device.type == "cpu"
        else ""
    )
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
    return Machine(
        device=device,
        name=name or str(device),
        batch_size=batch_size,
        threads=threads or torch.get_num_threads(),
        load=load,
    )


def measure(
    chosen: Sequence[tuple[ModelRow, int]], machine: Machine, *, emit: Callable[[int, Measured], None]
) -> tuple[Measured, ...]:
    """Time every candidate with random weights (nothing is fetched); what cannot be timed keeps its reason.

    ``emit`` is called after each, with its number from 1.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(machine.threads)
    try:
        done = []
        for number, (row, others) in enumerate(chosen, start=1):
            with keep_generators(), keep_freed_memory():
                done.append(_measure_row(row, others, machine))
            emit(number, done[-1])
        return tuple(done)
    finally:
        torch.set_num_threads(before)


def pareto(points: Sequence[tuple[float, float]]) -> tuple[int | None, ...]:
    """The index, for each (cost, gain), of a point that costs no more and gains no less, and is not equal; else None.

    Where several do, the one with the highest gain, of these the cheapest: nothing beats that one.
    """

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    beaten_by: list[int | None] = []
    for point in points:
        better = [index for index, other in enumerate(points) if beats(other, point)]
        beaten_by.append(max(better, key=lambda index: (points[index][1], -points[index][0]), default=None))
    return tuple(beaten_by)


def verdicts(measured: Sequence[Measured], *, max_latency_ms: float | None) -> tuple[Verdict, ...]:
    """Fastest first: which ones no other beats in latency and published top-1, and why the rest is left out."""
    timed = [each for each in measured if each.latency is not None]
    timed.sort(key=lambda each: each.latency.median_ms if each.latency else 0.0)
    points = {
        each.row.spec: (each.latency.median_ms, each.row.published.top1)
        for each in timed
        if each.latency is not None and each.row.published.top1 is not None
    }
    specs = list(points)
    beaten = dict(zip(specs, pareto(list(points.values())), strict=True))
    found = []
    for each in timed:
        spec, by = each.row.spec, beaten.get(each.row.spec)
        why = ""
        if max_latency_ms is not None and each.latency is not None and each.latency.median_ms > max_latency_ms:
            why = f"slower than {max_latency_ms:g} ms"
        elif spec not in points:
            why = "no published top-1"
        elif by is not None:
            why = f"{specs[by]} is no slower and no less accurate"
        found.append(Verdict(measured=each, best=not why, why=why))
    found += [Verdict(measured=each, best=False, why=each.reason) for each in measured if each.latency is None]
    return tuple(found)


def _measure_row(row: ModelRow, others: int, machine: Machine) -> Measured:
    form = row.preprocess
    shape = (machine.batch_size, form.channels, form.height, form.width)
    try:
        refuse_memory(4 * row.parameters, what=row.spec)
        module = _random(row.spec).eval().to(machine.device)
        latency = time_passes(module, torch.rand(shape, device=machine.device))
    except ModelError as error:
        return Measured(row=row, others=others, latency=None, reason=str(error))
    except MODEL_FAILURES as error:  # the model's own code, or memory for its activations
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        return Measured(row=row, others=others, latency=None, reason=reason)
    return Measured(row=row, others=others, latency=latency)


def _random(spec: str) -> nn.Module:
    """The architecture as its weights need it, with random values: how long a pass takes does not depend on them."""
    parsed = parse_spec(spec)
    assert not isinstance(parsed, HubSpec | FolderSpec), spec
    origin = find_origin(parsed, weights="pretrained", options={})
    return build(origin.architecture, outputs=origin.outputs)


def time_passes(module: nn.Module, images: Tensor) -> Latency:
    """Warm up, then at least 10 passes and 1 second; a model for which this takes 10 seconds stops after 3."""
    with torch.inference_mode():
        timing = time_calls({0: partial(module, images)}, _LOOKS, clock=wall_seconds)[0]
    if timing.failure:
        raise ModelError(timing.failure)
    times = timing.seconds
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return Latency(
        median_ms=1e3 * statistics.median(times), p10_ms=1e3 * tenths[0], p90_ms=1e3 * tenths[-1], repeats=len(times)
    )
