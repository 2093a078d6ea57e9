"""A disk that fails at one operation of a save, and what must hold then: nothing harmed, and the reason said."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import StorageError
from headstart.runs.checkpoint import read_checkpoint, save
from headstart.storage.buffers import Buffers
from headstart.storage.disk import DISK
from headstart.storage.durable import read_folder, sweep
from tests.reliability.crashes import Recorder
from tests.reliability.saves import SHORT, Place, move, small_state

CODES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT)
_GIVES_WAY = (errno.ENOSPC, errno.EDQUOT)  # from a full disk something can still be removed
_SPACE = re.compile(r"\(([\d,]+) bytes needed, [\d,]+ free")


class Broken:
    """A disk whose operation number ``place`` is half done and fails; a disk that is only full still removes."""

    def __init__(self, place: int, code: int) -> None:
        self._left, self._code = place, code
        self.failed: tuple[str, Path] | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        def operation(*arguments: object) -> None:
            self._left -= 1
            if self._left < 0 and not (self.failed and name == "remove" and self._code in _GIVES_WAY):
                path = arguments[-1] if name == "rename" else arguments[0]
                assert isinstance(path, Path)
                self.failed = self.failed or (name, path)
                _half(name, arguments)
                raise OSError(self._code, os.strerror(self._code), str(path))
            if name not in ("fsync", "fsync_dir"):
                getattr(DISK, name)(*arguments)

        return operation


def _half(name: str, arguments: tuple[object, ...]) -> None:
    path = arguments[0]
    assert isinstance(path, Path)
    if name == "write":
        data = arguments[1]
        assert isinstance(data, bytes | Buffers)
        data = bytes(data)
        path.write_bytes(data[: len(data) // 2])
    elif name == "remove" and path.is_dir():
        next(path.iterdir()).unlink()


@dataclass(frozen=True)
class Case:
    """The save number ``save`` of ``saves.SHORT``, at its operation number ``place``, fails with ``code``."""

    save: int
    place: int
    code: int


def cases(work: Path) -> Iterator[Case]:
    """Every operation of every save, with each of the four errors."""
    for number in range(len(SHORT)):
        disk = Recorder()
        _saved(work / f"dry{number}", number)
        _save(work / f"dry{number}", number, disk)
        yield from (Case(number, place, code) for place in range(len(disk.done)) for code in CODES)


def _saved(root: Path, count: int) -> None:
    root.mkdir()
    for number in range(count):
        _save(root, number, Recorder())


def _save(root: Path, number: int, disk: object) -> int:
    """Make one save; the bytes that it holds at least."""
    state = small_state()
    for step, epochs, is_best in SHORT[: number + 1]:
        move(state, step, epochs, is_best=is_best)
    folder = save(state, root / "checkpoints", keep=2, disk=disk)  # type: ignore[arg-type]
    return sum(map(len, read_folder(folder).values()))


def complaint(case: Case, work: Path) -> str | None:
    """What is harmed or not said in this case."""
    before, root = work / f"before{case.save}", work / "run"
    if not before.exists():
        _saved(before, case.save)
    shutil.copytree(before, root)
    disk = Broken(case.place, case.code)
    try:
        _save(root, case.save, disk)
    except StorageError as error:
        return _harm(case, root) or _unsaid(error, disk, _save(root, case.save, Recorder())) or _read(case, root, 1)
    finally:
        shutil.rmtree(root)
    return "the save did not fail"


def _harm(case: Case, root: Path) -> str | None:
    """Read by a process that does not sweep, and by one that does."""
    folder = root / "checkpoints"
    for swept in (False, True):
        if swept and folder.exists():
            sweep(folder)
        elif any(folder.glob(".old-*")):  # a disk that refuses every rename: the next start puts it back
            continue
        wrong = _read(case, root, 0)
        if wrong:
            return f"{wrong}{' after the next start' if swept else ''}"
    left = [path.name for path in folder.glob(".*")]
    return f"left over: {left}" if left else None


def _read(case: Case, root: Path, done: int) -> str | None:
    """Whether the place before the failed save, or its own, is read."""
    accepted: list[Place] = [(step, epochs) for step, epochs, _ in SHORT[: case.save + 1]][-2 + done :]
    found = read_checkpoint(root / "checkpoints")
    if found is None:
        return None if case.save == 0 and not done else "no checkpoint is read"
    place = (found.counters["step"], found.counters["epochs_done"])
    return None if place in accepted and not found.skipped else f"{place} is read, skipped {found.skipped}"


def _unsaid(error: StorageError, disk: Broken, needed: int) -> str | None:
    said = _SPACE.search(str(error))
    assert disk.failed is not None
    if error.exit_code != 4 or not str(error).startswith(f"{disk.failed[1]}: cannot be written"):
        return f"not the path {disk.failed[1]}: {error}"
    enough = said is not None and int(said[1].replace(",", "")) >= needed
    return None if enough else f"not the {needed} bytes that are needed: {error}"
