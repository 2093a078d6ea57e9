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


def test_max_params_leaves_out_larger_models() -> None:
    every, small = list_models("torchvision/*net1_?.*"), list_models("torchvision/*net1_?.*", max_params=1_240_000)
    assert {row.spec for row in small} == {row.spec for row in every if row.parameters <= 1_240_000}
    assert 0 < len(small) < len(every)


def test_nothing_found_says_so() -> None:
    with pytest.raises(ModelError, match="no model matches 'resnettt'"):
        list_models("resnettt")
    with pytest.raises(ModelError, match="at most 10 parameters"):
        list_models("resnet18", max_params=10)


def test_all_models_of_both_libraries_are_listed_within_seconds() -> None:
    begin = time.perf_counter()
    specs = {row.spec for row in list_models()}
    assert time.perf_counter() - begin < 10
    assert {f"timm/{name}" for name in timm.list_pretrained()} <= specs
    assert len(specs) == len(list_models())
