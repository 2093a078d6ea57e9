"""Loading processes: is there room for them; they leave signals to the run and die with it; a death is explained."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.process
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headstart.errors import ConfigError, RunError
from headstart.wording import option, switch

_SHARED = Path("/dev/shm")  # where torch passes tensors between processes
_PREFETCHED = 2  # batches that each process holds ready: torch's DataLoader(prefetch_factor)
_FILES_EACH = 12  # descriptors of one process here: queues and events (8 counted), a batch each that is ready or read
_FILES_SPARE = 32
_ENDING_SECONDS = 5.0  # a killed process is gone in milliseconds
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_DEATH = "DataLoader worker"  # in every message of torch about a loading process
_HANDING_OVER = ("</torch_", "ancdata")  # in those about what it hands over: a shared memory object, a file descriptor


def stay_with(parent: int) -> None:
    """Make a loading process leave signals to the run (a terminal sends Ctrl-C to all), and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


@contextmanager
def explain_deaths() -> Iterator[None]:
    """Within, the death of a loading process (torch raises it wherever the program is) becomes a ``RunError``."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: in the middle of handing over a batch
        text = str(error) or type(error).__name__
        if isinstance(error, RuntimeError) and not any(words in text for words in (_DEATH, *_HANDING_OVER)):
            raise
        _end(multiprocessing.active_children())
        what = next((line for line in text.splitlines() if _DEATH in line), text.splitlines()[-1]).strip()
        cause, remedy = _explain(text)
        raise RunError(
            f"a process that loads images died; usually {cause}: {remedy}; then {switch('resume')} goes on from the "
            f"last checkpoint ({what[:160]})"
        ) from error


def _explain(text: str) -> tuple[str, str]:
    """What usually is behind a message of torch, and what helps."""
    fewer = f"fewer {option('workers')}"
    if any(words in text for words in ("Too many open files", "ancdata")):
        return "too many files are open", f"ulimit -n 65536 before the start, or {fewer}"
    if any(words in text for words in ("Bus error", "shared memory", "No space left")):
        return "shared memory (/dev/shm) is full", f"{fewer}, or in a container --shm-size=4g"
    return "the system was out of memory", f"{fewer} (0: none), or a smaller {option('batch_size')}"


@contextmanager
def kill_workers_left_over() -> Iterator[None]:
    """Within, loading processes that are begun are killed where the block is left before its end: they may be in the
    middle of a decoder's call, for which torch would wait 5 s.
    """
    before, done = set(multiprocessing.active_children()), False
    try:
        yield
        done = True
    finally:
        if not done:
            _end([process for process in multiprocessing.active_children() if process not in before])


def _end(left: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Kill these and wait for them: one that was only just forked would not heed SIGTERM, and Python waits for it when
    it ends. torch's handler, which raises at the end of any of them, does not hear of it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main else None
    for process in left:
        process.kill()
    for process in left:
        process.join(_ENDING_SECONDS)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


def check_room(*, workers: int, batch_bytes: int, shared: Path = _SHARED) -> None:
    """Whether so many processes can hand over batches of that size: shared memory, and open files.

    Raises: ConfigError: they cannot; it names need, room and remedy.
    """
    if workers == 0:
        return
    need = (workers * _PREFETCHED + 1) * batch_bytes
    if shared.is_dir():
        room = os.statvfs(shared)
        free = room.f_bavail * room.f_frsize
        if need > free:
            fit = max(0, (free // batch_bytes - 1) // _PREFETCHED)
            raise ConfigError(
                f"workers: {workers} loading processes need {_mib(need)} of shared memory, {_mib(free)} are free in "
                f"{shared}; give {option('workers', fit)}, a smaller {option('batch_size')}, or in a container "
                "--shm-size=4g"
            )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = _open_files() + workers * _FILES_EACH + _FILES_SPARE
    if limit != resource.RLIM_INFINITY and files > limit:
        fit = max(0, workers - -(-(files - limit) // _FILES_EACH))
        raise ConfigError(
            f"workers: {workers} loading processes need about {files} open files, {limit} are allowed; give "
            f"{option('workers', fit)}, or raise the limit with ulimit -n {max(4096, files)} before the start"
        )


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 32


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
