"""Any array and any range of values: read right or asked back, never transposed or near black without a word."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from headstart.config.schema import Config, Data
from headstart.data.images import Images, load_images
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess

FEW = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIDE = 16
DARK = 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def fit(channels: int) -> Preprocess:
    """Images of 16 x 16 are shown as they are."""
    return Preprocess(
        height=SIDE, width=SIDE, mean=(0.0,) * channels, std=(1.0,) * channels, interpolation="bilinear",
        crop_pct=1.0, source="test",
    )  # fmt: skip


def write(root: Path, pictures: list[NDArray[np.generic]], *, ending: str = "npy") -> Path:
    shutil.rmtree(root, ignore_errors=True)
    for place, values in enumerate(pictures):
        path = root / ("train" if place < 4 else "val") / "ab"[place % 2] / f"{place}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values) if ending == "npy" else Image.fromarray(values).save(path)
    return root


def show(images: Images) -> Iterator[tuple[str, torch.Tensor]]:
    for split in (images.train.for_evaluation(), images.val):
        for batch in split.epoch(0):
            yield from zip(batch.keys, batch.pixels[: batch.size], strict=True)


ENDS = st.sampled_from([1, 2, 3, 4, 5, 7, 16, 20])


@FEW
@given(ENDS, ENDS, ENDS, st.sampled_from(["hwc", "chw"]), st.sampled_from([1, 3, 4, 5]), st.integers(0, 99))
def test_bands_are_read_in_their_order_or_it_is_asked(
    tmp_path: Path, high: int, wide: int, bands: int, order: str, channels: int, seed: int
) -> None:
    """As where the pictures are stored with their bands last, and that is said."""
    dice = np.random.default_rng(seed)
    pictures = [dice.integers(0, 256, (high, wide, bands), dtype=np.uint8) for _ in range(6)]
    stored = [values if order == "hwc" else np.ascontiguousarray(values.transpose(2, 0, 1)) for values in pictures]
    source, accepted = write(tmp_path / "data", stored), (1, 3) if channels in (1, 3) else (channels,)
    ends = {"hwc": stored[0].shape[2], "chw": stored[0].shape[0]}
    possible = [each for each, end in ends.items() if end in accepted]
    config = Config(data=Data(source=str(source)), workers=0)
    if len(possible) != 1:
        with pytest.raises(DataError, match=r"data\.axes" if possible else f"has the {channels} that the model takes"):
            load_images(config, fit(channels))
        return
    images = load_images(config, fit(channels))
    read = "H x W x C" if possible == ["hwc"] else "C x H x W"
    assert f"data.axes: 6 arrays are read as {read}; auto" in "; ".join(images.notes)
    upright = [values if possible == ["hwc"] else values.transpose(1, 2, 0) for values in stored]
    shown = {key: pixels.tolist() for key, pixels in show(images)}
    given = Data(source=str(write(tmp_path / "upright", upright)), axes="hwc")
    expected = load_images(Config(data=given, workers=0), fit(channels))
    assert shown == {key: pixels.tolist() for key, pixels in show(expected)}
    if bands in accepted:  # what was meant was possible, so it is what was taken
        assert possible == [order]


KINDS = {
    "npy": ("uint8", "uint16", "int16", "uint32", "int64", "float16", "float32", "float64"),
    "png": ("uint8", "uint16"),
    "tiff": ("uint8", "uint16", "int32", "float32"),
}
STORED = st.sampled_from([(ending, kind) for ending, kinds in KINDS.items() for kind in kinds])
SIZES = st.one_of(st.floats(1e-4, 1), st.floats(1, 300), st.floats(300, 70000))


@FEW
@given(STORED, SIZES, st.lists(st.floats(0.01, 1), min_size=6, max_size=6), st.floats(-0.5, 0.9))
def test_brighter_values_are_never_shown_darker_and_dark_sets_are_told(
    tmp_path: Path, stored: tuple[str, str], size: float, scales: list[float], offset: float
) -> None:
    """Ramps of any range: rows of rising values."""
    ending, kind = stored
    ramp = np.linspace(offset, 1, SIDE * SIDE).reshape(SIDE, SIDE)
    limits = np.iinfo(kind) if "int" in kind else np.finfo(kind)
    pictures = [(size * scale * ramp).clip(float(limits.min), float(limits.max)).astype(kind) for scale in scales]
    config = Config(data=Data(source=str(write(tmp_path / "data", pictures, ending=ending))), workers=0)
    images = load_images(config, fit(3))
    told, dark = "; ".join(images.notes), 0
    for key, pixels in show(images):
        values, levels = pictures[int(Path(key).stem)].ravel().astype(np.float64), pixels[0].flatten().int()
        order = np.argsort(values, kind="stable")
        assert (levels[order].diff() >= 0).all(), f"{stored}: a brighter value is shown darker"
        assert (pixels == pixels[:1]).all()
        dark += int(levels.max()) < DARK and values.max() > values.min()
    if dark > 3:
        assert "black to the model" in told or "below an eighth" in told, f"{dark} of 6 look black: {told}"
    if kind != "uint8":
        assert "becomes black and" in told
