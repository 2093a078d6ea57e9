from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from headstart.reports.model_card import model_card

TIMM_LINE = "timm.create_model('local-dir:FOLDER_OF_THIS_FILE', pretrained=True)"


def bundle(kind: str = "classify", names: tuple[str, ...] = ("ant", "bee"), **model: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "task": {"kind": kind, "targets" if kind == "regress" else "classes": list(names), "log": False},
        "model": {
            "spec": "timm/mobilenetv2_100.ra_in1k", "library": "timm", "architecture": "mobilenetv2_100", **model
        },
        "head": {"kind": "linear", "hidden": [], "dropout": 0.0, "at": "auto"},
        "preprocess": {"height": 224, "width": 224, "mean": [0.5], "std": [0.25], "interpolation": "bicubic",
                       "crop_pct": 0.9, "source": "the weights' own"},
        "metrics": {"accuracy": 0.941176},
    }  # fmt: skip


def card(found: dict[str, Any], *, licence: str | None = "apache-2.0") -> tuple[dict[str, Any], str]:
    plan = {"model": {"weights": {"kind": "pretrained", "licence": licence}}, "data": {"train": 245, "val": 153}}
    text = model_card(found, plan=plan, result={"metrics": {"accuracy": 0.5}})
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_says_what_the_hub_asks_for():
    front, _ = card(bundle())
    assert front == {
        "library_name": "timm", "pipeline_tag": "image-classification", "base_model": "timm/mobilenetv2_100.ra_in1k",
        "license": "apache-2.0", "tags": ["headstart", "fine-tuned", "timm"],
    }  # fmt: skip


def test_a_linear_head_in_timm_gets_the_line_that_loads_it_and_any_other_does_not():
    assert TIMM_LINE in card(bundle())[1]
    mlp = bundle()
    mlp["head"] = {"kind": "mlp", "hidden": [64], "dropout": 0.5, "at": "auto"}
    for other in (mlp, bundle(library="torchvision", spec="torchvision/resnet18")):
        front, body = card(other)
        assert "timm.create_model" not in body
        assert front["library_name"] == "headstart"
        assert "headstart predict" in body


@pytest.mark.parametrize(
    ("spec", "base"),
    [("hf-hub:me/model", "me/model"), ("torchvision/resnet18", None), ("starter", None), ("timm/resnet18", None)],
)
def test_the_base_model_is_named_only_where_the_hub_knows_it(spec: str, base: str | None):
    assert card(bundle(spec=spec))[0].get("base_model") == base


def test_regression_is_no_image_classification_and_says_how_to_undo_the_scaling():
    found = bundle("regress", ("price",))
    found["task"]["log"] = True
    front, body = card(found)
    assert "pipeline_tag" not in front
    assert "output * std + mean`, then 10 to that power" in body


def test_an_unknown_licence_is_said_and_an_unusual_one_is_other():
    front, body = card(bundle(), licence=None)
    assert "license" not in front
    assert "licence of the weights that it started from is not known" in body
    assert card(bundle(), licence="Research Only: ask!")[0]["license"] == "other"


def test_the_metrics_are_those_of_the_bundle():
    body = card(bundle())[1]
    assert re.search(r"\| accuracy \| 0\.941176 \|", body.replace("\\", ""))
    assert "(153)" in body


def test_names_that_are_markup_stay_names():
    names = ("<script>alert(1)</script>", "```\n# heading", "---", "a: [b")
    front, body = card(bundle(names=names, architecture="<img src=x>"))
    fence, block = re.search(r"(`{4,})json\n(.*)\n`{4,}", body, re.DOTALL).groups()
    assert tuple(json.loads(block)) == names
    assert fence not in block
    assert "<img" not in body.replace(r"\<img", "").replace("`<img src=x>`", "")
    assert front["library_name"] == "timm"
