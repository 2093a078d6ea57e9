"""Damaged images cost only themselves; the long form is ``benchmarks.reliability.images``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import headstart as hs
from headstart.data.decoding.decode import FORMATS, UnreadableImage
from headstart.data.reading import ChangedImage
from headstart.data.sources.files import read_image
from tests.reliability import damaged_images as damage


@pytest.mark.parametrize("kind", damage.DAMAGES)
def test_every_kind_of_damage_has_its_reason(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    damage.DAMAGES[kind](path, random.Random(0))
    with pytest.raises(UnreadableImage, match=r"x\.png: \w+"):
        read_image(path)


@pytest.mark.parametrize("splits", [("train", "train", "val", "test"), ("",)])
def test_a_run_that_skips_damaged_images_is_the_run_without_them(tmp_path: Path, splits: tuple[str, ...]) -> None:
    """All kinds; weights, optimizer, metrics and predictions bit for bit, with 0 and 2 loading processes."""
    kinds = len(damage.DAMAGES)
    named, equal = damage.skipped_like_absent(tmp_path, images=96, damaged=kinds, splits=splits, seed=3)
    assert (named, equal) == (kinds, 2)


def test_an_image_that_is_damaged_after_the_scan_stops_the_run_with_its_name(settings, draw_colours, tmp_path) -> None:
    source = draw_colours(tmp_path / "data")

    def watch(event: object) -> None:
        if type(event).__name__ == "Decided":
            for path in (source / "red").iterdir():
                path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(ChangedImage, match=r"data/red/\d\d.png: the file has changed since it was read first"):
        hs.train(hs.load_config(settings(data={"source": str(source)})), watch=watch)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_mutant_kills_the_process(kind: str) -> None:
    assert damage.deaths(kind, mutants=40, seed=1)[0] == 0
