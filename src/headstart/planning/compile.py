"""Whether training goes through torch.compile: as asked, or where an accelerator's steps are many enough to pay for it.

On a CPU it is not tried: compiled steps took as long as the others there, and compiling 40 to 130 s
(docs/measured/speed.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from headstart.config.schema import Config
from headstart.data.images import Images
from headstart.distributed.collectives import broadcast_object
from headstart.distributed.processes import current
from headstart.errors import ConfigError, ModelError, RunError
from headstart.events import Decision
from headstart.planning.precision import empty_copies
from headstart.surgery.module_copy import copy_module
from headstart.training.compile import Compile
from headstart.training.phases import TrainingPlan, freeze_phase, phase_optimizer
from headstart.training.precision import MEMORY_FORMATS, device_of, make_scaler
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step

_WARM, _STEPS = 2, 3  # steps before those that are timed; the first compiled one compiles
_SHORT_SECONDS = 120.0  # of steps: fewer cannot pay for a compiler
_MARGIN = 1.5  # times what compiling took has to be saved: the run compiles once more


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """As plan.json keeps it; ``why`` is empty where there is nothing to say."""

    how: Compile
    why: str = ""


def choose_compile(
    config: Config, module: nn.Module, course: TrainingPlan, images: Images, *, recorded: Mapping[str, Any] | None,
    possible: bool,
) -> tuple[TrainingPlan, tuple[Decision, ...], dict[str, Any]]:  # fmt: skip
    """The course with the choice, what is said of it, and the choice as plan.json keeps it.

    ``recorded``: what was chosen when the run began; ``possible``: each process has the whole model.

    Raises: ConfigError: it is asked for beside something that it does not go with.
    """
    choice, asked = _Choice(how="never"), config.compile
    if asked == "default" or asked == "reduce-overhead":
        _check(config, possible=possible)
        choice = _Choice(how=asked, why="as asked; validation and the bundle do without it")
    elif recorded:
        choice = _Choice(how=recorded["how"], why=recorded["why"])
    elif asked == "auto" and possible and _may_pay(device_of(module)) and not _in_the_way(config, course):
        choice = _Choice(**broadcast_object(asdict(_measure_compile(module, course, images))))
    course = replace(course, rules=replace(course.rules, compile=choice.how))
    return course, (Decision("compile", choice.how, choice.why),) if choice.why else (), asdict(choice)


def _check(config: Config, *, possible: bool) -> None:
    if not possible:
        raise ConfigError("compile: not with a model that is shared out (parallel.kind fsdp); give --compile never")
    if config.activation_checkpointing:
        raise ConfigError("compile: not with activation_checkpointing; leave one of them out")


def _may_pay(device: torch.device) -> bool:
    return device.type != "cpu"


def _in_the_way(config: Config, course: TrainingPlan) -> bool:
    """Several processes, activations computed again, or a head that trains on a cache alone."""
    cached = any("train" in phase.cached for phase in course.phases)
    return current().is_distributed or config.activation_checkpointing or cached


def _measure_compile(module: nn.Module, course: TrainingPlan, images: Images) -> _Choice:
    """By steps of the last phase on a copy of the model."""
    steps = course.phases[-1].epochs * len(images.train)
    try:
        usual, _ = _seconds(module, course, images, "never")
        if usual * steps < _SHORT_SECONDS:
            return _Choice(how="never")
        faster, compiling = _seconds(module, course, images, "default")
    except (ModelError, RunError) as error:
        return _Choice(how="never", why=f"auto: {error}")
    saved = steps * (usual - faster)
    told = f"a step takes {1e3 * faster:.3g} ms compiled, {1e3 * usual:.3g} as it is; compiling took {compiling:.0f} s"
    return _Choice(how="default" if saved > _MARGIN * compiling else "never", why=f"auto: {told}")


def _seconds(module: nn.Module, course: TrainingPlan, images: Images, how: Compile) -> tuple[float, float]:
    """Of a step, and of the first one beyond that."""
    copied, phase = copy_module(module, free_bytes=None, instead="nothing is compiled"), course.phases[-1]
    freeze_phase(copied, phase)
    rules: StepRules = replace(course.rules, compile=how)
    scaler = make_scaler(device_of(copied), rules.precision)
    state = TrainState(copied, phase_optimizer(copied, phase, course.optimizer), scaler=scaler)
    copied.to(memory_format=MEMORY_FORMATS[rules.memory_format])
    batch, marks = images.train.example_batch(images.train.batch_size), [time.perf_counter()]
    try:
        with torch.random.fork_rng():
            for _ in range(_WARM + _STEPS):
                train_step(state, batch, rules=rules)  # it reads the loss, and so waits for the device
                marks.append(time.perf_counter())
    finally:
        empty_copies([copied], but=module)
    step = (marks[-1] - marks[_WARM]) / _STEPS
    return step, max(0.0, marks[1] - marks[0] - step)
