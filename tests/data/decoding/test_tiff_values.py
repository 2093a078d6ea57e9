"""TIFFs that Pillow reads wrongly or not at all: any bands, numbers, planes, byte orders, tiles and predictors."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headstart.data.decoding.decode import UnreadableImage, decode_bands, decode_image
from headstart.data.decoding.tiff_values import read_tiff_values
from tests.data.tiffs import HIGH, WIDE, noise, tiff


def read(content: bytes) -> NDArray[Any]:
    found = read_tiff_values(content)
    assert found is not None
    return found.values


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i2", ">u4", "<f4", ">f8", "<f2", "u1"])
@pytest.mark.parametrize("layout", [{}, {"planes": True}, {"tile": 16}, {"planes": True, "tile": 16}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_every_number_comes_out_as_it_went_in(kind: str, layout: dict[str, Any], packed: bool) -> None:
    values = noise(kind, 5)
    np.testing.assert_array_equal(read(tiff(values, packed=packed, **layout)), values)


@pytest.mark.parametrize(("kind", "predictor"), [("<u2", 2), (">u2", 2), ("<i4", 2), ("<f4", 3), (">f8", 3)])
@pytest.mark.parametrize("layout", [{}, {"tile": 16}, {"planes": True}], ids=str)
def test_predictors_are_undone(kind: str, predictor: int, layout: dict[str, Any]) -> None:
    values = noise(kind, 4)
    np.testing.assert_array_equal(read(tiff(values, packed=True, predictor=predictor, **layout)), values)


def test_other_ways_to_pack_are_pillows(tmp_path: Path) -> None:
    values = noise("<f4", 1)
    for packing in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        Image.fromarray(values[:, :, 0]).save(tmp_path / "a.tif", compression=packing)
        np.testing.assert_array_equal(read((tmp_path / "a.tif").read_bytes()), values)


@pytest.mark.parametrize("planes", [False, True])
def test_16_bit_colours_are_right_in_planes_too(planes: bool) -> None:
    values = noise("<u2", 3) * 21
    shown = np.asarray(decode_image(tiff(values, planes=planes, photometric=2), where="a.tif"))
    np.testing.assert_array_equal(shown, np.rint(values / 257))


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_where_white_is_zero_grey_is_turned(kind: str) -> None:
    values = np.linspace(0, 65535, HIGH * WIDE).astype(kind).reshape(HIGH, WIDE, 1)
    shown = np.asarray(decode_image(tiff(values, photometric=0), where="a.tif", channels=1))
    assert (shown[0, 0], shown[-1, -1]) == (255, 0)


def test_a_fourth_band_is_opacity_only_where_the_file_says_so() -> None:
    values = noise("u1", 4)
    assert read_tiff_values(tiff(values, photometric=2, extra=2)) is None  # Pillow reads it, on white
    with pytest.raises(UnreadableImage, match=r"it has 4 bands, and the model takes 3; .* '\{in_chans: 4\}'"):
        decode_image(tiff(values, photometric=2, extra=0), where="a.tif")
    bands = decode_bands(tiff(values, photometric=2, extra=0), where="a.tif", channels=4)
    np.testing.assert_array_equal(bands, values)


def test_16_bit_colours_of_a_png_keep_all_their_bits() -> None:
    """Pillow gives the higher byte, which of 12 bits in 16 has 16 steps left."""
    values = (noise("<u2", 3) % 4096).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", WIDE, HIGH, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    shown = np.asarray(decode_image(content, where="a.png", levels=(0, 4095)))
    np.testing.assert_array_equal(shown, np.rint(values * (255 / 4095)))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), values // 256)


def test_a_file_that_is_cut_short_is_an_unreadable_image() -> None:
    with pytest.raises(UnreadableImage, match="damaged"):
        decode_image(tiff(noise("<u2", 5))[:2000], where="a.tif")


@pytest.mark.parametrize(
    ("tag", "was", "now", "reason"),
    [
        (277, 5, 0, "no pixels"),
        (256, WIDE, 2**31, "accepted"),
        (259, 1, 7, "packed"),
        (317, 1, 9, "predictor 9"),
        (278, 5, 1, "strips or tiles are missing"),
    ],
)
def test_a_tag_that_fits_nothing_is_an_unreadable_image(tag: int, was: int, now: int, reason: str) -> None:
    whole = tiff(noise("<u2", 5))
    content = whole.replace(struct.pack("<HHII", tag, 4, 1, was), struct.pack("<HHII", tag, 4, 1, now))
    assert content != whole
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(content, where="a.tif")
