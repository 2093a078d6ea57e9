"""docs/architecture.md and the README's tree say what is there: rooms, files, functions, and what to read first."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.test_architecture import LAYERS, PACKAGE, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILE = r"`((?:[\w.]+/)*\w+\.(?:py|j2|md|toml|yaml))`"
DEFINED = rf"{FILE}: ((?:`[\w.]+`(?:, | and )?)+)"


def find(path: str) -> Path:
    return ROOT / path if path.startswith(("tests/", "docs/", "scripts/", "README")) else PACKAGE / path


@cache
def definitions(path: str) -> dict[str, tuple[int, int]]:
    """First and last line of what a file defines: functions, classes, their methods, and module-level names."""
    found = {}

    def note(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                start = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
                found[prefix + name] = (start, node.end_lineno or start)
            if isinstance(node, ast.ClassDef):
                note(node.body, f"{node.name}.")

    note(ast.parse(find(path).read_text(encoding="utf-8")).body, "")
    return found


def section(title: str) -> str:
    """Of the page, what stands under a heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_file_that_is_named_exists() -> None:
    paths = set(re.findall(FILE, PAGE)) - {"config.yaml"}  # of a run
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not find(path).is_file()] == []


def test_every_function_that_is_named_is_in_its_file() -> None:
    named = [(path, name) for path, names in re.findall(DEFINED, PAGE) for name in re.findall(r"`([\w.]+)`", names)]
    assert len(named) > 40 and "``" not in PAGE
    missing = [f"{path}: {name}" for path, name in named if name not in definitions(path)]
    assert missing == [], "docs/architecture.md names what is not there"


def test_the_rooms_are_those_of_the_table_of_floors() -> None:
    floors: dict[str, set[str]] = {}
    for floor, room, text in rows(section("The rooms")):
        floors.setdefault(floor, set()).add(room.strip("`"))
        assert text
    assert list(floors.values()) == LAYERS
    assert list(floors) == [str(number) for number in range(1, len(LAYERS) + 1)]


def test_ten_changes_are_found_in_three_files() -> None:
    changes = rows(section("Ten changes, tried on paper"))
    assert len(changes) == 10
    for change, opened, found in changes:
        assert 1 <= len(re.findall(FILE, opened)) <= 3, change
        assert found, change


def reading_list() -> list[tuple[str, list[str]]]:
    return [
        (re.findall(FILE, file)[0], re.findall(r'[`"]([\w. ]+)[`"]', parts))
        for _, file, parts in rows(section("What to read first"))
    ]


def count_lines(path: str, parts: list[str]) -> int:
    text = find(path).read_text(encoding="utf-8")
    if not parts:
        return text.count("\n")
    if path.endswith(".py"):
        return sum(last - first + 1 for first, last in (definitions(path)[name] for name in parts))
    sections = {part.partition("\n")[0].strip(): part for part in re.split(r"^#+ ", text, flags=re.MULTILINE)}
    return sum(sections[name].count("\n") for name in parts)


def test_the_reading_list_is_short_and_complete() -> None:
    files = [path for path, _ in reading_list()]
    assert files == ["README.md", "app.py", "training/fit.py", "training/step.py", "surgery/head.py"]
    counted = {path: count_lines(path, parts) for path, parts in reading_list()}
    print(counted)
    assert all(counted.values())
    assert sum(counted.values()) <= 700, counted


def tree() -> list[tuple[str, str]]:
    """(folder or file, its line) of the README's tree."""
    block = README.partition("\n## Folders\n")[2].partition("```text\n")[2].partition("```")[0]
    found, parents = [], list[str]()
    for line in block.splitlines():
        name, _, text = line.strip().partition("  ")
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        found.append(("".join(parents), text.strip()))
    return found


def test_the_readmes_tree_has_every_folder_in_a_line() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("no checkout: git does not list the files")
    files = tracked.stdout.split()
    tops = {path.partition("/")[0] + "/" for path in files if "/" in path and path[0] != "."} - {"src/"}
    homes = {path.split("/")[2] for path in files if path.startswith("src/headstart/") and path.count("/") > 2}
    shown = dict(tree())
    assert tops | {f"src/headstart/{name}/" for name in homes} <= shown.keys()
    assert all(shown.values()), [name for name, text in shown.items() if not text]
    assert [name for name in shown if not (ROOT / name).exists()] == []
