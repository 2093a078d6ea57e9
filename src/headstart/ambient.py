"""What surrounds a call of headstart does not reach into it: autocast, grad modes, default dtype, default device, and
the state of the generators that everybody draws from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import cache
from itertools import islice
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

_Event = TypeVar("_Event")
_PLAIN = nullcontext()


def own_arithmetic() -> AbstractContextManager[None]:
    """A context in which torch computes as it does in a fresh process, whatever the caller has entered or set.

    Autocast is off (on every kind of device), gradients are recorded, ``inference_mode`` is left, tensors are made in
    float32 and on the CPU. What the caller had comes back afterwards. ``use_deterministic_algorithms``, thread counts
    and the choice of kernels stay the caller's. Costs 2 microseconds where there is nothing to keep out.
    """
    return _PLAIN if _is_plain() else _shielded()


def each_in_own_arithmetic(events: Generator[_Event, None, None]) -> Iterator[_Event]:
    """The events of a generator whose own code runs in ``own_arithmetic``, entered anew for each; what the caller does
    between two of them does not.
    """
    with closing(events):
        while made := _next(events):
            yield made[0]


def _next(events: Iterator[_Event]) -> tuple[_Event, ...]:
    """The next event; none after the last one."""
    with own_arithmetic():
        return tuple(islice(events, 1))


def _is_plain() -> bool:
    made = torch.empty(0)
    return (
        not _usual_dtype.blocks
        and made.dtype is torch.float32
        and made.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
        and not any(map(torch.is_autocast_enabled, _kinds()))
    )


@cache
def _kinds() -> tuple[str, ...]:
    """Kinds of devices that compute here."""
    found = torch.accelerator.current_accelerator()
    kinds = ("cpu",) if found is None else ("cpu", found.type)
    return tuple(kind for kind in kinds if torch.amp.is_autocast_available(kind))


class _UsualDtype:
    """Makes float32 the default dtype, which is one for all threads, until the last thread has left its block."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.callers = Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.lock:
            if not self.blocks:
                self.callers = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self.blocks += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks:
                torch.set_default_dtype(self.callers)


_usual_dtype = _UsualDtype()


@contextmanager
def _shielded() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_usual_dtype)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.device("cpu"))
        for kind in _kinds():
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.clear_autocast_cache)
        torch.clear_autocast_cache()  # weights cast by the caller's forward passes, perhaps before they were changed
        yield


class seeded:
    """Within, torch's generators of the CPU and of ``device`` start from ``seed``, and with ``everywhere`` also
    Python's ``random`` and NumPy's global one (0.1 ms); what it gives starts them again. Afterwards they go on where
    they were. Use it within ``own_turn``.
    """

    def __init__(self, seed: int, *, device: torch.device, everywhere: bool) -> None:
        self._seed, self._everywhere = seed, everywhere
        self._kind = None if device.type == "cpu" else torch.get_device_module(device)
        self._where = () if device.type == "mps" else (device,)  # it has one generator

    def __enter__(self) -> Callable[[], None]:
        self._before = torch.default_generator.get_state()
        if self._kind is not None:
            self._of_device = self._kind.get_rng_state(*self._where)
        if self._everywhere:
            self._others = random.getstate(), np.random.get_state()
        self._start()
        return self._start

    def _start(self) -> None:
        if self._kind is None:  # torch.manual_seed notes a traceback (0.1 ms) for each kind that is not there
            torch.default_generator.manual_seed(self._seed)
        else:
            torch.manual_seed(self._seed)
        if self._everywhere:
            random.seed(self._seed)
            np.random.seed([self._seed & 0xFFFF_FFFF, self._seed >> 32])

    def __exit__(self, *_: object) -> None:
        torch.default_generator.set_state(self._before)
        if self._kind is not None:
            self._kind.set_rng_state(self._of_device, *self._where)
        if self._everywhere:
            random.setstate(self._others[0])
            np.random.set_state(self._others[1])
