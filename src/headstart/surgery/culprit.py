"""Where a module and its two halves begin to differ: the part whose calls are not the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.surgery.fixed_run import OWN_FORWARD
from headstart.surgery.fixed_values import Fixed
from headstart.surgery.generators import seed_generators
from headstart.surgery.module_state import restore_state
from headstart.surgery.no_trace import read_before
from headstart.surgery.proof import Arithmetic, Calls, Halves, is_close
from headstart.surgery.recording import FAILURES


@dataclass(frozen=True)
class _Call:
    """A call of a part: its input and its output, None for what is no tensor or was not computed."""

    path: str
    input: Tensor | None
    output: Tensor | None


def find_culprit(
    module: nn.Module, halves: Halves, images: Tensor, activations: Sequence[Tensor], *, arithmetic: Arithmetic,
    calls: Calls,
) -> str:  # fmt: skip
    """Words for where the module, called on ``images`` (B, C, H, W), leaves the way of its halves on ``activations``:
    the first part that makes something else of the same, or is given something else. ``calls``: the first is made.

    The module is left as it was.
    """
    before = read_before(module)
    suffix = halves.train_suffix if calls.modes[0] else halves.eval_suffix

    def run(call: nn.Module, *arguments: Tensor) -> list[_Call]:
        restore_state(module, before)
        seed_generators(calls.seed)
        module.train(calls.modes[0])
        with _record_calls(module) as noted, torch.no_grad(), arithmetic():
            call(*[value.clone() for value in arguments])
        return noted

    try:
        return _first_difference(run(module, images), run(suffix, *activations))
    except FAILURES:  # only one of the two runs at all
        return OWN_FORWARD
    finally:
        restore_state(module, before)


def _first_difference(own: Sequence[_Call], halves: Sequence[_Call]) -> str:
    theirs: dict[str, list[_Call]] = {}
    for call in halves:
        theirs.setdefault(call.path, []).append(call)
    for call in own:
        if not theirs.get(call.path):
            continue
        other = theirs[call.path].pop(0)
        if _differ(call.input, other.input):
            return f"what {call.path} is given"
        if _differ(call.output, other.output):
            return call.path
    return OWN_FORWARD


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and not is_close(one, other)


@contextmanager
def _record_calls(module: nn.Module) -> Iterator[list[_Call]]:
    """Within, the calls of a module's parts are written down, in the order in which they end."""
    calls, given = list[_Call](), list[Tensor | None]()

    def enter(_part: nn.Module, arguments: Any) -> None:
        given.append(_copy_first_tensor(arguments[0] if arguments else None))

    def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _part, _arguments, made: calls.append(_Call(path, given.pop(), _copy_first_tensor(made)))

    parts = [(path, part) for path, part in module.named_modules() if path]
    handles = [part.register_forward_pre_hook(enter, prepend=True) for _, part in parts]
    handles += [part.register_forward_hook(leave(path)) for path, part in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _copy_first_tensor(value: Any) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) and not isinstance(value, Fixed) else None
