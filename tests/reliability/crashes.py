"""Every state in which a power cut can leave a disk, after SQLite's manner: no kill is needed, and nothing is left out.

The operations of a real sequence are recorded, and played to a disk in memory that knows what has been synced. After
any of them a power cut may leave: of a file's contents that were not synced, nothing, zeros, a part or all; of a
folder's names (made, renamed, removed) that were not synced, any first part of them. Every file and every folder
decides for itself, which is more than the journals of real file systems allow.
"""

from __future__ import annotations

import copy
import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from headstart.storage.buffers import Buffers
from headstart.storage.disk import DISK

Operation = tuple[str, tuple[object, ...]]
Tree = dict[str, "bytes | Tree"]


class Recorder:
    """A disk that does everything and writes it down; it waits for the hardware only if told to."""

    def __init__(self, *, sync: bool = False) -> None:
        self.done: list[Operation] = []
        self._sync = sync

    def __getattr__(self, name: str) -> Callable[..., None]:
        def operation(*arguments: object) -> None:
            kept = tuple(bytes(one) if isinstance(one, Buffers) else one for one in arguments)  # tensors go on changing
            self.done.append((name, kept))
            if self._sync or name not in ("fsync", "fsync_dir"):
                getattr(DISK, name)(*arguments)

        return operation


@dataclass(eq=False)
class File:
    """Contents, and whether they are safe."""

    data: bytes
    synced: bool = False


@dataclass(eq=False)
class Folder:
    """Names that are safe, and the changes to them that are not yet, in their order."""

    safe: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[tuple[str, str, File | Folder | str | None]] = field(default_factory=list)

    def after(self, count: int) -> dict[str, File | Folder]:
        """The names when the first ``count`` changes have reached the disk."""
        names = dict(self.safe)
        for kind, name, value in self.pending[:count]:
            if kind == "link":
                assert isinstance(value, File | Folder)
                names[name] = value
            elif kind == "unlink":
                names.pop(name, None)
            elif name in names:
                assert isinstance(value, str)
                names[value] = names.pop(name)
        return names

    def now(self) -> dict[str, File | Folder]:
        """The names as the running system sees them."""
        return self.after(len(self.pending))


class MemoryDisk:
    """The seven operations in memory, under ``root``."""

    def __init__(self, root: Path) -> None:
        self._at, self.root = root, Folder()

    def play(self, operation: Operation) -> None:
        """Do one operation."""
        name, arguments = operation
        getattr(self, name)(*arguments)

    def write(self, path: Path, data: bytes) -> None:
        """See ``headstart.storage.disk.Disk``."""
        folder = self._folder(path.parent)
        found = folder.now().get(path.name)
        if isinstance(found, File):
            found.data, found.synced = data, False
        else:
            folder.pending.append(("link", path.name, File(data)))

    def fsync(self, path: Path) -> None:
        """See ``Disk``."""
        found = self._folder(path.parent).now()[path.name]
        assert isinstance(found, File)
        found.synced = True

    def fsync_dir(self, path: Path) -> None:
        """See ``Disk``."""
        folder = self._folder(path)
        folder.safe, folder.pending = folder.now(), []

    def rename(self, source: Path, target: Path) -> None:
        """See ``Disk``."""
        assert source.parent == target.parent, (source, target)
        folder = self._folder(source.parent)
        names = folder.now()
        old = names.get(target.name)
        if source.name not in names or (isinstance(old, Folder) and old.now()):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(target))
        folder.pending.append(("rename", source.name, target.name))

    def link(self, source: Path, target: Path) -> None:
        """See ``Disk``."""
        found = self._folder(source.parent).now()[source.name]
        assert isinstance(found, File)
        self._folder(target.parent).pending.append(("link", target.name, found))

    def mkdir(self, path: Path) -> None:
        """See ``Disk``."""
        folder = self._folder(path.parent)
        if path.name not in folder.now():
            folder.pending.append(("link", path.name, Folder()))

    def remove(self, path: Path) -> None:
        """See ``Disk``; a folder goes name by name, from within."""
        folder = self._folder(path.parent)
        found = folder.now().get(path.name)
        if isinstance(found, Folder):
            for name in found.now():
                self.remove(path / name)
        folder.pending.append(("unlink", path.name, None))

    def _folder(self, path: Path) -> Folder:
        found: File | Folder = self.root
        for part in PurePosixPath(path.relative_to(self._at)).parts:
            assert isinstance(found, Folder)
            found = found.now()[part]
        assert isinstance(found, Folder)
        return found


def after_power_cut(folder: Folder, draw: random.Random, *, mercy: float) -> Tree:
    """What a power cut leaves; ``mercy`` 1: everything, 0: only what was synced, between: each its own chance."""
    left: Tree = {}
    for name, found in folder.after(_reached(len(folder.pending), draw, mercy)).items():
        if isinstance(found, Folder):
            left[name] = after_power_cut(found, draw, mercy=mercy)
        elif found.synced or draw.random() < mercy:
            left[name] = found.data
        else:
            part = draw.randrange(len(found.data) + 1)
            left[name] = draw.choice([b"", bytes(len(found.data)), found.data[:part]])
    return left


def _reached(count: int, draw: random.Random, mercy: float) -> int:
    return count if mercy == 1 else 0 if mercy == 0 else draw.randint(0, count)


def crash_disks(disk: MemoryDisk, draw: random.Random, *, count: int) -> Iterator[Tree]:
    """So many disks: with everything, with nothing that was not synced, names without contents, and drawn ones."""
    yield after_power_cut(disk.root, draw, mercy=1.0)
    yield after_power_cut(disk.root, draw, mercy=0.0)
    yield _names_without_contents(disk.root)
    for _ in range(count - 3):
        yield after_power_cut(disk.root, draw, mercy=draw.choice([0.1, 0.5, 0.9]))


def _names_without_contents(folder: Folder) -> Tree:
    return {
        name: _names_without_contents(found) if isinstance(found, Folder) else found.data if found.synced else b""
        for name, found in folder.now().items()
    }


def lay_out(tree: Tree, root: Path) -> None:
    """The tree as real files."""
    root.mkdir()
    for name, value in tree.items():
        if isinstance(value, bytes):
            (root / name).write_bytes(value)
        else:
            lay_out(value, root / name)


def crashed_after_every_operation(
    done: list[Operation], root: Path, *, disks: int, draw: random.Random
) -> Iterator[tuple[int, Tree]]:
    """(operations done, what is left) for every prefix and ``disks`` power cuts each."""
    memory = MemoryDisk(root)
    for count in range(len(done) + 1):
        if count:
            memory.play(done[count - 1])
        for tree in crash_disks(memory, draw, count=disks):
            yield count, tree


def killed_after_every_operation(done: list[Operation], root: Path) -> Iterator[tuple[int, MemoryDisk, Tree]]:
    """(operations done, the disk, what the next process sees): the process is gone, the machine is not."""
    memory = MemoryDisk(root)
    for count in range(len(done) + 1):
        if count:
            memory.play(done[count - 1])
        yield count, copy.deepcopy(memory), after_power_cut(memory.root, random.Random(0), mercy=1.0)
