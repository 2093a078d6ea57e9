"""Looking at a module, or trying it, without a trace: what is done to it within is undone afterwards, all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from headstart.errors import ModelError
from headstart.isolation import own_turn
from headstart.surgery.module_state import ModuleState, differences, read_state, restore_state, with_parameters

_MOST_BYTES = 4 << 30  # of parameters that are copied beside a module whose code may write to them


@contextmanager
def no_trace(module: nn.Module) -> Iterator[None]:
    """Within it a module may be run, traced and changed; afterwards its attributes, buffers, modes, hooks, gradients,
    and all that its code names are as before, and so are the generators of random numbers.

    Raises: ModelError: its own code changed something that cannot be put back; of blocks within one another of the same
    module the outermost one says it.
    """
    with own_turn():
        before, inner = read_before(module), any(other is module for other in _WITHIN)
        own_code = before.has_own_code
        _WITHIN.append(module)
        try:
            yield
        finally:
            _WITHIN.pop()
            restore_state(module, before)
        if own_code and not inner:  # in the same turn: the module may be in another thread's loop, too
            _refuse_lasting(module, before)


_WITHIN: list[nn.Module] = []
"""The modules of the blocks that are entered, all of one thread, which has its turn."""


def read_before(module: nn.Module) -> ModuleState:
    """The state to come back to after the module has run: of one with code of the user's own, which may write to
    parameters too, with their values, unless these are too many.
    """
    before = read_state(module)
    return with_parameters(before) if before.has_own_code and _parameter_bytes(module) <= _MOST_BYTES else before


def _parameter_bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.parameters() if not nn.parameter.is_lazy(value))


def _refuse_lasting(module: nn.Module, before: ModuleState) -> None:
    after = with_parameters(read_state(module)) if before.parameters else read_state(module)
    # The process's generators can always be put back: where one has moved since, another thread draws from it.
    lasting = differences(before, replace(after, generators=before.generators))
    if lasting:
        named = ", ".join(lasting[:3]) + (f" and {len(lasting) - 3} more" if len(lasting) > 3 else "")
        raise ModelError(
            f"model: running it once changes {named}, and that cannot be undone, so it cannot be looked at or tried "
            "before it trains; keep what forward changes as numbers, lists, tensors or generators of torch, NumPy or "
            "random (not as iterators or files), e.g. self.calls += 1 in place of next(self.counter)"
        )
