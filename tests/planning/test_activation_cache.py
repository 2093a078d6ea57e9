"""What the plan caches, and how many views an image has: by passes spared, seconds and bytes, and as asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import headstart as hs
from headstart.errors import ConfigError
from headstart.planning import activation_cache as cache


def planned(sections: dict[str, Any]) -> tuple[list[tuple[int, list[str]]], str]:
    """(views, cached splits) of each phase, and why."""
    plan = hs.plan(hs.load_config(sections))
    why = next(decision.reason for decision in plan.decisions if decision.name == "cache")
    return [(phase["views"], phase["cached"]) for phase in plan.to_dict()["phases"]], why


def cost(monkeypatch: pytest.MonkeyPatch, *, seconds: float, nbytes: int) -> None:
    monkeypatch.setattr(cache, "measure_frozen_cost", lambda *_, **__: cache.FrozenCost(seconds=seconds, nbytes=nbytes))


def test_a_short_run_is_not_looked_at(settings):
    found, why = planned(settings(recipe="probe", epochs=2))
    assert (found, why) == (
        [(0, [])],
        "auto: it would spare 6 passes of an image through the frozen part; from 256 on it is weighed",
    )


def test_a_long_probe_has_four_views_and_reads_both_splits(settings, monkeypatch):
    cost(monkeypatch, seconds=0.05, nbytes=2048)
    found, why = planned(settings(recipe="probe", epochs=20))
    assert found == [(4, ["train", "val"])]
    assert why == "auto: 50 ms and 2.0 KiB an image before the boundary; about 6 s instead of 36 s, 0 MiB"


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({"augment": {"preset": "none"}}, (1, ["train", "val"])),
        ({"augment": {"preset": "none", "flip": True}}, (4, ["train", "val"])),
        ({"cache": {"views": 7}}, (7, ["train", "val"])),
        ({"cache": {"views": 20}}, (20, ["val"])),  # as many views as epochs spare nothing
        ({"cache": {"use": "never"}}, (0, [])),
        ({"cache": {"use": "never", "views": 7}}, (7, [])),
        ({"augment": {"mixup": 0.2}}, (0, ["val"])),
        ({"cache": {"limit_gb": 1e-4}}, (0, ["val"])),
    ],
)
def test_views_and_splits_follow_what_is_asked_and_what_fits(settings, monkeypatch, sections, found):
    cost(monkeypatch, seconds=0.05, nbytes=2048)
    monkeypatch.setattr(cache, "_FEW", 0)
    assert planned(settings(**{"recipe": "probe", "epochs": 20} | sections))[0] == [found]


def test_what_is_cheap_to_compute_or_dear_to_keep_is_computed(settings, monkeypatch):
    cost(monkeypatch, seconds=1e-3, nbytes=4 << 20)
    found, why = planned(settings(recipe="probe", epochs=20))
    assert found == [(0, [])] and "recomputed" in why


def test_each_phase_has_its_own(settings, monkeypatch):
    cost(monkeypatch, seconds=0.05, nbytes=2048)
    found, why = planned(settings(recipe="lp_ft", epochs=40))
    assert found == [(4, ["train", "val"]), (0, [])]
    assert "nothing that is frozen executes before what trains" in why


def test_nothing_to_cache_is_an_error_where_it_must_be(settings):
    with pytest.raises(ConfigError, match=r"cache\.use: nothing can be cached: .*give --cache\.use auto"):
        planned(settings(recipe="full", cache={"use": "always"}))


class Shifted(nn.Module):
    """Something without weights comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.late, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.late(self.conv(functional.pad(images * 2 - 1, (0, 1, 0, 1))).mean((2, 3))))


def test_what_has_no_weights_is_not_worth_keeping(settings, monkeypatch):
    monkeypatch.setattr(cache, "_FEW", 0)
    sections = settings(recipe="full", freeze="names:late", epochs=6)
    sections["model"] = {"image_size": 32}
    plan = hs.plan(hs.load_config(sections), model=Shifted())
    why = next(decision.reason for decision in plan.decisions if decision.name == "cache")
    assert why == "nothing with weights is frozen before what trains"


def test_the_measured_cost_is_of_the_real_part(settings):
    found, why = planned(settings(recipe="probe", cache={"use": "always"}, batch={"size": 4}))
    assert found == [(2, ["train", "val"])]
    assert "0.1 KiB an image before the boundary" in why  # 16 channels of 4 bytes


def test_what_was_chosen_stays_when_the_run_goes_on(settings, monkeypatch):
    class Killed(Exception):
        pass

    def kill(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step == 3:
            raise Killed

    config = hs.load_config(settings(recipe="probe", epochs=5, checkpoint={"every_steps": 1, "every_seconds": 0.0}))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_FEW", 0)
        cost(patch, seconds=0.05, nbytes=2048)
        with pytest.raises(Killed):
            hs.train(config, watch=kill)
    before = json.loads(Path(config.out, "plan.json").read_text())
    run = hs.train(config, resume=True)
    after = json.loads((run.path / "plan.json").read_text())
    assert after["choices"]["cache"] == before["choices"]["cache"]
    assert [(phase["views"], phase["cached"]) for phase in after["phases"]] == [(4, ["train", "val"])]
