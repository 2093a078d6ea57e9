"""The group of a run's processes: joined, left, and how one that is lost gets named.

headstart joins the group that the environment describes, or takes the one that is there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from headstart.distributed.collectives import count_messages
from headstart.distributed.heartbeat import Heartbeat
from headstart.distributed.processes import Processes, current, in_environment
from headstart.errors import ConfigError, Error, Interrupted, OthersFailed, RunError
from headstart.wording import option

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
_UNEVEN_WORK = timedelta(days=7)
"""How long torch may wait for a message: heartbeats find who has stopped, and who only works on is waited for."""
_LOST = ("/gloo/", "gloo::", "nccl", "connection reset by peer", "connection closed by peer", "tcpstore")  # of torch


@contextmanager
def join_group(device: torch.device, *, timeout_seconds: float) -> Iterator[Processes]:
    """The group that the environment describes, joined and left; the one that is there already; or alone.

    Within, an error of one rank ends all: it is raised with its rank, the others raise ``OthersFailed``, and a rank
    that was killed or stands still for ``timeout_seconds`` is named by the first of those that are left.

    Raises: RunError: the group does not come together within the timeout.
    """
    found = in_environment()
    if dist.is_initialized() or not found.is_distributed:
        yield current()
        return
    heartbeat = _open_group(found, device, timeout=timedelta(seconds=timeout_seconds))
    try:
        with count_messages(heartbeat.count), _report_errors_by_rank(found, heartbeat):
            yield found
            dist.barrier()  # nobody leaves while another still needs it
    finally:
        heartbeat.stop()
    dist.destroy_process_group()


def check_devices(wanted: int | str) -> None:
    """Refuse another number of processes than asked for.  Raises: ConfigError."""
    found = current().local_size
    if isinstance(wanted, int) and wanted != found:
        raise ConfigError(
            f"devices: {wanted} asked for, and this run has {found} process{'es' * (found != 1)} on each machine; "
            f"start it with `headstart train ... --devices {wanted}`, or, from Python, with `torchrun --nproc-per-node "
            f"{wanted} SCRIPT`"
        )


def was_restarted() -> bool:
    """Whether torchrun started these processes again after a failure; the run then resumes by itself."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _open_group(found: Processes, device: torch.device, *, timeout: timedelta) -> Heartbeat:
    """The process group, and a heartbeat with a connection of its own to the group's store."""
    backend = _BACKENDS.get(device.type)
    if backend is None:
        raise ConfigError(
            f"device: torch has no process group for {device.type}; give {option('device', 'cpu')} or cuda, or start "
            "one process"
        )
    heartbeat = None
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        attempt = f"headstart/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        heartbeat = Heartbeat(
            PrefixStore(f"{attempt}/heartbeat", _connect_again(store, timeout)),
            rank=rank,
            world_size=size,
            timeout_seconds=timeout.total_seconds(),
        )
        heartbeat.start()
        dist.init_process_group(
            backend, store=PrefixStore(f"{attempt}/group", store), rank=rank, world_size=size, timeout=_UNEVEN_WORK,
            device_id=device if device.type != "cpu" else None,
        )  # fmt: skip
        dist.barrier()
    except (RuntimeError, ValueError, KeyError) as error:
        if heartbeat is not None:
            heartbeat.stop()
        master = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"rank {found.rank}: the {found.world_size} processes did not come together at {master} within "
            f"{timeout.total_seconds():.0f} s ({_first_line(error)}); check that all were started with the same "
            "torchrun line and can reach that address"
        ) from error
    return heartbeat


def _connect_again(store: Any, timeout: timedelta) -> Any:
    """A further connection to the same store: on a shared one, a thread that waits keeps others from writing."""
    if hasattr(store, "clone"):  # from torch 2.9 on
        return store.clone()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return type(store)(store.host, store.port, is_master=False, timeout=timeout)  # a TCPStore: env:// has no other


@contextmanager
def _report_errors_by_rank(found: Processes, heartbeat: Heartbeat) -> Iterator[None]:
    """Within, what goes wrong is reported to the others, and shown once, by the rank where it did."""
    why, failed = "it ended early", True
    try:
        yield
        why, failed = "", False
    except OthersFailed:
        why = ""
        raise
    except Interrupted as stop:
        why, failed = "", False
        if not found.is_first:  # all are asked to stop; the first one says it
            raise OthersFailed(exit_code=stop.exit_code) from stop
        raise
    except Error as error:
        why = str(error)
        if error.exit_code != Error.exit_code:  # 2: everyone's, said plainly
            error.args = (f"rank {found.rank} of {found.world_size}: {error}",)
        raise
    except RuntimeError as error:
        why = "" if _is_lost_contact(error) else _first_line(error)
        if why:
            raise
        raise _explain_loss(heartbeat, error) from error
    finally:
        if failed:
            _finish_speaking()
        if why:
            heartbeat.report_failure(why)
        if failed:
            heartbeat.linger()


def _finish_speaking() -> None:
    """Print what went wrong before the launcher, which ends all processes when one has failed, ends this one."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_lost_contact(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _LOST)


def _explain_loss(heartbeat: Heartbeat, error: RuntimeError) -> RunError:
    """An error that names who is lost, of the first rank that is left, unless a rank has reported why it failed."""
    _finish_speaking()
    gone = heartbeat.find_lost()
    left = [rank for rank in range(heartbeat.world_size) if rank not in gone]
    if heartbeat.others_failed or heartbeat.rank != left[0]:
        return OthersFailed()
    heartbeat.kill_still()
    # the others then stay silent, also where this process's end is what they notice
    heartbeat.report_failure(f"lost {', '.join(f'rank {rank}' for rank in gone) or 'another rank'}")
    return RunError(f"{heartbeat.describe_loss(gone)} ({_first_line(error)})")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
