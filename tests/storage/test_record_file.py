"""A file of checked pages: what is read is what was written, or it is said not to be there."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.errors import StorageError
from headstart.storage.record_file import RecordFile, file_bytes

COUNT, SIZE = 7, 100
STEP = file_bytes(count=1, record_bytes=SIZE)


def page(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def opened(path: Path, *, key: str = "key", count: int = COUNT, size: int = SIZE) -> RecordFile:
    return RecordFile(path, count=count, record_bytes=size, key=key)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    with opened(tmp_path / "pages") as file:
        for number in range(COUNT):
            file.write(number, page(number))
        file.sync()
    return tmp_path / "pages"


def found(path: Path, **options: object) -> list[bytes | None]:
    room = bytearray(SIZE)
    with opened(path, **options) as file:
        return [bytes(room) if file.read(number, room) else None for number in range(COUNT)]


def test_pages_are_read_as_they_were_written_by_another_life(full: Path):
    assert found(full) == [page(number) for number in range(COUNT)]


def test_a_page_that_was_never_written_is_missing(tmp_path: Path):
    with opened(tmp_path / "pages") as file:
        file.write(3, page(3))
        file.write(5, bytes(SIZE))
        file.expect([5, 3])
        assert file.missing() == [0, 1, 2, 4, 6]


def test_every_flipped_bit_is_seen_and_costs_its_page_alone(full: Path):
    whole = full.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        full.write_bytes(damaged)
        number = at // (len(whole) // COUNT)
        assert found(full) == [None if place == number else page(place) for place in range(COUNT)]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "two pages exchanged": lambda data: data[STEP : 2 * STEP] + data[:STEP] + data[2 * STEP :],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_page_passes_for_another(full: Path, damage: str):
    full.write_bytes(DAMAGES[damage](full.read_bytes()))
    read = found(full)
    assert None in read
    assert all(value in (None, page(number)) for number, value in enumerate(read))


def with_checksum(page: bytes, tail: bytes, *, number: int) -> bytes:
    """The page and its tail, with the checksum that belongs to this place: anybody can compute it."""
    checksum = zlib.crc32(page, zlib.crc32(b"key %d" % number)).to_bytes(4, "little")
    return page + tail[:4] + checksum + tail[8:]


@pytest.mark.parametrize("crafted", ["another page", "a byte changed"])
def test_a_page_that_is_crafted_to_have_the_right_checksum_is_not_whole(full: Path, crafted: str):
    data = bytearray(full.read_bytes())
    two, tail = data[2 * STEP : 2 * STEP + SIZE], data[2 * STEP + SIZE : 3 * STEP]
    if crafted == "a byte changed":
        two[0] ^= 1
    place = 1 if crafted == "another page" else 2
    data[place * STEP : (place + 1) * STEP] = with_checksum(bytes(two), bytes(tail), number=place)
    full.write_bytes(data)
    assert [number for number, value in enumerate(found(full)) if value is None] == [place]


def test_damage_after_the_first_look_is_seen(full: Path):
    room = bytearray(SIZE)
    with opened(full) as file, full.open("r+b") as other:
        assert file.read(3, room)
        other.seek(3 * STEP + 5)
        other.write(b"\0" if page(3)[5] else b"\1")
        other.flush()
        assert not file.read(3, room)
        file.write(3, page(3))
        assert file.read(3, room)


def test_pages_of_another_key_are_missing(full: Path):
    assert found(full, key="other") == [None] * COUNT


def test_two_that_write_the_same_file_help_each_other(tmp_path: Path):
    with opened(tmp_path / "pages") as one, opened(tmp_path / "pages") as other:
        for number in range(COUNT):
            (one if number % 2 else other).write(number, page(number))
        assert one.missing() == other.missing() == []


def test_a_file_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path):
    size = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize * 2
    with pytest.raises(StorageError, match="pages: "):
        opened(tmp_path / "pages", count=2, size=size)
    assert not list(tmp_path.iterdir())


def test_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "pages").symlink_to(tmp_path / "target")
    with pytest.raises(StorageError, match="pages: "):
        opened(tmp_path / "pages")
