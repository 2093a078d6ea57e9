"""The groups that are shown are those that training would make."""

from __future__ import annotations

import pytest
import timm
import torch

from headstart.config.load import load_config
from headstart.errors import ModelError
from headstart.optim.groups import param_groups
from headstart.planning.groups import plan_groups
from headstart.surgery.freeze import freeze_by


def tiny(name: str = "test_vit") -> torch.nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=7)


def test_the_groups_of_a_phase_are_those_of_the_optimizer() -> None:
    config = load_config({"optimizer": {"lr": 1e-4, "head_lr": 1e-3, "layer_decay": 0.5}, "freeze": "until:blocks.1"})
    found = plan_groups(tiny(), config)
    assert [phase.phase for phase in found.phases] == ["probe", "finetune"]
    module = tiny()
    frozen = freeze_by(module, config.freeze)
    wanted = param_groups(module, lr=1e-4, head_lr=1e-3, layer_decay=0.5, weight_decay=0.02)
    last = found.phases[-1]
    assert last.freeze == "until:blocks.1"
    shown = [(group.name, group.lr, group.decays, group.tensors) for group in last.groups]
    assert shown == [(g["name"], g["lr"], g["weight_decay"] > 0, len(g["params"])) for g in wanted]
    assert sum(group.parameters for group in last.groups) == frozen.of - frozen.parameters


def test_automatic_rates_never_rise_towards_the_input() -> None:
    found = plan_groups(tiny(), load_config())
    rates = [group.lr for group in found.phases[-1].groups]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    assert "without BatchNorm, batch 64, adamw" in found.reason
    assert "a BatchNorm network" in plan_groups(tiny("test_resnet"), load_config()).reason


def test_a_frozen_backbone_leaves_the_probe() -> None:
    (only,) = plan_groups(tiny(), load_config({"freeze": "backbone"})).phases
    assert only.phase == "probe"
    assert {group.name for group in only.groups} == {"head", "head (no decay)"}


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match="nosuch"):
        plan_groups(tiny(), load_config({"freeze": "until:nosuch"}))
