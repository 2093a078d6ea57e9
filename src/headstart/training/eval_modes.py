"""Modules that are in evaluation, in which threads, and the modes that they had before.

A module may be evaluated by several threads at once, and trained by another one: its modes go back when the last
evaluation ends, and a step waits until none goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from threading import Condition, get_ident

from torch import nn

from headstart.errors import RunError
from headstart.isolation import beside_others, has_turn, own_turn


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
