"""Resized and re-encoded copies of drawn pictures are known as copies, and different pictures are not."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from importlib.resources import as_file, files
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from headstart.data.decoding.likeness import make_fingerprints, show_one_picture, shrink_image, sketch_image
from headstart.data.near_copies import find_like_pairs

_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)


def draw(seed: int, *, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A textured picture: a soft background, shapes of several sizes, and grain."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    soft = Image.fromarray(noise.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(soft)
    for _ in range(25):
        x, y, far = rng.randrange(size[0]), rng.randrange(size[1]), rng.randrange(4, max(size) // 4)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + far, y + far // 2 + 2), fill=tuple(rng.randrange(256) for _ in range(3)))
    grain = np.asarray(soft, dtype=np.int16) + noise.integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def encode(picture: Image.Image, quality: int | None = None) -> bytes:
    """As PNG, or as a JPEG of this quality."""
    written = io.BytesIO()
    if quality is None:
        picture.save(written, "PNG")
    else:
        picture.save(written, "JPEG", quality=quality)
    return written.getvalue()


def fingerprints(contents: Iterable[bytes]) -> list[str]:
    return make_fingerprints([shrink_image(content, where="x")[0] for content in contents])


def are_one(one: bytes, other: bytes) -> bool:
    """Whether a scan takes the two for one picture."""
    close = find_like_pairs(fingerprints((one, other)))
    return bool(close) and show_one_picture(*(sketch_image(content, where="x") for content in (one, other)))


@pytest.mark.parametrize("original", [None, 95])
@pytest.mark.parametrize("seed", range(4))
def test_a_copy_of_any_size_and_quality_is_known(seed: int, original: int | None) -> None:
    rng, picture = random.Random(seed), draw(seed)
    for factor in (0.5, 0.61, 0.8, 1.0, 1.37, 2.0):
        size = (round(picture.width * factor), round(picture.height * factor))
        for quality in (None, 40, 60, 80, 95):
            copy = picture.resize(size, rng.choice(_FILTERS)) if factor != 1.0 else picture
            assert are_one(encode(picture, original), encode(copy, quality)), (factor, quality)


def test_a_copy_in_another_format_or_squeezed_to_a_square_is_known() -> None:
    picture = draw(5)
    webp = io.BytesIO()
    picture.save(webp, "WEBP", quality=70)
    assert are_one(encode(picture), webp.getvalue())
    assert are_one(encode(picture), encode(picture.resize((128, 128)), 85))


def test_a_copy_that_its_exif_turns_upright_is_known() -> None:
    picture, exif, written = draw(6), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(written, "JPEG", quality=90, exif=exif)
    assert are_one(encode(picture), written.getvalue())


def test_different_drawn_pictures_are_not_one() -> None:
    pictures = [encode(draw(seed), 90) for seed in range(120)]
    close = find_like_pairs(fingerprints(pictures))
    assert [pair for pair in close if show_one_picture(*(sketch_image(pictures[at], where="x") for at in pair))] == []


@pytest.mark.parametrize("far", [12, 24, 48])
def test_one_scene_with_something_moved_in_it_is_not_one_picture(far: int) -> None:
    scene, shots = draw(7, size=(480, 360)), []
    for at in (60, 200, 340):
        shot = scene.copy()
        ImageDraw.Draw(shot).ellipse((at, 150, at + far, 150 + far), fill=(250, 250, 30))
        shots.append(sketch_image(encode(shot, 85), where="x"))
    assert [show_one_picture(*pair) for pair in combinations(shots, 2)] == [False] * 3


def test_a_scene_seen_a_step_aside_is_not_one_picture() -> None:
    scene = draw(8, size=(500, 360))
    shots = [sketch_image(encode(scene.crop((at, 0, at + 480, 360))), where="x") for at in (0, 6)]
    assert not show_one_picture(*shots)


def test_forms_that_are_filled_differently_are_not_one_picture() -> None:
    def fill(seed: int) -> bytes:
        form = Image.new("RGB", (600, 800), "white")
        pen, rng = ImageDraw.Draw(form), random.Random(seed)
        for line in range(60, 760, 22):
            pen.text((50, line), "name and address of the applicant", fill="black", font_size=16)
            pen.text((430, line), str(rng.randrange(10**6)), fill="black", font_size=16)
        return encode(form, 85)

    sketches = [sketch_image(fill(seed), where="x") for seed in range(4)]
    assert not any(show_one_picture(*pair) for pair in combinations(sketches, 2))


def test_plain_pictures_have_no_fingerprint() -> None:
    plain = [encode(Image.new("RGB", (200, 150), colour), 80) for colour in ("white", "black", (200, 30, 40))]
    assert fingerprints(plain) == [""] * 3
    ramp = Image.linear_gradient("L").resize((200, 150))
    assert not are_one(encode(ramp), encode(Image.eval(ramp, lambda value: value // 2 + 60)))


def test_digits_of_8_pixels_are_not_copies_of_one_another_even_enlarged() -> None:
    with as_file(files("headstart") / "digits" / "digits.png") as path, Image.open(path) as opened:
        sheet = opened.convert("L")
    digits = [sheet.crop((x, y, x + 8, y + 8)) for y in range(0, 40, 8) for x in range(0, 480, 8)]
    assert set(fingerprints(map(encode, digits))) == {""}
    large = [encode(digit.resize((64, 64), Image.Resampling.BICUBIC)) for digit in digits]
    close = find_like_pairs(fingerprints(large))
    assert len(close) > 20, "many look alike from far away"
    assert not any(show_one_picture(*(sketch_image(large[at], where="x") for at in pair)) for pair in close)


def test_colours_count() -> None:
    picture = draw(9)
    red, green, blue = picture.split()
    assert not are_one(encode(picture), encode(Image.merge("RGB", (blue, green, red))))
    assert not are_one(encode(picture), encode(picture.convert("L")))
