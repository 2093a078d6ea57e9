"""Wrong input gets one clear message, ends with 2 before training, and changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headstart.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))
from malformed import CASES, SMALL, Case, contents, make_world

from examples import refused_examples


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    assert main(["train", str(root / "photos"), *SMALL.split(), "--out", str(root / "run")]) == 0
    return root


@pytest.fixture(scope="module")
def before(world: Path) -> dict[str, bytes | None]:
    return contents(world)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
def test_wrong_input_is_answered_and_changes_nothing(
    case: Case, world: Path, before: dict[str, bytes | None], capsys, monkeypatch
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(case.argv(world)) == 2
    said = " ".join((lambda out: out.err + out.out)(capsys.readouterr()).replace("│", " ").split())
    assert "Traceback" not in said
    assert "bug in headstart" not in said
    assert [text for text in case.tells if text not in said] == [], said
    assert contents(world) == before
    assert refused_examples(said) == [], said


def test_there_are_as_many_cases_as_promised_and_no_two_alike() -> None:
    assert len({case.line for case in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("headstart: epochs: 0; give at least 1, e.g. --epochs 5", []),
        ("headstart: epochs: 0; give at least 1, e.g. --epochs 0", ["--epochs 0"]),
        ("headstart: --learning-rate: unknown option; did you mean --lr?", []),
        ("headstart: --learning-rate: unknown option; did you mean --rate?", ["--rate"]),
        ("headstart: write --optimizer.kind timm --optimizer.name lamb --lr 1e-3", []),
        ("headstart: write --optimizer.name lamb", ["--optimizer.name lamb"]),
        ("headstart: it is a command: headstart predict runs/photos new --top 5", []),
        ("headstart: write: headstart predict runs new --topp 5", ["headstart predict runs new --topp 5"]),
        ("headstart: it is a command: headstart fit photos", ["headstart fit photos"]),
        ("headstart: write --model.options '{drop_path_rate: 0.1}'", []),
        ("headstart: write --model.options '{drop_path_rate: 0.1'", ["--model.options '{drop_path_rate: 0.1'"]),
    ],
)  # fmt: skip
def test_an_example_that_is_not_accepted_is_found(said: str, refused: list[str]) -> None:
    assert refused_examples(said) == refused
