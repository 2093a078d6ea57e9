"""Messages name options as whoever reads them types them: flags on the command line, arguments in Python."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import headstart as hs
from headstart.cli.main import main
from headstart.config.flags import value_of
from headstart.config.leaves import FLAT, leaves
from headstart.config.load import load_config
from headstart.errors import ConfigError
from headstart.wording import Value, option, switch, write_options_as

PACKAGE = Path(__file__).parent.parent / "src" / "headstart"
NAMES = {*leaves(), *FLAT}
FLAGS = {f"--{name.replace('_', '-')}" for name in NAMES}
OF_COMMANDS = {
    "config",
    "repeat",
    "resume",
    "allow_inexact",
    "include_trained",
    "overwrite",
    "views",
    "to",
    "images",
    "preprocess",
}  # beside the options of a run
ONLY_FOR_COMMANDS = ("cli/*.py", "models/filters.py", "models/latency.py", "config/synonyms.py", "config/foreign*.py")
"""Files whose messages nobody sees who writes Python, or (the words of other tools) that have whole commands."""


@pytest.fixture
def in_python() -> Iterator[None]:
    """As outside of any command."""
    with write_options_as("arguments"):
        yield


@pytest.mark.parametrize(
    ("name", "values", "fill", "typed", "written"),
    [
        ("epochs", (5,), "", "--epochs 5", "epochs=5"),
        ("batch_size", (), "", "--batch-size", "batch_size"),
        ("data.class_folders", ("upper",), "", "--data.class-folders upper", 'data.class_folders="upper"'),
        ("data.header", (True,), "", "--data.header true", "data.header=True"),
        ("data.target", (), "COLUMN", "--data.target COLUMN", "data.target=COLUMN"),
        ("data.target", ("PRICE",), "", "--data.target PRICE", 'data.target="PRICE"'),
        ("data.target", ("3",), "", "--data.target 3", 'data.target="3"'),
        ("data.range", (0.0, 4095.0), "", "--data.range 0 4095", "data.range=(0, 4095)"),
        ("data.range", (), "LOW HIGH", "--data.range LOW HIGH", "data.range=(LOW, HIGH)"),
        ("out", (Path("/a b/c"),), "", "--out '/a b/c'", 'out="/a b/c"'),
        ("out", ("",), "", "--out ''", 'out=""'),
        ("lr", (1e-4,), "", "--lr 1e-4", "lr=1e-4"),
        ("lr", (0.75,), "", "--lr 0.75", "lr=0.75"),
        ("model.options", ({"in_chans": 4},), "", "--model.options '{in_chans: 4}'", 'model.options={"in_chans": 4}'),
    ],
)  # fmt: skip
def test_an_option_is_written_as_its_reader_types_it(
    name: str, values: tuple[Value, ...], fill: str, typed: str, written: str
) -> None:
    assert option(name, *values, fill=fill) == typed
    with write_options_as("arguments"):
        assert option(name, *values, fill=fill) == written
    assert option(name, *values, fill=fill) == typed


def test_a_switch_has_no_value_on_the_command_line() -> None:
    assert switch("allow_inexact") == "--allow-inexact"
    with write_options_as("arguments"):
        assert switch("allow_inexact") == "allow_inexact=True"


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of ``option`` and ``switch``, with where it stands."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("option", "switch"):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def test_every_option_that_a_message_names_exists_under_its_shortest_name() -> None:
    named = [(where, call.args[0].value) for where, call in calls() if isinstance(call.args[0], ast.Constant)]
    assert len(named) > 150
    assert [(where, name) for where, name in named if name not in NAMES | OF_COMMANDS] == []
    assert [(where, name) for where, name in named if name in set(FLAT.values()) - set(FLAT)] == []


def literals() -> set[tuple[str, tuple[Value, ...]]]:
    """The options with values that the package's messages advise word for word."""
    return {
        (call.args[0].value, tuple(ast.literal_eval(value) for value in call.args[1:]))
        for _, call in calls()
        if len(call.args) > 1
        and all(isinstance(value, ast.Constant) for value in call.args)
        and call.args[0].value not in OF_COMMANDS
    }


@pytest.mark.parametrize(("name", "values"), sorted(literals(), key=str))
def test_what_a_message_advises_is_taken_by_both_doors_alike(name: str, values: tuple[Value, ...]) -> None:
    (_, word), (value,) = shlex.split(option(name, *values)), values
    assert load({name: value_of(word, leaves()[FLAT.get(name, name)])}) == load({name: value})


def load(flags: Mapping[str, object]) -> object:
    """The configuration with these flags, or what of it does not go with the defaults (``optimizer.name``)."""
    try:
        return load_config({"data": {"source": "photos"}}, flags=flags)
    except ConfigError as error:
        return str(error)


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the package that somebody may see who writes Python; X for what is put in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE)
        if any(where.match(pattern) for pattern in ONLY_FOR_COMMANDS):
            continue
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        formed = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for node in formed for part in node.values}
        for node in formed:
            yield str(where), "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | parts:
                yield str(where), node.value


def test_no_text_of_the_package_spells_a_flag_out_but_in_a_whole_command() -> None:
    found = []
    for where, text in texts():
        outside = re.sub(r"`[^`]*`|headstart [a-z]+ [^;)]*", "", text)
        found += [(where, flag) for flag in re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", outside) if flag in FLAGS]
    assert found == []


def test_errors_notes_and_plans_in_python_name_arguments(
    in_python: None, settings: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    config = hs.load_config(settings(recipe="full", epochs=1))
    with pytest.raises(hs.Error, match=r"e\.g\. epochs=5"):
        hs.load_config({"epochs": 0})
    assert "augment.flip=False" in str(hs.plan(config))
    hs.train(config, watch=None)
    with pytest.raises(hs.Error, match="go on with it by resume=True, or choose another folder with out") as refused:
        hs.train(config)
    assert "--" not in str(refused.value)
    said: list[object] = []
    hs.train(config, resume=True, watch=said.append)
    assert "go on with more epochs, or begin anew with another out" in said[0].text  # type: ignore[attr-defined]


def test_a_command_names_flags(in_python: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "photos", "--epochs", "0"]) == 2
    assert "give at least 1, e.g. --epochs 5" in capsys.readouterr().err
    assert option("epochs", 5) == "epochs=5"  # as before
