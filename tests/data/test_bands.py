"""Images of more bands than three: each is read, scaled, framed and learned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import adapt_input_conv

import headstart as hs
from headstart.data.decoding.lazy_image import LazyImage
from headstart.data.transforms.colour_jitter import draw_jitter
from headstart.data.transforms.transforms import eval_transform
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess
from tests.data.tiffs import tiff

Settings = Callable[..., dict[str, Any]]
BANDS = 5


def write(root: Path, *, each: int = 8) -> Path:
    """Two classes that differ in the last band alone, 12 bits in 16."""
    draw = np.random.default_rng(0)
    for place, name in enumerate(("dry", "wet")):
        (root / name).mkdir(parents=True)
        for number in range(each):
            values = draw.integers(0, 2000, (32, 32, BANDS)).astype("<u2")
            values[:, :, -1] += 2000 * place
            (root / name / f"{number}.tif").write_bytes(tiff(values))
    return root


def options(settings: Settings, source: Path, **sections: Any) -> hs.Config:
    model = {"options": {"channels": [8, 8, 16, 16], "in_chans": BANDS}}
    return hs.load_config(settings(data={"source": str(source)}, model=model, recipe="full", **sections))


def test_a_run_learns_from_the_last_band(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "fields")
    run = hs.train(options(settings, source, epochs=5, augment={"preset": "light"}))
    assert run.metrics["accuracy"] == 1.0
    row = hs.predict(run, [str(source / "wet" / "0.tif")])[0]
    assert row.labels[0][0] == "wet"
    assert hs.open_run(run.path).preprocess.levels == (0, 4095)


def test_other_bands_than_the_models_are_refused_with_what_to_type(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "fields")
    with pytest.raises(DataError, match=r"16 images have other bands than the model takes: .* '\{in_chans: 5\}'"):
        hs.plan(hs.load_config(settings(data={"source": str(source)})))
    Image.new("RGB", (32, 32)).save(source / "wet" / "colours.png")
    with pytest.raises(DataError, match=r"colours\.png: it has 3 bands, and the model takes 5"):
        hs.plan(options(settings, source))


def test_opacity_is_a_band_where_the_model_takes_four(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    picture = LazyImage((tmp_path / "a.png").read_bytes(), where="a.png", channels=4)
    np.testing.assert_array_equal(picture.whole_region((0, 0, 24, 20)).pixels, values)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_each_band_is_framed_as_a_grey_picture_is(interpolation: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (40, 50, BANDS)).astype("<u2")
    content = tiff(values)

    def frame(content: bytes, channels: int) -> torch.Tensor:
        form = Preprocess(
            height=16, width=24, mean=(0.5,) * channels, std=(0.2,) * channels, interpolation=interpolation,
            crop_pct=0.9, source="test",
        )  # fmt: skip
        return eval_transform(form)(LazyImage(content, where="a.tif", channels=channels))

    shown = frame(content, BANDS)
    for band in range(BANDS):
        alone = frame(tiff(np.ascontiguousarray(values[:, :, [band]])), 1)[0]
        assert (shown[band].int() - alone.int()).abs().max() <= 1


def test_jitter_of_bands_changes_brightness_and_contrast_alone() -> None:
    """Each band is a mix of itself and of the means of all: none of another band's pixels."""
    torch.manual_seed(0)
    matrix, of_means = draw_jitter(BANDS)
    assert torch.equal(matrix, matrix[0, 0] * torch.eye(BANDS, dtype=torch.float64))
    assert torch.allclose(of_means, of_means[0, 0].expand(BANDS, BANDS))


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121"])
def test_torchvisions_models_take_other_bands(name: str) -> None:
    opened = hs.open_model(f"torchvision/{name}", weights="none", options={"in_chans": BANDS})
    first = next(part for part in opened.module.modules() if isinstance(part, torch.nn.Conv2d))
    assert first.in_channels == opened.preprocess.channels == BANDS


def test_the_first_convolution_is_adapted_by_timms_rule(tmp_path: Path) -> None:
    colours = hs.open_model("torchvision/squeezenet1_1", weights="none").module
    torch.save(colours.state_dict(), tmp_path / "a.pth")
    opened = hs.open_model("torchvision/squeezenet1_1", weights=str(tmp_path / "a.pth"), options={"in_chans": BANDS})
    before, after = (model.get_parameter("features.0.weight") for model in (colours, opened.module))
    assert torch.equal(after, adapt_input_conv(BANDS, before.detach()))
    assert opened.coverage.notes == ("1 fitted to the model's input: features.0.weight",)
