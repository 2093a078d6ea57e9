"""What a scan found is kept: files that are what they were are not decoded again, and all others are."""

from __future__ import annotations

import json
import multiprocessing
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import headstart as hs
from headstart.cli.main import main
from headstart.config.schema import Cache, Config, Data
from headstart.data import scan, scan_cache
from headstart.data.images import Images, load_images
from headstart.data.reading import ChangedImage
from headstart.data.scan import Scan
from headstart.data.sources import files
from headstart.storage.disk_cache import DiskCache

Load = Callable[..., Scan]


@pytest.fixture
def root(folders) -> Path:
    return folders({"a": 5, "b": 4})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as untouched for long: their stamps prove something."""
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**12))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that scans decode, as they go."""
    seen: list[str] = []
    check = scan.shrink_image

    def note(content: bytes, *, where: str) -> object:
        seen.append(Path(where).name)
        return check(content, where=where)

    monkeypatch.setattr(scan, "shrink_image", note)
    return seen


@pytest.fixture
def load(root: Path, preprocess) -> Callable[..., Images]:
    def make(**options: object) -> Images:
        return load_images(Config(data=Data(source=str(root)), cache=Cache(**options), workers=0), preprocess)

    return make


@pytest.mark.usefixtures("settled")
def test_a_second_scan_decodes_nothing_and_finds_the_same(load, decoded: list[str], draw, root: Path) -> None:
    (root / "a/copy.png").write_bytes((root / "a/000.png").read_bytes())
    first = load().scan
    assert (len(decoded), first.known, first.describe_kept()) == (10, 0, ())
    second = load().scan
    assert len(decoded) == 10
    assert second.known == 10
    assert replace(second, known=0) == first
    assert second.duplicates == (("a/000.png", "a/copy.png"),)
    assert second.describe_kept() == (
        "data: 10 of 10 images are as an earlier scan found them, and were not decoded again",
    )


@pytest.mark.usefixtures("settled")
def test_a_file_that_was_written_since_is_decoded_again_whatever_its_time_and_size(load, decoded, root: Path) -> None:
    before = load().scan
    path, times = root / "a/002.png", (root / "a/002.png").stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # behind the pixels
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    decoded.clear()
    after = load().scan
    assert decoded == ["002.png"]
    assert {name for name in after.hashes if after.hashes[name] != before.hashes[name]} == {"a/002.png"}
    assert load().scan.known == 9


@pytest.mark.usefixtures("settled")
def test_a_file_that_is_exchanged_after_a_scan_from_the_cache_ends_the_epoch(load, draw, root: Path) -> None:
    load()
    images = load()
    assert images.scan.known == 9
    draw(root / images.train.samples[0].key, seed=99)
    with pytest.raises(ChangedImage, match="the file has changed since it was read first"):
        list(images.train.epoch(0))


def test_files_that_are_just_written_are_not_trusted(load, decoded: list[str]) -> None:
    load()
    assert load().scan.known == 0
    assert len(decoded) == 18


@pytest.mark.usefixtures("settled")
def test_what_cannot_be_read_is_looked_at_each_time(root: Path, decoded: list[str]) -> None:
    (root / "a/000.png").write_bytes((root / "a/000.png").read_bytes()[:200])
    config = Config(data=Data(source=str(root), unreadable="skip", unreadable_share=0.5))
    like = hs.open_model("starter").preprocess
    reasons = [load_images(config, like).scan.unreadable for _ in range(2)]
    assert reasons[0] == reasons[1] != ()
    assert decoded.count("000.png") == 3, "twice the damaged one, once that of the other class"


def content_of(own_cache: Path) -> Path:
    (found,) = own_cache.glob("scans/*/content")
    return found


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "a bit of the digest": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "something else": lambda _: b"no scan" * 30,
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_dropped_and_made_again(damage: str, load, decoded: list[str], own_cache: Path) -> None:
    first = load().scan
    path = content_of(own_cache)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    decoded.clear()
    assert load().scan == first
    assert len(decoded) == 9
    assert load().scan.known == 9


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("rows", [[], {"a/000.png": 3}, {"a/000.png": ["x", "y"]}, "text", None])
def test_a_whole_file_of_another_shape_is_as_none(rows: object, load, decoded: list[str], own_cache: Path) -> None:
    load()
    key = content_of(own_cache).parent.name
    content = zlib.compress(json.dumps(rows).encode())
    DiskCache(own_cache, limit_bytes=10**9).scans().update_whole(key, lambda _: content, about={})
    decoded.clear()
    assert load().scan.known == 0
    assert load().scan.known == 9


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("what", ["decoders", "truncated", "bombs"])
def test_other_decoders_decode_again(load, decoded: list[str], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    load()
    known = dict(scan_cache._decoders())
    if what == "decoders":
        monkeypatch.setattr(scan_cache, "_decoders", lambda: {**known, "libjpeg_turbo": "2.0"})
    elif what == "truncated":
        monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    else:
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10**7)
    assert load().scan.known == 0
    assert len(decoded) == 18


def test_the_key_knows_what_decodes() -> None:
    assert {"pillow", "zlib", "headstart"} <= scan_cache._decoders().keys()


@pytest.mark.usefixtures("settled")
def test_without_a_cache_nothing_is_kept_or_taken(load, own_cache: Path) -> None:
    load(use="never")
    assert not own_cache.exists()
    load()
    assert load(use="never").scan.known == 0


@pytest.mark.usefixtures("settled")
def test_an_audit_reads_every_image_and_runs_take_what_it_found(root: Path, load, decoded: list[str]) -> None:
    hs.audit(root)
    hs.audit(root)
    assert len(decoded) == 18
    assert load().scan.known == 9


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("place", ["", "scans", "scans/*", "scans/*/content"])
def test_what_others_can_write_is_not_used_and_said(place: str, load, own_cache: Path, decoded: list[str]) -> None:
    load()
    (path,) = own_cache.glob(place) if place else [own_cache]
    path.chmod(0o777)
    decoded.clear()
    found = load().scan
    assert len(decoded) == 9
    (said,) = found.describe_kept()
    assert said.startswith("data: what the scan found is not kept for later ones: ")
    assert f"{path}: other users can write it" in said


@pytest.mark.usefixtures("settled")
def test_no_room_changes_nothing_and_is_said(load, decoded: list[str]) -> None:
    found = load(limit_gb=1e-6).scan
    assert "bytes needed" in found.not_kept
    assert "--cache.limit-gb" in found.not_kept
    assert load().scan.known == 0


@pytest.mark.usefixtures("settled")
def test_a_table_and_a_folder_of_one_place_share_what_was_found(root: Path, load, preprocess) -> None:
    load()
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "rows.csv").write_text("\n".join(["file,what", *rows]))
    assert hs.open_images(root / "rows.csv", like=preprocess).scan.known == 9


@pytest.mark.usefixtures("settled")
def test_it_is_listed_and_cleared_as_the_other_caches_are(root: Path, load, capsys) -> None:
    load()
    assert main(["cache", "list"]) == 0
    said = capsys.readouterr().out
    assert "complete  scan" in said
    assert str(root) in said
    assert "1 cache, " in said
    assert main(["cache", "clear", "--yes"]) == 0
    assert "removed 1 cache" in capsys.readouterr().out
    assert load().scan.known == 0


def _findings(*numbers: int) -> scan_cache.Findings:
    images = {
        f"{number}.png": scan_cache.Finding(
            stamp=(1, 2, 3, number), digest=f"{number:064}", fingerprint=f"{number:016}", measured=("uint16", number)
        )
        for number in numbers
    }
    return scan_cache.Findings(images, {f"{number:032}": number % 2 == 0 for number in numbers})


def _write(folder: Path, first: int) -> None:
    disk_cache = DiskCache(folder, limit_bytes=10**9)
    for number in range(first, first + 20):
        scan_cache.write_findings(disk_cache, "/photos", _findings(number))


def test_several_processes_that_write_at_once_lose_nothing(own_cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(own_cache, 20 * number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = scan_cache.read_findings(DiskCache(own_cache, limit_bytes=10**9), "/photos")
    assert found == _findings(*range(80))
    assert [path.name for path in own_cache.glob("scans/*/*") if path.name.startswith(".")] == []
