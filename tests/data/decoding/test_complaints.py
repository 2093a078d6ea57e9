"""What decoders say is heard with the file in hand: nothing is printed that names no file."""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.decoding.complaints import hear_decoders, hear_warnings
from headstart.data.decoding.decode import UnreadableImage, decode_image
from headstart.data.images import audit, open_images
from headstart.models.preprocess import imagenet_preprocess

LIBTIFF = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="libtiff is heard on Linux on x86-64 only"
)
COLOURS = np.random.default_rng(0).integers(0, 40, (60, 60, 3), dtype=np.uint8)


def damaged_tiff() -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "TIFF", compression="tiff_lzw")
    content = bytearray(file.getvalue())
    content[1000:1100] = bytes(100)
    return bytes(content)


@LIBTIFF
def test_what_libtiff_says_is_in_the_reason_and_not_on_the_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableImage, match=r"^a\.tif: .*decoder error.*; (libtiff|LZW\w*): "):
        decode_image(damaged_tiff(), where="a.tif")
    assert capfd.readouterr().err == ""


@LIBTIFF
def test_what_nobody_hears_is_printed_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="decoder error"):
        Image.open(io.BytesIO(damaged_tiff())).load()
    assert capfd.readouterr().err != ""


@LIBTIFF
@pytest.mark.parametrize(
    "without",
    ["platform.machine = lambda: 'aarch64'", "complaints.vars = lambda module: {}", "ctypes.CDLL = None"],
    ids=["another machine", "Pillow's library elsewhere", "no library can be opened"],
)
def test_where_libtiff_cannot_be_heard_it_prints_and_the_file_is_refused_by_name(without: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(damaged_tiff())
    code = f"""
import ctypes, pathlib, platform
from headstart.data.decoding import complaints
from headstart.data.decoding.decode import UnreadableImage, decode_image
{without}
try:
    decode_image(pathlib.Path("a.tif").read_bytes(), where="a.tif")
except UnreadableImage as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a.tif: ") and "decoder error" in done.stdout
    assert done.stderr.strip() != ""


def test_a_warning_of_pillow_is_told_with_its_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A picture is read all the same; its EXIF data end too early."""
    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        for place in range(3):
            Image.fromarray(COLOURS + place).save(
                tmp_path / name / f"{place}.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09"
            )
    images = open_images(tmp_path, like=imagenet_preprocess(channels=3, source="test"), val=0.4)
    (told,) = [note for note in images.notes if "complains" in note]
    assert told.startswith("6 images are read although their decoder complains, e.g. blue/0.jpg: Corrupt EXIF data")
    assert audit(tmp_path).complaints.keys() == {
        f"{name}/{place}.jpg" for name in ("blue", "red") for place in range(3)
    }
    assert "EXIF" not in capfd.readouterr().err


def test_warnings_of_others_are_none_of_ours() -> None:
    with pytest.warns(UserWarning, match="mine"), hear_warnings():
        warnings.warn("mine", stacklevel=1)
    with hear_warnings(), hear_decoders() as said:
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="PIL.Image")
    assert said == ["theirs"]
