"""How the process leaves: when a signal asks it to, with the command that goes on and 128 + the number; at once."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

_GO_ON = {"train": ("--resume",), "demo": ()}  # verbs that can, and what their command then needs
LAUNCHED_AS = "HEADSTART_LAUNCHED_AS"
_SHOW_CURSOR = "\x1b[?25h\n"  # a live progress line has hidden it


def leave_at_once(code: int) -> NoReturn:
    """End the process, one of several, that has failed: where others have gone already, what C++ does at the end of
    Python now and then aborts it, and SIGABRT would stand in place of its exit code.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # closed ones are None
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def to_go_on(words: Sequence[str]) -> str:
    """The clause ``; go on with: COMMAND``, ready for a shell; "" for a verb that keeps nothing."""
    if not words or words[0] not in _GO_ON:
        return ""
    if "RANK" in os.environ and LAUNCHED_AS not in os.environ:
        return "; go on with the same torchrun line and --resume"
    more = [word for word in _GO_ON[words[0]] if word not in words]
    return f"; go on with: {shlex.join([*program(), *words, *more])}"


def program() -> list[str]:
    """The words with which headstart was started."""
    if LAUNCHED_AS in os.environ:  # with --devices, which started this process
        return shlex.split(os.environ[LAUNCHED_AS])
    started = Path(sys.argv[0])
    if started.suffix == ".py" or not os.access(started, os.X_OK):
        return [sys.executable, "-m", "headstart.cli.main"]
    on_path = shutil.which("headstart")
    return ["headstart"] if on_path and Path(on_path).samefile(started) else [str(started)]


@contextmanager
def leaving_on_signals(words: Sequence[str], *, put_back: bool) -> Iterator[None]:
    """Within, Ctrl-C, SIGTERM and SIGHUP end the process at once: there is nothing to save, and no file is ever half.

    An exception could be swallowed by an import or a callback. What the parent has set to be ignored (nohup) stays
    ignored, and outside the main thread nothing changes. ``put_back``: whether afterwards the handlers are as before.
    """
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None) and _set(number, _leaver(words, os.getpid())):
            before[number] = handler
    try:
        yield
    finally:
        for number, handler in before.items() if put_back else ():
            signal.signal(number, handler)


def _set(number: signal.Signals, handler: Callable[[int, FrameType | None], object]) -> bool:
    try:
        signal.signal(number, handler)
    except ValueError:  # only the main thread may
        return False
    return True


def _leaver(words: Sequence[str], owner: int) -> Callable[[int, FrameType | None], NoReturn]:
    def leave(number: int, _: FrameType | None) -> NoReturn:
        if os.getpid() == owner:  # not a loading process that was forked this instant
            name = signal.Signals(number).name
            line = f"{_SHOW_CURSOR * os.isatty(2)}headstart: stopped by {name}{to_go_on(words)}\n"
            if "RANK" not in os.environ:  # of several processes: the launcher ends all when one has failed
                os.write(2, line.encode("utf-8", "backslashreplace"))  # sys.stderr may be in the middle of a write
        os._exit(128 + number)

    return leave
