"""Photos decoded as finely as they are shown: against decoding all of them, and against torchvision."""

from __future__ import annotations

import io
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from headstart.data.batch import normalise
from headstart.data.decoding import lazy_image as pictures
from headstart.data.decoding.crops import Frame, random_frame
from headstart.data.decoding.decode import UnreadableImage, check_image, decode_image, open_jpeg, open_reduced_jpeg
from headstart.data.decoding.lazy_image import LazyImage, render, stack_images
from headstart.data.randomness import drawing_from
from headstart.data.sources.files import open_picture
from headstart.data.transforms.colour_jitter import apply_jitter, draw_jitter
from headstart.data.transforms.transforms import eval_transform, train_transform

BOUNDS = {1.0: 3.0, 1.25: 2.2, 2.0: 1.2, 2.5: 0.9}  # mean levels at most, any photo here, by gap
FILES = {
    "420": {"quality": 85}, "444": {"subsampling": 0, "quality": 95}, "progressive": {"progressive": True},
    "rgb": {"keep_rgb": True}, "grey": {},
}  # fmt: skip


def scene(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Noise at many scales, the coarser the stronger, as photos have it."""
    draw = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(1, 8):
        part = draw.normal(0, 1, (max(2, height >> octave), max(2, width >> octave), 3))
        levels = [Image.fromarray(part[:, :, channel].astype(np.float32)) for channel in range(3)]
        scaled = [np.asarray(level.resize((width, height), Image.Resampling.BICUBIC)) for level in levels]
        total += np.stack(scaled, axis=2) * 2**octave
    return Image.fromarray(np.clip(128 + total / 4, 0, 255).astype(np.uint8))


def ramp(width: int, height: int) -> Image.Image:
    """Red from left to right, green from top to bottom."""
    values = np.zeros((height, width, 3))
    values[:, :, 0] = np.linspace(0, 255, width)
    values[:, :, 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values.round().astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    room = io.BytesIO()
    image.save(room, "JPEG", **{"quality": 90, **options})
    return room.getvalue()


def levels_apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    assert one.shape == other.shape
    return (one.float() - other.float()).abs()


def frame_of(box: tuple[int, int, int, int], scaled: tuple[int, int]) -> Frame:
    return Frame(box=box, scaled=scaled, shown=scaled)


@pytest.mark.parametrize("gap", BOUNDS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_photo_decoded_smaller_looks_like_the_whole_one(gap: float, interpolation: str) -> None:
    content = jpeg(scene(643, 481))
    for side in (64, 100, 130):
        frame = frame_of((32, 16, 520, 401), (side, side))  # a corner that stays where it is at 1/8
        ours = render(LazyImage(content, where="x"), frame, interpolation=interpolation, gap=gap)
        whole = render(decode_image(content, where="x"), frame, interpolation=interpolation, gap=gap)
        assert levels_apart(ours, whole).mean() <= BOUNDS[gap]


@pytest.mark.parametrize("size", [(640, 480), (643, 481), (637, 479)])
def test_what_is_decoded_smaller_stays_where_it_is(size: tuple[int, int]) -> None:
    """A ramp of 256 levels over 640 pixels shows a shift of 3 of them as a level."""
    content = jpeg(ramp(*size), quality=98, subsampling=0)
    for factor in (2, 4, 8):
        scaled = (size[0] // factor - 2, size[1] // factor - 2)
        frame = frame_of((0, 0, *size), scaled)
        ours = render(LazyImage(content, where="x"), frame, interpolation="bilinear", gap=1.0)
        whole = render(decode_image(content, where="x"), frame, interpolation="bilinear", gap=1.0)
        apart = (ours.float() - whole.float())[:2, 4:-4, 4:-4]
        assert abs(apart.mean()) < 0.2
        assert apart.abs().mean() < 0.8


def test_a_crop_is_decoded_with_at_least_the_pixels_that_are_shown() -> None:
    draw = random.Random(0)
    content = jpeg(scene(803, 601))
    picture = LazyImage(content, where="x")
    seen = set()
    for _ in range(300):
        width, height = draw.randrange(20, 803), draw.randrange(20, 601)
        box = (draw.randrange(803 - width + 1), draw.randrange(601 - height + 1), width, height)
        scaled, gap = (draw.randrange(8, 120), draw.randrange(8, 120)), draw.choice((1.0, 1.25, 2.5))
        region = picture.region(box, scaled=scaled, gap=gap)
        factor = round(width / region.width)
        seen.add(factor)
        assert factor == 1 or min(region.width / scaled[0], region.height / scaled[1]) >= gap
        assert factor == 8 or min(width / scaled[0], height / scaled[1]) < 2 * factor * gap
        assert region.pixels.shape[0] == -(-height // factor)
        assert region.pixels.shape[1] == -(-width // factor)
    assert seen == {1, 2, 4, 8}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_shown_the_right_way_up_at_any_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(scene(323, 241), exif=exif)
    upright = decode_image(content, where="x")
    picture = LazyImage(content, where="x")
    assert picture.size == upright.size
    width, height = upright.size
    for box, scaled in (((0, 0, width, height), (40, 30)), ((16, 30, 150, 130), (70, 60))):
        frame = frame_of(box, scaled)
        ours = render(picture, frame, interpolation="bilinear", gap=1.0)
        assert levels_apart(ours, render(upright, frame, interpolation="bilinear", gap=1.0)).mean() <= BOUNDS[1.0]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_simplejpeg_gives_the_pixels_of_pillow(kind: str, factor: int) -> None:
    pytest.importorskip("simplejpeg")
    for size in ((64, 48), (101, 67), (17, 33)):
        content = jpeg(scene(*size).convert("L" if kind == "grey" else "RGB"), **FILES[kind])
        header = open_jpeg(content, where="x")
        assert header is not None
        quick, careful = pictures._quick(content, header, factor), open_reduced_jpeg(content, factor, channels=3)
        assert quick is not None
        assert careful is not None
        np.testing.assert_array_equal(quick.numpy(), np.asarray(careful))


def test_without_simplejpeg_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch, preprocess) -> None:
    pytest.importorskip("simplejpeg")
    content, transform = jpeg(scene(301, 203)), train_transform("standard", flip="auto", preprocess=preprocess)

    def drawn() -> torch.Tensor:
        with drawing_from(3):
            return transform(LazyImage(content, where="x"))

    quick = drawn()
    monkeypatch.setattr(pictures, "simplejpeg", None)
    assert torch.equal(drawn(), quick)


def test_pictures_that_are_no_plain_colour_photos_come_out_as_decoded_whole(preprocess, tmp_path: Path) -> None:
    transform = eval_transform(preprocess)
    made = {"cmyk.jpg": "CMYK", "grey.jpg": "L", "p.png": "P", "alpha.png": "RGBA"}
    for name, mode in made.items():
        scene(40, 34).convert(mode).save(tmp_path / name)
        whole = decode_image((tmp_path / name).read_bytes(), where=name)
        assert torch.equal(transform(open_picture(tmp_path / name)), transform(whole))
    grey = replace(preprocess, mean=(0.5,), std=(0.5,))
    whole = decode_image((tmp_path / "grey.jpg").read_bytes(), where="x", channels=1)
    shown = eval_transform(grey)(open_picture(tmp_path / "grey.jpg", channels=1))
    assert torch.equal(shown, eval_transform(grey)(whole))


def _damaged(content: bytes, draw: random.Random) -> bytes:
    mutant, kind = bytearray(content), draw.choice(("cut", "end", "bytes", "zeros", "gap"))
    start, length = draw.randrange(len(mutant)), draw.randrange(1, 200)
    if kind == "cut":
        del mutant[max(2, start) :]
    elif kind == "end":
        del mutant[-draw.randrange(1, 40) :]
    elif kind == "bytes":
        for _ in range(draw.choice((1, 10))):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
    elif kind == "zeros":
        mutant[start : start + length] = bytes(len(mutant[start : start + length]))
    else:
        del mutant[start : start + length]
    return bytes(mutant)


def _verdict(look, content: bytes) -> str:
    try:
        look(content)
    except UnreadableImage as error:
        return error.reason
    return "a picture"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FILES)
def test_damage_is_refused_alike_by_the_scan_by_decoding_and_by_showing(kind: str, preprocess) -> None:
    whole = jpeg(scene(120, 90).convert("L" if kind == "grey" else "RGB"), **FILES[kind])
    draw, transform, seen = random.Random(1), eval_transform(preprocess), set()
    for _ in range(120):
        content = _damaged(whole, draw)
        said = _verdict(lambda content: decode_image(content, where="x"), content)
        assert _verdict(lambda content: check_image(content, where="x"), content) == said
        assert _verdict(lambda content: transform(LazyImage(content, where="x")), content) == said
        seen.add(said)
    assert len(seen) > 2


def test_bombs_and_strips_are_refused_from_the_header() -> None:
    strip = jpeg(Image.new("RGB", (8, 1600)))
    with pytest.raises(UnreadableImage, match="strip of 8 x 1600"):
        LazyImage(strip, where="x")
    whole = jpeg(Image.new("RGB", (16, 16)))
    place = whole.index(b"\xff\xc0") + 5
    with pytest.raises(UnreadableImage, match="at most 64 million"):
        LazyImage(whole[:place] + b"\xff\xdc\xff\xdc" + whole[place + 4 :], where="x")


def test_random_crops_are_those_of_torchvision() -> None:
    for size in ((500, 375), (31, 200), (300, 20), (3, 3)):
        theirs = v2.RandomResizedCrop(224, scale=(0.08, 1.0))
        for seed in range(20):
            with drawing_from(seed):
                expected = theirs.make_params([Image.new("L", size)])
            with drawing_from(seed):
                ours = random_frame(size, shown=(224, 224), scale=(0.08, 1.0))
            box = tuple(expected[name] for name in ("left", "top", "width", "height"))
            assert ours.box == box


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_colours_change_as_torchvisions_jitter_changes_them(mode: str) -> None:
    """In float, where that does not cut each step off to whole levels; no colour here gets to 0 or 255."""
    soft = Image.fromarray((70 + np.asarray(scene(64, 48)) * 0.4).astype(np.uint8)).convert(mode)
    pixels = v2.functional.pil_to_tensor(soft)
    for seed in range(20):
        with drawing_from(seed):
            expected = 255 * v2.ColorJitter(0.2, 0.2, 0.2)(pixels.float() / 255)
        with drawing_from(seed):
            ours = apply_jitter(pixels, draw_jitter(len(pixels)))
        assert levels_apart(ours, expected).max() <= 0.6


def test_transforms_are_told_apart_by_their_repr_in_any_process_and_cross_to_workers(preprocess) -> None:
    made = [eval_transform(preprocess), eval_transform(replace(preprocess, crop_pct=1.0))]
    made += [
        train_transform(name, flip="auto", preprocess=preprocess) for name in ("none", "light", "standard", "strong")
    ]
    made.append(train_transform("light", flip=False, preprocess=preprocess))
    assert len({repr(one) for one in made}) == len(made)
    assert [repr(pickle.loads(pickle.dumps(one))) for one in made] == [repr(one) for one in made]
    code = "import sys, pickle; print(repr(pickle.loads(sys.stdin.buffer.read())), end='')"
    there = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(made[3]), capture_output=True, check=True)
    assert there.stdout.decode() == repr(made[3])


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_the_same_bits_in_either_memory_format(channels: int) -> None:
    first = [torch.randint(0, 256, (channels, 9, 7), dtype=torch.uint8) for _ in range(3)]
    last = [one.permute(1, 2, 0).contiguous().permute(2, 0, 1) for one in first]
    assert torch.equal(stack_images(first), torch.stack(first))
    assert torch.equal(stack_images(last), torch.stack(first))
    assert stack_images(last).is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.linspace(0.2, 0.5, channels), torch.linspace(0.1, 0.3, channels)
    whole = stack_images(first).float()
    expected = (whole / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    for form in (torch.contiguous_format, torch.channels_last):
        for given in (whole.to(memory_format=form), stack_images(first), stack_images(last)):
            before = given.clone()
            found = normalise(given, mean=mean, std=std, memory_format=form)
            assert torch.equal(found, expected)
            assert found.is_contiguous(memory_format=form)
            assert torch.equal(given, before)


@pytest.mark.shared
def test_real_photos_decoded_smaller_look_like_the_whole_ones(shared: Path, preprocess) -> None:
    """245 + 153 photos shown at 64 px: 0.5 levels on average at the gap of evaluation, 0.9 at that of training."""
    apart: dict[float, list[float]] = {2.5: [], 1.25: []}
    for path in sorted((shared / "data" / "hymenoptera").glob("*/*/*.jpg"))[::5]:
        content = path.read_bytes()
        whole = decode_image(content, where=str(path))
        frame = frame_of((0, 0, *whole.size), (64, 64))
        for gap, found in apart.items():
            ours = render(LazyImage(content, where=str(path)), frame, interpolation="bilinear", gap=gap)
            theirs = render(whole, frame, interpolation="bilinear", gap=gap)
            found.append(float(levels_apart(ours, theirs).mean()))
    assert np.mean(apart[2.5]) <= 0.6
    assert max(apart[2.5]) <= 1.3
    assert np.mean(apart[1.25]) <= 1.1
    assert max(apart[1.25]) <= 3.0
