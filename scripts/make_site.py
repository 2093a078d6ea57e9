"""Build the documentation's site: every page of docs/, the README, the reference, and the files that they link to.

    python scripts/make_site.py          build/site/index.html; opens from a disk, and its search works there

The pages are put together in build/pages, because the builder takes one folder and a repository's links also lead out
of docs/: such a file becomes a page that shows its source. Needs the extra ``docs``; nothing is fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from make_reference import commands_page, python_page

ROOT = Path(__file__).parent.parent
NAMES = ("CONTRIBUTING", "CHANGELOG", "SECURITY")
PROJECT = {"README.md": "index.md"} | {f"{name}.md": f"project/{name.lower()}.md" for name in NAMES}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^ *```.*?^ *```)", flags=re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "sh"}


def build(folder: Path) -> int:
    """Put the pages together in ``folder``/pages and build ``folder``/site; gives the builder's exit code."""
    gather(folder / "pages")
    shutil.copy(ROOT / "docs" / "site" / "mkdocs.yml", folder)
    command = [Path(sys.executable).parent / "zensical", "build", "--clean", "--strict", "-f", folder / "mkdocs.yml"]
    return subprocess.run(command, cwd=folder, check=False, env=os.environ | {"NO_COLOR": "1"}).returncode


def gather(pages: Path) -> None:
    """Write every page of the site as Markdown below ``pages``."""
    shutil.rmtree(pages, ignore_errors=True)
    waiting = [*PROJECT, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
    done = set[str]()
    while waiting:
        source = waiting.pop()
        if source not in done:
            done.add(source)
            text, linked = rewrite(source)
            write(pages / place(source), text)
            waiting += linked
    for name in ("extra.css", "iframe-worker.js"):
        write(pages / "site" / name, (ROOT / "docs" / "site" / name).read_text(encoding="utf-8"))
    write(pages / "reference" / "python.md", python_page())
    write(pages / "reference" / "commands.md", commands_page())


def place(source: str) -> str:
    """Where a file of the repository stands among the pages."""
    if source in PROJECT:
        return PROJECT[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return f"source/{source}" if source.endswith(".md") else f"source/{source}.md"


def rewrite(source: str) -> tuple[str, list[str]]:
    """A file as a page, and the repository's files that it links to."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if not source.endswith(".md"):
        language = LANGUAGES.get(Path(source).suffix, "text")
        return f"# {source}\n\n````{language}\n{text}````\n", []
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # a model card's facts for the hub
    linked = list[str]()

    def lead(found: re.Match[str]) -> str:
        words, (path, _, anchor) = found[1], found[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        target = os.path.normpath(Path(source).parent / path)
        if (ROOT / target).is_dir():
            target = f"{target}/README.md"
            if not (ROOT / target).is_file():
                return words  # a folder has no page
        linked.append(target)
        at = os.path.relpath(place(target), Path(place(source)).parent)
        return f"[{words}]({at}{'#' + anchor if anchor else ''})"

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(lead, part) for part in parts[::2]]  # the others are code
    return "".join(parts), linked


def write(path: Path, text: str) -> None:
    """Write a page, its folder with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    code = build(ROOT / "build")
    if code == 0:
        print(f"open {ROOT / 'build' / 'site' / 'index.html'}")
    sys.exit(code)
