"""What README and docs show is what happens: ```console blocks are run and compared, ```sh blocks are parsed."""

import re
import shlex
from pathlib import Path

import pytest

from headstart.cli.main import VERBS, main
from headstart.config.flags import EVERY, parse_args
from headstart.config.load import load_config

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
SECTIONS = {"train": EVERY, "plan": EVERY, "evaluate": ("data",)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def shown_runs() -> list[tuple[str, str, str]]:
    """(page, command, output shown) of each ``$ headstart ...`` in a console block."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append((page.name, command, output.rstrip("\n")))
    return found


def typed_commands() -> list[tuple[str, str]]:
    """(page, command) of each headstart line in a ```sh block; a trailing comment and environment are cut off."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "headstart" in words[:1] or any(word.endswith("/headstart") for word in words[:1]):
                    found.append((page.name, shlex.join(words[1:])))
    return found


def test_the_readme_shows_the_commands_help() -> None:
    assert ("README.md", "headstart --help") in [(page, command) for page, command, _ in shown_runs()]


@pytest.mark.parametrize(("page", "command", "output"), shown_runs(), ids=lambda value: value[:40])
def test_a_shown_run_prints_what_is_shown(page: str, command: str, output: str, capsys, monkeypatch) -> None:
    """A line ``...`` in the page stands for any lines."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(ROOT)
    program, *argv = shlex.split(command)
    assert program == "headstart", f"{page}: a console block runs headstart alone; use ```sh for {command!r}"
    assert main(argv) == 0
    real = "\n".join(line.rstrip() for line in capsys.readouterr().out.rstrip("\n").splitlines())
    wanted = "\n".join(line.rstrip() for line in output.splitlines())
    parts = [re.escape(part) for part in re.split(r"^\.\.\.$", wanted, flags=re.MULTILINE)]
    assert re.fullmatch(".*".join(parts), real, flags=re.DOTALL), f"{page}: {command} prints\n{real}"


@pytest.mark.parametrize(("page", "command"), typed_commands(), ids=lambda value: value[:60])
def test_a_typed_command_is_one_that_the_parsers_take(page: str, command: str) -> None:
    verb, *argv = shlex.split(command)
    if verb.startswith("-"):
        return
    assert verb in VERBS, f"{page}: headstart {verb} is no command"
    module = __import__(f"headstart.cli.{verb}", fromlist=["run"])
    arguments = next(value for name, value in vars(module).items() if name.lower() == verb)
    if "--help" not in argv:
        _, flags = parse_args(arguments, argv, prog="headstart", sections=SECTIONS.get(verb, ()))
        load_config(flags=flags)


def test_the_collector_finds_both_kinds_of_blocks(tmp_path: Path) -> None:
    page = tmp_path / "x.md"
    page.write_text("```console\n$ headstart --version\nheadstart 1\n```\n\n```sh\nheadstart train a --lr 1\n```\n")
    assert blocks(page, "console") == ["$ headstart --version\nheadstart 1\n"]
    assert blocks(page, "sh") == ["headstart train a --lr 1\n"]
