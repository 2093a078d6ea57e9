"""How long calls take: the one way in which everything is timed that a choice, or a table, is made of.

Candidates take turns, so that a slow minute of the machine hits all of them alike; a first call warms up; what counts
is the median, of which a spoiled moment moves nothing. On a CPU with one thread it is the thread's own time: however
many other programs have the processor meanwhile, a step takes as much of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

_Key = TypeVar("_Key", bound=Hashable)
Clock = Callable[[], float]
"""Seconds since some moment."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How often each candidate is called.

    ``warm``: calls that do not count; ``least``: calls that count, and more of them, up to ``most``, until all of a
    candidate's calls took ``seconds`` together. ``budget_seconds``: once a candidate took longer, ``few`` calls are
    enough. From ``chances`` calls on, a candidate that takes ``hopeless`` times as long as the fastest is left alone.
    """

    warm: int = 0
    least: int = 1
    most: int = 1
    seconds: float = 0.0
    budget_seconds: float = float("inf")
    few: int = 1
    chances: int = 2
    hopeless: float = float("inf")

    def are_enough(self, timed: list[float]) -> bool:
        """Whether so many calls say what there is to say."""
        if sum(timed) > self.budget_seconds and len(timed) >= self.few:
            return True
        return len(timed) >= self.least and (len(timed) >= self.most or sum(timed) >= self.seconds)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of each call that counts, in order, and of those before that warmed up; ``failure``: why there are none.

    Attributes:
        ``seconds``: Of each call that counts.
        ``warm``: Of each call before them.
        ``failure``: Why it could not be called; "" where it could.
    """

    seconds: tuple[float, ...] = ()
    warm: tuple[float, ...] = ()
    failure: str = ""

    @property
    def median(self) -> float:
        """The middle one, of an even number the lower one of two: one spoiled call in two decides nothing."""
        return statistics.median_low(self.seconds)

    def divide(self, count: int) -> Timing:
        """The time of each of ``count`` images."""
        return replace(self, seconds=tuple(one / count for one in self.seconds))


def is_faster(one: Timing, usual: Timing, *, margin: float) -> bool:
    """Whether a call takes less than ``margin`` of the usual time, by the medians and by the fastest call of each.

    A busy machine only ever adds to a call. What it adds to the median is not in the fastest call, and a fastest call
    that was lucky is not the median: noise has to move both of them across the margin.
    """
    if one.failure or usual.failure:
        return False
    return one.median < margin * usual.median and min(one.seconds) < margin * min(usual.seconds)


def clock_for(device: torch.device) -> Clock:
    """The clock that tells most of what is computed there: this thread's processor time where it alone computes."""
    return _thread_seconds if device.type == "cpu" and torch.get_num_threads() == 1 else wall_seconds


def wall_seconds() -> float:
    """Seconds by the wall clock, once the accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _thread_seconds() -> float:
    return time.thread_time()


def time_calls(calls: Mapping[_Key, Callable[[], object]], looks: Looks, *, clock: Clock) -> dict[_Key, Timing]:
    """Call the candidates in turns, and return how long each took; memory that runs out is a candidate's failure."""
    timings = {key: _warm_up(call, looks.warm, clock) for key, call in calls.items()}
    while waiting := [key for key in calls if _is_waiting(key, timings, looks)]:
        for key in waiting:
            seconds, failure = _time_call(calls[key], clock)
            before = timings[key]
            timings[key] = replace(before, seconds=(*before.seconds, *seconds), failure=failure)
    return timings


def _is_waiting(key: _Key, timings: Mapping[_Key, Timing], looks: Looks) -> bool:
    """Whether the candidate is to be called once more."""
    ours = timings[key]
    if ours.failure or looks.are_enough(list(ours.seconds)):
        return False
    fastest = min((min(one.seconds) for one in timings.values() if one.seconds), default=0.0)
    return len(ours.seconds) < looks.chances or min(ours.seconds) <= looks.hopeless * fastest


def _warm_up(call: Callable[[], object], count: int, clock: Clock) -> Timing:
    found = Timing()
    while len(found.warm) < count and not found.failure:
        seconds, failure = _time_call(call, clock)
        found = replace(found, warm=(*found.warm, *seconds), failure=failure)
    return found


def _time_call(call: Callable[[], object], clock: Clock) -> tuple[tuple[float, ...], str]:
    """The seconds of a call, or none, and why."""
    started = clock()
    try:
        call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return (), "there is too little memory for it"
    return (clock() - started,), ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, as torch says it on a CPU or an accelerator, or Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
