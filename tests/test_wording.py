"""Messages name options as whoever reads them types them: flags on the command line, arguments in Python."""

from __future__ import annotations

import ast
import contextvars
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import headstart as hs
from headstart.cli.main import main
from headstart.config.flags import EVERY
from headstart.config.leaves import FLAT, leaves
from headstart.wording import say

PACKAGE = Path(__file__).parent.parent / "src" / "headstart"
FLAGS = {leaf.flag for leaf in leaves().values()} | {f"--{path.replace('_', '-')}" for path in (*leaves(), *FLAT)}


@pytest.fixture
def in_python() -> Callable[..., str]:
    """What ``do(*given)`` gives, or the message of what it raises, outside of any command."""

    def call(do: Callable[..., object], *given: object) -> str:
        try:
            return str(contextvars.Context().run(do, *given))
        except hs.Error as error:
            return contextvars.Context().run(str, error)

    return call


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("give at least 1, e.g. --epochs 5", "give at least 1, e.g. epochs=5"),
        ("the upper ones: --data.class-folders upper; the", 'the upper ones: data.class_folders="upper"; the'),
        ("go on by --resume, or with another --out", "go on by resume=True, or with another out"),
        ("go on with --allow-inexact, and the", "go on with allow_inexact=True, and the"),
        ("--recipe full trains them", 'recipe="full" trains them'),
        ("another; --model names another", "another; model names another"),
        ("is it: --data.header true", "is it: data.header=True"),
        ("name it with --data.target COLUMN", "name it with data.target=COLUMN"),
        ("e.g. --out '/a b/c'; or", 'e.g. out="/a b/c"; or'),
        ("a lower rate (--lr) or --lr 1e-3.", "a lower rate (lr) or lr=1e-3."),
        ("headstart train --config a --resume; or --out b", 'headstart train --config a --resume; or out="b"'),
        ("`torchrun --nproc-per-node 2`, or give --devices 2", "`torchrun --nproc-per-node 2`, or give devices=2"),
        ("in a container --shm-size=4g", "in a container --shm-size=4g"),
        ("no option: a--b, ---, x -- y", "no option: a--b, ---, x -- y"),
        ("e.g. --data.range 0 4095, or save it", "e.g. data.range=(0, 4095), or save it"),
    ],
)  # fmt: skip
def test_a_flag_is_an_argument_in_python(in_python, text: str, wanted: str) -> None:
    assert in_python(say, text) == wanted
    assert in_python(say, wanted) == wanted
    assert say(text) == text  # within a command, as all tests are


def messages() -> Iterator[str]:
    """Every text of the package outside of the commands, with X for what is put in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name in ("cli", "config"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_no_message_of_the_package_names_a_flag_of_a_run_in_python(in_python) -> None:
    found = [text for text in messages() if " --" in text]
    assert len(found) > 100
    for text in found:
        outside = re.sub(r"`[^`]*`|headstart [a-z]+ [^;)\n]*", "", in_python(say, text))
        assert not FLAGS & set(re.findall(r"--[a-z][a-z.-]*[a-z]", outside)), text
    assert EVERY


def test_errors_notes_and_plans_in_python_name_arguments(in_python, settings, tmp_path: Path) -> None:
    options = settings(recipe="full", epochs=1)
    config = hs.load_config(options)
    assert "e.g. epochs=5" in in_python(hs.load_config, {"epochs": 0})
    assert "augment.flip=False" in in_python(hs.plan, config)
    hs.train(config, watch=None)
    said: list[object] = []
    refused = in_python(hs.train, config)
    assert "go on with it by resume=True, or choose another folder with out" in refused and "--" not in refused
    contextvars.Context().run(lambda: hs.train(config, resume=True, watch=said.append))
    assert "go on with more epochs, or begin anew with another out" in said[0].text  # type: ignore[attr-defined]


def test_a_command_names_flags(capsys, monkeypatch) -> None:
    assert contextvars.Context().run(main, ["train", "photos", "--epochs", "0"]) == 2
    assert "give at least 1, e.g. --epochs 5" in capsys.readouterr().err
