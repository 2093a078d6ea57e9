"""What only some runs put around a forward pass: several processes, compiling, recomputing, attention, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn

from headstart.distributed.collectives import raise_together
from headstart.distributed.ddp import reducing, replicate
from headstart.distributed.fsdp import is_sharded
from headstart.distributed.processes import current
from headstart.errors import RunError
from headstart.surgery.fixed_values import NotReplayable
from headstart.surgery.halves import Suffix
from headstart.training.activation_checkpointing import recomputing
from headstart.training.attention import attending
from headstart.training.compile import Compile, compile_module, compiler_errors
from headstart.training.precision import autocast, device_of
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.wording import option

Forward = Callable[..., object]


@contextmanager
def forward_context(state: TrainState, model: nn.Module, rules: StepRules, *, calls: int) -> Iterator[Forward]:
    """Within, what a step calls ``calls`` times in place of ``model``, as the rules say; backward passes belong within.

    Over several processes the gradients are averaged in the backward pass that follows the last call.

    Raises: RunError: in a backward pass, one of several processes cannot run from the cache.
    """
    forward = _across_processes(state, model)
    how: Compile = "never" if isinstance(forward, Suffix) else rules.compile  # its stand-ins are not the compiler's
    state.compiled = compile_module(forward, state.compiled, how)
    call, device, calls_left, calling = state.compiled.call, device_of(state.model), calls, False

    def call_in_context(*arguments: Tensor) -> object:
        nonlocal calls_left, calling
        calls_left, calling = calls_left - 1, True
        with reducing(forward, last=calls_left == 0), _refuse_together(state), autocast(device, rules.precision):
            outputs = call(*arguments)
        calling = False
        return outputs

    recompute = rules.recompute and state.suffix is None
    try:
        with attending(rules.attention), recomputing(state.model, wanted=recompute), compiler_errors(rules.compile):
            yield call_in_context
    except NotReplayable as error:
        if calling or not current().is_distributed:
            raise
        raise RunError(  # in a backward pass, in which the others are on their way to a sum of gradients
            f"step {state.step + 1}: {str(error).removeprefix('model: ')}; begin anew with "
            f"{option('cache.use', 'never')}"
        ) from error


def _refuse_together(state: TrainState) -> AbstractContextManager[None]:
    """Within, what cannot run from the cache on one process is refused by all of them, which then do without it."""
    return raise_together(NotReplayable) if isinstance(state.suffix, Suffix) else nullcontext()


def _across_processes(state: TrainState, model: nn.Module) -> nn.Module:
    """The model, or what averages its gradients over several processes."""
    if not current().is_distributed or is_sharded(model):
        return model
    state.replica = replicate(model, state.replica)
    return state.replica.module
