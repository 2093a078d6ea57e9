"""Flags: every option has one, values are read by the option's type, help comes from the schema."""

import re
from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

from headstart.config.flags import EVERY, parse_args
from headstart.config.leaves import leaves
from headstart.config.load import load_config
from headstart.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Where."""
    resume: bool = False
    """Go on."""


def given(*argv: str) -> dict[str, object]:
    return parse_args(Verb, ["photos", *argv], prog="verb", sections=EVERY)[1]


def help_text(capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as leaving:
        parse_args(Verb, ["--help"], prog="verb", sections=EVERY)
    assert leaving.value.code == 0
    return " ".join(re.sub("[│╭╰╮╯─]", " ", capsys.readouterr().out).split())


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (["--lr", "1e-3"], {"optimizer.lr": 0.001}),
        (["--optimizer.lr", "auto"], {"optimizer.lr": "auto"}),
        (["--lr=1e-3"], {"optimizer.lr": 0.001}),
        (["--batch-size", "8"], {"batch.size": 8}),
        (["--batch_size", "8"], {"batch.size": 8}),
        (["--batch.size", "8"], {"batch.size": 8}),
        (["--weight_decay", "0"], {"optimizer.weight_decay": 0}),
        (["--model", "012"], {"model.name": "012"}),
        (["--model.name", "starter"], {"model.name": "starter"}),
        (["--freeze", "until:layer3"], {"freeze": "until:layer3"}),
        (["--freeze", "{stages: 2}"], {"freeze": {"stages": 2}}),
        (["--data.log"], {"data.log": True}),
        (["--data.log", "--epochs", "3"], {"data.log": True, "epochs": 3}),
        (["--data.log", "false"], {"data.log": False}),
        (["--data.log=true"], {"data.log": True}),
        (["--augment.flip", "auto"], {"augment.flip": "auto"}),
        (["--augment.flip", "alternating"], {"augment.flip": "alternating"}),
        (["--augment.flip", "--epochs", "3"], {"augment.flip": True, "epochs": 3}),
        (["--head.hidden", "3", "4"], {"head.hidden": [3, 4]}),
        (["--head.hidden", "3"], {"head.hidden": [3]}),
        (["--head.hidden", "[3, 4]"], {"head.hidden": [3, 4]}),
        (["--data.target", "012"], {"data.target": "012"}),
        (["--data.target", "a", "1e-3"], {"data.target": ["a", "1e-3"]}),
        (["--data.group", "null"], {"data.group": None}),
        (["--penalties.l1-on", "all"], {"penalties.l1_on": "all"}),
        (["--penalties.l1_on", "fc.*"], {"penalties.l1_on": ["fc.*"]}),
        (["--loss.class_weights", "{rare: 10, no: 2}"], {"loss.class_weights": {"rare": 10, "no": 2}}),
        (["--loss.class-weights", "balanced"], {"loss.class_weights": "balanced"}),
        (["--model.options", "{pad_type: same}"], {"model.options": {"pad_type": "same"}}),
        (["--phases", "[{freeze: backbone, epochs: 3}]"], {"phases": [{"freeze": "backbone", "epochs": 3}]}),
        (["--optimizer.betas", "0.9", "0.99"], {"optimizer.betas": [0.9, 0.99]}),
        (["--batch.clip-norm", "null"], {"batch.clip_norm": None}),
        (["--workers", "-1"], {"workers": -1}),
    ],
)
def test_a_flag_is_read_by_its_options_type(argv: list[str], flags: dict[str, object]) -> None:
    assert given(*argv) == flags


def test_the_verbs_own_arguments_come_beside_them() -> None:
    own, flags = parse_args(Verb, ["photos", "--resume", "--seed", "1"], prog="verb", sections=EVERY)
    assert own == Verb(data="photos", resume=True)
    assert flags == {"seed": 1}


def test_every_option_but_the_data_has_a_flag_with_help(capsys, monkeypatch) -> None:
    text = help_text(capsys, monkeypatch)
    assert "--data.source" not in text
    for path, leaf in leaves().items():
        if path != "data.source":
            assert f"--{path.replace('_', '-')} " in text, path
            assert "".join(leaf.help.replace("``", "").split()) in "".join(text.split()), path


def test_help_shows_flat_flags_first_and_default_range_and_kinds(capsys, monkeypatch) -> None:
    text = help_text(capsys, monkeypatch)
    flat = text[: text.index("data options")]
    for name in ("model", "weights", "recipe", "epochs", "lr", "batch-size", "weight-decay", "freeze", "precision"):
        assert f"--{name} " in flat
    for name in ("memory-format", "image-size", "workers", "val", "seed", "out"):
        assert f"--{name} " in flat
    assert "(at least 1; default: 10)" in flat
    assert "(sgd and rmsprop only; at least 0 and below 1; default: 0.9; rmsprop 0.0)" in text


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["--learning-rate", "1"], "--learning-rate: unknown option; did you mean --lr?"),
        (["--num_train_epochs=3"], "--num-train-epochs: unknown option; did you mean --epochs?"),
        (["--per_device_train_batch_size", "3"], "did you mean --batch-size?"),
        (
            ["--wd", "3", "--img-size", "3"],
            "did you mean --weight-decay?\n--img-size: unknown option; did you mean --image-size?",
        ),
    ],
)
def test_other_tools_flags_lead_to_ours(argv: list[str], meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(*argv)
    assert meant in str(caught.value)


def test_a_mistyped_flag_names_the_near_one(capsys) -> None:
    with pytest.raises(SystemExit) as leaving:
        given("--epocs", "3")
    assert leaving.value.code == 2
    assert "--epochs INT" in capsys.readouterr().err


def test_flags_reach_the_config() -> None:
    config = load_config(
        flags=given("--head.kind", "mlp", "--head.hidden", "3", "4", "--loss.kind", "mae", "--data.log")
    )
    assert (config.head.hidden, config.loss.kind, config.data.log) == ((3, 4), "mae", True)


def test_a_flags_yaml_is_as_strict_as_a_files() -> None:
    with pytest.raises(ConfigError, match=r"--loss.class-weights:1: a is given twice"):
        given("--loss.class-weights", "{a: 1, a: 2}")


def test_a_verb_may_have_the_flags_of_one_section() -> None:
    argv = ["photos", "--data.target", "age", "--val", "0.5"]
    assert parse_args(Verb, argv, prog="verb", sections=("data",))[1] == {"data.target": "age", "data.val": 0.5}
    with pytest.raises(SystemExit):
        parse_args(Verb, ["photos", "--epochs", "3"], prog="verb", sections=("data",))
    assert parse_args(Verb, ["photos"], prog="verb") == (Verb(data="photos"), {})
