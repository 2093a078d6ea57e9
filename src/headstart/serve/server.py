"""The processes of a service: one or several that share a socket, each with the model; how they begin and end."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from headstart.errors import ConfigError, Error
from headstart.serve.counters import Counters
from headstart.serve.settings import MEGABYTE, Settings

if TYPE_CHECKING:
    from headstart.serve.service import Service

_LOOK_SECONDS = 0.1
_BACKLOG = 1024
OnReady = Callable[[str], None]
"""Is called with a line once a process answers."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What is served, where, and by how many processes."""

    run: str
    device: str
    host: str
    port: int
    workers: int
    settings: Settings
    token: str | None = field(default=None, repr=False)


def serve(serving: Serving, *, on_ready: OnReady) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, answer what was asked before, and return 0.

    Raises: ConfigError: the address cannot be listened on. ModelError: no finished run is there.
    """
    counters = Counters(processes=serving.workers)
    with _listen(serving.host, serving.port) as listener:
        if serving.workers == 1:
            return _serve_here(serving, listener, counters=counters, on_ready=on_ready)
        return _serve_in_processes(serving, listener, counters=counters, on_ready=on_ready)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; give another port, or --port 0 for a free one"
        ) from error


def _serve_here(
    serving: Serving, listener: socket.socket, *, counters: Counters, on_ready: OnReady, of: str = ""
) -> int:
    import uvicorn

    stop, service = threading.Event(), _open(serving, counters)
    config = uvicorn.Config(
        service.gate,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(serving.settings.max_seconds)),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http")
    _stop_on_signals(stop)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(_LOOK_SECONDS / 10)
    on_ready(f"{_name(listener)}{of} (process {os.getpid()}, {_count_megabytes():,} MB of memory)")
    while thread.is_alive() and not stop.wait(_LOOK_SECONDS):
        pass
    service.state.ending = True  # from here on requests are refused, while those before are answered
    ends = time.monotonic() + serving.settings.max_seconds
    while service.state.open_requests and time.monotonic() < ends:
        time.sleep(_LOOK_SECONDS / 10)
    server.should_exit = True
    thread.join()
    service.close()
    return 0 if stop.is_set() else 1


def _open(serving: Serving, counters: Counters) -> Service:
    from headstart.lazy_imports import collector_paused, load_libraries

    with collector_paused():
        load_libraries()
        from headstart.prediction.predictor import Predictor  # imports torch
        from headstart.serve.service import open_service

    predictor = Predictor(serving.run, device=serving.device)
    return open_service(predictor, settings=serving.settings, counters=counters, token=serving.token)


def _stop_on_signals(stop: threading.Event) -> None:
    """The first signal ends the service in order, the second one at once."""

    def hear(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, hear)


def _serve_in_processes(serving: Serving, listener: socket.socket, *, counters: Counters, on_ready: OnReady) -> int:
    """Nothing heavy is imported yet, and no thread is there: that is what makes forking safe."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // serving.workers)))
    children, stopping = set[int](), False

    def forward(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            os.kill(child, signal.SIGTERM)

    parent = os.getpid()
    for number in range(serving.workers):
        child = os.fork()
        if child == 0:
            _work(serving, listener, counters=counters, on_ready=on_ready, number=number, parent=parent)
        children.add(child)
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, forward)
    code = 0
    while children:
        child, status = os.wait()
        children.discard(child)
        code = code or abs(os.waitstatus_to_exitcode(status))
        if not stopping:  # one has failed, and says why
            forward()
    return code


def _work(
    serving: Serving, listener: socket.socket, *, counters: Counters, on_ready: OnReady, number: int, parent: int
) -> None:
    """Be one of the processes; it does not return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent passes it on
        _end_with(parent)
        counters.count_as(number)
        of = f", {number + 1} of {serving.workers}"
        code = _serve_here(serving, listener, counters=counters, on_ready=on_ready, of=of)
    except Error as error:
        sys.stderr.write(f"headstart: {error}\n")
        code = error.exit_code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with(parent: int) -> None:
    """End this process once its parent is gone, however it went."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="watch", daemon=True).start()


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _count_megabytes() -> int:
    """The most memory that this process has had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size * (1 if sys.platform == "darwin" else 1024) / MEGABYTE)
