"""What surrounds a call of headstart does not reach into it: autocast, grad modes, default dtype and device, the state
of the generators that everybody draws from, and other threads that would draw from them at the same time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, wraps
from itertools import islice
from threading import Condition, Lock, get_ident
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from headstart.errors import RunError

_Event = TypeVar("_Event")
_Returned = TypeVar("_Returned")
_Given = ParamSpec("_Given")
_PLAIN = nullcontext()


def own_arithmetic() -> AbstractContextManager[None]:
    """A context in which torch computes as it does in a fresh process, whatever the caller has entered or set.

    Autocast is off (on every kind of device), gradients are recorded, ``inference_mode`` is left, tensors are made in
    float32 and on the CPU. What the caller had comes back afterwards. ``use_deterministic_algorithms``, thread counts
    and the choice of kernels stay the caller's. Costs 2 microseconds where there is nothing to keep out.

    Raises: RunError: torch makes tensors without values here.
    """
    return _PLAIN if _is_plain() else _enter_default_modes()


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
    if type(made) is not torch.Tensor:
        raise RunError(
            f"torch makes {type(made).__name__}s here, which have no values to compute with; call headstart outside of "
            "the block that has it do so (with FakeTensorMode(): ...)"
        )
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
    """Makes float32 the default dtype, which is one for all threads, until the last thread has left its block. What
    another thread sets meanwhile is the caller's from then on, and no longer holds in the next block.
    """

    def __init__(self) -> None:
        self.lock, self.blocks, self.callers = Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.lock:
            now = torch.get_default_dtype()
            if not self.blocks or now is not torch.float32:
                self.callers = now
                torch.set_default_dtype(torch.float32)
            self.blocks += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks and torch.get_default_dtype() is torch.float32:
                torch.set_default_dtype(self.callers)


_usual_dtype = _UsualDtype()


@contextmanager
def _enter_default_modes() -> Iterator[None]:
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


def in_own_arithmetic(function: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """The function, called in ``own_arithmetic``: what it makes can be trained, whatever the caller has entered."""

    @wraps(function)
    def call(*args: _Given.args, **keywords: _Given.kwargs) -> _Returned:
        with own_arithmetic():
            return function(*args, **keywords)

    return call


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


class _Turns:
    """Who has the process's generators: one thread that draws from them, or any number that only compute."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.owner: int | None = None
        self.depth = 0  # of the owner's blocks
        self.guests: dict[int, int] = {}  # threads that compute, and the depth of their blocks
        self.waiting = 0  # threads that want to draw: no further guest comes before them
        self.runs: dict[int, str] = {}  # threads in a block of ``only_run``, and what it is

    def wait_alone(self, me: int) -> None:
        """Wait until nobody else draws or computes; the caller holds the lock."""
        assert me not in self.guests, "a step within a forward pass of evaluation would wait for itself"
        self.waiting += 1
        try:
            self.changed.wait_for(lambda: self.owner is None and not self.guests)
        finally:
            self.waiting -= 1


@cache
def _turns(_process: int) -> _Turns:
    """The turns of this process: a forked one does not inherit a turn that a thread of its parent had."""
    return _Turns()


class own_turn(ContextDecorator):
    """Within, no other thread makes a step, draws a picture's random changes or evaluates; it waits. Blocks nest."""

    def __enter__(self) -> None:
        turns, me = _turns(os.getpid()), get_ident()
        with turns.changed:
            if turns.owner != me:
                if turns.owner is not None or turns.guests:
                    turns.wait_alone(me)
                turns.owner = me
            turns.depth += 1

    def __exit__(self, *_: object) -> None:
        turns = _turns(os.getpid())
        with turns.changed:
            turns.depth -= 1
            if not turns.depth:
                turns.owner = None
                turns.changed.notify_all()


def has_turn() -> bool:
    """Whether this thread is within an ``own_turn``."""
    return _turns(os.getpid()).owner == get_ident()


@contextmanager
def beside_others() -> Iterator[None]:
    """Within, no other thread has its ``own_turn``; others may be in blocks like this one."""
    turns, me = _turns(os.getpid()), get_ident()
    with turns.changed:
        if turns.owner != me and me not in turns.guests:
            turns.changed.wait_for(lambda: turns.owner is None and not turns.waiting)
        turns.guests[me] = turns.guests.get(me, 0) + 1
    try:
        yield
    finally:
        with turns.changed:
            turns.guests[me] -= 1
            if not turns.guests[me]:
                del turns.guests[me]
                turns.changed.notify_all()


@contextmanager
def only_run(what: str) -> Iterator[None]:
    """Within, a run or a plan of another thread is refused.

    Raises: RunError: another thread is in such a block.
    """
    turns, me = _turns(os.getpid()), get_ident()
    with turns.changed:
        others = [running for thread, running in turns.runs.items() if thread != me]
        if others:
            raise RunError(
                f"{what}: {others[0]} is going on in another thread of this process, and both would draw from the same "
                f"generators; call {what} when that one has returned, or in a process of its own"
            )
        outer = turns.runs.get(me)
        turns.runs[me] = outer or what
    try:
        yield
    finally:
        with turns.changed:
            if outer is None:
                del turns.runs[me]


@dataclass
class _Entry:
    """A module, the mode that it had before, and the threads that evaluate it, one of them as often as it does."""

    part: nn.Module
    mode: bool
    threads: list[int] = field(default_factory=list)


class _Evaluated:
    """The modules in evaluation by identity (one may have an equality of its own)."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.entries: dict[int, _Entry] = {}
        self.waiting = 0  # steps that wait for an evaluation to end: no further one comes before them

    def add(self, model: nn.Module, *, eval_only: bool) -> bool:
        """Note the evaluation, with modules in evaluation mode; False: with ``eval_only`` one is not in it yet."""
        parts = [*model.modules()]
        if eval_only and any(part.training for part in parts):
            return False
        with self.changed:
            for part in parts:
                self.entries.setdefault(id(part), _Entry(part, part.training)).threads.append(get_ident())
        if not eval_only:
            model.eval()
        return True

    def remove(self, root: nn.Module, entries: list[_Entry]) -> None:
        """Put modes back where this was the last evaluation."""
        with self.changed:
            for entry in entries:
                entry.threads.remove(get_ident())
                if not entry.threads:
                    del self.entries[id(entry.part)]
            self.changed.notify_all()
        if any(entry.part is root and entry.mode and not entry.threads for entry in entries):
            root.train()  # of the user's own it may undo what it did for evaluation
        for entry in entries:
            entry.part.training = entry.mode and not entry.threads

    def by_others(self, model: nn.Module) -> bool:
        """Whether another thread evaluates a part of the model."""
        if not self.entries:
            return False
        found = [entry for part in model.modules() if (entry := self.entries.get(id(part))) is not None]
        return any(thread != get_ident() for entry in found for thread in entry.threads)

    def wait_for_turn(self, model: nn.Module, turn: own_turn) -> None:
        """Take the turn when no other thread evaluates the model; none that does not yet begins to until then."""
        with self.changed:
            self.waiting += 1
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: not self.by_others(model))
                turn.__enter__()
                if not self.by_others(model):
                    return
                turn.__exit__()
        finally:
            with self.changed:
                self.waiting -= 1
                self.changed.notify_all()

    def is_evaluating(self) -> bool:
        """Whether this thread evaluates something already."""
        return any(get_ident() in entry.threads for entry in [*self.entries.values()])


@cache
def _read_evaluated(_process: int) -> _Evaluated:
    """The modules that this process evaluates: a forked one does not evaluate what a thread of its parent does."""
    return _Evaluated()


@contextmanager
def eval_modes(model: nn.Module, *, root: nn.Module) -> Iterator[None]:
    """Within, the model's modules are in evaluation mode; afterwards each has its own mode back, ``root`` by its
    ``train`` where it was in training mode.
    """
    evaluated = _read_evaluated(os.getpid())
    if not has_turn():
        with evaluated.changed:
            evaluated.changed.wait_for(lambda: not evaluated.waiting or evaluated.is_evaluating())
    with beside_others():
        added = evaluated.add(model, eval_only=True)
    if not added:
        with own_turn():
            evaluated.add(model, eval_only=False)
    entries = [evaluated.entries[id(part)] for part in model.modules()]
    try:
        yield
    finally:
        with own_turn() if any(entry.mode for entry in entries) else beside_others():
            evaluated.remove(root, entries)


@contextmanager
def training_turn(model: nn.Module) -> Iterator[None]:
    """An ``own_turn`` for training the model: it begins when no other thread evaluates a part of it.

    Raises: RunError: this thread has its turn already, and the other one would wait for it.
    """
    turn, evaluated, nested = own_turn(), _read_evaluated(os.getpid()), has_turn()
    turn.__enter__()
    if evaluated.by_others(model):
        turn.__exit__()
        if nested:
            raise RunError(
                "another thread evaluates this module (hs.evaluate, hs.predict) while a run of it is planned; call "
                "hs.train when that has returned, or evaluate a copy: copy.deepcopy(module)"
            )
        evaluated.wait_for_turn(model, turn)
    try:
        yield
    finally:
        turn.__exit__()
