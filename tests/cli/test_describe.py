"""``headstart describe``: the tree, the rates, the sizes asked for, and the same as JSON."""

import json
from pathlib import Path

import pytest

from headstart.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["describe", *argv]) == 0
    return capsys.readouterr().out


def test_the_groups_of_the_last_phase_are_shown_with_their_rates(capsys) -> None:
    text = run(capsys, "timm/test_resnet")
    assert "fc (linear" in text
    begin = text.index("groups  phase finetune, freeze none; rates: a BatchNorm network, batch 64, adamw")
    table = text[begin : text.index("\n\nfreeze ", begin)]
    assert "before it, phase probe: head 0.005" in table
    rows = [line.split() for line in table.splitlines()[3:]]
    assert [row[0] for row in rows][::2] == ["conv1", "layer1", "layer2", "layer3", "layer4", "head"]
    assert {row[2] for row in rows} == {"yes", "no"}
    assert sum(int(row[4].replace(",", "")) for row in rows) == 469_688


def test_rates_and_the_freeze_rule_change_the_groups(capsys) -> None:
    argv = ("--freeze", "until:layer3", "--lr", "0.01", "--head-lr", "0.1", "--layer-decay", "0.5")
    what = json.loads(run(capsys, "timm/test_resnet", *argv, "--json"))
    last = what["phases"][-1]
    assert last["freeze"] == "until:layer3"
    assert {(group["name"].partition(" ")[0], group["lr"]) for group in last["groups"]} == {
        ("layer4", 0.01),
        ("head", 0.1),
    }
    assert what["freeze"]["rule"] == "until:layer3"
    trained = sum(group["parameters"] for group in last["groups"])
    assert trained + what["freeze"]["frozen_parameters"] == what["parameters"]
    same = json.loads(run(capsys, "timm/test_resnet", "--freeze", "until:layer3", "--optimizer.lr", "0.01", "--json"))
    assert {group["lr"] for group in same["phases"][-1]["groups"]} == {0.01}


@pytest.mark.parametrize(
    ("spec", "size", "stage", "outputs"),
    [
        ("timm/test_vit", 320, "blocks.0", [1, 401, 64]),
        ("timm/test_resnet", 320, "layer4", [1, 96, 10, 10]),
        ("timm/swin_tiny_patch4_window7_224", 384, "layers.3", [1, 12, 12, 768]),
        ("torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1", 384, "encoder.layers.encoder_layer_0", [1, 577, 768]),
    ],
)
def test_shapes_and_multiply_adds_are_those_of_the_size_asked_for(spec, size, stage, outputs, capsys) -> None:
    what = json.loads(run(capsys, spec, "--image-size", str(size), "--json"))
    assert what["images"] == [3, size, size]
    shapes = {row["name"]: row["outputs"] for row in what["stages"]}
    assert shapes[stage] == outputs
    small = json.loads(run(capsys, "timm/test_resnet", "--json"))
    if spec == "timm/test_resnet":
        assert what["multiply_adds"] == pytest.approx(4 * small["multiply_adds"], rel=0.01)


def test_a_model_with_two_heads_has_both_in_the_groups(capsys) -> None:
    what = json.loads(run(capsys, "timm/deit_tiny_distilled_patch16_224", "--json"))
    heads = [group for group in what["phases"][-1]["groups"] if group["name"].startswith("head")]
    assert sum(group["tensors"] for group in heads) == 4


def test_a_model_seen_through_hooks_is_described_with_its_groups(capsys) -> None:
    text = run(capsys, "timm/test_nfnet", "--image-size", "96")
    assert "groups  phase finetune" in text
    assert max(map(len, text.splitlines())) <= 100


def test_no_line_is_longer_than_100_columns(capsys) -> None:
    text = run(capsys, "torchvision/densenet121", "--freeze", "norm")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--lr", "fast"], "'fast' is not a number; give auto or a number above 0"),
        (["--head-lr", "0"], "optimizer.head_lr: 0 is not positive"),
        (["--layer-decay", "2"], "optimizer.layer_decay: 2 is too large"),
        (["--freeze", "until:nosuch"], "nosuch"),
    ],
)
def test_a_mistake_is_one_sentence(argv: list[str], said: str, capsys) -> None:
    assert main(["describe", "timm/test_resnet", *argv]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


def test_weights_without_a_head_are_described(capsys, tmp_path: Path) -> None:
    assert "classifier.6" in run(capsys, "torchvision/vgg16.IMAGENET1K_FEATURES")
