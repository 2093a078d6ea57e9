"""A file that is rewritten while a run is under way: nothing computed from it is kept, and the run says so."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart as hs
from headstart.data.reading import ChangedImage
from headstart.events import CacheNote, DataNote

NEVER: dict[str, Any] = {"recipe": "full", "cache": {"use": "never"}}
CACHES = {
    "none": NEVER, "activations": {"recipe": "probe", "cache": {"use": "always"}},
    "decoded": NEVER | {"cache": {"use": "never", "decoded": True}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "shelf"))


@pytest.fixture
def source(draw_colours, tmp_path: Path) -> Path:
    draw_colours(tmp_path / "data" / "train", each=6)
    return draw_colours(tmp_path / "data" / "val", each=4).parent


@pytest.fixture
def trained(settings, source: Path, tmp_path: Path) -> Callable[..., hs.Run]:
    def run(name: str, *, watch=None, resume: bool = False, data: dict[str, Any] | None = None, **sections: Any):
        given = {"data": {"source": str(source)} | (data or {}), "out": str(tmp_path / name)} | sections
        return hs.train(hs.load_config(settings(**given)), watch=watch, resume=resume)

    return run


def rewriting(path: Path, other: Path, *, at: str, epoch: int = 0) -> Callable[[object], None]:
    """A watcher that puts ``other``'s bytes at ``path`` when the event comes."""

    def watch(event: object) -> None:
        if type(event).__name__ == at and getattr(event, "epoch", 0) == epoch:
            path.write_bytes(other.read_bytes())

    return watch


def same(one: hs.Run, other: hs.Run) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    files = [(run.path / "predictions.csv").read_text() for run in (one, other)]
    return files[0] == files[1] and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("cache", CACHES)
def test_the_run_stops_and_later_ones_on_the_right_files_are_right(trained, source: Path, cache: str, split: str):
    victim, other = source / split / "red" / "01.png", source / "val" / "blue" / "00.png"
    right = victim.read_bytes()
    with pytest.raises(ChangedImage, match=f"{split}/red/01.png") as caught:
        trained("raced", watch=rewriting(victim, other, at="PhaseStarted"), **CACHES[cache])
    assert caught.value.exit_code == 1
    victim.write_bytes(right)
    wanted = trained("plain", **CACHES[cache] | NEVER | {"recipe": CACHES[cache]["recipe"]})
    assert same(trained("later", **CACHES[cache]), wanted)
    assert same(trained("raced", resume=True, **CACHES[cache]), wanted)


def test_a_run_that_stopped_goes_on_when_the_file_is_back(trained, source: Path) -> None:
    wanted = trained("whole", **NEVER)
    victim, other = source / "train" / "red" / "01.png", source / "val" / "blue" / "00.png"
    right = victim.read_bytes()
    with pytest.raises(ChangedImage, match="--resume"):
        trained("run", watch=rewriting(victim, other, at="EpochDone", epoch=1), **NEVER)
    victim.write_bytes(right)
    assert same(trained("run", resume=True, **NEVER), wanted)


def test_a_file_that_vanishes_is_named_with_what_to_do(trained, source: Path) -> None:
    def watch(event: object) -> None:
        if type(event).__name__ == "PhaseStarted":
            (source / "train" / "red" / "01.png").unlink()

    with pytest.raises(ChangedImage, match=r"01.png: there is no such file, and it could be read when .* --resume"):
        trained("run", watch=watch, data={"changed": "note"}, **NEVER)


@pytest.mark.parametrize("cache", CACHES)
def test_a_noted_file_trains_as_it_is_now_and_is_kept_nowhere(trained, source: Path, cache: str) -> None:
    victim, other = source / "val" / "red" / "01.png", source / "val" / "blue" / "00.png"
    right, said = victim.read_bytes(), []
    swap = rewriting(victim, other, at="PhaseStarted")

    def listen(event: object) -> None:
        if isinstance(event, DataNote | CacheNote):
            said.append(event.text)

    def watch(event: object) -> None:
        swap(event)
        listen(event)

    noted = trained("noted", watch=watch, data={"changed": "note"}, **CACHES[cache])
    (told,) = [text for text in said if str(victim) in text]
    assert "as it is now" in told
    assert told in (noted.path / "log.txt").read_text()
    assert not [text for text in said if "damaged" in text]
    with (noted.path / "predictions.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    changed, copied = rows["val/red/01.png"], rows["val/blue/00.png"]
    assert (changed["truth"], copied["truth"]) == ("red", "blue")
    assert changed["prediction"] == copied["prediction"]
    assert float(changed["confidence"]) == pytest.approx(float(copied["confidence"]), rel=1e-5)
    victim.write_bytes(right)
    wanted = trained("plain", **CACHES[cache] | NEVER | {"recipe": CACHES[cache]["recipe"]})
    said.clear()
    assert same(trained("later", watch=listen, **CACHES[cache]), wanted)
    computed = [text.rpartition("; ")[2] for text in said if "cache: val" in text]
    assert computed == (["1 computed, 11 read"] if cache == "activations" else [])  # the one that was left out before


def test_nobody_need_watch(trained, settings, source: Path) -> None:
    trained("run", watch=None, **NEVER)
    assert hs.plan(hs.load_config(settings(data={"source": str(source)})), watch=None)
