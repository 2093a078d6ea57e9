"""One pass over every image before the first step: decoded once, hashed, damage and duplicates known."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.decode import UnreadableImage, check_image, read_file
from headstart.data.decoding.interruptible import map_in_threads
from headstart.distributed.collectives import all_gather_object
from headstart.distributed.processes import current
from headstart.errors import DataError

OnDecoded = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image that gives no picture, and why."""

    path: Path
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What the pass found. ``hashes``: SHA-256 of each readable file, by key; ``duplicates``: keys of equal files;
    ``stamps``: size, times and inode of each readable file, empty where they prove nothing.
    """

    hashes: Mapping[str, str]
    unreadable: tuple[Unreadable, ...]
    duplicates: tuple[tuple[str, ...], ...]
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)


def scan_files(files: Sequence[tuple[Path, str]], *, threads: int, on_decoded: OnDecoded | None = None) -> Scan:
    """Decode every (path, key), in threads: Pillow's decoders release the interpreter's lock.

    Of several processes each decodes its part, and each gets the whole result.
    """
    ours = current()
    part = files[ours.rank :: ours.world_size]
    outcomes: list[tuple[str, str | None, str | None, tuple[int, ...]]] = []  # key, hash, reason, stamp
    with closing(map_in_threads(_examine, part, threads=threads)) as examined:
        for done, (file, outcome) in enumerate(zip(part, examined, strict=True), start=1):
            if isinstance(outcome, Unreadable):
                outcomes.append((file[1], None, outcome.reason, ()))
            else:
                outcomes.append((file[1], outcome[0], None, outcome[1]))
            if on_decoded is not None:
                on_decoded(min(done * ours.world_size, len(files)), len(files))
    found = {key: rest for some in all_gather_object(outcomes) for key, *rest in some}
    hashes = {key: found[key][0] for _, key in files if found[key][0] is not None}
    unreadable = tuple(
        Unreadable(path=path, key=key, reason=found[key][1]) for path, key in files if found[key][0] is None
    )
    stamps = {key: tuple(found[key][2]) for key in hashes}
    return Scan(hashes=hashes, unreadable=unreadable, duplicates=_duplicates(hashes), stamps=stamps)


def _examine(file: tuple[Path, str]) -> tuple[str, tuple[int, ...]] | Unreadable:
    """The readable file's SHA-256 and stamp."""
    path, key = file
    try:
        read = read_file(path)
        check_image(read.content, path=path)
    except UnreadableImage as error:
        return Unreadable(path=path, key=key, reason=error.reason)
    return hashlib.sha256(read.content).hexdigest(), read.stamp


def _duplicates(hashes: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    same: dict[str, list[str]] = defaultdict(list)
    for key in sorted(hashes):
        same[hashes[key]].append(key)
    return tuple(tuple(keys) for keys in same.values() if len(keys) > 1)


def refuse_unreadable(scan: Scan, data: Data, *, limit: int = 20) -> None:
    """Stop where an image could not be read, or where such are skipped, more than their share.

    Raises:
        DataError: names the first ``limit`` with their reasons.
    """
    count, total = len(scan.unreadable), len(scan.unreadable) + len(scan.hashes)
    skips = data.unreadable == "skip"
    if count <= (data.unreadable_share * total if skips else 0):
        return
    lines = [f"  {image.key}: {image.reason}" for image in scan.unreadable[:limit]]
    if count > limit:
        lines.append(f"  and {count - limit} more")
    enough = math.ceil(1000 * count / total) / 1000
    above = f", {count / total:.1%}, more than data.unreadable_share {data.unreadable_share:g}" if skips else ""
    remedy = f"leave out more: --data.unreadable-share {enough:g}" if skips else "go on without: --data.unreadable skip"
    what = f"{count} of {total} images cannot be read{above}:"
    raise DataError("\n".join([what, *lines, f"Mend or remove them, or {remedy}"]))
