"""Smaller batches that give an image the very bits of a whole one, and the runs that use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.runs.bundle import Evaluated
from headstart.training.equal_sizes import find_equal_sizes


@pytest.fixture(scope="module")
def batches(colours, imagenet):
    return hs.open_images(colours, like=imagenet, val=0.5, batch_size=16).val


@pytest.fixture(scope="module")
def imagenet():
    return hs.open_model(
        "timm/resnet18", weights="none", image_size=32, options={"channels": [8, 8, 16, 16]}
    ).preprocess


def logits(model: nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return model.eval()(images).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_size_that_is_named_has_the_bits_of_a_whole_batch(net, batches, precision: str) -> None:
    model = net(norm=True)
    found = find_equal_sizes(model, batches, precision=precision, memory_format="contiguous")
    images = batches.example_batch(16).inputs(torch.device("cpu"), torch.contiguous_format)
    whole = logits(model, images, precision)
    for size in (1, 2, 4, 8):
        parts = torch.cat([logits(model, part, precision) for part in images[:8].split(size)])
        assert (size in found) == torch.equal(parts, whole[:8]), size


def test_where_images_of_a_batch_mix_no_smaller_one_has_its_bits(net, batches) -> None:
    model = nn.Sequential(net(), nn.Softmax(dim=0))
    assert find_equal_sizes(model, batches, precision="fp32", memory_format="contiguous") == ()


class Own(nn.Module):
    """Code of the user's own may count its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(images)


def test_a_model_with_code_of_the_users_own_is_not_called_for_it(net, batches) -> None:
    model = Own(net())
    assert find_equal_sizes(model, batches, precision="fp32", memory_format="contiguous") == ()
    assert model.calls == 0


def test_the_smallest_that_has_room_is_taken() -> None:
    how = Evaluated(batch_size=64, precision="fp32", memory_format="contiguous", equal_sizes=(4, 16))
    assert [how.size_for(images) for images in (1, 4, 5, 16, 17, 64, 65)] == [4, 4, 16, 16, 64, 64, 64]


def test_one_photo_of_a_run_has_the_bits_of_validation_in_the_smallest_batch(settings, colours: Path) -> None:
    run = hs.train(hs.load_config(settings(epochs=1, recipe="full", batch={"size": 16}, data={"val": 0.5})))
    opened = hs.open_run(run.path)
    facts = json.loads((run.path / "model" / "headstart.json").read_text())
    assert tuple(facts["evaluation"]["equal_sizes"]) == opened.evaluated.equal_sizes
    seen = []
    opened.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    paths = sorted(colours.rglob("*.png"))
    whole = hs.predict(opened, paths[:16])
    assert seen == [16]
    for count in (1, 3, 8):
        assert hs.predict(opened, paths[:count]) == whole[:count]
        assert seen[-1] == opened.evaluated.size_for(count)
