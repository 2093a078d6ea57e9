"""``headstart cache``: what runs keep is listed, and cleared but for what a run has open."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from headstart.cli.main import main
from headstart.storage.disk_cache import DiskCache

KEYS = ("a" * 32, "b" * 32)
ABOUT = {"model": "timm/resnet18", "boundary": ["layer3"], "images": 10, "view": 1}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskCache:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    made = DiskCache(tmp_path / "cache", limit_bytes=10**9)
    for key in KEYS:
        made.open_records(key, count=10, record_bytes=1 << 20, about=ABOUT).close()
    made.complete(KEYS[0], {"rounding": 0.0})
    return made


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["cache", *words]) == 0
    return capsys.readouterr().out


def test_what_is_kept_is_listed(shelf: DiskCache, capsys):
    text = said(capsys, "list")
    assert "  10.0      10     2  complete  timm/resnet18  layer3" in text
    assert "2 caches, 20.0 MiB, in" in text
    rows = json.loads(said(capsys, "list", "--json"))["caches"]
    assert {row["key"]: row["complete"] for row in rows} == {KEYS[0]: True, KEYS[1]: False}


def test_clear_leaves_what_is_open_and_what_is_not_ours(shelf: DiskCache, capsys, tmp_path: Path):
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    with shelf.open_records(KEYS[1], count=10, record_bytes=1 << 20, about=ABOUT):
        assert "removed 1 cache, 10.0 MiB" in said(capsys, "clear", "--yes")
        assert [entry.key for entry in shelf.content()] == [KEYS[1]]
    said(capsys, "clear", "--yes")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("Yes\n", 0), ("n\n", 2), ("\n", 2), ("", 2), ("sure\n", 2)])
def test_clear_asks_whoever_is_at_the_terminal(shelf: DiskCache, capsys, monkeypatch, answer: str, left: int):
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(["cache", "clear"]) == 0
    told = capsys.readouterr()
    assert "remove 2 caches, 20.0 MiB, in" in told.err and "[y/N]" in told.err
    assert told.out.startswith("nothing was removed" if left else "removed 2 caches, 20.0 MiB")
    assert len(shelf.content()) == left


def test_clear_without_a_terminal_says_what_to_type(shelf: DiskCache, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["cache", "clear"]) == 2
    told = capsys.readouterr()
    assert "2 caches, 20.0 MiB in" in told.err and told.err.endswith("type headstart cache clear --yes\n")
    assert told.out == "" and len(shelf.content()) == 2


def test_nothing_there_is_no_error(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "none"))
    assert said(capsys, "list").startswith("0 caches, 0.0 MiB, in ")
    assert said(capsys, "clear").startswith("removed 0 caches, 0.0 MiB, in ")


@pytest.mark.parametrize("words", [[], ["remove"], ["list", "more"]])
def test_other_words_are_refused(capsys, words: list[str]):
    assert main(["cache", *words]) == 2
