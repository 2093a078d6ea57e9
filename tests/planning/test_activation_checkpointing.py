"""Activation checkpointing as an option of a run: told in the plan, less memory in its estimate, the same metrics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.errors import ConfigError
from headstart.planning.memory import measure
from headstart.planning.preflight import prepare

RESNET = {"name": "timm/resnet18", "weights": "none", "image_size": 64, "options": {"channels": [64, 64, 64, 64]}}


def ready(settings, module: nn.Module | None = None, **sections):
    return prepare(hs.load_config(settings(recipe="full", **sections)), module=module, loss=None, emit=lambda _: None)


def test_it_is_told_and_takes_less_memory(settings) -> None:
    needs = []
    for wanted in (False, True):
        made = ready(settings, model=RESNET, activation_checkpointing=wanted)
        said = {decision.name: decision.reason for decision in made.plan.decisions}
        assert ("activation checkpointing" in said) is wanted
        needs.append(
            measure(made.config, made.opened.module, made.training_plan, made.opened.preprocess).retained_per_image
        )
    assert "8 blocks are computed again" in said["activation checkpointing"]
    assert needs[1] < 0.7 * needs[0]  # the stem, which is in no block, keeps most of the rest


def test_a_run_has_the_same_weights_and_metrics(settings, tmp_path) -> None:
    runs = [
        hs.train(hs.load_config(settings(
            recipe="full", epochs=1, model=RESNET, activation_checkpointing=wanted, out=str(tmp_path / str(wanted))
        )))
        for wanted in (False, True)
    ]  # fmt: skip
    assert runs[0].metrics == runs[1].metrics
    ours, theirs = (run.model.state_dict() for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_has_no_blocks_is_refused(settings) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ConfigError, match=r"no row of blocks .* --batch.accumulate 2"):
        ready(settings, flat, model={"name": "auto", "options": {}, "image_size": 32}, activation_checkpointing=True)
