"""Where activations and scans are kept between runs, a folder per key, the least recently used first to go.

Nothing here is needed: whatever is removed is computed again by the next run that wants it. What another user could
have written is not read: whoever can write activations chooses what a head learns.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headstart.errors import ConfigError, StorageError
from headstart.storage.durable import free_bytes, read_file, read_json, write_file, write_json
from headstart.storage.record_file import RecordFile, file_bytes
from headstart.wording import option

_KEY = re.compile(r"[0-9a-f]{32}")
_RECORDS, _WHOLE, _ABOUT = "pages", "content", "about.json"
_SCANS, _SHARE_OF_SCANS = "scans", 0.05
_SPARE_BYTES = 1 << 30  # left free on the disk: checkpoints need room, too


def cache_folder() -> Path:
    """HEADSTART_CACHE, or headstart in the user's folder for caches (XDG_CACHE_HOME)."""
    home = os.environ.get("HEADSTART_CACHE")
    if home:
        return Path(os.path.expanduser(home))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "headstart")


def check_cache_folder(*, asked: bool) -> None:
    """Refuse a folder for caches that another user can write, before a run that is to use it begins.

    Where neither the run ``asked`` for a cache nor HEADSTART_CACHE names the folder, the run goes on and does without.

    Raises: ConfigError: it says who can write it, and what to type.
    """
    shared = find_other_writers(cache_folder())
    if shared is not None and (asked or os.environ.get("HEADSTART_CACHE")):
        raise ConfigError(f"HEADSTART_CACHE: {shared}")


def find_other_writers(path: Path) -> str | None:
    """Who but this user and root can write this file or folder, or set a link there, as a sentence with what to type;
    None where nobody can, or nothing is there.
    """
    try:
        found, target = path.lstat(), path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    other = "give HEADSTART_CACHE=FOLDER with a folder of your own"
    ours = os.geteuid()
    for owner in (found.st_uid, target.st_uid):
        if owner not in (ours, 0):
            return f"{path}: it belongs to user {_name_of(owner)}, not to you; {other}"
    if target.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        remedy = f"type chmod -R go-w {shlex.quote(str(path))}, or {other}"
        return f"{path}: other users can write it (mode {stat.S_IMODE(target.st_mode):04o}); {remedy}"
    return None


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:  # of another machine
        return str(user)


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """What is kept under one key. ``about``: facts for people; ``used``: when a run last opened it."""

    key: str
    nbytes: int
    used: datetime
    complete: bool
    in_use: bool
    about: Mapping[str, Any]


class DiskCache:
    """Page files and whole files by key in ``folder``, at most ``limit_bytes`` in all."""

    def __init__(self, folder: Path, *, limit_bytes: int, within: Path | None = None) -> None:
        self._folder, self._limit = folder, limit_bytes
        self._private = (folder,) if within is None else (within, folder)

    def open_records(self, key: str, *, count: int, record_bytes: int, about: Mapping[str, Any]) -> RecordFile:
        """The key's file, new or as an earlier run left it; older ones of other keys make room for it.

        Raises: StorageError: there is no room within the limit or on the disk, it cannot be written, or another user
        can write it.
        """
        assert _KEY.fullmatch(key), key
        place = self._folder / key
        self._make_private(self._folder)
        if not (place / _RECORDS).exists():
            self._make_room(file_bytes(count=count, record_bytes=record_bytes))
        self._make_private(place)
        for path in (place / _RECORDS, place / _ABOUT):
            _refuse_other_writers(path)
        file = RecordFile(place / _RECORDS, count=count, record_bytes=record_bytes, key=key)
        if not self.is_complete(key):
            self._note(key, {**about, "complete": False})
        os.utime(place)
        return file

    def scans(self) -> DiskCache:
        """The cache in this one for what scans found, at most a twentieth of its size."""
        limit = int(self._limit * _SHARE_OF_SCANS)
        return DiskCache(self._folder / _SCANS, limit_bytes=limit, within=self._folder)

    def read_whole(self, key: str) -> bytes | None:
        """What was last written under this key; None where nothing was, or it is damaged, and then it is removed.

        Raises: StorageError: another user can write it.
        """
        assert _KEY.fullmatch(key), key
        place = self._folder / key
        path = place / _WHOLE
        for one in (*self._private, place, path):
            _refuse_other_writers(one)
        try:
            data = read_file(path)
        except StorageError:  # not there, or a bad sector
            return None
        digest, content = data[: hashlib.sha256().digest_size], data[hashlib.sha256().digest_size :]
        if hashlib.sha256(content).digest() != digest:
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(place)
        return content

    def update_whole(self, key: str, change: Callable[[bytes | None], bytes], *, about: Mapping[str, Any]) -> None:
        """Write under this key what ``change`` makes of what is there; others that do the same wait, or write later.

        Raises: StorageError: there is no room within the limit or on the disk, it cannot be written, or another user
        can write it.
        """
        place = self._folder / key
        for folder in (*self._private, place):
            self._make_private(folder)
        with _lock(place):
            content = change(self.read_whole(key))
            self._make_room(len(content), but=key)
            self._make_private(place)
            write_file(place / _WHOLE, hashlib.sha256(content).digest() + content)
            (place / _WHOLE).chmod(0o600)
        self._note(key, {**about, "complete": True})
        os.utime(place)

    def _make_private(self, folder: Path) -> None:
        """Have the folder be there, and nobody else be able to write it."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror or error}") from error
        _refuse_other_writers(folder)

    def is_complete(self, key: str) -> bool:
        """Whether every record of the key was written once (a damaged one is found when it is read)."""
        return self._about(key).get("complete") is True

    def complete(self, key: str, facts: Mapping[str, Any]) -> None:
        """Note that every record of the key is on the disk."""
        self._note(key, {**self._about(key), **facts, "complete": True})

    def _note(self, key: str, about: Mapping[str, Any]) -> None:
        """Write a note for people, and a shortcut for the next run: not needed, and several processes may write it."""
        path = self._folder / key / _ABOUT
        with suppress(StorageError, OSError):
            write_json(path, about)
            path.chmod(0o600)

    def content(self) -> list[CacheEntry]:
        """All entries, the least recently used first."""
        folders = (
            [path for path in self._folder.iterdir() if _KEY.fullmatch(path.name)] if self._folder.is_dir() else []
        )
        return sorted((self._read_entry(path) for path in folders), key=lambda entry: (entry.used, entry.key))

    def remove(self, key: str) -> bool:
        """Remove a key's entry unless a run has it open; return whether it was removed."""
        assert _KEY.fullmatch(key), key
        if _is_open(self._folder / key / _RECORDS):
            return False
        shutil.rmtree(self._folder / key, ignore_errors=True)
        return True

    def _make_room(self, need: int, *, but: str = "") -> None:
        """Remove the least recently used, ``but`` the one that is replaced, until so many bytes have room."""
        entries = [entry for entry in self.content() if entry.key != but]
        total = sum(entry.nbytes for entry in entries)
        free = free_bytes(self._folder)
        for entry in entries:
            short = free is not None and need + _SPARE_BYTES > free
            if (total + need > self._limit or short) and self.remove(entry.key):
                total -= entry.nbytes
                free = free_bytes(self._folder)
        if total + need > self._limit:
            raise StorageError(
                f"{self._folder}: {need:,} bytes needed, {max(0, self._limit - total):,} left of the limit; give a "
                f"larger {option('cache.limit_gb')}"
            )
        if free is not None and need + _SPARE_BYTES > free:
            raise StorageError(f"{self._folder}: {need + _SPARE_BYTES:,} bytes needed, {free:,} free on the disk")

    def _read_entry(self, path: Path) -> CacheEntry:
        about = self._about(path.name)
        records = path / _RECORDS
        sizes = [file.stat().st_size for file in (records, path / _WHOLE) if file.exists()]
        return CacheEntry(
            key=path.name, nbytes=sum(sizes),
            used=datetime.fromtimestamp(path.stat().st_mtime, UTC), complete=about.get("complete") is True,
            in_use=_is_open(records), about=about,
        )  # fmt: skip

    def _about(self, key: str) -> dict[str, Any]:
        try:
            about = read_json(self._folder / key / _ABOUT)
        except StorageError:  # not there, or damaged: then not complete
            return {}
        return about if isinstance(about, dict) else {}


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, where its file system has locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}") from error
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_other_writers(path: Path) -> None:
    shared = find_other_writers(path)
    if shared is not None:
        raise StorageError(shared)


def _is_open(records: Path) -> bool:
    """Whether a living process has it open: each holds a shared lock."""
    try:
        descriptor = os.open(records, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False
