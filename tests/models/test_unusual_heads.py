"""Heads that are no plain last layer: found, or refused in a sentence that ends in success when it is followed."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headstart as hs
from headstart.errors import ModelError

IMAGES = torch.rand(2, 3, 32, 32)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 10)
        self.build()

    def build(self) -> None:
        pass

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Copied(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.weight.copy_(F.normalize(self.fc.weight, dim=1))
        return super().forward(x)


class Divided(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.weight.div_(self.fc.weight.norm(dim=1, keepdim=True))
        return super().forward(x)


class Assigned(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.fc.weight.data = F.normalize(self.fc.weight.data, dim=1)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Copied, Divided, Assigned])
def test_a_head_whose_weight_is_normalised_in_place_is_replaced_and_so_is_the_new_ones(kind: type[Base]) -> None:
    model = kind()
    before = model.fc.weight.detach().clone()
    assert hs.find_head(model).paths == ("fc",)
    assert torch.equal(model.fc.weight, before)
    hs.replace_head(model, outputs=3)
    assert model(IMAGES).shape == (2, 3)
    assert torch.allclose(model.fc.weight.norm(dim=1), torch.ones(3))


def test_a_hook_on_the_head_that_normalises_its_weight_is_the_heads_own() -> None:
    model = Base()

    def normalise(part: nn.Module, _: object) -> None:
        part.weight.data.copy_(F.normalize(part.weight.data))

    model.fc.register_forward_pre_hook(normalise)
    assert hs.replace_head(model, outputs=3).now == 3
    model(IMAGES)
    assert torch.allclose(model.fc.weight.norm(dim=1), torch.ones(3))


class ByRandomNumber(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.rand(())


class PlusNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores + torch.randn_like(scores) + torch.randn(1)


class ByTemperature(Base):
    def build(self) -> None:
        self.scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("shift", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.exp() * super().forward(x) + self.shift


@pytest.mark.parametrize("kind", [ByRandomNumber, PlusNoise, ByTemperature])
def test_a_head_is_found_through_single_numbers_and_noise(kind: type[Base]) -> None:
    model = kind()
    assert hs.find_head(model).paths == ("fc",)
    hs.replace_head(model, outputs=3)
    assert model(IMAGES).shape == (2, 3)


def test_a_weight_for_each_score_is_no_single_number() -> None:
    class Weighted(Base):
        def build(self) -> None:
            self.each = nn.Parameter(torch.ones(10))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.each

    with pytest.raises(ModelError, match="the output uses each directly"):
        hs.find_head(Weighted())


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 8))

    def forward(self, features: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(features), F.normalize(self.weight))


class CosineHead(Base):
    def build(self) -> None:
        self.fc = Cosine()


class CosineInside(Base):
    def build(self) -> None:
        self.fc = nn.Sequential(nn.Linear(8, 8), Cosine())


class NoHead(Base):
    def build(self) -> None:
        self.fc = nn.Identity()


def test_a_head_that_was_taken_out_is_put_in_again() -> None:
    model = NoHead()
    assert hs.replace_head(model, outputs=3).path == "fc"
    assert model(IMAGES).shape == (2, 3)


@pytest.mark.parametrize("kind", [CosineHead, CosineInside])
def test_a_head_that_cannot_be_replaced_as_it_is_can_be_once_the_sentence_was_followed(kind: type[Base]) -> None:
    model = kind()
    with pytest.raises(ModelError, match="the head is not clear") as caught:
        hs.replace_head(model, outputs=3)
    line = re.search(r"name its place: (.*), and --head", str(caught.value))
    at = re.search(r"--head\.at (\S+)$", str(caught.value))
    assert at is not None and line is not None
    exec(line[1], {"model": model, "torch": torch})
    assert hs.replace_head(model, outputs=3, at=at[1]).path == at[1]
    assert model(IMAGES).shape == (2, 3)


def test_a_cosine_layer_that_is_named_as_the_head_is_refused_with_what_to_type() -> None:
    model = CosineHead()
    with pytest.raises(ModelError, match=r"fc is a Cosine; .* take it out first: (.*)$") as caught:
        hs.replace_head(model, outputs=3, at="fc")
    exec(str(caught.value).rpartition("first: ")[2], {"model": model, "torch": torch})
    assert hs.replace_head(model, outputs=3, at="fc").now == 3


class BareWeight(Base):
    def build(self) -> None:
        del self.fc
        self.w = nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.features(x)), F.normalize(self.w))


class UncalledLayer(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.features(x)), F.normalize(self.fc.weight))


@pytest.mark.parametrize(("kind", "named"), [(BareWeight, "w"), (UncalledLayer, r"fc\.weight")])
def test_scores_without_a_layer_are_refused_with_the_layer_that_is_wanted(kind: type[Base], named: str) -> None:
    with pytest.raises(ModelError, match=rf"forward uses {named} without one.* self\.head = torch\.nn\.Linear"):
        hs.replace_head(kind(), outputs=3)


def test_a_function_behind_the_head_is_named_with_a_layer_that_is_accepted() -> None:
    class Capped(Base):
        def forward(self, x: Tensor) -> Tensor:
            return 30 * torch.tanh(super().forward(x) / 30)

    with pytest.raises(ModelError, match=r"name the layer to replace with head\.at, e\.g\. --head\.at fc$"):
        hs.replace_head(Capped(), outputs=3)
    assert hs.replace_head(Capped(), outputs=3, at="fc").now == 3
