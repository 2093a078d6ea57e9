"""What people type who know other tools: what is plain is read, the rest leads to our name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from headstart.config.flags import EVERY, parse_args
from headstart.config.home import expand_home
from headstart.config.leaves import leaves
from headstart.config.load import load_config
from headstart.config.rules import freeze_rule
from headstart.config.synonyms import MAIN_FIELDS, SYNONYMS, list_advice
from headstart.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb."""

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = None
    """Where."""


@dataclass(frozen=True, kw_only=True)
class Other(Verb):
    """Another verb."""

    top: int = 5
    """How many."""


def given(*argv: str) -> dict[str, object]:
    return parse_args(Verb, argv, prog="headstart verb", sections=EVERY)[1]


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (["--optimizer", "sgd"], {"optimizer.kind": "sgd"}),
        (["--Optimizer", "SGD"], {"optimizer.kind": "SGD"}),
        (["--LOSS=focal"], {"loss.kind": "focal"}),
        (["--optimizer=sgd"], {"optimizer.kind": "sgd"}),
        (["--loss", "focal", "--loss.gamma", "3"], {"loss.kind": "focal", "loss.gamma": 3}),
        (["--augment", "strong"], {"augment.preset": "strong"}),
        (["--head", "mlp", "--schedule", "cosine"], {"head.kind": "mlp", "schedule.kind": "cosine"}),
        (["--batch", "8", "--cache", "never"], {"batch.size": 8, "cache.use": "never"}),
        (["--stop", "3", "--lora", "4"], {"stop.patience": 3, "lora.rank": 4}),
        (["--average", "ema", "--parallel", "ddp"], {"average.kind": "ema", "parallel.kind": "ddp"}),
        (["--task", "regress"], {"task.kind": "regress"}),
    ],
)
def test_a_section_alone_means_its_main_option(argv: list[str], flags: dict[str, object]) -> None:
    assert given(*argv) == flags


def test_every_word_of_another_tool_leads_to_an_option_that_there_is() -> None:
    known = set(leaves())
    assert set(SYNONYMS.values()) <= known
    assert {f"{section}.{name}" for section, name in MAIN_FIELDS.items()} <= known
    assert not SYNONYMS.keys() & list_advice().keys()


@pytest.mark.parametrize("word", sorted({*SYNONYMS, *list_advice()}))
def test_every_word_of_another_tool_gets_one_sentence(word: str) -> None:
    flag = f"--{word.replace('_', '-')}"
    if flag in {leaf.flag for leaf in leaves().values()}:
        return  # ours as well
    for typed in (flag, flag.upper(), f"--{word}"):
        with pytest.raises(ConfigError) as caught:
            given("photos", typed, "1")
        said = str(caught.value)
        assert len(said.splitlines()) == 1
        if word in SYNONYMS:
            assert f"did you mean {leaves()[SYNONYMS[word]].flag}?" in said
        else:
            assert list_advice()[word] in said


def test_a_verbs_own_option_goes_first() -> None:
    with pytest.raises(ConfigError, match=r"--topk: unknown option; did you mean --top\?"):
        parse_args(Other, ["--topk", "3"], prog="headstart other", sections=EVERY)
    with pytest.raises(ConfigError, match=r"--k: unknown option; did you mean --top\?"):
        parse_args(Other, ["--k", "3"], prog="headstart verb")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("epochs=3", "epochs=3: options begin with two hyphens; write --epochs 3"),
        ("lr0=0.1", "write --lr 0.1"),
        ("optimizer.kind=sgd", "write --optimizer.kind sgd"),
        ("data=photos", "write the data without a name: headstart verb photos"),
    ],
)
def test_assignments_are_answered(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(word)
    assert said in str(caught.value)


def test_a_folder_or_a_value_may_hold_an_equals_sign(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fold=1").mkdir()
    assert given("fold=1") == {}
    assert given("photos", "--out", "lr=0.1") == {"out": "lr=0.1"}


@pytest.mark.parametrize(
    ("tree", "path", "meant"),
    [
        ({"precision": "BF16"}, "precision", "bf16"),
        ({"optimizer": {"kind": "SGD"}}, "optimizer.kind", "sgd"),
        ({"augment": {"preset": "Strong"}}, "augment.preset", "strong"),
        ({"recipe": "LP_FT"}, "recipe", "lp_ft"),
        ({"model": {"image_size": "AUTO"}}, "model.image_size", "auto"),
        ({"freeze": "Backbone"}, "freeze", "backbone"),
    ],
)
def test_words_of_a_choice_are_read_in_any_case(tree: dict[str, object], path: str, meant: str) -> None:
    value: object = load_config(tree)
    for name in path.split("."):
        value = getattr(value, name)
    assert value == meant


def test_text_keeps_its_case() -> None:
    config = load_config({"data": {"target": "AUTO", "image": "Auto"}, "out": "AUTO"})
    assert (config.data.target, config.data.image, config.out) == ("AUTO", "Auto", "AUTO")


def test_the_home_folder_is_expanded_in_every_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(
        "data: {source: ~/photos, images: ~/pictures}\nmodel: {name: ~/m, weights: ~/w.pth}\n"
    )
    config = load_config("~/c.yaml", flags={"out": "~/runs/a"})
    paths = (config.data.source, config.data.images, config.model.name, config.model.weights, config.out)
    assert paths == tuple(str(tmp_path / name) for name in ("photos", "pictures", "m", "w.pth", "runs/a"))


def test_the_home_of_nobody_stays_as_it_is() -> None:
    assert expand_home("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("layer2", "until:layer2 freezes all up to it, names:layer2.* it alone"),
        ("blocks.3", "until:blocks.3"),
        ("10", "stages:10 freezes the first 10 stages"),
        (10, "stages:10"),
        ("all", "backbone freezes all but the head"),
        (True, "backbone freezes all but the head"),
        (False, "none freezes nothing"),
        ("bakbone", "'bakbone' is no freeze rule; give none, backbone"),
    ],
)
def test_a_freeze_rule_as_other_tools_have_it_is_answered_with_ours(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        freeze_rule(value)
    assert said in str(caught.value)
