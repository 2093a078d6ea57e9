"""One configuration from file, flags and Python; every problem named in a sentence, all at once."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from headstart.config.load import check, load_config, write_yaml
from headstart.config.schema import (
    AdamW,
    But,
    Config,
    CrossEntropy,
    LinearHead,
    Lora,
    MlpHead,
    Names,
    Phase,
    Sgd,
    Stages,
    TimmOptimizer,
    Until,
)
from headstart.errors import ConfigError


def problems(source: object = None, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(source, flags=flags)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_nothing_given_is_the_default() -> None:
    assert load_config() == Config() == check(Config())


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path) -> None:
    path = tmp_path / "sgd.yaml"
    path.write_text("optimizer: {kind: sgd, lr: 1e-3, momentum: 0.8}\nepochs: 3\n")
    config = load_config(path, flags={"lr": 0.01, "batch-size": 8, "head.kind": "mlp"})
    assert config.optimizer == Sgd(lr=0.01, momentum=0.8)
    assert (config.epochs, config.batch.size, config.head, config.seed) == (3, 8, MlpHead(), 42)


def test_a_section_without_kind_keeps_the_default_kind() -> None:
    config = load_config({"optimizer": {"weight_decay": 0}, "head": {"dropout": 0.1}})
    assert config.optimizer == AdamW(weight_decay=0.0)
    assert config.head == LinearHead(dropout=0.1)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"epochs": 0}, "epochs: 0 is not positive; give at least 1, e.g. --epochs 5"),
        ({"epochs": 1.5}, "epochs: 1.5 is not a whole number; give a whole number of at least 1, e.g. --epochs 5"),
        ({"epochs": "5"}, "epochs: '5' is not a number; give a whole number of at least 1, e.g. --epochs 5"),
        ({"epochs": True}, "epochs: true is not accepted; give a whole number of at least 1, e.g. --epochs 5"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr: -1 is not positive; give auto or a number above 0, e.g. --lr 1e-4"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: nan is not a finite number"),
        ({"optimizer": {"weight_decay": float("inf")}}, "optimizer.weight_decay: inf is not a finite number"),
        ({"data": {"val": 1.0}}, "data.val: 1.0 is too large; give above 0 and below 1, e.g. --val 0.2"),
        ({"workers": -1}, "workers: -1 is negative; give auto or a whole number of at least 0, e.g. --workers 4"),
        (
            {"model": {"image_size": 4}},
            "model.image_size: 4 is too small; give auto, a whole number of at least 8 and at most 4096 or HEIGHTxWIDTH, e.g. --image-size 224",  # noqa: E501
        ),
        ({"precision": "bf17"}, "precision: 'bf17' is unknown; did you mean bf16? (accepted: auto, fp32, bf16 or fp16)"),  # noqa: E501
        ({"data": {"target": 5}}, "data.target: 5 is not text; quote it: '5'"),
        ({"data": {"log": "yes"}}, "data.log: 'yes' is not accepted; give true or false"),
        ({"model": "timm/x"}, "model: 'timm/x' is no section; write model: {name: timm/x} (accepted: name, weights, weights_part, image_size, preprocess, options)"),  # noqa: E501
        ({"optimizer": {"kind": "admw"}}, "optimizer.kind: 'admw' is unknown; did you mean adamw? (accepted: adamw, adam, sgd, rmsprop, timm)"),  # noqa: E501
        ({"optimizer": {"lrr": 1}}, "optimizer.lrr: unknown; did you mean lr? (accepted: kind, lr, head_lr, layer_decay, weight_decay, betas)"),  # noqa: E501
        ({"optimizer": {"momentum": 0.9}}, "optimizer.momentum: adamw has no momentum; it belongs to sgd and rmsprop (--optimizer.kind sgd)"),  # noqa: E501
        ({"head": {"hidden": [4]}}, "head.hidden: linear has no hidden; it belongs to mlp (--head.kind mlp)"),
        ({"loss": {"gamma": 2}}, "loss.gamma: auto has no gamma; it belongs to focal (--loss.kind focal)"),
        ({"freeze": "bakbone"}, "freeze: 'bakbone' is no freeze rule; give none, backbone, conv, norm, except:bias, except:norm, except:lora, until:NAME, stages:N or names:GLOB,..."),  # noqa: E501
        ({"recipe": "probe", "freeze": "backbone"}, "freeze: recipe probe trains the head alone; leave freeze out, or use --recipe lp_ft"),  # noqa: E501
        ({"phases": [{"epochs": 0}]}, "phases[0].epochs: 0 is not positive; give at least 1"),
        ({"recipe": "bias", "freeze": "norm"}, "freeze: recipe bias says itself what trains; leave freeze out, or use --recipe lp_ft --freeze except:bias"),  # noqa: E501
        ({"recipe": "lora", "norm_statistics": "batch"}, "norm_statistics: batch does not go with parameter-efficient fine-tuning, which keeps BatchNorm's pretrained statistics; leave it out"),  # noqa: E501
        ({"phases": [{"epochs": 1, "freeze": "except:norm", "norm_statistics": "batch"}]}, "phases[0].norm_statistics: batch does not go with parameter-efficient fine-tuning, which keeps BatchNorm's pretrained statistics; leave it out"),  # noqa: E501
        ({"recipe": "norm", "model": {"weights": "none"}}, "recipe: norm keeps the backbone's weights, and these are random; use --recipe full, or pretrained weights"),  # noqa: E501
        ({"lora": {"rank": 4}}, "lora.rank: belongs to recipe lora (--recipe lora)"),
        ({"recipe": "bias", "lora": {"targets": ["*.qkv"]}}, "lora.targets: belongs to recipe lora (--recipe lora)"),
        ({"recipe": "lora", "lora": {"rank": 0}}, "lora.rank: 0 is not positive; give at least 1, e.g. --lora.rank 16"),
        ({"recipe": "lora", "lora": {"targets": []}}, "lora.targets: [] is not accepted; give auto or a list, each text"),  # noqa: E501
        ({"phases": [{"freeze": "none"}]}, "phases[0].epochs: missing; give a whole number of at least 1"),
        ({"phases": [{"epochs": 1, "freez": "none"}]}, "phases[0].freez: unknown; did you mean freeze? (accepted: epochs, freeze, lr, head_lr, layer_decay, norm_statistics)"),  # noqa: E501
        ({"model": {"preprocess": {"mean": [0.5], "std": [0]}}}, "model.preprocess.std: [0] is not accepted; give a list, each a number above 0"),  # noqa: E501
        ({"data": {"source": "\udcff"}}, "data.source: '\\udcff' is not Unicode text; rename it"),
        ({"seed": numpy.float32(1)}, "seed: a float32 is no value; give text, a number, a list or a mapping"),
        ({"optimizer": None}, "optimizer: null is no section; write optimizer: {kind: VALUE} (accepted: kind, lr, head_lr, layer_decay, weight_decay, betas, momentum, nesterov, name, options)"),  # noqa: E501
    ],
)  # fmt: skip
def test_a_wrong_value_gets_one_sentence(given: object, line: str) -> None:
    assert problems(given) == [line]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rate", "optimizer.lr"),
        ("num_train_epochs", "epochs"),
        ("per_device_train_batch_size", "batch.size"),
        ("batch_size", "batch.size"),
        ("wd", "optimizer.weight_decay"),
        ("weight_decay", "optimizer.weight_decay"),
        ("img_size", "model.image_size"),
        ("lr", "optimizer.lr"),
        ("epoch", "epochs"),
        ("label_smoothing", "loss.label_smoothing"),
    ],
)
def test_names_of_other_tools_lead_to_ours(name: str, meant: str) -> None:
    assert problems({name: 1})[0].startswith(f"{name}: unknown; did you mean {meant}? (accepted: data, task,")


def test_all_problems_are_reported_at_once_with_the_file_they_are_in(tmp_path) -> None:
    path = tmp_path / "sgd.yaml"
    path.write_text("optimizer: {lrr: 1e-3, momentum: 0.9}\nseed: -1\nepochs: 2\nfreeze: foo\npenalties: {l1: .nan}\n")
    found = problems(path, epochs=0)
    where = f"{path}: "
    assert [line.removeprefix(where).partition(":")[0] for line in found] == [
        *("penalties.l1", "freeze", "optimizer.lrr", "optimizer.momentum", "epochs", "seed")
    ]
    assert [line for line in found if not line.startswith(where)] == [
        "epochs: 0 is not positive; give at least 1, e.g. --epochs 5"
    ]


@pytest.mark.parametrize("name", ["recipe", "epochs", "freeze"])
def test_phases_exclude_what_they_replace(name: str) -> None:
    value = {"recipe": "full", "epochs": 3, "freeze": "norm"}[name]
    (line,) = problems({"phases": [{"epochs": 1}], name: value})
    assert line.startswith(f"{name}: ")
    assert "and phases exclude each other" in line


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("conv", "conv"),
        ("until:layer3", Until(until="layer3")),
        ("stages:2", Stages(stages=2)),
        ("names:a.*,b.?", Names(names=("a.*", "b.?"))),
        ("except:bias", But(but="bias")),
        ({"except": "lora"}, But(but="lora")),
        ("but:norm", But(but="norm")),  # the word of the first runs
        ({"but": "lora"}, But(but="lora")),
        ({"until": "layer3"}, Until(until="layer3")),
        ({"stages": 2}, Stages(stages=2)),
        ({"names": ["a.*"]}, Names(names=("a.*",))),
    ],
)
def test_freeze_rules_in_both_forms(given: object, rule: object) -> None:
    assert load_config({"freeze": given}).freeze == rule


@pytest.mark.parametrize(
    "given", ["stages:0", "stages:x", "until:", "names:", {"until": "a", "stages": 1}, {"stages": True}, 3, None, []]
)
def test_what_is_no_freeze_rule_is_refused(given: object) -> None:
    (line,) = problems({"freeze": given})
    assert "is no freeze rule; give none, backbone" in line


CONFIGS = [
    Config(),
    Config(
        loss=CrossEntropy(class_weights={"no": 1.5, "on": 2.0, "012": 1.0, "1e-3": 0.5, "~": 3.0, "": 1.0, "ü\n": 2.0}),
        freeze=Names(names=("a.*", "*.b")),
        optimizer=TimmOptimizer(name="lamb", lr=1e-5, options={"betas": [0.9, 0.99], "no": "yes", "x": {"012": None}}),
    ),
    Config(phases=(Phase(epochs=1, freeze="backbone"), Phase(epochs=2, lr=1e-4, freeze=Until(until="012")))),
    Config(head=MlpHead(hidden=(3, 4)), epochs=3, recipe="full", seed=7),
    Config(recipe="lora", lora=Lora(rank=4, targets=("blocks.*", "no"))),
    Config(
        phases=(Phase(epochs=1, freeze="backbone"), Phase(epochs=1, freeze=But(but="lora"))), lora=Lora(dropout=0.1)
    ),
]


def test_a_rule_is_written_with_the_word_of_now_and_read_with_the_first_one_too(tmp_path: Path) -> None:
    path, config = tmp_path / "config.yaml", CONFIGS[-1]
    written = write_yaml(config)
    assert "except: lora" in written
    path.write_text(written.replace("except: lora", "but: lora"), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_written_config_is_read_back_equal(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(write_yaml(config), encoding="utf-8")
    found = load_config(path)
    assert found == config == check(config)
    assert repr(found) == repr(config)


def test_the_written_config_has_every_option() -> None:
    text = write_yaml(Config())
    assert all(
        name in text for name in ("  weight_decay: 0.02\n", "  half_life: 0.07\n", "recipe: auto\n", "  patience: 0\n")
    )


def test_a_config_built_in_python_is_checked() -> None:
    with pytest.raises(ConfigError, match="epochs: 0 is not positive"):
        check(Config(epochs=0))
    with pytest.raises(ConfigError, match=r"optimizer.lr: 'fast' is not a number"):
        check(Config(optimizer=Sgd(lr="fast")))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="recipe: 'full' and phases exclude"):
        check(replace(CONFIGS[2], recipe="full"))
    assert check(Config(freeze="until:layer3")).freeze == Until(until="layer3")  # type: ignore[arg-type]


def test_the_source_must_be_a_mapping(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"x.yaml: \[1\] is no configuration"):
        load_config(path)
    path.write_text("")
    assert load_config(path) == Config()
