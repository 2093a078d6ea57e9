"""The activation cache: the bits of a run without it, whatever is missing, damaged or changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import headstart as hs
from headstart.errors import ConfigError
from headstart.events import CacheNote, CacheProgress
from headstart.storage.disk_cache import DiskCache

CACHED = {"use": "always", "views": 2}
LATER_FROZEN = [{"epochs": 1}, {"epochs": 2, "freeze": "backbone"}]  # the average of the backbone is not the backbone
VIT = {"name": "timm/test_vit", "image_size": 160, "options": {}}
EVERYTHING: dict[str, Any] = {
    "epochs": 3, "head": {"kind": "mlp", "hidden": [8], "dropout": 0.5}, "augment": {"preset": "strong"},
    "average": {"kind": "ema", "half_life": 0.2}, "batch": {"size": 8, "accumulate": 2, "clip_norm": 1.0},
    "penalties": {"l1": 1e-4, "l2_start": 0.01},
}  # fmt: skip


@pytest.fixture(scope="module")
def colours(split_colours: Path) -> Path:
    return split_colours


@pytest.fixture(autouse=True)
def own_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_proofs: None) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


@pytest.fixture
def trained(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Trained]:
    """Trains: ``trained("name", cache={...}, watch=..., resume=...)``."""

    def run(name: str, *, watch: Callable[[object], None] = lambda _: None, resume: bool = False, **sections: Any):
        said: list[str] = []

        def listen(event: object) -> None:
            if isinstance(event, CacheNote):
                said.append(event.text)
            watch(event)

        given = settings(**sections, out=str(tmp_path / name))
        for other in ("recipe", "epochs") if "phases" in sections else ():
            del given[other]
        hs.train(hs.load_config(given), watch=listen, resume=resume)
        return Trained(tmp_path / name, said)

    return run


@dataclass(frozen=True)
class Trained:
    run: Path
    said: list[str]

    def bits(self) -> dict[str, Any]:
        """Everything that training gave, clocks aside; tensors by digests, which can be shown where they differ."""
        last = json.loads((self.run / "checkpoints" / "last.json").read_text())
        folder = next(path for path in (self.run / "checkpoints").iterdir() if path.name in json.dumps(last))
        tensors = {
            f"{path.name} {name}": sha256(value.numpy().tobytes()).hexdigest()
            for path in [*folder.glob("*.safetensors"), self.run / "model" / "model.safetensors"]
            for name, value in load_file(path).items()
        }
        events = [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]
        history = [
            {name: value for name, value in event.items() if "second" not in name}
            for event in events if event["event"] in ("step", "epoch")
        ]  # fmt: skip
        return tensors | {"history": history, "predictions": (self.run / "predictions.csv").read_text()}

    def counts(self) -> list[tuple[int, int]]:
        """(computed, read) pages of each split."""
        found = [text.rpartition("; ")[2].replace(",", "").split() for text in self.said if "computed" in text]
        return [(int(words[0]), int(words[2])) for words in found]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"recipe": "probe"}, id="probe"),
        pytest.param({"recipe": "probe", "augment": {"preset": "none"}, "cache": {"views": 1}}, id="unchanged"),
        pytest.param(
            {"recipe": "probe", "augment": {"preset": "none", "flip": "alternating"}, "cache": {"views": "auto"}},
            id="alternating",
        ),
        pytest.param({"recipe": "full", "freeze": "stages:3", "norm_statistics": "batch"}, id="half"),
        pytest.param({"recipe": "gradual", "epochs": 4}, id="gradual"),
        pytest.param({"recipe": "probe", "memory_format": "channels_last"}, id="channels_last"),
        pytest.param({"recipe": "probe", "precision": "bf16"}, id="bf16"),
        pytest.param({"recipe": "full", "freeze": "stages:2", "memory_format": "channels_last"}, id="half_last"),
        pytest.param({"recipe": "probe", "model": VIT}, id="vit"),
        pytest.param({"recipe": "probe", "batch": {"size": 2}, "workers": 2}, id="two at a time"),
        pytest.param({"phases": LATER_FROZEN, "epochs": 10}, id="an average that lags"),
    ],
)
def test_the_bits_are_those_of_a_run_without_it(trained, options: dict[str, Any]):
    options = EVERYTHING | options
    cache = CACHED | options.pop("cache", {})
    plain = trained("plain", **options, cache=cache | {"use": "never"})
    cached = trained("cached", **options, cache=cache)
    assert cached.said and not plain.said
    assert cached.bits() == plain.bits()


def test_a_second_run_computes_nothing_and_every_view_is_its_own(trained):
    first, second = (trained(name, **EVERYTHING, recipe="probe", cache=CACHED) for name in ("first", "second"))
    assert first.counts() == [(48, 0), (9, 0)]
    assert second.counts() == [(0, 48), (0, 9)]
    assert first.bits() == second.bits()
    with pytest.raises(AssertionError):
        assert trained("one", **EVERYTHING, recipe="probe", cache=CACHED | {"views": 1}).bits() == first.bits()


def test_alternating_mirrors_are_two_views_and_all_there_are(trained):
    alternating = {"preset": "none", "flip": "alternating"}
    made = trained("made", recipe="probe", epochs=4, augment=alternating, cache={"use": "always"})
    assert made.counts() == [(2 * 24, 0), (9, 0)]


def test_a_run_that_is_killed_while_it_computes_goes_on_where_it_was(trained):
    class Killed(Exception):
        pass

    def kill(event: object) -> None:
        if isinstance(event, CacheProgress) and event.done >= 16:
            raise Killed

    options = EVERYTHING | {"recipe": "probe", "cache": CACHED}
    with pytest.raises(Killed):
        trained("run", **options, watch=kill)
    resumed = trained("run", **options, resume=True)
    assert resumed.counts() == [(32, 16), (9, 0)]
    assert resumed.bits() == trained("plain", **options | {"cache": CACHED | {"use": "never"}}).bits()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_is_killed_later_is_resumed_to_the_bit(trained, epoch: int):
    class Killed(Exception):
        pass

    def kill(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step == 3 * epoch + 2:
            raise Killed

    options = EVERYTHING | {"recipe": "probe", "cache": CACHED, "checkpoint": {"every_steps": 1, "every_seconds": 0.0}}
    with pytest.raises(Killed):
        trained("run", **options, watch=kill)
    assert trained("run", **options, resume=True).bits() == trained("whole", **options).bits()


def damage(shelf: Path, *, at: float) -> None:
    for pages in shelf.glob("*/pages"):
        data = bytearray(pages.read_bytes())
        data[int(at * len(data))] ^= 4
        pages.write_bytes(data)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.95])
def test_a_damaged_page_is_computed_again_and_said_and_never_trained_on(trained, own_shelf: Path, at: float):
    def spoil(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step == 3:
            damage(own_shelf, at=at)

    options = EVERYTHING | {"recipe": "probe"}
    found = trained("run", **options, cache=CACHED, watch=spoil)
    damaged = [text for text in found.said if "damaged, so computed again" in text]
    assert len(damaged) == 3  # two views, and validation
    assert found.bits() == trained("plain", **options, cache=CACHED | {"use": "never"}).bits()


def test_a_page_that_cannot_be_mended_is_computed_each_time(trained, own_shelf: Path, monkeypatch: pytest.MonkeyPatch):
    def spoil(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step == 3:
            damage(own_shelf, at=0.5)
            monkeypatch.setattr(os, "pwritev", refuse)

    options = EVERYTHING | {"recipe": "probe"}
    found = trained("run", **options, cache=CACHED, watch=spoil)
    assert found.bits() == trained("plain", **options, cache=CACHED | {"use": "never"}).bits()


def test_a_file_that_is_gone_or_cut_short_is_made_again(trained, own_shelf: Path):
    options = EVERYTHING | {"recipe": "probe", "cache": CACHED}
    whole = trained("whole", **options)
    first, *others = sorted(own_shelf.glob("*/pages"))
    first.unlink()
    for other in others:
        os.truncate(other, 100)
    again = trained("again", **options)
    assert [count[0] > 0 for count in again.counts()] == [True, True]
    assert again.bits() == whole.bits()


def test_without_room_the_frozen_part_is_computed_in_every_epoch(trained):
    options = EVERYTHING | {"recipe": "probe"}
    tight = {"use": "always", "views": 2, "limit_gb": 2e-6}
    found = trained("tight", **options, cache=tight)  # validation fits, training does not
    assert found.counts() == [(9, 0)]
    assert found.bits() == trained("plain", **options, cache=CACHED | {"use": "never"}).bits()


def test_on_a_full_disk_the_run_goes_on_and_says_why(trained, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    options = EVERYTHING | {"recipe": "probe"}
    found = trained("full", **options, cache=CACHED)
    assert ["No space left" in text and "not used for" in text for text in found.said] == [True, True]
    assert found.bits() == trained("plain", **options, cache=CACHED | {"use": "never"}).bits()


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_half_the_bytes_are_a_choice_with_its_error_said(trained):
    found = trained("bf16", **EVERYTHING, recipe="probe", cache=CACHED | {"dtype": "bf16"})
    assert all("stored as bf16 (relative error 1." in text or "relative error 2." in text for text in found.said)


def test_what_cannot_be_cached_is_refused_when_it_is_asked_for(settings):
    mixed = settings(recipe="full", cache={"use": "always"})
    with pytest.raises(ConfigError, match="nothing can be cached"):
        hs.plan(hs.load_config(mixed))


def test_mixing_leaves_validation_to_the_cache(trained):
    options = EVERYTHING | {"recipe": "probe", "augment": {"preset": "strong", "mixup": 0.4}}
    found = trained("mixed", **options, cache=CACHED)
    assert found.counts() == [(9, 0)]
    assert found.bits() == trained("plain", **options, cache=CACHED | {"use": "never"}).bits()


def test_the_shelf_keeps_to_its_limit_and_what_is_in_use(own_shelf: Path):
    about = {"model": "net"}
    shelf = DiskCache(own_shelf, limit_bytes=2500)
    keys = ["a" * 32, "b" * 32, "c" * 32]
    with shelf.open_records(keys[0], count=10, record_bytes=92, about=about):
        shelf.open_records(keys[1], count=10, record_bytes=92, about=about).close()
        shelf.open_records(keys[2], count=10, record_bytes=92, about=about).close()
        assert [entry.key for entry in shelf.content()] == [keys[0], keys[2]]  # the first is older, but open
        assert not shelf.remove(keys[0])
    assert shelf.remove(keys[0])
    assert [entry.key for entry in shelf.content()] == [keys[2]]
