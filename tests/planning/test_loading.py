"""Loading processes: as many as keep up, by what was measured; nothing is measured where nothing is to be gained."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.errors import ConfigError
from headstart.planning import loading
from headstart.planning.loading import count_workers
from headstart.planning.preflight import prepare


@pytest.mark.parametrize(
    ("times", "cores", "shared", "expected"),
    [
        ((0.002, 0.100), 16, True, 0),  # 2 %: in between
        ((0.010, 0.100), 16, True, 1),
        ((0.002, 0.0004), 16, False, 8),  # 5 keep up, half as many to spare
        ((0.017, 0.0004), 16, False, 16),  # large photos: all there are
        ((0.0001, 0.100), 16, False, 1),  # a process of its own, for the device not to wait
    ],
)
def test_as_many_as_keep_up(times: tuple[float, float], cores: int, shared: bool, expected: int) -> None:
    assert count_workers(*times, cores=cores, shared=shared) == expected


def planned(settings: Any, **options: Any) -> list[Any]:
    made = hs.plan(hs.load_config(settings(**options)))
    return [one for one in made.decisions if one.name == "workers"]


def test_only_on_several_cores_and_in_a_long_run(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"recipe": "full", "workers": "auto"}
    monkeypatch.setattr(loading, "available_cores", lambda: 4)
    assert not planned(settings, **options)
    monkeypatch.setattr(loading, "_SHORT_SECONDS", 0.0)
    found = planned(settings, **options)
    assert len(found) == 1 and found[0].reason.startswith("auto: loading takes ") and "4 cores" in found[0].reason
    assert not planned(settings, recipe="full", workers=1)
    monkeypatch.setattr(loading, "available_cores", lambda: 2)
    assert not planned(settings, **options)


@pytest.mark.parametrize("count", [0, 2])
def test_the_run_has_what_was_chosen_and_the_same_bits(settings, tmp_path, monkeypatch, count: int) -> None:
    monkeypatch.setattr(loading, "_SHORT_SECONDS", 0.0)
    monkeypatch.setattr(loading, "available_cores", lambda: 4)
    monkeypatch.setattr(loading, "count_workers", lambda *_, **__: count)
    options: dict[str, Any] = {"recipe": "full", "epochs": 1}
    config = hs.load_config(settings(workers="auto", out=str(tmp_path / "chosen"), **options))
    ready = prepare(config, module=None, loss=None, emit=lambda _: None).images
    assert [split.workers for split in (ready.train, ready.val)] == [count, count]
    chosen = hs.train(config)
    told = json.loads((chosen.path / "plan.json").read_text())["decisions"]
    assert [one["value"] for one in told if one["name"] == "workers"] == [str(count)]
    monkeypatch.setattr(loading, "available_cores", lambda: 1)
    alone = hs.train(hs.load_config(settings(workers=0, out=str(tmp_path / "alone"), **options)))
    assert chosen.metrics == alone.metrics


def test_no_more_than_can_hand_over_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_room(*, workers: int, batch_bytes: int) -> None:
        if workers * batch_bytes > 300:
            raise ConfigError("too little")

    monkeypatch.setattr(loading, "check_room", check_room)
    assert loading._limit_to_room(8, 100) == 3
    assert loading._limit_to_room(8, 1000) == 0


class Halved(nn.Module):
    """Ten times as fast in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02 if torch.is_autocast_enabled("cpu") else 0.2)
        return self.fc(self.conv(images).mean((2, 3)))


def test_it_is_trainings_arithmetic_that_counts(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where evaluation is in bf16, and training is not."""
    monkeypatch.setattr(loading, "_SHORT_SECONDS", 0.0)
    monkeypatch.setattr(loading, "available_cores", lambda: 4)
    kept = settings(recipe="full", workers="auto", cache={"use": "never"}) | {"model": {"image_size": 32}}
    recorded = {"evaluation": {"size": 8, "precision": "bf16", "why": "as it was"}}
    made = prepare(hs.load_config(kept), module=Halved(), loss=None, emit=lambda _: None, recorded=recorded)
    assert made.training_plan.rules.evaluated_in == "bf16"
    (told,) = (one for one in made.plan.decisions if one.name == "workers")
    milliseconds = float(told.reason.partition("the model ")[2].partition(" ms")[0])
    assert milliseconds > 10  # three passes of 0.2 s for 16 images or so; in bf16 4 ms
