"""What decoding changes in pictures is counted and told, as is what shows nothing and what is left out."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.data.conversions import describe_conversions
from headstart.data.decoding.decode import examine_image
from headstart.data.images import Images, open_images
from headstart.data.sources import files
from headstart.models.preprocess import imagenet_preprocess
from tests.data.tiffs import tiff

FORM = imagenet_preprocess(channels=3, source="test")
NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)


def pack(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def faded(rows: int, *, mode: str = "RGBA") -> Image.Image:
    """Noise whose first rows of 40 are transparent."""
    values = NOISE.copy()
    values[:, :, 3] = 255
    values[:rows, :, 3] = 0
    return Image.fromarray(values).convert(mode)


def palette(*, clear: bool) -> bytes:
    picture = Image.fromarray(NOISE[:, :, 0] // 128, mode="P")
    picture.putpalette([0, 0, 0, 255, 9, 9])
    return pack(picture, "PNG", **({"transparency": 0} if clear else {}))


FRAMES = [Image.fromarray(NOISE[:, :, :3]), Image.fromarray(NOISE[::-1, :, :3].copy())]
SEVERAL: dict[str, Any] = {"save_all": True, "append_images": FRAMES[1:]}
ONE = np.full((40, 48, 3), 90, np.uint8)
DEEP = (np.arange(40 * 48).reshape(40, 48, 1) * 30).astype("<u2")


GAPS = np.where(np.arange(40)[:, None, None] < 5, np.nan, DEEP / 60000).astype("<f4")


def pack_array(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "marks"),
    [
        (pack(faded(30), "PNG"), ("opacity",)),
        (pack(faded(40), "PNG"), ("opacity", "plain")),  # nothing of it is seen
        (pack(faded(10, mode="LA"), "PNG"), ("opacity",)),
        (pack(faded(2), "PNG"), ()),
        (pack(faded(0), "PNG"), ()),
        (palette(clear=True), ("opacity",)),
        (palette(clear=False), ()),
        (pack(FRAMES[0], "PNG", transparency=(1, 2, 3)), ()),
        (pack(FRAMES[0].convert("CMYK"), "JPEG"), ("print",)),
        (pack(FRAMES[0].convert("CMYK"), "TIFF"), ("print",)),
        (pack(FRAMES[0], "JPEG"), ()),
        (pack(Image.fromarray(ONE), "JPEG"), ("plain",)),
        (pack(Image.fromarray(ONE), "PNG"), ("plain",)),
        (tiff(DEEP * 0 + 700), ("plain",)),
        (tiff(np.dstack([DEEP, DEEP * 0]), extra=2), ("opacity",)),
        (tiff(DEEP), ()),
        (tiff(GAPS), ("gaps",)),
        (tiff(np.where(np.isnan(GAPS), np.inf, GAPS)), ("gaps",)),
        (pack_array(GAPS), ("gaps",)),
        (pack_array(GAPS[:, :, 0]), ("gaps",)),
        (pack_array(ONE), ("plain",)),
        (pack(Image.fromarray(NOISE[:12, :, :3].copy()), "PNG"), ("long",)),
        (pack(Image.fromarray(NOISE[:13, :, :3].copy()), "PNG"), ()),
        (pack(Image.fromarray(NOISE[:, :10, :3].copy()), "JPEG"), ("long",)),
        (tiff(DEEP[:12]), ("long",)),
        (pack_array(DEEP[:12, :, 0]), ("long",)),
        *((pack(FRAMES[0], kind, **SEVERAL), ("first",)) for kind in ("GIF", "WEBP", "PNG", "TIFF")),
        *((pack(FRAMES[0], kind), ()) for kind in ("GIF", "WEBP", "TIFF")),
        (pack(Image.fromarray(DEEP[:, :, 0]), "TIFF", **SEVERAL), ("first",)),
    ],
)  # fmt: skip
def test_what_is_changed_is_marked(content: bytes, marks: tuple[str, ...]) -> None:
    assert examine_image(content, where="a").marks == marks


def test_a_smaller_copy_behind_a_picture_is_no_second_page() -> None:
    small = FRAMES[1].resize((12, 10))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    content = pack(FRAMES[0], "TIFF", save_all=True, append_images=[small])
    assert examine_image(content, where="a").marks == ()


def test_of_most_pictures_it_is_a_warning_and_of_few_a_note() -> None:
    few = {"a.png": ("opacity",), "b.jpg": ("print",), "c.gif": ("first",)}
    notes, cautions = describe_conversions(few, count=10, preprocess=FORM)
    assert cautions == ()
    assert [note[:22] for note in notes] == [
        "1 of 10 images has a t",
        "1 of 10 images has the",
        "1 of 10 images has sev",
    ]
    notes, (opacity,) = describe_conversions({"a": ("opacity",), "b": ("opacity",)}, count=3, preprocess=FORM)
    assert notes == () and "in_chans" not in opacity.advice  # which would refuse the third
    assert (opacity.count, opacity.example) == (2, "a")
    (_, (opacity,)) = describe_conversions({"a": ("opacity",)}, count=1, preprocess=FORM)
    assert "in_chans" in opacity.advice
    assert describe_conversions(
        {"a": ("opacity",)}, count=1, preprocess=imagenet_preprocess(channels=4, source="test")
    ) == ((), ())  # as a band


def test_long_pictures_are_told_where_the_centre_is_shown() -> None:
    assert len(describe_conversions({"a": ("long",)}, count=1, preprocess=FORM)[1]) == 1
    for other in (replace(FORM, crop_mode="squash"), replace(FORM, width=64)):
        assert describe_conversions({"a": ("long",)}, count=1, preprocess=other) == ((), ())


def write(root: Path) -> Path:
    for place, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(6):
            faded(20 + 2 * number + place).save(root / name / f"{number}.png")
        Image.fromarray(ONE + np.uint8(place)).save(root / name / "plain.png")
        (root / name / "notes.txt").write_text("no image")
    (root / "cat" / "labels.xml").write_text("<a/>")
    for name in ("loose.jpg", ".hidden.jpg"):
        FRAMES[0].save(root / name, format="JPEG")
    return root


def test_a_folder_tells_what_was_found_and_the_second_scan_tells_it_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    source, form = write(tmp_path / "pets"), imagenet_preprocess(channels=3, source="test")

    def load() -> Images:
        return open_images(source, like=form, augment="none")

    first, again = load(), load()
    assert (first.scan.known, again.scan.known) == (0, 14)
    assert first.cautions == again.cautions
    told = {caution.text: (caution.count, caution.example) for caution in first.cautions}
    assert told == {
        "3 files are no image and left out (2 .txt, 1 .xml, e.g. 'cat/labels.xml')": (3, "cat/labels.xml"),
        "1 image is in no class folder and left out, e.g. 'loose.jpg'": (1, "loose.jpg"),
        "12 of 14 images have a tenth of their pixels or more transparent, which become white, e.g. 'cat/0.png', "
        "'cat/1.png' and 10 more": (12, "cat/0.png"),
        "2 of 14 images have one colour everywhere, e.g. 'cat/plain.png', 'dog/plain.png'": (2, "cat/plain.png"),
    }
    assert all(caution.advice for caution in first.cautions)


def test_what_decoders_say_is_kept_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    source, form = write(tmp_path / "pets"), imagenet_preprocess(channels=3, source="test")
    damaged = pack(FRAMES[0], "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    (source / "cat" / "odd.jpg").write_bytes(damaged)
    notes = [[note for note in open_images(source, like=form).notes if "complains" in note] for _ in range(2)]
    assert notes[0] == notes[1]
