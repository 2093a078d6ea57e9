"""The table of published facts: plausible, complete where it says so, and equal to what can be counted here."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
import timm
import torchvision

from headstart.models.catalog import count_parameters, list_models
from headstart.models.origins import torchvision_names
from headstart.models.published import Published, look_up_published, sources

SAMPLE = [
    "timm/test_resnet.r160_in1k",
    "timm/resnet18.a1_in1k",
    "timm/mobilenetv3_small_050.lamb_in1k",
    "timm/vit_tiny_patch16_224.augreg_in21k",  # 21,843 classes
    "timm/vit_small_patch14_dinov2.lvd142m",  # no head, positions for 518 px
    "timm/nf_regnet_b0",  # no tag
    "torchvision/squeezenet1_1.IMAGENET1K_V1",
    "torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1",  # positions for 384 px
]


@pytest.mark.parametrize("spec", SAMPLE)
def test_a_count_in_the_table_is_what_is_counted_here(spec: str) -> None:
    assert look_up_published(spec).parameters == count_parameters(spec)


def test_every_model_that_is_listed_has_its_parameters_in_the_table() -> None:
    lacking = [row.spec for row in list_models() if row.published.parameters is None]
    assert lacking == ["starter"]


def test_every_value_is_plausible() -> None:
    rows = [row for row in list_models() if row.spec != "starter"]
    for row in rows:
        facts = row.published
        assert facts.parameters is not None and 1e4 < facts.parameters < 1e10, row.spec
        assert (facts.top1 is None) == (facts.top1_size is None), row.spec
        assert facts.top1 is None or 30 < facts.top1 < 92, row.spec
        assert facts.top1_size is None or 96 <= facts.top1_size <= 1024, row.spec
        for speed in (facts.cpu_images_per_second, facts.gpu_images_per_second):
            assert speed is None or 0.01 < speed < 1e6, row.spec


def test_most_weights_with_imagenet_classes_have_a_top1_and_most_models_a_speed() -> None:
    rows = {row.spec: row for row in list_models("timm/*")}
    tags = [f"timm/{name}" for name in timm.list_pretrained()]
    assert sum(rows[spec].published.top1 is not None for spec in tags) > 1000
    assert sum(rows[spec].published.cpu_images_per_second is not None for spec in tags) > 1400
    assert sum(rows[spec].published.gpu_images_per_second is not None for spec in tags) > 1600


def test_torchvisions_facts_are_those_of_its_metadata() -> None:
    for name in torchvision_names():
        for entry in torchvision.models.get_model_weights(name):
            facts, meta = look_up_published(f"torchvision/{name}.{entry.name}"), entry.meta
            top1 = meta["_metrics"]["ImageNet-1K"]["acc@1"]
            assert facts.top1 == (top1 if math.isfinite(top1) else None), (name, entry.name)
            assert facts.gflops == meta["_ops"]


def test_top1_is_of_the_weights_own_input_size_where_that_is_published() -> None:
    assert look_up_published("timm/resnet50.a1_in1k").top1 == 80.382
    assert look_up_published("timm/resnet50.a1_in1k").top1_size == 224
    assert look_up_published("timm/mobilenetv3_large_100.ra_in1k").top1 == pytest.approx(75.77, abs=0.02)


def test_what_is_not_in_the_table_is_none() -> None:
    assert look_up_published("timm/no_such_model.x") == Published()
    assert look_up_published("timm/no_such_model.x").images_per_second("cpu") is None


def test_every_source_names_its_file_commit_and_date() -> None:
    assert list(sources()) == ["parameters", "top1", "cpu", "gpu"]
    for kind in ("top1", "cpu", "gpu"):
        text = sources()[kind]
        assert "huggingface/pytorch-image-models (Apache-2.0)" in text
        assert re.search(r"\.csv at [0-9a-f]{7}.*read 20\d\d-\d\d-\d\d", text)


def test_reading_the_table_imports_no_torch() -> None:
    code = (
        "import sys; from headstart.models.published import look_up_published; look_up_published('x'); "
        "print({'torch', 'timm', 'torchvision'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
