"""A sequence of checkpoint saves as its operations, and what must hold after any crash among them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from headstart.errors import StorageError
from headstart.runs.checkpoint import read_checkpoint, save
from headstart.storage.disk import DISK
from headstart.storage.durable import make_folder, read_folder, sweep, write_json
from headstart.training.state import Best, TrainState
from tests.reliability.crashes import (
    Operation,
    Recorder,
    Tree,
    crash_disks,
    crashed_after_every_operation,
    killed_after_every_operation,
    lay_out,
)

Place = tuple[int, int]  # step, epochs done
NOTHING: Place = (-1, -1)
SHORT = ((1, 0, False), (2, 0, False), (2, 1, True), (3, 1, False), (4, 2, True))  # step, epochs, is the best so far
LONG = (*SHORT, (5, 2, False), (6, 2, False), (7, 2, False), (7, 3, False), (8, 3, False), (9, 4, True), (10, 4, False))
SYNCS = ("fsync", "fsync_dir", "rename")


@dataclass(frozen=True)
class Saves:
    """What was done, what each save held, and the acknowledged place after so many operations."""

    root: Path
    done: list[Operation]
    files: Mapping[Place, Mapping[str, bytes]]
    best: Mapping[Place, int]
    acknowledged: Mapping[int, Place]

    def acknowledged_at(self, count: int) -> Place:
        """The newest place whose save had returned."""
        return self.acknowledged[max(number for number in self.acknowledged if number <= count)]


def small_state(*, freezes: bool = False) -> TrainState:
    """A model and an optimizer of a few hundred bytes; half of it frozen, or none."""
    model: nn.Module = nn.Linear(2, 2)
    if freezes:
        model = nn.Sequential(model, nn.Linear(2, 2).requires_grad_(False))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return TrainState(model, torch.optim.SGD(trained, lr=0.1, momentum=0.9))


def move(state: TrainState, step: int, epochs: int, *, is_best: bool) -> None:
    """The state as it is at another place: no two places have equal bytes."""
    with torch.no_grad():
        for parameter in state.optimizer.param_groups[0]["params"]:
            parameter.fill_(step + epochs / 16)
            state.optimizer.state[parameter]["momentum_buffer"] = parameter.detach() * 3
    state.step, state.epochs_done = step, epochs
    if is_best:
        state.best = Best(score=(float(step),), step=step, epoch=epochs, weights="trained")


def record(root: Path, plan: Sequence[tuple[int, int, bool]], *, keep: int = 2, freezes: bool = False) -> Saves:
    """The saves, made by ``headstart.runs.checkpoint.save`` on real files."""
    state, disk = small_state(freezes=freezes), Recorder()
    acknowledged, files, best = {0: NOTHING}, {}, {}
    root.mkdir()
    for step, epochs, is_best in plan:
        move(state, step, epochs, is_best=is_best)
        folder = save(state, root / "checkpoints", keep=keep, disk=disk)
        acknowledged[len(disk.done)] = (step, epochs)
        files[step, epochs] = read_folder(folder)
        best[step, epochs] = state.best.step if state.best else -1
    return Saves(root, disk.done, files, best, acknowledged)


def kinds(done: Sequence[Operation]) -> dict[str, list[int]]:
    """The places of each kind of fsync, fsync_dir and rename, told apart by the names before and in it."""
    found: dict[str, list[int]] = {}
    for place, operation in enumerate(done):
        name, _ = operation
        if name in SYNCS:
            before = f" after {_role(done[place - 1])}" if name == "fsync_dir" else ""
            found.setdefault(f"{_role(operation)}{before}", []).append(place)
    return found


def _role(operation: Operation) -> str:
    name, arguments = operation
    shown = [argument.name.rstrip("0123456789") for argument in arguments if isinstance(argument, Path)]
    return f"{name}({', '.join(shown)})"


def complaint(tree: Tree, saves: Saves, acknowledged: Place, where: Path, draw: random.Random) -> str | None:
    """What is lost or wrong on this disk after the next start has swept it (and been killed in that once)."""
    lay_out(tree, where)
    folder = where / "checkpoints"
    try:
        if folder.exists():
            sweep(folder, disk=Mortal(draw.randrange(5)))
            sweep(folder)
        return _complaint(folder, saves, acknowledged)
    except StorageError as error:
        return f"cannot be started: {error}"
    finally:
        shutil.rmtree(where)


class Mortal:
    """A disk that after some operations does nothing any more, as a process that was killed."""

    def __init__(self, life: int) -> None:
        self._life = life

    def __getattr__(self, name: str) -> Callable[..., None]:
        def operation(*arguments: object) -> None:
            self._life -= 1
            if self._life >= 0 and name not in ("fsync", "fsync_dir"):
                getattr(DISK, name)(*arguments)

        return operation


def _complaint(folder: Path, saves: Saves, acknowledged: Place) -> str | None:
    found = read_checkpoint(folder)
    place = (found.counters["step"], found.counters["epochs_done"]) if found else NOTHING
    if place < acknowledged:
        return f"lost: {acknowledged} was acknowledged, {place} is read"
    if found is None:
        return None
    if found.skipped or found.files != saves.files.get(place):
        return f"wrong: {place} is read with other contents, or {found.skipped} were seen half"
    best = saves.best[place]
    if best > 0 and read_folder(folder / f"step-{best:08d}") not in saves.files.values():
        return f"wrong: the best, step {best}, has other contents"
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return f"left over: {left}" if left else _pointers(folder, saves, acknowledged)


def _pointers(folder: Path, saves: Saves, acknowledged: Place) -> str | None:
    for name, least in (("last", acknowledged[0]), ("best", saves.best.get(acknowledged, -1))):
        path = folder / f"{name}.json"
        try:
            step = json.loads(path.read_text())["step"] if path.exists() else -1
        except ValueError:
            return f"wrong: {path.name} is no JSON"
        if step < least:
            return f"stale: {path.name} says {step}, acknowledged is {least}"
    return None


def complaints(
    saves: Saves, work: Path, *, disks: int, seed: int, done: list[Operation] | None = None
) -> Iterator[str]:
    """One line per crash state, empty where nothing is lost and nothing wrong.

    ``done``: operations to play instead of all; states that were seen with the same promise are not looked at twice.
    """
    played = saves.done if done is None else done
    promised = [saves.acknowledged_at(count) for count in range(len(saves.done) + 1)]
    if len(played) != len(saves.done):
        kept = [place for place, operation in enumerate(saves.done) if any(operation is one for one in played)]
        promised = [promised[0], *(promised[place + 1] for place in kept)]
    draw, seen = random.Random(seed), {}
    for count, tree in crashed_after_every_operation(played, saves.root, disks=disks, draw=draw):
        key = (repr(tree), promised[count])
        if key not in seen:
            seen[key] = complaint(tree, saves, promised[count], work / "disk", draw) or ""
        yield seen[key]


def complaints_of_second_lives(saves: Saves, work: Path, *, cuts: int | None, seed: int) -> Iterator[str]:
    """As ``complaints``: killed anywhere, started again, swept, saved once more, and in that the power went.

    ``cuts``: so many drawn places in the second life besides its end; None: every one; six disks each.
    """
    draw, last, known = random.Random(seed), (99, 99), dict(saves.files)
    for count, memory, tree in killed_after_every_operation(saves.done, saves.root):
        ops, known[last] = _second_life(tree, work / "second", saves.root, last)
        both = Saves(saves.root, [], known, {**saves.best, last: last[0]}, {})
        struck = range(len(ops)) if cuts is None else draw.sample(range(len(ops)), cuts)
        for done in range(len(ops) + 1):
            if done:
                memory.play(ops[done - 1])
            promised = last if done == len(ops) else saves.acknowledged_at(count)
            for cut in crash_disks(memory, draw, count=6) if done in struck or done == len(ops) else ():
                yield complaint(cut, both, promised, work / "disk", draw) or ""


def _second_life(tree: Tree, root: Path, as_if: Path, place: Place) -> tuple[list[Operation], dict[str, bytes]]:
    """What the next process does, as ``headstart.runs.folder.record_start`` begins it, and what it saves."""
    state, disk = small_state(), Recorder()
    lay_out(tree, root)
    make_folder(root / "checkpoints", disk=disk)
    sweep(root / "checkpoints", disk=disk)
    write_json(root / "plan.json", {}, disk=disk)
    move(state, *place, is_best=True)
    files = read_folder(save(state, root / "checkpoints", disk=disk))
    shutil.rmtree(root)
    return [(name, tuple(_moved(one, root, as_if) for one in arguments)) for name, arguments in disk.done], files


def _moved(argument: object, old: Path, new: Path) -> object:
    return new / argument.relative_to(old) if isinstance(argument, Path) else argument


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small trees are laid out in it."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)
