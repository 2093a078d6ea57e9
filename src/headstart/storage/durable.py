"""The only way to write durable files: atomic files and folders, manifests, and the lock on a run.

A file or folder appears whole or not at all: temp on the same file system, fsync, rename, fsync of the parent. A
folder carries a ``MANIFEST.json`` with size and SHA-256 of each file and its own digest, checked before anything in it
is used (safetensors has no checksum of its own).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.errors import StorageError
from headstart.storage.buffers import Content, sha256
from headstart.storage.disk import DISK, Disk, open_plainly
from headstart.wording import option

MANIFEST = "MANIFEST.json"
Stamp = tuple[int, int, int, int]
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TEMP, _OLD = ".new-", ".old-"
_BLOCK = 4096  # what a new folder takes
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, ask for a larger quota",
    errno.EIO: "check the disk, which seems to fail (dmesg says more),",
}
_ORPHANS_SECONDS = 15.0  # loading processes of a killed run hold its lock until they notice, within 5 s


@dataclass(frozen=True, kw_only=True)
class HardLink:
    """A file that is the same as ``like``, which was written before: it becomes one more name of that (a hard link).

    It is written anew, as ``make`` gives it, where the file system has no such names, or ``like`` is gone or is not
    what it was: ``stamp`` is what ``stamp_of`` gave then.
    """

    like: Path
    stamp: Stamp
    sha256: str
    make: Callable[[], Content]

    def __len__(self) -> int:
        return self.stamp[2]

    def __bytes__(self) -> bytes:
        return bytes(self.make())


def stamp_of(path: Path) -> Stamp:
    """The place, number, size and time of a plain file's contents; a further name changes none.  Raises: OSError."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def explain_os_errors(path: Path, *, needed: int = 0, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, an OS error becomes a ``StorageError`` with the path, the bytes ``needed`` and the bytes free.

    ``needed`` is what the whole of the writing takes; the free bytes are counted after ``undo`` removed what was left
    half-done, so that the difference is what has to be freed.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # the first failure is the one to tell
            undo()
        remedy = _REMEDIES.get(error.errno or 0, "check the folder's permissions")
        raise StorageError(
            f"{error.filename or path}: cannot be written: {error.strerror or error} "
            f"({_space(path, needed, error.errno)}); earlier checkpoints are intact; {remedy} or choose another "
            f"folder with {option('out')}"
        ) from error


def _space(path: Path, needed: int, code: int | None) -> str:
    free = free_bytes(path)
    shown = "an unknown number" if free is None else f"{free:,}"
    text = f"{needed:,} bytes needed, {shown} free" if needed else f"{shown} bytes free"
    return f"{text} on the disk, less within your quota" if code == errno.EDQUOT else text


def free_bytes(path: Path) -> int | None:
    """Bytes free where ``path`` is or would be; None where the file system does not say.

    A quota is not seen: the system call knows the file system only.
    """
    for folder in (path, *path.parents):
        with suppress(OSError):  # not there yet, or not to be looked into
            usage = shutil.disk_usage(folder)
            return usage.free if usage.total else None
    return None


def write_file(path: Path, data: bytes, *, disk: Disk = DISK, needed: int = 0) -> None:
    """Write a file so that a crash leaves either the old contents or the new.

    ``needed``: bytes of the whole that it is a part of.  Raises: StorageError.
    """
    temp = path.with_name(_TEMP + path.name)
    with explain_os_errors(path, needed=needed or len(data), undo=lambda: disk.remove(temp)):
        disk.write(temp, data)
        disk.fsync(temp)
        disk.rename(temp, path)
        disk.fsync_dir(path.parent)


def write_chunks(path: Path, chunks: Iterable[bytes], *, disk: Disk = DISK) -> None:
    """Write a file of any length, a chunk at a time, so that a crash leaves either the old contents or the new.

    Raises: StorageError.
    """
    temp = path.with_name(_TEMP + path.name)
    with explain_os_errors(path, undo=lambda: disk.remove(temp)):
        with open(temp, "wb", opener=open_plainly) as file:
            file.writelines(chunks)
        disk.fsync(temp)
        disk.rename(temp, path)
        disk.fsync_dir(path.parent)


def write_json(path: Path, value: object, *, disk: Disk = DISK, needed: int = 0) -> None:
    """Write a file of indented JSON, as ``write_file`` does; NaN is refused (it is not JSON)."""
    write_file(path, json_bytes(value), disk=disk, needed=needed)


def json_bytes(value: object) -> bytes:
    """Indented UTF-8 JSON with a final newline."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogateescape")


def make_folder(path: Path, *, disk: Disk = DISK) -> None:
    """Create a folder and its parents so that they survive a crash.  Raises: StorageError."""
    with explain_os_errors(path, needed=_BLOCK):
        _make_folder(path, disk=disk)


def _make_folder(path: Path, *, disk: Disk) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        disk.mkdir(folder)
        disk.fsync_dir(folder.parent)


def write_folder(path: Path, files: Mapping[str, Content | HardLink], *, disk: Disk = DISK) -> dict[str, str]:
    """Write a folder of files with its manifest, whole or not at all; return the SHA-256 of each.

    A folder at ``path`` is replaced.  Raises: StorageError.
    """
    temp, old = path.with_name(_TEMP + path.name), path.with_name(_OLD + path.name)
    assert all(_is_plain(name) for name in files), list(files)
    needed = sum(map(len, files.values())) + len(
        _manifest({name: (len(data), "0" * 64) for name, data in files.items()})
    )
    with explain_os_errors(path, needed=needed, undo=lambda: _give_up(temp, old, path, disk=disk)):
        _make_folder(path.parent, disk=disk)
        if old.exists():
            _settle(old, path, disk=disk)
        if temp.exists():
            disk.remove(temp)
        hashes = _fill(temp, files, disk=disk)
        if path.exists():
            disk.rename(path, old)
        disk.rename(temp, path)
        disk.fsync_dir(path.parent)
        if old.exists():
            disk.remove(old)
    return hashes


def _fill(temp: Path, files: Mapping[str, Content | HardLink], *, disk: Disk) -> dict[str, str]:
    disk.mkdir(temp)
    entries: dict[str, tuple[int, str]] = {}
    for name, data in files.items():
        if isinstance(data, HardLink) and _link(data, temp / name, disk=disk):
            entries[name] = len(data), data.sha256
            continue
        content = data.make() if isinstance(data, HardLink) else data
        entries[name] = len(content), sha256(content)
        _write(temp / name, content, disk=disk)
    _write(temp / MANIFEST, _manifest(entries), disk=disk)
    disk.fsync_dir(temp)
    return {name: digest for name, (_, digest) in entries.items()}


def _write(path: Path, content: Content, *, disk: Disk) -> None:
    disk.write(path, content)
    disk.fsync(path)


def _link(data: HardLink, target: Path, *, disk: Disk) -> bool:
    try:
        if stamp_of(data.like) != data.stamp:
            return False
        disk.link(data.like, target)
    except OSError:  # gone, or a file system without hard links
        if os.path.lexists(target):  # a network's file system may do it and say otherwise
            disk.remove(target)
        return False
    return True


def _give_up(temp: Path, old: Path, path: Path, *, disk: Disk) -> None:
    """After a failure put back what was moved aside, and remove what was half-done."""
    if old.exists() and not path.exists():
        disk.rename(old, path)
    if temp.exists():
        disk.remove(temp)


def _is_plain(name: str) -> bool:
    """Whether a name cannot lead out of its folder."""
    return bool(_NAME.fullmatch(name)) and name.strip(".") != "" and name != MANIFEST


def _manifest(entries: Mapping[str, tuple[int, str]]) -> bytes:
    """The content of a manifest of these entries, the size and SHA-256 of each file."""
    listed = {name: {"size": size, "sha256": digest} for name, (size, digest) in sorted(entries.items())}
    return json_bytes({"files": listed, "digest": _digest(listed)})


def _digest(entries: object) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def read_folder(path: Path, *, only: str | None = None) -> dict[str, bytes]:
    """All files of a folder written by ``write_folder``, or ``only`` this one where it has it, checked against the
    manifest.

    Raises: StorageError: the folder or a file is missing, damaged, or named in a way that could leave the folder.
    """
    try:
        manifest = json.loads(_bytes_of(path / MANIFEST))
        entries: dict[str, dict[str, Any]] = manifest["files"]
        intact = manifest["digest"] == _digest(entries) and all(_is_plain(name) for name in entries)
        facts = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise StorageError(f"{path / MANIFEST}: not a headstart manifest ({error}); the folder is damaged") from error
    if not intact:
        raise StorageError(
            f"{path / MANIFEST}: does not match its own digest, or names a file outside; the folder is damaged"
        )
    wanted = [name for name in facts if only in (None, name)]
    return {name: _read_checked(path / name, *facts[name]) for name in wanted}


def _read_checked(path: Path, size: int, sha256: str) -> bytes:
    data = _bytes_of(path)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise StorageError(
            f"{path}: {len(data):,} bytes that do not match the manifest ({size:,} bytes, SHA-256 {sha256[:12]}); "
            "damaged"
        )
    return data


def _bytes_of(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=open_plainly) as file:  # Path.open takes no opener
            return file.read()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_file(path: Path) -> bytes:
    """The bytes of a plain file.  Raises: StorageError: it is missing, a link, or cannot be read."""
    return _bytes_of(path)


def open_log(path: Path, *, needed: int) -> int:
    """A descriptor of a run's file, to add lines of about ``needed`` bytes to.  Raises: StorageError."""
    with explain_os_errors(path, needed=needed):
        return open_plainly(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)


def read_text(path: Path) -> str:
    """The text of a run's file; bytes that are not UTF-8 (a file's name) survive.  Raises: StorageError."""
    return _bytes_of(path).decode("utf-8", "surrogateescape")


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects in a file of one JSON object a line, in order, and how many lines hold none.

    A kill may have cut a line short, so that such lines are no error; empty ones are not counted.

    Raises: StorageError: the file is missing or cannot be read.
    """
    objects: list[dict[str, Any]] = []
    unread = 0
    for line in filter(str.strip, read_text(path).split("\n")):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            unread += 1
    return objects, unread


def refuse_links(run: Path, *names: str) -> None:
    """Raises: StorageError: a folder of a run is a link, through which files elsewhere would be changed."""
    for name in names:
        if (run / name).is_symlink():
            raise StorageError(
                f"{run / name}: it is a link, and links in a run folder are not followed; put the folder itself there, "
                "or make the whole run folder a link"
            )


def read_json(path: Path) -> Any:
    """The value in a JSON file.  Raises: StorageError: it is missing, or not JSON."""
    try:
        return json.loads(_bytes_of(path).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: not valid JSON ({error}); the file is damaged") from error


def sweep(folder: Path, *, disk: Disk = DISK) -> None:
    """Finish or undo what a crash left half-done directly in ``folder``; call it only under the run's lock.

    Raises: StorageError.
    """
    with explain_os_errors(folder):
        for left in sorted(folder.glob(_OLD + "*")):
            _settle(left, left.with_name(left.name.removeprefix(_OLD)), disk=disk)
        for left in sorted(folder.glob(_TEMP + "*")):
            disk.remove(left)


def _settle(old: Path, path: Path, *, disk: Disk) -> None:
    """Remove what was moved aside when its successor is in place, else put it back."""
    if path.exists():
        disk.fsync_dir(path.parent)  # a process that was killed may not have got that far
        disk.remove(old)
    else:
        disk.rename(old, path)


@contextmanager
def lock_folder(folder: Path, *, describe: Callable[[], str] = lambda: str(os.getpid())) -> Iterator[None]:
    """Hold the lock on a run folder; the operating system frees it when the process dies.

    Raises: StorageError: another living process holds it (the message names its process id), or the file system has no
    locks.
    """
    make_folder(folder)
    path, owner = folder / ".lock", describe().encode()
    with explain_os_errors(path, needed=len(owner)):
        descriptor = open_plainly(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        _take(descriptor, folder)
        with explain_os_errors(path, needed=len(owner)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner, 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    """Take the lock; wait for the loading processes that a killed run leaves behind."""
    patience = time.monotonic() + _ORPHANS_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 64, 0).decode(errors="replace")  # empty: it has not yet written who it is
            if (owner and _is_alive(owner)) or time.monotonic() > patience:
                raise StorageError(
                    f"{folder}: process {owner or 'unknown'} is using this run; wait for it or choose another "
                    f"{option('out')}"
                ) from error
            time.sleep(0.1)
        except OSError as error:  # ENOLCK, ENOTSUP, ENOSYS: some network file systems
            raise StorageError(
                f"{folder}: its file system cannot lock files ({error.strerror or error}), so two processes could "
                f"write this run at once; choose a folder on a local disk with {option('out')}"
            ) from error


def _is_alive(owner: str) -> bool:
    if not owner.isdecimal():
        return True
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
