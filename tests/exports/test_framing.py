"""The preprocessing that is written into exports gives what validation's own gives, for pictures of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headstart.data.transforms.transforms import eval_transform
from headstart.exports.framing import Framing
from headstart.models.preprocess import Preprocess

SIDES = st.integers(1, 300) | st.integers(1, 30).map(lambda tens: 10 * tens)


@st.composite
def formats(draw: st.DrawFn) -> Preprocess:
    height = draw(st.sampled_from([32, 48, 97]))
    return Preprocess(
        height=height, width=draw(st.sampled_from([height, height, 40, 72])), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])), source="drawn",
        crop_pct=draw(st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0])),
        crop_mode=draw(st.sampled_from(["center", "center", "squash", "border"])),
    )  # fmt: skip


@given(preprocess=formats(), height=SIDES, width=SIDES, seed=st.integers(0, 9), smooth=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_picture_is_framed_as_validation_frames_it(
    preprocess: Preprocess, height: int, width: int, seed: int, smooth: bool
) -> None:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if smooth:
        drawn = np.asarray(Image.fromarray(drawn[: height // 8 + 1, : width // 8 + 1]).resize((width, height)))
    expected = eval_transform(preprocess)(Image.fromarray(drawn)).float()
    (found,) = Framing(preprocess)(torch.from_numpy(drawn.copy())[None])
    assert found.shape == expected.shape
    apart = (found - expected).abs()
    assert apart.max() <= 1  # of 255, where a weight rounds to another 16th bit
    assert apart.mean() < 0.01


@pytest.mark.parametrize("mode", ["center", "border"])
def test_sizes_that_lie_between_two_are_rounded_as_python_rounds_them(mode: str) -> None:
    """5 rows of 320 x 5 pixels become 3.5 of 224: which way, the rounding of 64 bits decides."""
    preprocess = Preprocess(
        height=64, width=48, mean=(0.5,), std=(0.2,), interpolation="bilinear", crop_pct=1.0, source="t", crop_mode=mode
    )
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    for height in range(1, 200, 3):
        for width in (72, 96, 120):
            picture = np.add.outer(ramp[:height] // 2, ramp[:width] // 2).astype(np.uint8)
            expected = eval_transform(preprocess)(Image.fromarray(picture)).float()
            (found,) = Framing(preprocess)(torch.from_numpy(picture)[None, :, :, None])
            assert (found - expected).abs().max() <= 1, (height, width)


def test_pictures_of_a_batch_are_framed_as_each_alone() -> None:
    preprocess = Preprocess(
        height=32, width=32, mean=(0.5,) * 5, std=(0.2,) * 5, interpolation="bicubic", crop_pct=0.875, source="t"
    )
    drawn = torch.randint(0, 256, (3, 50, 70, 5), dtype=torch.uint8)
    framing = Framing(preprocess)
    assert torch.equal(framing(drawn), torch.cat([framing(each[None]) for each in drawn]))
