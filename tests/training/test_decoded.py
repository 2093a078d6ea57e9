"""A run by way of decoded images: the same weights, and what is kept serves the next run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import headstart as hs
from headstart.events import CacheNote


@pytest.fixture(autouse=True)
def own_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


@pytest.fixture
def trained(settings, tmp_path: Path):
    def run(name: str, *, watch=lambda _: None, **sections) -> hs.Run:
        tree = settings(recipe="lp_ft", out=str(tmp_path / name), **sections)
        return hs.train(hs.load_config(tree), watch=watch)

    return run


def same(one: hs.Run, other: hs.Run) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return one.metrics == other.metrics and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_a_run_has_the_bits_of_one_that_decodes_every_time(
    trained, own_shelf: Path, workers: int, mixup: float
) -> None:
    augment = {"augment": {"preset": "strong", "mixup": mixup}}
    plain = trained("plain", **augment)
    kept = trained("kept", workers=workers, cache={"decoded": True}, **augment)
    assert same(plain, kept)
    assert len([*own_shelf.glob("*/pages")]) >= 2  # of training and of validation
    decisions = {one.name: one for one in hs.plan(hs.load_config(kept.path / "config.yaml")).decisions}
    assert "kept, up to" in decisions["decoded images"].value


def test_without_room_the_run_goes_on_and_says_why(trained) -> None:
    notes: list[str] = []
    plain = trained("plain")
    without = trained(
        "without", cache={"decoded": True, "limit_gb": 1e-6},
        watch=lambda event: notes.append(event.text) if isinstance(event, CacheNote) else None,
    )  # fmt: skip
    assert sum("decoded images are not kept" in note for note in notes) == 2
    assert same(plain, without)
