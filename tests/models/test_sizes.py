"""Images whose height is not their width: as asked, for architectures that take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headstart as hs
from headstart.config.sizes import format_size, read_size
from headstart.data.decoding.crops import random_frame
from headstart.errors import ConfigError, ModelError
from headstart.models.sizes import refuse_size

Settings = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("value", "size"),
    [(224, (224, 224)), ("224", (224, 224)), ("320x192", (320, 192)), ("320 X 192", (320, 192)), ((8, 4096), (8, 4096)),
     ("auto", None), (None, None)],
)  # fmt: skip
def test_a_size_is_read(value: Any, size: tuple[int, int] | None) -> None:
    assert read_size(value) == size
    assert size is None or read_size(format_size(size)) == size


@pytest.mark.parametrize(
    "value", ["", "x", "320x", "1x2x3", "7", "320x7", "4097", "-8x8", "8.5", 7, (8, 8, 8), (8.0, 8)]
)
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="pixels per side, or HEIGHTxWIDTH, each at least 8 and at most 4096"):
        read_size(value)


@pytest.mark.parametrize(("text", "kept"), [("320x192", "320x192"), ("64x64", 64), ("64", 64)])
def test_a_configuration_keeps_one_form(text: str, kept: Any) -> None:
    assert hs.load_config({"model": {"image_size": text}}).model.image_size == kept


@pytest.mark.parametrize(
    ("name", "size"),
    [("timm/test_vit", (96, 64)), ("timm/test_resnet", (48, 80)), ("torchvision/squeezenet1_1", (64, 96))],
)
def test_an_architecture_is_made_for_a_rectangle(name: str, size: tuple[int, int]) -> None:
    opened = hs.open_model(name, weights="none", image_size=size)
    assert (opened.preprocess.height, opened.preprocess.width) == size
    refuse_size(opened)
    assert opened.module.eval()(torch.zeros(1, 3, *size)).shape == (1, 1000)


def test_an_architecture_for_squares_says_so() -> None:
    named = r"torchvision/vit_b_16 takes square images only; give e\.g\. --image-size 320"
    with pytest.raises(ModelError, match=named):
        hs.open_model("torchvision/vit_b_16", weights="none", image_size="320x192")


def test_a_rectangle_that_no_patches_fill_is_refused_with_one_that_they_do() -> None:
    opened = hs.open_model("timm/test_vit", weights="none", image_size="70x90")
    named = r"70 x 90 pixels: .*; it takes 64 x 80 and 160 x 160: give --image-size 64x80$"
    with pytest.raises(ModelError, match=named):
        refuse_size(opened)


def test_random_crops_have_the_shape_of_what_is_shown() -> None:
    torch.manual_seed(0)
    frames = [random_frame((400, 400), shown=(96, 192), scale=(0.2, 0.5)) for _ in range(200)]
    shapes = [frame.box[2] / frame.box[3] for frame in frames]
    assert 0.5 * 3 / 4 - 0.01 < min(shapes) < 0.4 and 0.6 < max(shapes) < 0.5 * 4 / 3 + 0.01


def test_a_run_on_rectangles_ends_and_predicts(settings: Settings) -> None:
    options = hs.load_config(settings(model={"image_size": "48x32"}, recipe="full", epochs=1))
    plan = {decision.name: decision.value for decision in hs.plan(options).decisions}
    assert plan["image size"] == "48 x 32 (height x width)"
    run = hs.train(options)
    form = hs.open_run(run.path).preprocess
    assert (form.height, form.width) == (48, 32)
    assert hs.predict(run, [Image.fromarray(np.zeros((30, 30, 3), dtype=np.uint8))])[0].labels
