"""The groups of parameters that a run would train, with the rates that each would get."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from headstart.config.schema import Config
from headstart.planning.phases import make_phases
from headstart.training.phases import freeze_phase, phase_optimizer

_BATCH = 64  # images per step, what batch.size auto means where there are enough images


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters with one rate: ``tensors`` of them, ``parameters`` numbers; ``decays``: weight decay applies."""

    name: str
    lr: float
    decays: bool
    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class PhaseGroups:
    """One phase of the run, its freeze rule as typed, and its groups from the input to the head."""

    phase: str
    freeze: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedGroups:
    """The groups of all phases, and why the rates are these."""

    phases: tuple[PhaseGroups, ...]
    reason: str


def plan_groups(module: nn.Module, config: Config) -> PlannedGroups:
    """What ``train`` with this configuration would train of a pretrained model, phase by phase, with what rates.

    The head is the one that the module has. The module is left as frozen as the last phase leaves it.

    Raises: ConfigError: rates or rules do not fit together. ModelError: a rule matches nothing, the head is not clear.
    """
    size = _BATCH if config.batch.size == "auto" else config.batch.size
    plans, decisions = make_phases(config, module, batch_size=size, pretrained=True)
    phases = []
    for plan in plans:
        frozen = freeze_phase(module, plan)
        groups = tuple(
            Group(
                name=group["name"],
                lr=group["lr"],
                decays=group["weight_decay"] > 0,
                tensors=len(group["params"]),
                parameters=sum(parameter.numel() for parameter in group["params"]),
            )
            for group in phase_optimizer(module, plan, config.optimizer).param_groups
        )
        phases.append(PhaseGroups(phase=plan.name, freeze=frozen.rule, groups=groups))
    (reason,) = (decision.reason for decision in decisions if decision.name == "rates")
    return PlannedGroups(phases=tuple(phases), reason=reason)
