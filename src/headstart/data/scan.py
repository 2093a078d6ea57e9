"""One pass over every image before the first step: decoded once, hashed, damage and copies known."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path

from headstart.config.schema import Data
from headstart.data.decoding.complaints import hear_decoders, hear_warnings
from headstart.data.decoding.decode import UnreadableImage
from headstart.data.decoding.interruptible import map_in_threads
from headstart.data.decoding.likeness import make_fingerprints, shrink_image
from headstart.data.decoding.raster import Measured
from headstart.data.near_copies import Pair, find_near_copies
from headstart.data.scan_cache import NOTHING_FOUND, Finding, Findings, read_findings, write_findings
from headstart.data.sources.source import Record, Source, Stamp, is_stamped, read_content
from headstart.distributed.collectives import all_gather_object
from headstart.distributed.processes import current
from headstart.errors import DataError, StorageError
from headstart.storage.disk_cache import DiskCache
from headstart.wording import option

_AT_ONCE = 4096  # images whose fingerprints are made at once
OnDecoded = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image without a picture: its name in messages (``where``) and in the source (``key``), and the ``reason``."""

    where: str
    key: str
    reason: str

    @property
    def path(self) -> Path:
        """``where`` as a path, for scripts that know images as files."""
        return Path(self.where)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was found when every image was read.

    Attributes:
        ``hashes``: The SHA-256 of each readable image, by name.
        ``unreadable``: The images that cannot be read, each with ``where``, ``key`` and ``reason``.
        ``duplicates``: Names of images that are equal to the byte, group by group.
        ``near_copies``: Names of two that differ, but show one picture, resized or saved again (of equal ones the
            first).
        ``fingerprints``: Of each readable image, empty for one that has none (see ``decoding/likeness.py``).
        ``stamps``: What the source says of each readable image (of a file size, times and inode); empty where that
            proves nothing.
        ``known``: How many were not decoded, since they are what an earlier scan found.
        ``not_kept``: Why what was found is not kept for later scans, as a sentence; None where it is.
        ``measured``: The values of images of more than 8 bits or other bands than grey and RGB, and of dark ones, by
            name.
        ``marks``: What decoding changes in pictures, and which show nothing, by name.
        ``complaints``: What decoders said of images that they read all the same, by name.

    Example:
        >>> import headstart as hs
        >>> scan = hs.audit("photos")
        >>> len(scan.hashes), scan.unreadable, scan.duplicates
        (16, (), ())
    """

    hashes: Mapping[str, str]
    unreadable: tuple[Unreadable, ...]
    duplicates: tuple[tuple[str, ...], ...]
    near_copies: tuple[tuple[str, str], ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict, repr=False)
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    known: int = 0
    not_kept: str | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict, repr=False)
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    complaints: Mapping[str, str] = field(default_factory=dict, repr=False)

    def describe_kept(self) -> tuple[str, ...]:
        """Sentences on what was taken from earlier scans, and what cannot be kept for later ones."""
        count = len(self.hashes) + len(self.unreadable)
        taken = f"data: {self.known} of {count} images are as an earlier scan found them, and were not decoded again"
        lost = f"data: what the scan found is not kept for later ones: {self.not_kept}"
        return (*([taken] if self.known else []), *([lost] if self.not_kept else []))


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one image: its name, SHA-256 or why it cannot be read, stamp, whether an earlier scan found this,
    what its values are, its fingerprint, what decoders said of it, and what they change (see ``marks.py``).
    """

    name: str
    digest: str | None = None
    reason: str = ""
    stamp: Stamp = ()
    known: bool = False
    measured: tuple[int | float | str | None, ...] = ()
    fingerprint: str = ""
    complaint: str = ""
    marks: tuple[str, ...] = ()


def scan_records(
    source: Source,
    records: Sequence[Record],
    *,
    threads: int,
    disk_cache: DiskCache | None = None,
    fresh: bool = False,
    on_decoded: OnDecoded | None = None,
) -> Scan:
    """Decode the image of every record, in threads (Pillow's decoders release the interpreter's lock), and find copies.

    Of several processes each decodes its part, and each gets the whole result. What is found is kept in ``disk_cache``,
    and what earlier scans found there of images that have not changed is taken, unless ``fresh``.
    """
    ours = current()
    findings, problem = _read_findings(source, None if fresh else disk_cache)
    part, outcomes, waiting = records[ours.rank :: ours.world_size], list[_Outcome](), list[tuple[_Outcome, bytes]]()
    examine = partial(_examine, source, findings)
    with hear_warnings(), closing(map_in_threads(examine, part, threads=threads)) as examined:
        for done, outcome in enumerate(examined, start=1):
            waiting.append(outcome)
            if len(waiting) == _AT_ONCE or done == len(part):
                outcomes += _add_fingerprints(waiting)
                waiting = []
            if on_decoded is not None:
                on_decoded(min(done * ours.world_size, len(records)), len(records))
    gathered = all_gather_object([tuple(vars(outcome).values()) for outcome in outcomes])  # what JSON can hold
    found = {
        name: _Outcome(name, digest, reason, tuple(stamp), known, tuple(measured), fingerprint, complaint, tuple(marks))
        for some in gathered
        for name, digest, reason, stamp, known, measured, fingerprint, complaint, marks in some
    }
    ordered = [(record, found[record.name]) for record in records]
    hashes = {one.name: one.digest for _, one in ordered if one.digest is not None}
    copies, verdicts = _find_near_copies(source, ordered, findings, threads=threads)
    if disk_cache is not None and problem is None and ours.local_rank == 0:
        problem = _keep_findings(source, disk_cache, [one for one in found.values() if not one.known], verdicts)
    return Scan(
        hashes=hashes,
        unreadable=tuple(
            Unreadable(where=source.where(record), key=record.name, reason=one.reason)
            for record, one in ordered
            if one.digest is None
        ),
        duplicates=_duplicates(hashes),
        near_copies=tuple(sorted((one.name, other.name) for one, other in copies)),
        fingerprints={name: found[name].fingerprint for name in hashes},
        stamps={name: found[name].stamp for name in hashes},
        known=sum(one.known for one in found.values()),
        not_kept=problem,
        marks={name: found[name].marks for name in hashes if found[name].marks},
        complaints={name: found[name].complaint for name in hashes if found[name].complaint},
        measured={name: Measured(*found[name].measured) for name in hashes if found[name].measured},  # type: ignore[arg-type]
    )


def identify_records(
    source: Source, records: Sequence[Record], *, threads: int, disk_cache: DiskCache | None = None
) -> dict[str, tuple[str, str]]:
    """SHA-256 and fingerprint of every record's image, by name; taken from what earlier scans found, and kept, as
    above.

    Raises: UnreadableImage: an image cannot be read.
    """
    findings, problem = _read_findings(source, disk_cache)
    examine, outcomes = partial(_examine, source, findings), list[_Outcome]()
    for start in range(0, len(records), _AT_ONCE):
        part = records[start : start + _AT_ONCE]
        with hear_warnings(), closing(map_in_threads(examine, part, threads=threads)) as examined:
            outcomes += _add_fingerprints(list(examined))
    for record, one in zip(records, outcomes, strict=True):
        if one.digest is None:
            raise UnreadableImage(source.where(record), one.reason)
    if disk_cache is not None and problem is None:
        _keep_findings(source, disk_cache, [one for one in outcomes if not one.known], {})
    return {one.name: (str(one.digest), one.fingerprint) for one in outcomes}


def _read_findings(source: Source, disk_cache: DiskCache | None) -> tuple[Findings, str | None]:
    """What earlier scans found, or why that cannot be used."""
    if disk_cache is None or not is_stamped(source):
        return Findings(), None
    try:
        return read_findings(disk_cache, source.location), None
    except StorageError as error:
        return Findings(), str(error)


def _add_fingerprints(examined: Sequence[tuple[_Outcome, bytes]]) -> list[_Outcome]:
    made = make_fingerprints([shrunk for _, shrunk in examined])
    return [replace(one, fingerprint=text) if text else one for (one, _), text in zip(examined, made, strict=True)]


def _find_near_copies(
    source: Source, outcomes: Sequence[tuple[Record, _Outcome]], findings: Findings, *, threads: int
) -> tuple[tuple[Pair, ...], Mapping[str, bool]]:
    """The first records of contents, in pairs that show one picture; and what was compared for that."""
    contents: dict[str, tuple[Record, str]] = {}
    for record, one in sorted(outcomes, key=lambda pair: pair[0].name):
        if one.digest is not None:
            contents.setdefault(one.digest, (record, one.fingerprint))
    return find_near_copies(source, contents, verdicts=findings.verdicts, threads=threads)


def _keep_findings(
    source: Source, disk_cache: DiskCache, outcomes: Sequence[_Outcome], verdicts: Mapping[str, bool]
) -> str | None:
    """Keep what is new and proves something for later scans; why that cannot be done."""
    new = {
        one.name: Finding(
            stamp=one.stamp,
            digest=one.digest,
            fingerprint=one.fingerprint,
            measured=one.measured,
            marks=one.marks,
            complaint=one.complaint,
        )
        for one in outcomes
        if one.digest is not None and one.stamp
    }
    if not (new or verdicts) or not is_stamped(source):
        return None
    try:
        write_findings(disk_cache, source.location, Findings(new, verdicts))
    except StorageError as error:
        return str(error)
    return None


def _examine(source: Source, findings: Findings, record: Record) -> tuple[_Outcome, bytes]:
    """The outcome, and what its fingerprint is still to be made of."""
    name, before = record.name, findings.images.get(record.name, NOTHING_FOUND)
    if before.stamp and is_stamped(source) and source.stamp(record) == before.stamp:
        kept = {word: getattr(before, word) for word in ("measured", "fingerprint", "complaint", "marks")}
        return _Outcome(name, before.digest, stamp=before.stamp, known=True, **kept), b""
    try:
        content, stamp = read_content(source, record)
        with hear_decoders() as said:
            shrunk, found, marks = shrink_image(content, where=source.where(record))
    except UnreadableImage as error:
        return _Outcome(name, reason=error.reason), b""
    measured = () if found is None else astuple(found)
    digest, complaint = hashlib.sha256(content).hexdigest(), "; ".join(said)
    return _Outcome(name, digest, stamp=stamp, measured=measured, complaint=complaint, marks=marks), shrunk


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
    if skips:
        remedy = f"leave out more: {option('data.unreadable_share', enough)}"
    else:
        remedy = f"go on without: {option('data.unreadable', 'skip')}"
    what = f"{count} of {total} images cannot be read{above}:"
    raise DataError("\n".join([what, *lines, f"Mend or remove them, or {remedy}"]))
