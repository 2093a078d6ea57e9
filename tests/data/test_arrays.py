"""Arrays that NumPy saved as images: their numbers, the order of their axes, and what is refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import headstart as hs
from headstart.cli.main import main
from headstart.config.schema import Config, Data
from headstart.data.axes import choose_axes
from headstart.data.decoding.decode import UnreadableImage, decode_bands, decode_image, measure_image
from headstart.data.decoding.raster import Measured
from headstart.data.images import load_images, open_images
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess, imagenet_preprocess

Settings = Callable[..., dict[str, Any]]
BANDS = 5


def pack(values: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **how)
    return file.getvalue()


def colours(high: int = 20, wide: int = 24, bands: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (high, wide, bands), dtype=np.uint8)


def write(root: Path, *, order: str = "hwc", each: int = 8, bands: int = BANDS, kind: str = "uint16") -> Path:
    """Two classes that differ in the last band alone, 12 bits in 16."""
    draw = np.random.default_rng(0)
    for place, name in enumerate(("dry", "wet")):
        (root / name).mkdir(parents=True)
        for number in range(each):
            values = draw.integers(0, 2000, (32, 32, bands)).astype(kind)
            values[:, :, -1] += 2000 * place
            np.save(root / name / f"{number}.npy", values if order == "hwc" else values.transpose(2, 0, 1))
    return root


def options(settings: Settings, source: Path, **sections: Any) -> hs.Config:
    model = {"options": {"channels": [8, 8, 16, 16], "in_chans": BANDS}}
    data = {"source": str(source), **sections.pop("data", {})}
    return hs.load_config(settings(data=data, model=model, recipe="full", **sections))


@pytest.mark.parametrize("layout", ["hwc", "chw", "fortran", "big-endian", "grey"])
def test_an_array_gives_the_pixels_of_a_png(layout: str) -> None:
    values = colours()
    saved: Any = {
        "hwc": values,
        "chw": values.transpose(2, 0, 1),
        "fortran": np.asfortranarray(values),
        "big-endian": values.astype(">u2") * 257,
        "grey": values[:, :, 0],
    }[layout]
    shown = np.asarray(decode_image(pack(saved), where="a.npy"))
    np.testing.assert_array_equal(shown, np.repeat(values[:, :, :1], 3, axis=2) if layout == "grey" else values)


def test_flags_are_black_and_white_and_a_grey_model_gets_grey() -> None:
    shown = np.asarray(decode_image(pack(colours()[:, :, 0] > 99), where="a.npy", channels=1))
    np.testing.assert_array_equal(shown, (colours()[:, :, 0] > 99) * 255)
    as_png = Image.fromarray(colours()).convert("L")
    np.testing.assert_array_equal(np.asarray(decode_image(pack(colours()), where="a.npy", channels=1)), as_png)


def test_a_range_is_of_more_than_8_bits_only() -> None:
    deep = np.full((8, 8, BANDS), 1000, np.uint16)
    assert (decode_bands(pack(deep), where="a", channels=BANDS, levels=(0, 4000)) == 64).all()
    plain = np.full((8, 8, BANDS), 100, np.uint8)
    assert (decode_bands(pack(plain), where="a", channels=BANDS, levels=(0, 4000)) == 100).all()


SPRUNG: list[bool] = []


class Trap:
    """Unpickled, it would be noted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (SPRUNG.append, (True,))


def forge(header: str, *, body: bytes = b"\0" * 64) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


HEADER = "{'descr': '<u2', 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pack(np.array([[Trap()] * 8] * 8, dtype=object), allow_pickle=True), "Python objects, which are pickled"),
        (pack(np.zeros((8, 8), dtype=[("r", "u1"), ("g", "u1")])), "type"),
        (pack(np.zeros((8, 8), np.complex64)), "elements are of type complex64"),
        (pack(np.array([["a"] * 8] * 8)), "elements are of type <U1"),
        (pack(np.zeros((2, 8, 8, 3), np.uint8)), "its shape is 2 x 8 x 8 x 3, .* save one picture per file"),
        (pack(np.zeros(8)), "its shape is 8, and a picture has 2 axes"),
        (pack(np.zeros(())), "its shape is that of one number"),
        (pack(np.zeros((0, 8), np.uint8)), "it has no pixels"),
        (pack(np.zeros((2, 900), np.uint8)), "it is a strip of 900 x 2 pixels"),
        (pack(np.full((8, 8), np.nan)), "none of its pixels is a number"),
        (pack(colours())[:-9], "the file is cut short"),
        (pack(colours()) + pack(colours()), "such as a second array"),
        (forge(HEADER % "(100000, 100000)"), "it has 100000 x 100000 pixels"),
        (forge(HEADER % "(8000, 8000, 200)"), "its numbers take 25,600 MB"),
        (forge(HEADER % "(-8, -8)"), "it has no pixels"),
        (forge(HEADER % "(8, 8, __import__('os'))"), "the header cannot be read"),
        (forge("(" * 5000), "the header cannot be read"),
        (forge(""), "the header cannot be read"),
        (b"\x93NUMPY\x09\x00", "the header cannot be read|named columns"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, reason: str) -> None:
    for look in (measure_image, decode_image):
        with pytest.raises(UnreadableImage, match=reason):
            look(content, where="a.npy")
    assert not SPRUNG


def test_both_orders_are_asked_back_and_the_given_one_is_taken() -> None:
    values = colours(3, 24, 3)
    with pytest.raises(UnreadableImage, match=r"3 x 24 x 3 can be H x W x C or C x H x W.* --data\.axes hwc or chw"):
        decode_image(pack(values), where="a.npy")
    np.testing.assert_array_equal(np.asarray(decode_image(pack(values), where="a.npy", axes="hwc")), values)
    turned = np.asarray(decode_image(pack(values), where="a.npy", axes="chw"))
    np.testing.assert_array_equal(turned, values.transpose(1, 2, 0))


def test_an_array_in_another_order_than_the_runs_is_named() -> None:
    with pytest.raises(UnreadableImage, match=r"20 x 24 x 3, and arrays are read as C x H x W here, .* in this order"):
        decode_image(pack(colours()), where="a.npy", axes="chw")


def test_among_other_images_the_runs_order_decides_where_both_can_be_meant() -> None:
    for usual in ("hwc", "chw"):
        assert choose_axes({"0": found(3, 3)}, channels=3, asked="auto", source="x", usual=usual)[0] == usual
        assert choose_axes({"0": found(64, 3)}, channels=3, asked="auto", source="x", usual=usual)[0] == "hwc"


def found(first: int, last: int) -> Measured:
    return Measured(last, "uint8", 0, 0, 255, 255, first)


@pytest.mark.parametrize(
    ("ends", "channels", "asked", "chosen"),
    [
        ([(3, 64), (3, 3)], 3, "auto", "chw"),  # what one leaves open, another says
        ([(64, 1), (3, 3)], 3, "auto", "hwc"),
        ([(13, 64)], 13, "auto", "chw"),
        ([(3, 3)], 3, "chw", "chw"),
        ([(3, 3)], 3, "auto", "both can be bands of H x W x C or C x H x W; say which: --data.axes hwc or"),
        (
            [(3, 64), (64, 3)],
            3,
            "auto",
            "0 is C x H x W|1 is H x W x C, and 0 C x H x W; save all of them in one order",
        ),
        (
            [(13, 64)],
            3,
            "auto",
            r"0: neither its first axis \(13\) nor its last one \(64\) .* '\{in_chans: 13\}'",
        ),
        ([(3, 64), (3, 32)], 3, "hwc", "0: as H x W x C it has 64 bands, as C x H x W 3, .* --data.axes chw"),
        ([(0, 64)], 3, "chw", "0: as C x H x W its sides are not accepted; .* --data.axes hwc"),
    ],
)
def test_all_arrays_decide_on_the_order(ends: list[tuple[int, int]], channels: int, asked: Any, chosen: str) -> None:
    measured = {str(place): found(*pair) for place, pair in enumerate(ends)}
    if chosen in ("hwc", "chw"):
        axes, after, notes = choose_axes(measured, channels=channels, asked=asked, source="x")
        assert axes == chosen and all(one.first is None for one in after.values())
        assert notes[0].startswith("data.axes: ")
    else:
        with pytest.raises(DataError, match=chosen):
            choose_axes(measured, channels=channels, asked=asked, source="x")


def test_a_run_learns_from_arrays_and_keeps_their_order(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "fields", order="chw")
    run = hs.train(options(settings, source, epochs=5, augment={"preset": "light"}))
    assert run.metrics["accuracy"] == 1.0
    opened = hs.open_run(run.path)
    assert (opened.preprocess.axes, opened.preprocess.levels) == ("chw", (0, 4095))
    in_memory = np.load(source / "wet" / "0.npy").transpose(1, 2, 0)
    by_path, by_array, by_tensor = hs.predict(
        opened, [source / "wet" / "0.npy", in_memory, torch.from_numpy(in_memory.astype(np.int32))]
    )
    assert by_path.labels[0][0] == "wet"
    assert by_path.labels == by_array.labels == by_tensor.labels
    wrong = hs.predict(opened, in_memory.transpose(2, 0, 1))[0]
    assert wrong.error is not None and "it has 32 bands, and the model takes 5" in wrong.error
    assert "16" in hs.evaluate(opened, source, include_trained=True).note
    assert Preprocess.from_dict(opened.preprocess.to_dict()) == opened.preprocess


def test_arrays_in_memory_have_their_bands_last() -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (8, 32, 32, BANDS)).astype(np.uint16)
    data = hs.label_images(pixels, ["dry", "wet"] * 4)
    images = open_images(data, like=imagenet_preprocess(channels=BANDS, source="test"), augment="none")
    form = images.train.preprocess
    assert (form.levels, form.axes, images.scan.measured["images[0]"].bands) == ((0, 4095), None, BANDS)
    assert next(images.train.epoch(0)).pixels.shape[1] == BANDS
    with pytest.raises(DataError, match=r"8 images have other bands .* it has 5 bands, and the model takes 3"):
        open_images(data, like=imagenet_preprocess(channels=3, source="test"))
    for kind in ("uint8", "float64", ">i2"):
        values = pixels[0].astype(kind)
        (record,) = (source := hs.label_images([values], ["dry"])).records()
        measured = measure_image(source.read(record), where="a")
        assert measured is not None and (measured.bands, measured.most) == (BANDS, values.max())
    with pytest.raises(DataError, match="channels go last"):
        hs.label_images([np.zeros((3, 32, 32), np.float32)], ["dry"])


def test_arrays_beside_pictures_of_the_same_name_are_not_images(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(colours() + np.uint8(number)).save(tmp_path / name / f"{number}.png")
            np.save(tmp_path / name / f"{number}.npy", np.zeros((68, 2)))
        np.save(tmp_path / name / "own.npy", colours())
    images = open_images(tmp_path, like=imagenet_preprocess(channels=3, source="test"))
    assert len(images.scan.hashes) == 10
    assert "8 files are no image and left out (8 .npy, e.g. 'cat/0.npy')" in "; ".join(images.notes)


def test_the_command_line_asks_for_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "cubes", each=4, bands=32)
    small = ("--model", "timm/resnet18", "--weights", "none", "--image-size", "32", "--device", "cpu")
    more = ("--model.options", "{in_chans: 32}")
    assert main(["plan", str(source), *small, *more]) == 2
    assert "--data.axes hwc or --data.axes chw" in capsys.readouterr().err
    assert main(["plan", str(source), *small, *more, "--data.axes", "chw"]) == 0
    assert "data.axes: 8 arrays are read as C x H x W; as given" in " ".join(capsys.readouterr().out.split())
    assert main(["plan", str(source), *small]) == 2
    assert "in_chans: 32" in capsys.readouterr().err


@pytest.mark.parametrize(("order", "channels"), [("hwc", 3), ("chw", 3), ("chw", 5), ("grey", 3)])
@pytest.mark.parametrize("spelling", ["cubes/{}.npy", "{}", "C:\\data\\cubes\\{}.npy"])
def test_arrays_are_named_in_tables_like_other_images(order: str, channels: int, spelling: str, tmp_path: Path) -> None:
    """With their ending, without, and by the path of another machine."""
    (tmp_path / "cubes").mkdir()
    rows = ["file,size"]
    for number in range(8):
        values = np.random.default_rng(number).random((40, 36, channels)).astype(np.float32)
        values = {"hwc": values, "chw": values.transpose(2, 0, 1), "grey": values[:, :, 0]}[order]
        np.save(tmp_path / "cubes" / f"{number}.npy", values)
        rows.append(f"{spelling.format(number)},{10 + number / 2}")
    table = tmp_path / "sizes.csv"
    table.write_text("\n".join(rows) + "\n")
    data = Data(source=str(table), images=str(tmp_path / "cubes") if spelling == "{}" else None)
    like = imagenet_preprocess(channels=channels, source="test")
    images = load_images(Config(data=data, workers=0), like)
    assert (images.task.kind, images.task.targets) == ("regress", ("size",))
    assert {sample.target for sample in (*images.train.samples, *images.val.samples)} == {
        (10 + number / 2,) for number in range(8)
    }
    assert ("data.axes: 8 arrays are read as C x H x W" in "; ".join(images.notes)) == (order == "chw")
    batch = next(iter(images.val.epoch(0)))
    assert batch.pixels.shape[1] == channels and batch.pixels[: batch.size].float().std() > 20


def test_an_array_that_a_table_names_and_that_is_none_is_said_with_its_name(tmp_path: Path) -> None:
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", colours() + np.uint8(number))
    np.savez(tmp_path / "6.npz", colours())
    (tmp_path / "7.npy").write_bytes(b"no array")
    (tmp_path / "a.csv").write_text("file,label\n" + "".join(f"{n}.npy,{'ab'[n % 2]}\n" for n in (*range(6), 7)))
    with pytest.raises(DataError, match=r"1 of 7 images cannot be read:\n  7\.npy: "):
        open_images(tmp_path / "a.csv", like=imagenet_preprocess(channels=3, source="test"))
