"""State of an own module outside of its parameters and buffers: resumed, in the bundle, or said to be lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError


class Tail(nn.Module):
    """Counts its calls in training in several kinds of places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(8, 8)
        self.calls, self.seen, self.draws = 0, [0.0], random.Random(3)
        self.register_buffer("passing", torch.zeros(1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.seen[0] += self.draws.random()
            self.passing += 1
        return self.linear(features) * (1 + self.calls / 50) + self.passing / 90 + self.seen[0] / 70


class Net(nn.Module):
    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.conv, self.tail, self.fc = nn.Conv2d(3, 8, 3, 4), tail, nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.tail(torch.relu(self.conv(images)).mean((2, 3))))


class Stop(Exception):
    pass


@pytest.fixture
def trained(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    def run(name: str, tail: nn.Module, *, stop_at: int = 0, **options: Any) -> Any:
        def watch(event: object) -> None:
            if type(event).__name__ == "Saved" and event.step >= stop_at > 0:
                raise Stop

        given = settings(
            recipe="full", freeze="until:conv", epochs=3, out=str(tmp_path / name), augment={"preset": "none"},
            average={"kind": "ema"}, precision="fp32", memory_format="contiguous", checkpoint={"every_steps": 1},
        )  # fmt: skip
        given["model"] = {"image_size": 32}
        torch.manual_seed(0)
        return hs.train(hs.load_config(given), model=Net(tail), watch=watch, **options)

    return run


def test_a_resume_and_the_bundle_have_the_counters_that_the_run_had(trained, tmp_path: Path):
    whole = trained("whole", Tail())
    with pytest.raises(Stop):
        trained("cut", Tail(), stop_at=5)
    cut = trained("cut", Tail(), resume=True)
    assert all(torch.equal(value, cut.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    files = [(tmp_path / name / "predictions.csv").read_text() for name in ("whole", "cut")]
    assert files[0] == files[1]
    opened = hs.open_run(tmp_path / "cut", model=Net(Tail())).model
    mine, theirs = (vars(model.tail) for model in (opened, whole.model))
    assert mine["calls"] == theirs["calls"] > 0
    assert mine["seen"] == theirs["seen"]
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(opened(images), whole.model(images))


def counted_elsewhere() -> nn.Module:
    """A counter that nothing but its closure holds: an object that cannot be written to a file."""
    torch.manual_seed(1)
    tail, count = nn.Linear(8, 8), [0.0]

    def hook(_: nn.Module, __: object, made: Tensor) -> Tensor:
        count[0] += 0.01
        return made * (1 + count[0])

    tail.register_forward_hook(hook)
    return tail


def test_what_no_checkpoint_can_hold_is_named_and_its_resume_is_refused_until_it_is_allowed(trained, tmp_path: Path):
    with pytest.raises(Stop):
        trained("cut", counted_elsewhere(), stop_at=2)
    plan = (tmp_path / "cut" / "plan.json").read_text()
    assert "changed by forward and not saved" in plan
    with pytest.raises(ConfigError, match="saved in no checkpoint"):
        trained("cut", counted_elsewhere(), resume=True)
    trained("cut", counted_elsewhere(), resume=True, allow_inexact=True)
