"""Modules with habits of their own: trained as they are, or refused with a sentence before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import headstart as hs
from headstart.errors import ConfigError, ModelError


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def features(self, images: Tensor) -> Tensor:
        return torch.relu(self.block(torch.relu(self.stem(images)))).mean((2, 3))

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.features(images))


class WritesItsImages(Base):
    def forward(self, images: Tensor) -> Tensor:
        images.sub_(0.1).div_(2)
        return self.fc(self.features(images))


class WithTeacher(Base):
    """A teacher follows in forward, its parameters frozen by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.stem).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for mine, theirs in zip(self.teacher.parameters(), self.stem.parameters(), strict=True):
                    mine.mul_(0.9).add_(theirs, alpha=0.1)
        return self.fc(self.features(images) + torch.relu(self.teacher(images)).mean((2, 3)).detach())


class Checkpointed(Base):
    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.stem(images))
        return self.fc(torch.relu(checkpoint(self.block, maps, use_reentrant=False)).mean((2, 3)))


class Siamese(Base):
    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        return (self.fc(features), features[:, :4]) if self.training else self.fc(features)


@pytest.fixture
def trained(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    def run(module: Any, *, use: str = "always", **sections: Any) -> Any:
        given = settings(
            recipe="probe", epochs=2, cache={"use": use}, augment={"preset": "none"}, precision="fp32",
            memory_format="contiguous", out=str(tmp_path / use),
        ) | sections  # fmt: skip
        return hs.train(hs.load_config(given | {"model": {"image_size": 32}}), model=module)

    return run


@pytest.mark.parametrize("kind", [WritesItsImages, WithTeacher, Checkpointed])
def test_a_habit_is_trained_as_it_is_and_cached_to_the_same_bits(trained, kind: type[nn.Module]):
    plain = trained(kind(), use="never").model.state_dict()
    try:
        cached = trained(kind(), use="always").model.state_dict()
    except ConfigError as refused:
        assert "nothing can be cached" in str(refused)
        cached = trained(kind(), use="auto").model.state_dict()
    assert all(torch.equal(value, cached[name]) for name, value in plain.items())


def test_an_output_that_is_not_the_heads_is_refused_as_the_scores_before_the_first_step(trained, tmp_path: Path):
    with pytest.raises(ModelError, match=r"training mode its scores have the shape \(4,\)"):
        trained(Siamese(), use="never", head={"scores": "1"})
    assert not (tmp_path / "never").exists()
    assert trained(Siamese(), use="never", head={"scores": "0"}).metrics["accuracy"] >= 0


def test_what_is_no_module_is_refused_by_name(trained):
    with pytest.raises(ConfigError, match="give an instance"):
        trained(Base, use="never")


def test_a_hook_collects_in_the_callers_own_evaluation(settings, tmp_path: Path):
    module, seen = Base(), list[Tensor]()
    module.stem.register_forward_hook(lambda _, __, made: seen.append(made))
    images = hs.open_images(settings()["data"]["source"], like=hs.open_model("starter"), batch_size=8)
    hs.predict(module, images.val)
    assert len(seen) == len(images.val)
