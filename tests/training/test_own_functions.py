"""A transform and metrics of one's own are plain functions; what they draw is a function of seed, image and epoch."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import headstart as hs
from headstart.data.transforms.own import OwnTransform
from headstart.errors import ConfigError, DataError

SMALL = {"recipe": "full", "epochs": 2, "checkpoint": {"every_steps": 1}}


class Stop(Exception):
    pass


def noisy(pixels: Tensor) -> Tensor:
    """A change that draws from all three generators."""
    shift = random.randrange(20) + int(np.random.randint(20)) + int(torch.randint(20, ()))
    return (pixels.int() + shift).clamp(0, 255).to(torch.uint8)


def dark(pixels: Tensor) -> Tensor:
    return pixels // 2


def top_2(outputs: Tensor, truth: Tensor) -> Tensor:
    return (outputs.topk(2, dim=1).indices == truth[:, None]).any(1).float().mean()


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def trained(settings, tmp_path: Path) -> Callable[..., hs.Run]:
    """A run in a folder of its own: ``trained("name", transform=noisy)``."""

    def run(name: str, *, sections: dict[str, Any] = SMALL, **given: Any) -> hs.Run:
        return hs.train(hs.load_config(settings(**sections, out=str(tmp_path / name))), **{"watch": None} | given)

    return run


def test_what_a_transform_draws_depends_on_seed_image_and_epoch_alone(trained, tmp_path: Path) -> None:
    """With loading processes, interrupted, and whatever was drawn before."""
    plain, once = trained("plain"), trained("once", transform=noisy)
    state = random.getstate(), np.random.get_state()[1].tolist()
    again = trained("again", transform=noisy, sections=SMALL | {"workers": 2})
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert weights(once.path) == weights(again.path) != weights(plain.path)
    seen = 0

    def stop(event: object) -> None:
        nonlocal seen
        seen += isinstance(event, hs.StepDone)
        if seen == 3:
            raise Stop

    with pytest.raises(Stop):
        trained("cut", transform=noisy, watch=stop)
    for other in (dark, None):
        with pytest.raises(ConfigError, match="the SHA-256 of the transform's own code was"):
            trained("cut", transform=other, resume=True)
    assert weights(trained("cut", transform=noisy, resume=True).path) == weights(once.path)


def test_a_frozen_part_is_cached_behind_the_transform_and_not_mixed_up(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    probe = {"recipe": "probe", "epochs": 2, "cache": {"use": "always", "views": 1}, "augment": {"preset": "none"}}
    runs = [trained(name, sections=probe, transform=how) for name, how in (("a", None), ("b", dark), ("c", dark))]
    bits = [weights(run.path) for run in runs]
    assert bits[1] == bits[2] != bits[0]
    assert (
        weights(trained("d", sections=probe | {"cache": {"use": "never", "views": 1}}, transform=dark).path) != bits[0]
    )


@pytest.mark.parametrize(
    ("function", "gave"),
    [
        (lambda pixels: pixels.float(), r"torch\.float32 \(3, 4, 4\)"),
        (lambda pixels: pixels[:1], r"torch\.uint8 \(1, 4, 4\)"),
        (lambda pixels: pixels.numpy(), "ndarray"),
    ],
)
def test_a_transform_that_gives_something_else_is_refused(function, gave: str) -> None:
    with pytest.raises(DataError, match=rf"transform: it gave {gave}; accepted is .* torch\.uint8 \(3, 4, 4\)"):
        OwnTransform(function)(torch.zeros(3, 4, 4, dtype=torch.uint8), seed=1)


def test_own_metrics_stand_beside_the_others_in_every_epoch_and_in_the_result(trained) -> None:
    told = []
    run = trained("run", metrics={"top_2": top_2}, watch=told.append)
    epochs = [event.metrics for event in told if isinstance(event, hs.EpochDone)]
    assert all(found["accuracy"] <= found["top_2"] <= 1 for found in epochs) and len(epochs) == 2
    assert run.metrics["top_2"] in [found["top_2"] for found in epochs]
    with (run.path / "metrics.csv").open(newline="") as file:
        assert [float(row["val_top_2"]) for row in csv.DictReader(file)] == [found["top_2"] for found in epochs]


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"accuracy": top_2}, "metrics: accuracy is one of headstart's own; give yours another name, e.g. my_accuracy"),
        ({"top": 0.5}, "metrics: top is of type float; give a function"),
        ({"all": lambda outputs, _: outputs}, "metrics: all gave type Tensor; accepted is one number"),
    ],
)
def test_metrics_that_cannot_be_are_refused(trained, metrics, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        trained("run", metrics=metrics)
