"""Loading processes: room for them is checked before the start, and what torch says of their end is explained."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import headstart as hs
from headstart.data.workers import check_room, explain_deaths, stay_with
from headstart.errors import ConfigError, RunError


@pytest.fixture
def few_files() -> Iterator[None]:
    """80 more files may be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 80, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_open_files_are_named_before_anything_is_trained(settings, few_files, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"16 loading processes need about \d+ open files, \d+ are allowed; give"):
        hs.train(hs.load_config(settings(workers=16)))
    assert not (tmp_path / "run").exists()
    hs.plan(hs.load_config(settings(workers=2)))


def test_the_number_of_workers_that_is_proposed_has_room(few_files) -> None:
    with pytest.raises(ConfigError) as refused:
        check_room(workers=16, batch_bytes=1)
    fit = int(str(refused.value).partition("--workers ")[2].partition(",")[0])
    check_room(workers=fit, batch_bytes=1)
    with pytest.raises(ConfigError):
        check_room(workers=fit + 2, batch_bytes=1)


def test_shared_memory_that_cannot_hold_the_batches_is_named_with_what_fits(tmp_path) -> None:
    room = os.statvfs(tmp_path)
    free = room.f_bavail * room.f_frsize
    with pytest.raises(
        ConfigError, match=r"4 loading processes need .* MiB of shared memory, .* are free in"
    ) as refused:
        check_room(workers=4, batch_bytes=free // 8, shared=tmp_path)
    assert "give --workers 3, a smaller --batch-size, or in a container --shm-size=4g" in str(refused.value)
    check_room(workers=3, batch_bytes=free // 8, shared=tmp_path)
    check_room(workers=0, batch_bytes=free * 2, shared=tmp_path)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "the system was out of memory"),
        ("DataLoader worker (pid(s) 12) exited unexpectedly", "the system was out of memory"),
        ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that ...", "shared memory"),
        ("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\nRuntimeError: unable to write to "
         "file </torch_1>: No space left on device (28)", "shared memory"),
        ("Caught OSError in DataLoader worker process 0.\nOSError: [Errno 24] Too many open files", "too many files"),
        ("received 0 items of ancdata", "too many files"),
    ],
)  # fmt: skip
def test_what_torch_says_of_a_dead_worker_becomes_cause_and_remedy(said: str, cause: str) -> None:
    with pytest.raises(RunError, match=rf"died; usually {cause}.*--workers.*--resume") as found, explain_deaths():
        raise RuntimeError(said)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("said", ["mat1 and mat2 shapes cannot be multiplied", "kernel: out of shared memory"])
def test_an_error_of_the_model_is_left_as_it_is(said: str) -> None:
    with pytest.raises(RuntimeError, match=said), explain_deaths():
        raise RuntimeError(said)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_death_in_the_middle_of_handing_over_is_explained_too(error) -> None:
    said = "a process that loads images died; usually the system was out of memory"
    with pytest.raises(RunError, match=said), explain_deaths():
        raise error


def test_a_loading_process_that_is_left_does_not_keep_the_run_from_ending() -> None:
    """Python waits at its end for processes that it started, and these do not heed SIGTERM."""
    deferred = multiprocessing.get_context("fork").Process(target=_deaf, daemon=True)
    with pytest.raises(RunError, match="died"), explain_deaths():
        deferred.start()
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
    deferred.join(timeout=30)
    assert deferred.exitcode == -signal.SIGKILL


def _deaf() -> None:
    stay_with(os.getppid())
    time.sleep(600)
