"""Whether training goes through torch.compile: as asked, or where an accelerator's steps are many enough to pay for it.

On a CPU it is not tried: compiled steps took as long as the others there, and compiling 40 to 130 s
(docs/measured/speed.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from headstart.distributed.collectives import broadcast_object
from headstart.distributed.processes import current
from headstart.errors import ConfigError, ModelError, RunError
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.planning.precision import empty_copies
from headstart.surgery.module_copy import copy_module
from headstart.timing import Looks, time_calls, wall_seconds
from headstart.training.compile import Compile
from headstart.training.phases import freeze_phase, phase_optimizer
from headstart.training.precision import MEMORY_FORMATS, device_of, make_scaler
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step
from headstart.wording import option

_WARM, _STEPS = 2, 3  # steps before those that are timed; the first compiled one compiles
_SHORT_SECONDS = 120.0  # of steps: fewer cannot pay for a compiler
_MARGIN = 1.5  # times what compiling took has to be saved: the run compiles once more


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The choice as plan.json keeps it; ``why`` is empty where there is nothing to say."""

    how: Compile
    why: str = ""


def choose_compile(draft: Draft) -> Draft:
    """The draft with the mode of torch.compile.

    Raises: ConfigError: it is asked for beside something that it does not go with.
    """
    choice, asked, recorded = _Choice(how="never"), draft.config.compile, draft.recorded.get("compile")
    if asked == "default" or asked == "reduce-overhead":
        _check(draft)
        choice = _Choice(how=asked, why="as asked; validation and the bundle do without it")
    elif recorded:
        choice = _Choice(how=recorded["how"], why=recorded["why"])
    elif asked == "auto" and not draft.sharded and _may_pay(draft.device) and not _in_the_way(draft):
        choice = _Choice(**broadcast_object(asdict(_measure_compile(draft))))
    decisions = (Decision("compile", choice.how, choice.why),) if choice.why else ()
    return (
        draft.decide(*decisions).set_rules(replace(draft.rules, compile=choice.how)).choose("compile", asdict(choice))
    )


def _check(draft: Draft) -> None:
    if draft.sharded:
        raise ConfigError(f"compile: not with a sharded model (parallel.kind fsdp); give {option('compile', 'never')}")
    if draft.config.activation_checkpointing:
        raise ConfigError("compile: not with activation_checkpointing; leave one of them out")


def _may_pay(device: torch.device) -> bool:
    return device.type != "cpu"


def _in_the_way(draft: Draft) -> bool:
    """Whether steps are not compiled: of several processes, with activations computed again, or on a cache alone."""
    cached = any("train" in phase.cached for phase in draft.training_plan.phases)
    return current().is_distributed or draft.config.activation_checkpointing or cached


def _measure_compile(draft: Draft) -> _Choice:
    """The choice, measured by steps of the last phase on a copy of the model."""
    steps = draft.training_plan.phases[-1].epochs * len(draft.images.train)
    try:
        usual, _ = _time_steps(draft, "never")
        if usual * steps < _SHORT_SECONDS:
            return _Choice(how="never")
        faster, compiling = _time_steps(draft, "default")
    except (ModelError, RunError) as error:
        return _Choice(how="never", why=f"auto: {error}")
    saved = steps * (usual - faster)
    times = f"a step takes {1e3 * faster:.3g} ms compiled, {1e3 * usual:.3g} as it is; compiling took {compiling:.0f} s"
    return _Choice(how="default" if saved > _MARGIN * compiling else "never", why=f"auto: {times}")


def _time_steps(draft: Draft, how: Compile) -> tuple[float, float]:
    """Seconds of a step, and of the first one beyond that.

    Raises: RunError: there is too little memory for it, or it cannot be compiled.
    """
    module, training_plan, images = draft.module, draft.training_plan, draft.images
    copied, phase = copy_module(module, free_bytes=None, instead="nothing is compiled"), training_plan.phases[-1]
    freeze_phase(copied, phase)
    rules: StepRules = replace(training_plan.rules, compile=how)
    scaler = make_scaler(device_of(copied), rules.precision)
    state = TrainState(copied, phase_optimizer(copied, phase, training_plan.optimizer), scaler=scaler)
    copied.to(memory_format=MEMORY_FORMATS[rules.memory_format])
    batch = images.train.example_batch(images.train.largest_batch)
    looks = Looks(warm=_WARM, least=_STEPS)
    try:
        with torch.random.fork_rng():
            timing = time_calls({how: partial(train_step, state, batch, rules=rules)}, looks, clock=wall_seconds)[how]
    finally:
        empty_copies([copied], but=module)
    if timing.failure:
        raise RunError(f"a step cannot be tried, {timing.failure}")
    return timing.median, max(0.0, timing.warm[0] - timing.median)
