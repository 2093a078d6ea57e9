"""Long work of C code through which signals are heard: in threads, for which the main thread waits.

The threads are daemons: work that nobody waits for any more does not keep the process from leaving.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

QUICK_PIXELS = 4_000_000
"""How many pixels are decoded in some 50 ms, so that a thread for them would be in vain."""
_LOOK_SECONDS = 0.2
_T = TypeVar("_T")
_Item = TypeVar("_Item")


class _Waiting(threading.local):
    """What each thread knows: whether it waits for data, and what is called when it begins to."""

    now = False
    hear: Callable[[], None] | None = None


_WAITING = _Waiting()


@contextmanager
def waiting_for_data() -> Iterator[None]:
    """Within, nothing would be lost if the run was left here: no step has begun."""
    _WAITING.now = True
    try:
        if _WAITING.hear is not None:  # what came since the last step, which it could not break off
            _WAITING.hear()
        yield
    finally:
        _WAITING.now = False


@contextmanager
def hear_before_waiting(hear: Callable[[], None]) -> Iterator[None]:
    """Within, ``hear`` is called whenever this thread begins to wait for data."""
    before, _WAITING.hear = _WAITING.hear, hear
    try:
        yield
    finally:
        _WAITING.hear = before


def is_waiting() -> bool:
    """Whether this thread waits for data, so that it could leave at once."""
    return _WAITING.now


def run_interruptibly(work: Callable[[], _T], *, pixels: int) -> _T:
    """What ``work`` returns or raises; on the main thread, signal handlers run while it decodes so many ``pixels``.

    Python runs them between two steps of the main thread's own code, so not within a decoder's call of a second.
    """
    if pixels <= QUICK_PIXELS or threading.current_thread() is not threading.main_thread():
        return work()
    outcomes: SimpleQueue[_Outcome[_T]] = SimpleQueue()
    _start_thread(lambda: outcomes.put(_Outcome.of(work)))
    return _next(outcomes).value()


def iterate_interruptibly(items: Iterator[_T]) -> Generator[_T, None, None]:
    """The items of an iterator that waits for other processes; on the main thread signal handlers run while it does,
    and one that raises breaks nothing off: the iterator is asked in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield from items
        return
    while True:
        outcomes: SimpleQueue[_Outcome[tuple[_T, ...]]] = SimpleQueue()
        _start_thread(partial(_ask, items, outcomes))
        taken = _next(outcomes).value()
        if not taken:
            return
        yield taken[0]


def _ask(items: Iterator[_T], outcomes: SimpleQueue[_Outcome[tuple[_T, ...]]]) -> None:
    outcomes.put(_Outcome.of(lambda: tuple(islice(items, 1))))


def map_in_threads(work: Callable[[_Item], _T], items: Sequence[_Item], *, threads: int) -> Generator[_T, None, None]:
    """The results of ``work`` for each item, in order. Once this is closed, or a signal handler raises, no further item
    is begun.
    """
    outcomes: SimpleQueue[tuple[int, _Outcome[_T]]] = SimpleQueue()
    stopped, numbers = threading.Event(), count()

    def serve() -> None:
        while not stopped.is_set() and (number := next(numbers)) < len(items):
            outcomes.put((number, _Outcome.of(partial(work, items[number]))))

    for _ in range(min(threads, len(items))):
        _start_thread(serve)
    done: dict[int, _Outcome[_T]] = {}
    try:
        for number in range(len(items)):
            while number not in done:
                ended, outcome = _next(outcomes)
                done[ended] = outcome
            yield done.pop(number).value()
    finally:
        stopped.set()


def _start_thread(work: Callable[[], None]) -> None:
    """Have a daemon do the work. The start is one call of C code: a signal handler that raises within
    ``threading.Thread.start`` leaves that in between (Python 3.13: a KeyError comes in place of what was raised).
    """
    _thread.start_new_thread(work, ())


def _next(queue: SimpleQueue[_Item]) -> _Item:
    """The queue's next value. A signal that comes in the instant before the wait begins is heard at the next look."""
    while True:
        try:
            return queue.get(timeout=_LOOK_SECONDS)
        except Empty:
            continue


@dataclass(frozen=True)
class _Outcome(Generic[_T]):
    """What work returned, or why it did not."""

    results: tuple[_T, ...]
    error: BaseException | None = None

    @classmethod
    def of(cls, work: Callable[[], _T]) -> _Outcome[_T]:
        """The outcome of this work, done now."""
        try:
            return cls((work(),))
        except BaseException as error:  # raised again on the thread that waits for it
            return cls((), error)

    def value(self) -> _T:
        """What the work returned.  Raises: what it raised."""
        if self.error is not None:
            raise self.error
        return self.results[0]
