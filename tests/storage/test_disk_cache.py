"""A folder for caches that another user can write is refused by name; what is made there is private."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.errors import ConfigError, StorageError
from headstart.events import CacheNote
from headstart.storage.disk_cache import DiskCache, find_other_writers

KEY = "a" * 32
ROOT = os.geteuid() == 0


def opened(folder: Path) -> None:
    DiskCache(folder, limit_bytes=10**9).open_records(KEY, count=3, record_bytes=100, about={}).close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        opened(tmp_path / "new" / "cache")
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "cache"
    assert [mode(folder), mode(folder / KEY)] == [0o700, 0o700]
    assert [mode(folder / KEY / name) for name in ("pages", "about.json")] == [0o600, 0o600]


@pytest.mark.parametrize("which", ["cache", f"cache/{KEY}", f"cache/{KEY}/pages", f"cache/{KEY}/about.json"])
@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_what_others_can_write_is_refused_with_the_command_that_helps(tmp_path: Path, which: str, bits: int) -> None:
    opened(tmp_path / "cache")
    path = tmp_path / which
    path.chmod(mode(path) | bits)
    with pytest.raises(StorageError, match=f"{path}: other users can write it .*chmod -R go-w {path}, or give HEADSTA"):
        opened(tmp_path / "cache")
    path.chmod(mode(path) & ~0o022)
    opened(tmp_path / "cache")


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
@pytest.mark.parametrize("which", ["cache", f"cache/{KEY}", f"cache/{KEY}/pages"])
def test_what_belongs_to_another_user_is_refused(tmp_path: Path, which: str) -> None:
    opened(tmp_path / "cache")
    os.chown(tmp_path / which, 4321, -1)
    with pytest.raises(StorageError, match=f"{tmp_path / which}: it belongs to user 4321, not to you; give HEADSTART_"):
        opened(tmp_path / "cache")


def test_a_link_counts_by_its_owner_and_its_target(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    opened(tmp_path / "cache")
    (tmp_path / "disk").chmod(0o777)
    assert "mode 0777" in (find_other_writers(tmp_path / "cache") or "")
    (tmp_path / "disk").chmod(0o700)
    if ROOT:
        os.chown(tmp_path / "cache", 4321, -1, follow_symlinks=False)
        assert "belongs to user 4321" in (find_other_writers(tmp_path / "cache") or "")


def test_a_folder_of_ones_own_within_one_for_all_is_fine(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    opened(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


Settings = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("cache", [{"use": "always"}, {"decoded": True}])
def test_a_run_with_a_shared_headstart_cache_is_refused_before_it_begins(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: dict[str, Any]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"HEADSTART_CACHE: .*cache: other users can write it \(mode 0777\)"):
        hs.train(hs.load_config(settings(recipe="probe", cache=cache)))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not list((tmp_path / "cache").iterdir())


def test_a_run_whose_usual_cache_is_shared_does_without_and_says_so(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADSTART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "headstart").mkdir()
    (tmp_path / "headstart").chmod(0o770)
    notes: list[str] = []
    hs.train(
        hs.load_config(settings(recipe="probe", epochs=12)),
        watch=lambda event: notes.append(event.text) if isinstance(event, CacheNote) else None,
    )
    assert any("not used" in note and "other users can write it (mode 0770)" in note for note in notes), notes
    assert not list((tmp_path / "headstart").iterdir())
    with pytest.raises(ConfigError, match="other users can write it"):
        hs.train(hs.load_config(settings(recipe="probe", cache={"use": "always"}, out=str(tmp_path / "asked"))))
