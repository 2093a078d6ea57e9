"""What was trained is what is served: bundles open again, in timm too, with the bits of training's validation."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import headstart as hs
from headstart.app import train
from headstart.config.schema import Data
from headstart.data.images import image_batches
from headstart.errors import ModelError, StorageError
from headstart.predictor import evaluate_run, predict_paths
from headstart.runs.run import Run
from headstart.storage.durable import read_folder
from headstart.training.evaluate import compute_logits, in_eval, predict

KINDS = {
    "linear": {},
    "dropout": {"head": {"kind": "linear", "dropout": 0.4}},
    "mlp": {"head": {"kind": "mlp", "hidden": [8, 6], "activation": "gelu", "dropout": 0.2}},
    "vit": {"model": {"name": "timm/test_vit", "options": {}}},
    "torchvision": {"model": {"name": "torchvision/shufflenet_v2_x0_5", "options": {}}},
    "bf16 channels_last": {"precision": "bf16", "memory_format": "channels_last", "average": {"kind": "ema"}},
}


@pytest.fixture(scope="module")
def source(draw_colours, tmp_path_factory) -> Path:
    """Coloured pictures with a split of their own."""
    root = tmp_path_factory.mktemp("bundle") / "colours"
    draw_colours(root / "train", each=8)
    draw_colours(root / "val", each=5)
    return root


@pytest.fixture(scope="module", params=KINDS)
def run(request, source, tmp_path_factory) -> Run:
    sections = {
        "data": {"source": str(source)}, "batch": {"size": 8}, "recipe": "full", "epochs": 1, "workers": 0,
        "device": "cpu", "out": str(tmp_path_factory.mktemp("runs") / "run"),
        "model": {"name": "timm/resnet18", "options": {"channels": [8, 8, 16, 16]}},
    } | KINDS[request.param]  # fmt: skip
    sections["model"] |= {"weights": "none", "image_size": 32}
    return train(hs.load_config(sections))


def validation(run: Run) -> dict[str, dict[str, str]]:
    with (run.path / "predictions.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_a_bundle_opens_again_with_equal_outputs(run, source) -> None:
    opened = hs.open_run(run.path)
    again = hs.open_run(run.path / "model")
    batches = image_batches([source / "val"], preprocess=opened.preprocess, task=opened.task, batch_size=8)
    settings = {"precision": opened.evaluated.precision, "memory_format": opened.evaluated.memory_format}
    expected = predict(run.model, batches, **settings).outputs
    assert torch.equal(predict(opened.model, batches, **settings).outputs, expected)
    assert torch.equal(predict(again.model, batches, **settings).outputs, expected)
    assert not any(part.training for part in opened.model.modules())
    assert opened.task.classes == ("blue", "green", "red")


def test_predictions_are_validations_bit_for_bit_in_any_order_and_company(run, source) -> None:
    expected = validation(run)
    files = [path for label in ("red", "green", "blue") for path in sorted((source / "val" / label).iterdir())]
    for paths in (files, files[::-1], files[3:4], [source / "val"]):
        found = predict_paths(run.path, paths)
        for prediction in found:
            row = expected[str(Path(prediction.path).relative_to(source))]
            label, confidence = prediction.labels[0]
            assert (label, confidence) == (row["prediction"], float(row["confidence"]))
    assert len(found) == len(expected) == 15


def test_evaluating_the_same_images_gives_the_same_metrics(run, source) -> None:
    result = json.loads((run.path / "result.json").read_text())
    again = evaluate_run(run.path, Data(source=str(source)))
    assert again.metrics == run.metrics == result["metrics"]
    assert "; the run was trained on " in again.note  # pictures of val are copies of those of train
    truth = {key: row["truth"] for key, row in validation(run).items()}
    assert truth == {key: Path(key).parent.name for key in truth}


def test_another_batch_size_changes_rounding_only(run, source) -> None:
    one, other = (predict_paths(run.path, [source / "val"], batch_size=size) for size in (8, 3))
    tolerance = 1e-4 if hs.open_run(run.path).evaluated.precision == "fp32" else 0.02
    for a, b in zip(one, other, strict=True):
        assert dict(a.labels) == pytest.approx(dict(b.labels), abs=tolerance)


def test_the_bundle_holds_what_the_format_says_and_its_manifest_proves_it(run) -> None:
    files = read_folder(run.path / "model")
    assert set(files) == {"model.safetensors", "config.json", "headstart.json", "images.digests", "README.md"}
    facts = json.loads(files["headstart.json"])
    assert {"format", "task", "model", "head", "preprocess", "evaluation", "metrics", "versions"} <= set(facts)
    assert facts["metrics"] == run.metrics
    for name, value in files.items():
        assert (run.path / "model" / name).read_bytes() == value


@pytest.mark.parametrize("run", ["linear", "dropout", "vit", "bf16 channels_last"], indirect=True)
def test_a_linear_head_of_timm_opens_in_plain_timm_with_equal_outputs(run, noise) -> None:
    plain = timm.create_model(f"local-dir:{run.path / 'model'}", pretrained=True).eval()
    batch = noise(8, size=32)
    with in_eval(run.model), in_eval(plain):
        ours, theirs = compute_logits(run.model, batch), compute_logits(plain, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    config = timm.data.resolve_model_data_config(plain)
    opened = hs.open_run(run.path).preprocess
    found = [tuple(config[name]) for name in ("input_size", "mean", "std")]
    assert found == [(3, 32, 32), opened.mean, opened.std]
    assert plain.pretrained_cfg["label_names"] == ["blue", "green", "red"]


def test_a_run_is_found_from_a_relative_path_whatever_its_name(run, tmp_path, monkeypatch) -> None:
    shutil.copytree(run.path / "model", tmp_path / "timm" / "model")
    monkeypatch.chdir(tmp_path)
    assert hs.open_run("timm").task.classes == ("blue", "green", "red")


def test_a_damaged_bundle_is_refused(run, tmp_path) -> None:
    shutil.copytree(run.path / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StorageError, match=r"model.safetensors: .* damaged"):
        hs.open_run(tmp_path)


def test_no_finished_run_is_said_with_what_to_do(tmp_path) -> None:
    with pytest.raises(
        ModelError, match=r"no finished run is there \(no model/headstart.json\); train it, or go on wi"
    ):
        hs.open_run(tmp_path)


def test_a_module_of_ones_own_opens_into_a_module_made_the_same_way(net, settings, noise, tmp_path) -> None:
    config = hs.load_config(
        settings(head={"kind": "mlp", "hidden": [5], "dropout": 0.1}, model={"name": "auto", "options": {}})
    )
    run = train(config, model=net(classes=7, norm=True))
    opened = hs.open_run(run.path, model=net(classes=7, norm=True, seed=9))
    with in_eval(run.model), in_eval(opened.model):
        assert torch.equal(compute_logits(run.model, noise(8)), compute_logits(opened.model, noise(8)))
    with pytest.raises(ModelError, match=r"cannot be rebuilt; make the module in Python"):
        hs.open_run(run.path)
    wider = net(norm=True)
    wider.conv2 = nn.Conv2d(8, 16, 5, 2, 1)
    with pytest.raises(ModelError, match=r"the weights do not fit the module that was given: .*conv2.weight"):
        hs.open_run(run.path, model=wider)
