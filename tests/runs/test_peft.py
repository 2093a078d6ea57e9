"""PEFT from configuration to bundle: plain merged weights, exact resume, and what the plan says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import headstart as hs
from headstart.config.load import write_yaml
from headstart.runs.checkpoint import read_checkpoint
from headstart.runs.folder import check_free

CHANNELS = [8, 8, 16, 16]
LORA = {"recipe": "lora", "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1}}
NO_PEFT = "import sys; sys.modules['peft'] = None\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for the small ResNet, with statistics that are not those of a new one."""
    torch.manual_seed(5)
    module = timm.create_model("resnet18", channels=CHANNELS, zero_init_last=False)  # zeros let no gradient through
    module.train()
    with torch.no_grad():
        module(torch.randn(8, 3, 32, 32) + 0.5)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(module.state_dict(), path)
    return path


@pytest.fixture
def config(settings: Callable[..., dict[str, Any]], weights: Path) -> Callable[..., hs.Config]:
    def make(**sections: Any) -> hs.Config:
        model = {"weights": str(weights), **sections.pop("model", {})}
        return hs.load_config(settings(**{"model": model, **sections}))

    return make


def frozen_part(run: Path, weights: Path) -> tuple[set[str], set[str]]:
    """Of the bundle's backbone: names of tensors that are the pretrained ones to the bit, and of the others."""
    now, before = load_file(run / "model" / "model.safetensors"), load_file(weights)
    names = {name for name in now if not name.startswith("fc.")}
    same = {name for name in names if torch.equal(now[name], before[name])}
    return same, names - same


def test_a_lora_run_ends_as_plain_merged_weights_that_are_what_was_measured(config, weights, tmp_path) -> None:
    run = hs.train(config(**LORA, average={"kind": "ema", "half_life": 0.5}))
    plain = timm.create_model("resnet18", channels=CHANNELS, num_classes=3)
    saved = load_file(run.path / "model" / "model.safetensors")
    assert set(saved) == set(plain.state_dict())
    plain.load_state_dict(saved, strict=True)
    plan = json.loads((run.path / "plan.json").read_text())
    _, moved = frozen_part(run.path, weights)
    assert moved == {f"{path}.weight" for path in plan["lora"]["layers"]}
    assert not any("bn" in name or "downsample.1" in name for name in moved)
    assert [(p["freeze"], p["norm_statistics"], p["layer_decay"]) for p in plan["phases"]] == [
        ("except:lora", "frozen", 1)
    ]
    assert plan["model"]["parameters"] == sum(parameter.numel() for parameter in plain.parameters())
    assert "adapters (rank 4, 21 layers), merged" in (run.path / "model" / "README.md").read_text()
    measured = hs.evaluate(run.model, hs.open_images(str(config().data.source), like=hs.open_run(run.path)).val)
    assert measured.metrics == pytest.approx(run.metrics, abs=1e-6)


def test_the_bundle_opens_and_a_finished_run_is_told_again_without_peft(config, tmp_path) -> None:
    given = config(**LORA)
    run = hs.train(given)
    images = torch.randn(2, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    code = (
        f"{NO_PEFT}import torch, headstart as hs\n"
        f"model = hs.open_run({str(run.path)!r}).model\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r}, weights_only=True)\n"
        "torch.set_num_threads(1)\n"
        "with torch.no_grad(): print(model(images).tolist())\n"
        f"print(hs.train(hs.load_config({str(run.path / 'config.yaml')!r}), resume=True).metrics)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outputs, metrics = done.stdout.strip().splitlines()
    with torch.no_grad():
        assert outputs == str(run.model(images).tolist())
    assert metrics == str(run.metrics)


def facts(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        "last": {path.name: path.read_bytes() for path in read_checkpoint(run / "checkpoints").path.iterdir()},
        "predictions": (run / "predictions.csv").read_text(),
        "result": {name: value for name, value in result.items() if name != "seconds"},
    }


class Cut(Exception):
    pass


def cut_after(step: int) -> Callable[[object], None]:
    def watch(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step >= step:
            raise Cut

    return watch


@pytest.mark.parametrize("recipe", ["lora", "bias"])
def test_a_run_cut_twice_ends_as_one_that_was_not(config, tmp_path, recipe) -> None:
    sections = {
        **(LORA if recipe == "lora" else {"recipe": recipe}), "average": {"kind": "ema", "half_life": 0.3},
        "batch": {"size": 8, "accumulate": 3}, "augment": {"preset": "strong", "mixup": 0.4},
        "checkpoint": {"every_steps": 1, "every_seconds": 0.0, "keep": 1},
    }  # fmt: skip
    whole = hs.train(config(**sections, out=str(tmp_path / "whole")))
    for step in (2, 5):
        with pytest.raises(Cut):
            hs.train(config(**sections, out=str(tmp_path / "cut")), resume=True, watch=cut_after(step))
    cut = hs.train(config(**sections, out=str(tmp_path / "cut")), resume=True)
    expected, found = facts(whole.path), facts(cut.path)
    for name, value in expected.items():
        assert found[name] == value, name


@pytest.mark.parametrize("recipe", ["bias", "norm"])
def test_bias_and_norm_move_these_alone_and_no_statistics(config, weights, recipe) -> None:
    run = hs.train(config(recipe=recipe))
    _, moved = frozen_part(run.path, weights)
    names = {name for name in load_file(weights) if not name.startswith("fc.")}
    norms = {name for name in names if re.search(r"(bn\d|downsample\.1)\.(weight|bias)$", name)}
    assert moved == {name for name in norms if recipe == "norm" or name.endswith("bias")}
    word = {"bias": "biases", "norm": "norms"}[recipe]
    assert f"of the backbone its {word} alone" in (run.path / "model" / "README.md").read_text()


def test_a_probe_may_come_before_peft(config, weights) -> None:
    sections = {**LORA, "recipe": "lp_ft", "freeze": "except:lora"}
    run = hs.train(config(**sections))
    plan = json.loads((run.path / "plan.json").read_text())
    assert [phase["freeze"] for phase in plan["phases"]] == ["backbone", "except:lora"]
    assert plan["phases"][1]["lr"] == plan["phases"][1]["head_lr"]
    _, moved = frozen_part(run.path, weights)
    assert moved == {f"{path}.weight" for path in plan["lora"]["layers"]}


def test_the_plan_says_where_the_adapters_are_and_what_was_left_out(config) -> None:
    plan = hs.plan(config(recipe="lora", lora={"rank": 10}))
    (said,) = [decision for decision in plan.decisions if decision.name == "lora"]
    count = len(plan.document["lora"]["layers"])
    assert said.value.startswith(f"rank 10 on {count} layers (conv1, layer3.0.conv1, layer3.0.conv2, ...)")
    assert re.search(r"; 11 skipped: layer1.0.conv1 and 10 more: smaller than the rank$", said.value)
    assert plan.document["lora"]["skipped"][0] == {"path": "layer1.0.conv1", "reason": "smaller than the rank"}
    assert "adapters" in next(decision.reason for decision in plan.decisions if decision.name == "optimizer")
    assert hs.plan(config(recipe="bias")).document["lora"] is None


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"recipe": "lora", "model": {"weights": "none"}}, "recipe: lora keeps the backbone's weights, and these are"),
        ({"recipe": "lora", "lora": {"rank": 4000}}, "lora.rank: 4000 is above every layer's size; give at most 64 ("),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(config, tmp_path, sections, said) -> None:
    with pytest.raises(hs.Error, match=re.escape(said)):
        hs.train(config(**sections))
    assert not (tmp_path / "run").exists()


def test_the_command_line_without_peft_says_what_to_type_and_ends_with_2(config, weights, tmp_path) -> None:
    source = str(config().data.source)
    words = ["plan", source, "--recipe", "lora", "--model", "timm/resnet18", "--weights", str(weights)]
    words += ["--model.options", "{channels: [8, 8, 16, 16]}", "--model.image-size", "32", "--device", "cpu"]
    code = f"{NO_PEFT}from headstart.cli.main import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "headstart: recipe: lora needs peft; install it with: pip install 'headstart[lora]'" in done.stderr


def test_a_run_whose_files_have_the_first_word_for_except_is_the_same_run(tmp_path: Path) -> None:
    config = hs.load_config({"data": {"source": "photos"}, "recipe": "lp_ft", "freeze": "except:bias"})
    (tmp_path / "config.yaml").write_text(write_yaml(config).replace("except: bias", "but: bias"))
    assert not check_free(tmp_path, config, resume=True)
    assert asdict(config)["freeze"] == {"but": "bias"}  # which is in the digests of runs and checkpoints
