"""Whether a run fits on the disk: the most that its folder will hold, against the bytes that are free.

Every checkpoint's size is known before the first step: the optimizer is tried on one parameter of each shape. A quota
is not seen (the operating system tells of the file system only), nor what other programs will write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from headstart.config.schema import Checkpoint, Optimizer
from headstart.errors import StorageError
from headstart.optim.optimizers import make_optimizer
from headstart.planning.preflight import Prepared
from headstart.storage.durable import free_bytes, json_bytes
from headstart.surgery.own_state import read_own_state, read_saved_tensors
from headstart.training.phases import PhasePlan, freeze_phase, phase_optimizer
from headstart.wording import option

_PER_TENSOR = 96  # its line in the header of a safetensors file, besides its name
_PER_STEP, _PER_EPOCH = 300, 1000  # lines of events.jsonl, metrics.csv, log.txt
_PER_GROUP, _PER_OUTPUT, _PER_NAME = 400, 40, 16
_REST = 512 << 10  # the report with its pictures, and what twenty small files take in blocks


@dataclass(frozen=True, kw_only=True)
class Space:
    """The most bytes that the run folder will hold, and of what."""

    peak: int
    checkpoint: int
    bundle: int
    rest: int


def refuse_small_disk(run: Path, prepared: Prepared) -> None:
    """Refuse a run that will not fit; what is in its folder already counts as free, for it will be replaced.

    Raises: StorageError: bytes needed, bytes free, and what to do.
    """
    free = free_bytes(run)
    if free is None:
        return
    space = run_space(prepared)
    needed = space.peak - _size(run)
    if needed > free:
        raise StorageError(
            f"{run}: too little space for this run: {needed:,} bytes needed, {free:,} free; a checkpoint takes "
            f"{space.checkpoint:,}, of which {prepared.config.checkpoint.keep} and the best stay while the next is "
            f"written, and the model {space.bundle:,}; nothing was written; free some space, keep fewer checkpoints "
            f"({option('checkpoint.keep', 1)}) or choose another folder with {option('out')}"
        )


def run_space(prepared: Prepared) -> Space:
    """What the run will hold at most, if every save that may come does come."""
    config, module, training_plan = prepared.config, prepared.opened.module, prepared.training_plan
    own = read_own_state(module)
    model = _count_stored_bytes(read_saved_tensors(module) | own.tensors) + len(json_bytes(own.values))
    copies = 1 + (config.average.kind == "ema") + (config.penalties.l2_start > 0)
    steps = len(prepared.images.train)
    checkpoints: list[int] = []
    for phase in training_plan.phases:
        size = copies * model + _optimizer_size(module, phase, training_plan.optimizer)
        checkpoints += [size] * _saves(phase.epochs, steps, config.checkpoint)
    samples, epochs = prepared.images.val.samples, sum(phase.epochs for phase in training_plan.phases)
    rows = sum(len(sample.key) + _PER_OUTPUT * (1 + prepared.images.task.num_outputs) for sample in samples)
    rest = _REST + 2 * len(json_bytes(prepared.document)) + rows + epochs * (steps * _PER_STEP + _PER_EPOCH)
    return Space(
        peak=_peak(checkpoints, keep=config.checkpoint.keep, bundle=model) + rest,
        checkpoint=max(checkpoints), bundle=model, rest=rest,
    )  # fmt: skip


def _saves(epochs: int, steps: int, rules: Checkpoint) -> int:
    """How many saves a phase may have, as far as more of them would take more space."""
    every = 1 if rules.every_seconds else rules.every_steps
    return min(epochs + (epochs * steps // every if every else 0), rules.keep + 2)


def _peak(sizes: list[int], *, keep: int, bundle: int) -> int:
    """The most at one time: while a checkpoint is written all that stay are there, and the best may be an old one."""
    most = 0
    for place, size in enumerate(sizes):
        first = max(0, place - keep)
        most = max(most, size + sum(sizes[first:place]) + max(sizes[:first], default=0))
    return max(most, sum(sizes[-keep:]) + max(sizes[:-keep], default=0) + bundle)


def _count_stored_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes + len(name) + _PER_TENSOR for name, tensor in tensors.items())


def _optimizer_size(module: nn.Module, phase: PhasePlan, options: Optimizer) -> int:
    """Bytes of the optimizer's state in a phase, and of state.json's part about it."""
    freeze_phase(module, phase)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    tried: dict[tuple[int, torch.Size, torch.dtype], Mapping[str, object]] = {}
    size = 0
    for number, group in enumerate(phase_optimizer(module, phase, options).param_groups):
        for parameter in group["params"]:
            key = (number, parameter.shape, parameter.dtype)
            if key not in tried:
                tried[key] = _make_state_of(parameter, group, options)
            size += _state_size(names[id(parameter)], tried[key].items()) + len(names[id(parameter)]) + _PER_NAME
        size += _PER_GROUP
    return size


def _make_state_of(parameter: Tensor, group: Mapping[str, object], options: Optimizer) -> Mapping[str, object]:
    """What the optimizer keeps of a parameter of this shape after a step."""
    stand_in = torch.zeros(parameter.shape, dtype=parameter.dtype, requires_grad=True)
    stand_in.grad = torch.zeros_like(stand_in)
    alone = {name: value for name, value in group.items() if name != "names"} | {"params": [stand_in]}
    optimizer = make_optimizer([alone], options)
    optimizer.step()
    return dict(optimizer.state[stand_in])


def _state_size(name: str, kept: Iterable[tuple[str, object]]) -> int:
    return sum(
        len(name) + len(key) + _PER_TENSOR + (value.nbytes if isinstance(value, Tensor) else 0) for key, value in kept
    )


def _size(folder: Path) -> int:
    found = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return sum({(one.st_dev, one.st_ino): one.st_size for one in found}.values())  # checkpoints share frozen tensors
