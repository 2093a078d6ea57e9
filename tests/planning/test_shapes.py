"""Sizes and numbers of images that a model does not take are refused in a sentence, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError, ModelError
from headstart.models.sizes import refuse_size

Settings = Callable[..., dict[str, Any]]
OWN = {"name": "auto", "options": {}}
PATCHES = {"name": "timm/test_vit", "image_size": 70, "options": {}}


class Flat(nn.Module):
    """A module for pictures of 32 pixels; ``needs``: how many images it takes at least in training."""

    def __init__(self, *, norm: bool = False, needs: int = 1) -> None:
        super().__init__()
        self.flat, self.one = nn.Flatten(), nn.Linear(3 * 32 * 32, 8)
        self.norm, self.fc = nn.BatchNorm1d(8) if norm else nn.ReLU(), nn.Linear(8, 3)
        self.needs = needs

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < self.needs:
            raise ValueError(f"{len(x)} images are too few")
        return self.fc(self.norm(self.one(self.flat(x))))


class Whitening(Flat):
    """One that black images, which have no variance, cannot go through."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.flat(x)
        factor = torch.linalg.cholesky((flat * flat).mean().view(1, 1) - 1e-6)
        return self.fc(self.norm(self.one(flat / factor)))


def test_a_size_that_no_patches_fill_is_refused_with_sizes_that_fit(settings: Settings, tmp_path: Path) -> None:
    options = hs.load_config(settings(model=PATCHES))
    with pytest.raises(ModelError) as refused:
        hs.train(options)
    assert str(refused.value) == (
        "model.image_size: timm/test_vit does not run on images of 70 x 70 pixels: Input height (70) should be "
        "divisible by patch size (16) (in patch_embed); it takes 64 x 64 and 160 x 160: give --image-size 64"
    )
    assert not (tmp_path / "run").exists()


def test_describe_says_the_same(settings: Settings) -> None:
    opened = hs.open_model("timm/test_vit", weights="none", image_size=70)
    with pytest.raises(ModelError, match=r"70 x 70 pixels: .* give --image-size 64$"):
        hs.describe(opened)


@pytest.mark.parametrize("side", [64, 160])
def test_the_sizes_that_a_refusal_names_are_taken(side: int) -> None:
    refuse_size(hs.open_model("timm/test_vit", weights="none", image_size=side))


def test_with_weights_only_the_size_that_they_are_of_is_named(tmp_path: Path) -> None:
    """Another one may not fit them."""
    trained = hs.open_model("timm/test_vit", weights="none").module
    torch.save(trained.state_dict(), tmp_path / "vit.pth")
    opened = hs.open_model("timm/test_vit", weights=str(tmp_path / "vit.pth"), image_size=72)
    with pytest.raises(ModelError, match=r"it takes 160 x 160: give --image-size 160$"):
        refuse_size(opened)


@pytest.mark.parametrize("remedy", [None, {"batch": {"size": 2}}, {"norm_statistics": "frozen"}], ids=str)
def test_batch_norm_over_one_value_is_refused_and_each_remedy_works(
    settings: Settings, tmp_path: Path, remedy: dict[str, Any] | None
) -> None:
    options = hs.load_config(settings(batch={"size": 1}) | (remedy or {}))
    if remedy is not None:
        assert hs.train(options).metrics
        return
    with pytest.raises(ConfigError) as refused:
        hs.train(options)
    assert str(refused.value) == (
        "batch.size: timm/resnet18 does not train on one image at a time of 32 x 32 pixels: Expected more than 1 value "
        "per channel when training, got input size torch.Size([1, 16, 1, 1]) (in layer4.0.bn1); give --batch-size 2 or "
        "more or --norm-statistics frozen"
    )
    assert not (tmp_path / "run").exists()


def test_a_module_of_ones_own_that_takes_no_single_image_is_told(settings: Settings) -> None:
    options = hs.load_config(settings(batch={"size": 1}, model=OWN | {"image_size": 32}))
    with pytest.raises(ConfigError, match=r"1 images are too few; give --batch-size 2 or more$"):
        hs.plan(options, model=Flat(needs=2))


def test_a_module_of_ones_own_for_another_size_is_told_with_its_error(settings: Settings) -> None:
    options = hs.load_config(settings(model=OWN | {"image_size": 64}))
    with pytest.raises(
        ModelError, match=r"does not run on 2 images of 64 x 64 pixels: .*3072.* \(in one\)$"
    ) as refused:
        hs.plan(options, model=Flat())
    assert isinstance(refused.value.__cause__, RuntimeError)


@pytest.mark.parametrize("module", [Whitening(), Flat(norm=True)], ids=["whitening", "norm"])
def test_a_module_that_runs_on_the_runs_own_images_is_planned(settings: Settings, module: nn.Module) -> None:
    """Zeros are not what it is made for."""
    assert hs.plan(hs.load_config(settings(model=OWN | {"image_size": 32})), model=module)
