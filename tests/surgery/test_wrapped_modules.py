"""Modules in wrappers, without their head, or of transformers: what is done with each, or what to type."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ModelError
from headstart.models.sources import open_model
from headstart.surgery.module_state import read_state


def compiled() -> nn.Module:
    return torch.compile(timm.create_model("test_resnet"))  # type: ignore[return-value]


def compiled_part() -> nn.Module:
    model = timm.create_model("test_resnet")
    model.layer2 = torch.compile(model.layer2)
    return model


def parallel() -> nn.Module:
    return nn.DataParallel(timm.create_model("test_resnet"))


DOORS: dict[str, Callable[[nn.Module], object]] = {
    "open_model": open_model,
    "find_head": hs.find_head,
    "replace_head": lambda model: hs.replace_head(model, outputs=2),
    "freeze": lambda model: hs.freeze(model, rule="backbone"),
    "describe": lambda model: hs.describe(open_model(model)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("make", [compiled, compiled_part, parallel])
def test_a_wrapper_is_refused_with_the_line_to_type_and_the_line_works(
    make: Callable[[], nn.Module], door: str
) -> None:
    model = make()
    with pytest.raises(ModelError) as caught:
        DOORS[door](model)
    said = str(caught.value)
    if line := re.search(r"(model\.set_submodule\(.*\._orig_mod\))", said):
        exec(line[1], {"model": model})
        DOORS[door](model)
    else:
        inside = re.search(r"module\.(_orig_mod|module)\b", said)
        assert inside is not None, said
        DOORS[door](getattr(model, inside[1]))


HEADS = {  # the place of the last layer in torchvision's models
    "resnet18": "fc",
    "vgg11": "classifier.6",
    "alexnet": "classifier.6",
    "mobilenet_v3_small": "classifier.3",
    "squeezenet1_1": "classifier.1",
    "densenet121": "classifier",
    "vit_b_32": "heads.head",
    "swin_t": "head",
    "convnext_tiny": "classifier.2",
    "shufflenet_v2_x0_5": "fc",
    "efficientnet_b0": "classifier.1",
    "mnasnet0_5": "classifier.1",
}


@pytest.mark.parametrize("name", HEADS)
def test_where_a_head_was_taken_out_the_new_one_goes(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    model.set_submodule(HEADS[name], nn.Identity())
    head = hs.find_head(model)
    assert (head.paths, head.outputs) == ((HEADS[name],), 0)


def test_a_model_trains_with_a_head_where_the_identity_was() -> None:
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    swap = hs.replace_head(model, outputs=3)
    assert swap.path == "fc"
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


class Body(nn.Module):
    """A body whose end is given."""

    def __init__(self, *end: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.end = nn.Sequential(*end)

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.body(images))


@pytest.mark.parametrize(
    ("end", "path"),
    [
        ([nn.Identity()], "end.0"),
        ([nn.Linear(8, 5), nn.Identity()], "end.0"),  # an activation that was configured away
        ([nn.Linear(8, 6), nn.ReLU(), nn.Identity()], "end.2"),
        ([nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.5), nn.Identity()], "end.3"),
        ([nn.Identity(), nn.Linear(8, 5)], "end.1"),
        ([nn.BatchNorm1d(8), nn.Identity()], "end.1"),
    ],
)
def test_an_identity_is_the_head_only_behind_what_makes_no_scores(end: list[nn.Module], path: str) -> None:
    assert hs.find_head(Body(*end)).paths == (path,)


def test_what_a_module_of_transformers_says_is_taken(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=48,
        patch_size=16,
        num_labels=7,
    )
    model = transformers.ViTForImageClassification(config)
    opened = open_model(model)
    assert (opened.preprocess.height, opened.preprocess.width, opened.num_outputs) == (48, 48, 7)
    assert opened.preprocess.source.startswith("assumed")
    assert hs.find_head(model).paths == ("classifier",)
    assert hasattr(nn.Module, "smart_apply")  # put there by it
    assert not read_state(nn.Linear(2, 2)).has_own_code
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}, resample=3).save_pretrained(tmp_path)
    opened = open_model(transformers.ViTForImageClassification.from_pretrained(tmp_path))
    assert opened.preprocess.mean == (0.5, 0.5, 0.5)
    assert (opened.preprocess.interpolation, opened.preprocess.crop_mode) == ("bicubic", "squash")
    assert opened.preprocess.source.endswith("preprocessor_config.json")
    with pytest.raises(ModelError) as caught:
        open_model(str(tmp_path))
    line = re.search(r"model=(transformers\..*\))\)$", str(caught.value))
    assert line is not None, caught.value
    assert open_model(eval(line[1], {"transformers": transformers})).num_outputs == 7


def test_a_model_of_timm_within_transformers_is_opened_from_its_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=5)
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    assert (opened.architecture, opened.num_outputs, opened.coverage.loaded) == ("test_resnet", 5, 92)
