"""Pictures of more than 8 bits: which stored values become black and white, said, and the same for later pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart as hs
from headstart.data.decoding.raster import Measured
from headstart.data.images import open_images
from headstart.data.levels import choose_levels
from headstart.data.sources import files
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess, imagenet_preprocess

Settings = Callable[..., dict[str, Any]]
RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))


def write(root: Path, *, top: float, kind: str = "uint16", each: int = 6, suffix: str = "png") -> Path:
    """Two classes of ramps up to ``top``, each a little other than the rest."""
    for place, name in enumerate(("left", "right")):
        (root / name).mkdir(parents=True)
        for number in range(each):
            ramp = (RAMP if place else RAMP[:, ::-1]) * top
            ramp[number] = 0
            Image.fromarray(ramp.astype(kind)).save(root / name / f"{number}.{suffix}")
    return root


def describe(images: hs.Images) -> str:
    return "; ".join(note for note in images.notes if "data.range" in note or "black" in note)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_whole_numbers_are_shown_by_the_bits_that_are_in_use(tmp_path: Path, bits: int) -> None:
    form = imagenet_preprocess(channels=3, source="test")
    images = open_images(write(tmp_path / "a", top=2**bits - 1), like=form, augment="none")
    pixels = next(images.train.epoch(0)).pixels
    assert pixels.min() <= 16 and pixels.max() >= 235  # but for the edges, which are cropped
    assert describe(images).startswith(
        f"data.range: 12 of 12 images have more than 8 bits (uint16): 0 becomes black and {2**bits - 1} white; "
        f"auto: nearly all values need {bits} bits"
    )


def test_floating_point_pictures_are_shown_by_their_values(tmp_path: Path) -> None:
    form = imagenet_preprocess(channels=3, source="test")
    source = write(tmp_path / "a", top=1, kind="float32", suffix="tiff")
    images = open_images(source, like=form, augment="none")
    assert "0 becomes black and 1 white; auto: nearly all values lie between 0 and 1" in describe(images)
    assert next(images.train.epoch(0)).pixels.max() >= 235


def found(*tops: float, kind: str = "uint16", low: float = 0.0) -> dict[str, Measured]:
    return {str(place): Measured(1, kind, low, low, top, top) for place, top in enumerate(tops)}


@pytest.mark.parametrize(
    ("measured", "levels", "why"),
    [
        (found(*[3000] * 99, 65535), (0, 4095), "need 12 bits"),  # one picture with a broken pixel
        (found(40, 200), (0, 255), "need 8 bits"),
        (found(3000, kind="int16", low=-1000), (-1000, 3000), "lie between these"),
        (found(90000, kind="uint32"), (0, 90000), "lie between these"),
        (found(0.5, 1.0, kind="float32"), (0, 1), "between 0 and 1"),
        (found(200.5, kind="float64"), (0, 255), "between 0 and 255"),
        (found(7.0, kind="float32", low=7.0), (0, 255), "between 0 and 255"),
        (found(-2.0, kind="float32", low=-2.0), (-2, -1), "are the same"),
        (found(), None, ""),
    ],
)
def test_the_range_that_auto_chooses(measured: dict[str, Measured], levels: object, why: str) -> None:
    chosen, notes, _ = choose_levels(measured, count=100, asked=None)
    assert chosen == levels
    assert why in "".join(notes)


def test_what_is_cut_off_and_what_stays_black_is_told() -> None:
    levels, notes, (dark,) = choose_levels(found(900, 1000, 65535), count=3, asked=(0, 65535))
    assert levels is None  # which is all 16 bits
    assert notes[0].endswith("0 becomes black and 65535 white; as given")
    assert dark.text == (
        "2 of 3 images have nearly all values below an eighth of the range, black to the model, e.g. '0', '1'"
    )
    assert (dark.count, dark.example, dark.advice) == (2, "0", "give a narrower range: --data.range 0 1000")
    _, _, (cut,) = choose_levels(found(900, 70000, kind="uint32"), count=2, asked=(0, 1000))
    assert cut.text == "1 of 2 images has values beyond the range 0 to 1000, which are cut off, e.g. '1'"
    assert cut.advice == "where they matter, give a wider range: --data.range 0 70000"


def test_what_8_bits_cannot_hold_is_told_unless_the_range_was_given() -> None:
    _, _, (lost,) = choose_levels(found(4000, 4095), count=2, asked=None)
    assert lost.text == "of the 4,096 values of 2 of 2 images the model sees 256 levels, e.g. '0', '1'"
    assert lost.advice.endswith("--data.range LOW HIGH")
    assert choose_levels(found(4000, 4095), count=2, asked=(0, 4095))[2] == ()
    few = choose_levels(found(4000, 4095), count=9, asked=None)[2]
    assert not any("levels" in one.text for one in few)
    assert choose_levels(found(200, 255), count=2, asked=None)[2] == ()
    assert choose_levels(found(0.5, 1.0, kind="float32"), count=2, asked=None)[2] == ()


def test_pictures_of_several_kinds_are_told() -> None:
    (mixed,) = choose_levels(found(200, 255), count=5, asked=None)[2]
    assert mixed.text.startswith("2 of 5 images have more than 8 bits, shown from 0 to 255, and the others 8, from 0")
    both = found(200, 255) | {"f": Measured(1, "float32", 0, 0, 1, 1)}
    kinds = [one.text for one in choose_levels(both, count=3, asked=None)[2]]
    assert any("3 of 3 images have one range, 0 to 255, though some hold floating-point" in text for text in kinds)


def test_single_dark_pictures_are_told_as_well() -> None:
    measured = {"a.png": Measured(3, "uint8", 0, 0, 9, 9)}
    (dark,) = choose_levels(measured, count=100, asked=None)[2]
    assert dark.text.startswith("1 of 100 images has no pixel brighter than 9 of 255, black")
    assert dark.advice.startswith("look at them")


def test_dark_pictures_of_8_bits_are_told(tmp_path: Path) -> None:
    form = imagenet_preprocess(channels=3, source="test")
    images = open_images(write(tmp_path / "a", top=15, kind="uint8"), like=form)
    assert "12 of 12 images have no pixel brighter than 15 of 255, black to the model" in describe(images)


def test_the_second_scan_knows_what_the_first_one_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    form, source = imagenet_preprocess(channels=3, source="test"), write(tmp_path / "a", top=4095)
    first, again = open_images(source, like=form), open_images(source, like=form)
    assert (first.scan.known, again.scan.known) == (0, 12)
    assert first.scan.measured == again.scan.measured != {}
    assert describe(first) == describe(again)


def test_a_run_keeps_its_range_and_predicts_with_it(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "a", top=4095, each=8)
    run = hs.train(hs.load_config(settings(data={"source": str(source)}, recipe="full", epochs=1)))
    opened = hs.open_run(run.path)
    assert opened.preprocess.levels == (0, 4095)
    by_path = hs.predict(run, [str(source / "left" / "0.png")])[0]
    whole = np.rint(np.asarray(Image.open(source / "left" / "0.png")) * (255 / 4095)).astype(np.uint8)
    by_array = hs.predict(run, [np.repeat(whole[:, :, None], 3, axis=2)])[0]
    assert by_path.labels == by_array.labels


def test_a_preprocessing_without_a_range_is_written_as_before() -> None:
    plain = imagenet_preprocess(channels=3, source="test")
    assert "levels" not in plain.to_dict() and "levels" not in repr(plain)
    wide = Preprocess.from_dict(plain.to_dict() | {"levels": [0, 4095]})
    assert Preprocess.from_dict(wide.to_dict()) == wide
    assert repr(wide) != repr(plain)
    assert Preprocess.from_dict(plain.to_dict()) == plain


def test_bands_that_the_model_does_not_take_are_told(tmp_path: Path) -> None:
    form = imagenet_preprocess(channels=4, source="test")
    with pytest.raises(DataError, match="in_chans"):
        open_images(write(tmp_path / "a", top=4095), like=form)
