"""The list of models."""

from __future__ import annotations

import time

import pytest
import timm

from headstart.errors import ModelError
from headstart.models.catalog import list_models


def test_a_part_of_a_name_finds_the_models_of_both_libraries() -> None:
    specs = {row.spec for row in list_models("resnet18")}
    assert {"timm/resnet18.a1_in1k", "torchvision/resnet18.IMAGENET1K_V1"} <= specs
    assert all("resnet18" in spec for spec in specs)


def test_a_glob_is_matched_against_the_name_and_the_spec() -> None:
    assert [row.spec for row in list_models("squeezenet1_?.*")] == [
        "torchvision/squeezenet1_0.IMAGENET1K_V1",
        "torchvision/squeezenet1_1.IMAGENET1K_V1",
    ]
    assert {row.library for row in list_models("timm/*resnet*")} == {"timm"}


def test_parameters_and_preprocessing_are_those_of_the_model() -> None:
    (row,) = list_models("timm/test_resnet.r160_in1k")
    model = timm.create_model("test_resnet")
    assert row.parameters == sum(parameter.numel() for parameter in model.parameters())
    cfg = model.pretrained_cfg
    assert (row.preprocess.channels, row.preprocess.height, row.preprocess.width) == tuple(cfg["input_size"])
    assert row.preprocess.mean == tuple(cfg["mean"])
    assert row.licence == cfg["license"]


def test_family_and_tag_are_the_librarys_module_and_the_weights_name() -> None:
    rows = {row.spec: row for row in list_models("*resnet18*")}
    assert (rows["timm/resnet18.a1_in1k"].family, rows["timm/resnet18.a1_in1k"].tag) == ("resnet", "a1_in1k")
    assert rows["torchvision/resnet18.IMAGENET1K_V1"].family == "resnet"
    assert {row.family for row in list_models("timm/convnext_tiny.*")} == {"convnext"}
    (starter,) = list_models("starter")
    assert (starter.pretrained, starter.tag, starter.family) == (True, "", "resnet")
    assert starter.parameters > 1_000_000


def test_an_unknown_licence_is_none() -> None:
    assert all(row.licence != "unknown" for row in list_models())


def test_nothing_found_says_so() -> None:
    with pytest.raises(ModelError, match="no model matches 'resnettt'"):
        list_models("resnettt")


def test_weights_that_share_an_architecture_have_their_own_head_counted() -> None:
    rows = {row.spec: row.parameters for row in list_models("timm/vit_tiny_patch16_224.*")}
    one, other = rows["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"], rows["timm/vit_tiny_patch16_224.augreg_in21k"]
    assert other - one == (21843 - 1000) * 193


def test_all_models_of_both_libraries_are_listed_within_seconds() -> None:
    begin = time.perf_counter()
    specs = {row.spec for row in list_models()}
    assert time.perf_counter() - begin < 10
    assert {f"timm/{name}" for name in timm.list_pretrained()} <= specs
    assert len(specs) == len(list_models())
