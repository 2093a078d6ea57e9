"""Wrong input gets one clear message, ends with 2 before training, and changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headstart.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))
from malformed import CASES, SMALL, Case, contents, make_world


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


def test_there_are_as_many_cases_as_promised_and_no_two_alike() -> None:
    assert len({case.line for case in CASES}) == len(CASES) >= 120
