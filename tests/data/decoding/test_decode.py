from __future__ import annotations

import pickle
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from headstart.data.decoding.decode import UnreadableImage, list_formats
from headstart.data.sources.files import read_image

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8)


def picture(mode: str = "RGB") -> Image.Image:
    grey = np.tile(RAMP, (16, 1))
    return Image.fromarray(np.stack([grey, grey[:, ::-1], grey], axis=2)).convert(mode)


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def reason(path: Path) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp"])
def test_lossless_formats_give_their_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.tile(RAMP[None, :, None], (16, 1, 3))).save(
        path, **({"lossless": True} if suffix == "webp" else {})
    )
    got = read_image(path)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got)[0, :, 0], RAMP)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_16_bit_grey_ramp_stays_a_ramp(tmp_path: Path, suffix: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (4, 1))
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    got = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(got[0, :, 0], np.arange(256))


def test_a_16_bit_colour_ramp_stays_a_ramp(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 256).round().astype(">u2"), 3)
    (tmp_path / "a.png").write_bytes(png(256, 4, depth=16, colour=2, rows=4 * (b"\0" + ramp.tobytes())))
    got = np.asarray(read_image(tmp_path / "a.png")).astype(int)
    assert np.abs(got[0, :, 1] - np.arange(256)).max() <= 1


def test_transparent_16_bit_grey_is_white(tmp_path: Path) -> None:
    chunk = b"tRNS" + struct.pack(">H", 7)
    extra = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    rows = b"\0" + struct.pack(">HHH", 7, 0, 257)
    (tmp_path / "a.png").write_bytes(png(3, 1, depth=16, colour=0, rows=rows, extra=extra))
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 0, 1]


def test_white_is_zero_in_a_16_bit_tiff_is_understood(tmp_path: Path) -> None:
    ramp = np.tile(np.array([0, 65535, 257 * 10], dtype=np.uint16), (2, 1))
    Image.fromarray(ramp).save(tmp_path / "a.tiff", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tiff") as written:
        assert written.tag_v2[262] == 0
    assert np.asarray(read_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == [255, 0, 245]


def test_whole_numbers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "a.tiff")
    assert "whole numbers from 0 to 70000, and which are black and white is not known" in reason(tmp_path / "a.tiff")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(tmp_path / "a.tiff")
    assert "floating-point numbers from 0 to 0.5, and which are black" in reason(tmp_path / "a.tiff")


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp"), ("RGBA", "tiff")])
def test_transparent_parts_are_white_and_half_transparent_ones_halfway(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.putpixel((2, 0), (0, 0, 0, 255))
    image.convert(mode).save(
        tmp_path / f"a.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {})
    )
    got = np.asarray(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist()
    assert got == [255, 127, 0]


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert np.asarray(read_image(tmp_path / "a.png"))[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_a_transparent_rgb_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert np.asarray(read_image(tmp_path / "a.png"))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_one_bit_grey_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    for mode in ("1", "L", "P"):
        picture(mode).save(tmp_path / f"{mode}.png")
        expected = np.asarray(picture(mode).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"{mode}.png")), expected)


def test_cmyk_has_the_colours_that_it_was_made_of(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "a.jpg")).astype(int) - [200, 100, 50]).max() <= 3


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for suffix in ("gif", "webp", "png", "tiff"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(
            path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {})
        )
        assert read_image(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_the_right_way_up(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    picture().save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)
    assert expected.shape[:2] == ((64, 16) if orientation >= 5 else (16, 64))


def test_damaged_exif_leaves_the_picture_as_stored(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(tmp_path / "a.jpg").size == (64, 16)


def test_one_channel_gives_grey_from_any_mode(tmp_path: Path) -> None:
    for mode in ("RGB", "L", "RGBA", "P"):
        picture(mode).save(tmp_path / f"{mode}.png")
        assert read_image(tmp_path / f"{mode}.png", channels=1).mode == "L"
    Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", channels=1).getpixel((0, 0)) == 255


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file_is_named_with_a_reason(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert any(word in reason(path) for word in ("cut short", "damaged"))


def test_what_is_no_image_is_named_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for content, expected in (
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html><body>404", "it is a web page (HTML), not an image; accepted are JPEG, PNG"),
        (b"hello there, this is text", "it is not an image of a known format"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 40, "AVIF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer, not an image"),
        (b"8BPS\0\1", "its format is Photoshop; accepted are JPEG, PNG"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 40, "HEIF"),
        (b"%PDF-1.7", "its format is PDF"),
        (b"<?xml version='1.0'?><svg></svg>", "its format is SVG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "PNG"),
    ):
        path.write_bytes(content)
        assert expected in reason(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.jpg") == "there is no such file"
    assert reason(tmp_path) == "it is not a file"


@pytest.mark.parametrize("turned", [1, 6])
def test_photos_of_telephones_are_read_upright(tmp_path: Path, turned: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    whole = picture()
    exif = whole.getexif()
    exif[0x0112] = turned
    pillow_heif.register_heif_opener()
    whole.save(tmp_path / "a.heic", format="HEIF", quality=-1, exif=exif.tobytes())
    expected = whole.rotate(-90, expand=True) if turned == 6 else whole
    off = np.abs(np.asarray(read_image(tmp_path / "a.heic")).astype(int) - np.asarray(expected))
    assert off.mean() < 3
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:-200])
    assert "damaged" in reason(tmp_path / "b.heic") or "cut short" in reason(tmp_path / "b.heic")


def test_without_pillow_heif_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    list_formats.cache_clear()
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x20ftypheic" + b"\0" * 40)
    assert reason(tmp_path / "a.heic").endswith("which is read with pillow-heif: pip install pillow-heif")
    list_formats.cache_clear()


@pytest.mark.parametrize(("suffix", "options"), [("ppm", {}), ("jp2", {}), ("avif", {"quality": 100})])
def test_other_formats_give_their_pixels(tmp_path: Path, suffix: str, options: dict[str, int]) -> None:
    path = tmp_path / f"a.{suffix}"
    try:
        picture().save(path, **options)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {suffix}")
    off = np.abs(np.asarray(read_image(path)).astype(int) - np.asarray(picture()))
    assert off.mean() < 3 and (suffix == "avif" or off.max() == 0)


@pytest.mark.parametrize(
    ("suffix", "head", "most"), [("pgm", b"P5 2 1 4095\n", 4095), ("pgm", b"P5 2 1 65535\n", 65535)]
)
def test_grey_maps_of_16_bits_are_shown_by_their_own_largest_value(
    tmp_path: Path, suffix: str, head: bytes, most: int
) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(head + struct.pack(">HH", 0, most))
    assert np.asarray(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == [0, 255]


def test_slow_formats_are_bounded_sooner(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    try:
        Image.new("L", (5000, 4900)).save(path)
    except (KeyError, OSError):
        pytest.skip("this Pillow cannot write JPEG 2000")
    assert reason(path) == "it has 5000 x 4900 pixels; at most 24 million are accepted"


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (12000, 12000), (60000, 60000)])
def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height, depth=8, colour=2, rows=b""))  # decoding it would fail with another reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert "at most 64 million are accepted" in reason(path)


def test_a_strip_is_refused_because_resizing_it_would_fill_the_memory(tmp_path: Path) -> None:
    Image.new("L", (1, 2000)).save(tmp_path / "a.png")
    assert "strip of 1 x 2000 pixels" in reason(tmp_path / "a.png")


def test_a_name_that_is_not_utf8_is_read_and_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "b\udcff.png", tmp_path / "c\udcff.jpg"
    try:
        picture().save(good)
        bad.write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert read_image(good).size == (64, 16)
    with pytest.raises(UnreadableImage) as caught:
        read_image(bad)
    assert "c\\xff.jpg: the file is empty" in str(caught.value).encode("utf-8").decode()


def test_the_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.jpg", "the file is empty")))
    assert (str(error.path), error.reason, str(error)) == ("a/b.jpg", "the file is empty", "a/b.jpg: the file is empty")


def test_random_damage_gives_a_picture_or_our_error_never_another(tmp_path: Path) -> None:
    path = tmp_path / "a"
    generator = np.random.default_rng(0)
    for suffix in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        picture().save(tmp_path / f"whole.{suffix}")
        whole = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), dtype=np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 5)] = generator.integers(0, 256, 5)
            path.write_bytes(damaged.tobytes()[: generator.integers(1, len(whole) + 1)])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert read_image(path).mode == "RGB"
                except UnreadableImage as error:
                    assert error.reason
