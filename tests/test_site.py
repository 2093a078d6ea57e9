"""The site that ``make docs`` builds: every page and link is there, nothing is fetched, and the search finds."""

import json
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import headstart
from headstart.cli.main import VERBS

ROOT = Path(__file__).parent.parent
CHROMIUM = Path("/usr/bin/chromium")
EXTERNAL = ("http:", "https:", "mailto:")


class Page(HTMLParser):
    """What a page leads to, loads and can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := facts.get(name))}
        if tag == "a" and facts.get("href"):
            self.links.append(str(facts["href"]))
        if tag in ("script", "img", "iframe") and facts.get("src"):
            self.loads.append(str(facts["src"]))
        if tag == "link" and facts.get("rel") != "canonical" and facts.get("href"):
            self.loads.append(str(facts["href"]))


def make_site() -> dict:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return runpy.run_path(str(ROOT / "scripts" / "make_site.py"))
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason="pip install 'headstart[docs]'")
    folder = tmp_path_factory.mktemp("built")
    assert make_site()["build"](folder) == 0
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # whose links begin with /


def test_every_page_of_the_docs_stands_in_the_site(site: Path) -> None:
    expected = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    expected |= {Path("index.html"), Path("reference/python.html"), Path("reference/commands.html")}
    expected |= {Path(f"project/{name}.html") for name in ("contributing", "changelog", "security")}
    assert {path for path in expected if not (site / path).is_file()} == set()


def test_every_page_of_the_docs_is_in_the_menu(pages: dict[Path, Page], site: Path) -> None:
    home = pages[site / "index.html"]
    inside = {(site / link.partition("#")[0]).resolve() for link in home.links if not link.startswith(EXTERNAL)}
    assert {path for path in pages if "source" not in path.relative_to(site).parts} - inside - {
        site / "index.html"
    } == set()


def test_every_link_leads_to_a_page_and_a_heading_of_it(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if link.startswith(EXTERNAL):
                continue
            at, _, anchor = link.partition("#")
            target = (path.parent / at).resolve() if at else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_a_page_loads_files_of_the_site_only(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.loads
        assert [load for load in page.loads if not (path.parent / load.partition("?")[0]).is_file()] == [], path.name


def test_every_public_name_and_command_is_told_in_the_reference(pages: dict[Path, Page], site: Path) -> None:
    assert {name.lower() for name in headstart.__all__} <= pages[site / "reference" / "python.html"].ids
    assert set(VERBS) <= pages[site / "reference" / "commands.html"].ids


def test_the_search_knows_every_page(pages: dict[Path, Page], site: Path) -> None:
    known = {item["location"].partition("#")[0] for item in json.loads((site / "search.json").read_text())["items"]}
    assert {path.relative_to(site).as_posix() for path in pages} <= known


def test_a_link_to_a_file_that_is_not_there_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = make_site()
    (tmp_path / "README.md").write_text("[gone](docs/gone.md)\n")
    monkeypatch.setitem(maker["rewrite"].__globals__, "ROOT", tmp_path)
    text, linked = maker["rewrite"]("README.md")
    assert (text, linked) == ("[gone](gone.md)\n", ["docs/gone.md"])
    with pytest.raises(FileNotFoundError):
        maker["rewrite"](linked[0])


def test_a_link_out_of_the_docs_leads_to_a_page_that_shows_the_source(site: Path) -> None:
    assert "submitit" in (site / "source" / "examples" / "slurm.py.html").read_text()


def test_sections_of_a_docstring_become_lists_and_examples_code() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        to_markdown = runpy.run_path(str(ROOT / "scripts" / "make_reference.py"))["to_markdown"]
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    text = (
        "Do it with ``x``.\n\nArgs:\n    x: the number,\n        in pixels\n    y (N, K): scores\n\n"
        "Returns:\n    Both, ``x``\n    and y.\n\nRaises:\n    A, B: why\n\n>>> f(1)\n1"
    )
    assert to_markdown(text).split("\n") == [
        "Do it with `x`.", "", "**Args**", "", "- `x`: the number, in pixels", "- `y` (N, K): scores", "",
        "**Returns**", "", "Both, `x`", "and y.", "", "**Raises**", "", "- `A`, `B`: why", "",
        "```pycon", ">>> f(1)", "1", "```", "",
    ]  # fmt: skip


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing")
def test_the_search_finds_in_pages_that_are_opened_from_a_disk(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 1400, "height": 900})
        view.set_default_timeout(120_000)  # where other tests have the processors
        view.on("request", lambda request: asked.append(request.url))
        view.goto((site / "guide" / "heads.html").as_uri())
        view.keyboard.press("Control+k")
        view.get_by_placeholder("Search").last.wait_for()
        view.keyboard.type("layer decay")
        view.locator('a[href*="optimizers.html?h=layer+decay"]').first.click()  # the list may still be growing
        view.wait_for_url("**?h=layer+decay*")
        assert "optimizers.html" in view.url
        for width in (1400, 400):  # wide tables scroll, the page does not
            view.set_viewport_size({"width": width, "height": 900})
            for name in ("index", "guide/data", "reference/options", "reference/python", "measured/zoo"):
                view.goto((site / f"{name}.html").as_uri())
                assert view.evaluate("document.documentElement.scrollWidth") <= width, name
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
