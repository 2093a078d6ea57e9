"""What README and docs say exists: every option, the files that they link to, and the Python names that they use."""

import ast
import importlib
import inspect
import re
import runpy
import textwrap
from pathlib import Path

import pytest

import headstart
from headstart.config.load import load_config
from headstart.config.yaml import parse_yaml

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def all_blocks(language: str) -> list[tuple[str, str]]:
    return [(page.name, block) for page in PAGES for block in blocks(page, language)]


def test_the_options_page_is_the_schemas() -> None:
    maker = runpy.run_path(str(ROOT / "scripts" / "make_options.py"))
    written = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    assert written == maker["page"](), "the schema has changed: python scripts/make_options.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), (
            f"{page.name} links to {target}, which has {sorted(anchors(file))}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_code_that_is_named_exists(page: Path) -> None:
    """Below the repository, the package, the benchmarks or the page; of modules that a command runs, too."""
    text, homes = page.read_text(encoding="utf-8"), (ROOT, ROOT / "src" / "headstart", ROOT / "benchmarks", page.parent)
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.py)\b", text))
    named |= {name.replace(".", "/") + ".py" for name in re.findall(r"python3? -m (benchmarks(?:\.[a-z]\w*)+)", text)}
    missing = [name for name in sorted(named) if not any((home / name).is_file() for home in homes)]
    assert [name for name in missing if not (ROOT / name.removesuffix(".py") / "__main__.py").is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_measured_table_stands_once(page: Path) -> None:
    marks = re.findall(r"<!-- /?\w+ -->", page.read_text())
    assert len(marks) == len(set(marks))


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in links(ROOT / "README.md")}
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= linked


@pytest.mark.parametrize(("page", "block"), all_blocks("python"), ids=lambda value: value[:30])
def test_a_python_block_compiles_and_its_headstart_names_exist(page: str, block: str) -> None:
    tree = ast.parse(block, filename=page)
    compile(tree, page, "exec")
    alias = {
        item.asname or item.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for item in node.names
        if item.name == "headstart"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headstart"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, item.name) for item in node.names), f"{page}: {ast.unparse(node)}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in alias:
            assert node.attr in headstart.__all__, f"{page}: headstart has no {node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            check_call(page, node, alias)


def check_call(page: str, node: ast.Call, alias: set[str]) -> None:
    """The arguments of a call of headstart's are those that the function takes."""
    assert isinstance(node.func, ast.Attribute)
    if not (isinstance(node.func.value, ast.Name) and node.func.value.id in alias):
        return
    names = {word.arg: None for word in node.keywords if word.arg is not None}
    signature = inspect.signature(getattr(headstart, node.func.attr))
    try:
        signature.bind(*node.args, **names)
    except TypeError as error:
        raise AssertionError(f"{page}: {ast.unparse(node)}: {error}") from error


@pytest.mark.parametrize(("page", "block"), all_blocks("yaml"), ids=lambda value: value[:30])
def test_a_yaml_block_is_a_configuration(page: str, block: str) -> None:
    tree = parse_yaml(block, where=page)
    assert isinstance(tree, dict), page
    load_config(tree)


def test_the_docs_use_names_that_the_checks_see() -> None:
    """A page without a fence that the other tests read would pass them all."""
    assert {name for name, _ in all_blocks("python")} > {"README.md", "freezing.md", "losses.md"}
    assert blocks(ROOT / "docs" / "reference" / "options.md", "yaml")
