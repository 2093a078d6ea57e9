"""What earlier scans found, kept by content: a file that is the one it was then is not decoded again.

Kept of each readable image are its name, its stamp (of a file size, times and inode), its SHA-256 and its fingerprint,
and of each pair that was compared whether it shows one picture; in one file for all images of one location. What was
unreadable is looked at each time: the reason may have been the machine's. A stamp is there only where the image had
been untouched for 3 s, as git's index has it, so that no later write can bear the same.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import PIL
from PIL import Image, ImageFile, features

from headstart.data.sources.source import Stamp
from headstart.storage.disk_cache import DiskCache

# 1 had no fingerprints, 2 no marks, 3 no fingerprints of more than 8 bits; they are under other keys, and such places
# are scanned again
_FORMAT = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The finding of a readable image: its stamp, the SHA-256 of its bytes, its fingerprint (see
    ``decoding/likeness.py``), what its values were measured to be, if that was worth keeping (see ``Measured``),
    what decoding changes in it (see ``decoding/marks.py``), and what decoders said of it.
    """

    stamp: Stamp = ()
    digest: str = ""
    fingerprint: str = ""
    measured: tuple[int | float | str | None, ...] = ()
    marks: tuple[str, ...] = ()
    complaint: str = ""


@dataclass(frozen=True)
class Findings:
    """``images``: what was found of each, by name; ``verdicts``: whether two contents show one picture (see
    ``near_copies.py``).
    """

    images: Mapping[str, Finding] = field(default_factory=dict)
    verdicts: Mapping[str, bool] = field(default_factory=dict)


NOTHING_FOUND = Finding()
_DECODERS = ("jpg", "libjpeg_turbo", "zlib", "zlib_ng", "libtiff", "webp")


def read_findings(disk_cache: DiskCache, location: str) -> Findings:
    """What scans of this location found, by decoders as they are now; empty where none is kept.

    Raises: StorageError: another user can write it.
    """
    return _parse(disk_cache.scans().read_whole(_key(location)))


def write_findings(disk_cache: DiskCache, location: str, findings: Findings) -> None:
    """Add to what is kept of this location.  Raises: StorageError: it cannot be kept."""
    about = {"model": "scan", "boundary": [location], "images": len(findings.images)}
    disk_cache.scans().update_whole(_key(location), lambda before: _format(_add(_parse(before), findings)), about=about)


def _add(before: Findings, new: Findings) -> Findings:
    return Findings({**before.images, **new.images}, {**before.verdicts, **new.verdicts})


def _parse(content: bytes | None) -> Findings:
    if content is None:
        return Findings()
    try:
        kept = json.loads(zlib.decompress(content))
        images = {
            str(name): Finding(
                stamp=tuple(map(int, stamp)),
                digest=str(digest),
                fingerprint=str(fingerprint),
                measured=tuple(more[0]) if more else (),
                marks=tuple(map(str, more[1])) if more else (),
                complaint=str(more[2]) if more else "",
            )
            for name, (stamp, digest, fingerprint, *more) in kept["images"].items()
        }
        return Findings(images, {str(key): bool(verdict) for key, verdict in kept["verdicts"].items()})
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error):  # of another version
        return Findings()


def _format(findings: Findings) -> bytes:
    rows = {
        name: (one.stamp, one.digest, one.fingerprint, *_list_unusual(one)) for name, one in findings.images.items()
    }
    kept = {"images": rows, "verdicts": findings.verdicts}
    return zlib.compress(json.dumps(kept, separators=(",", ":")).encode(), 1)


def _list_unusual(one: Finding) -> list[object]:
    """What few images have; nothing of the others, of which there may be millions."""
    return [one.measured, one.marks, one.complaint] if one.measured or one.marks or one.complaint else []


def _key(location: str) -> str:
    """The key of a location, and of everything that decides what can be decoded."""
    switches = [ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS]
    facts = {"format": _FORMAT, "place": location, "decoders": _decoders(), "switches": switches}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _decoders() -> dict[str, str]:
    """Versions of what decodes, and a digest of the code that calls it."""
    code = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "decoding").glob("*.py")):
        code.update(path.read_bytes())
    known = [name for name in _DECODERS if name in {**features.modules, **features.codecs, **features.features}]
    return {
        **{name: str(features.version(name)) for name in known},
        "pillow": PIL.__version__,
        "headstart": code.hexdigest(),
    }
