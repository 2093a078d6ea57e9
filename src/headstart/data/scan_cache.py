"""What earlier scans found, kept by content: a file that is the one it was then is not decoded again.

Kept of each readable image are its name, its stamp (of a file size, times and inode) and its SHA-256, in one file for
all images of one place. What was unreadable is looked at each time: the reason may have been the machine's. A stamp is
there only where the image had been untouched for 3 s, as git's index has it, so that no later write can bear the same.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import PIL
from PIL import Image, ImageFile, features

from headstart.data.sources.source import Stamp
from headstart.storage.disk_cache import DiskCache

Finding = tuple[Stamp, str, tuple[int | float | str, ...]]
Findings = Mapping[str, Finding]
"""By name, the stamp of a readable image, the SHA-256 of its bytes, and what its values were measured to be, if that
was worth keeping (see ``Measured``)."""
NOTHING_FOUND: Finding = ((), "", ())
_FORMAT = 1
_DECODERS = ("jpg", "libjpeg_turbo", "zlib", "zlib_ng", "libtiff", "webp")


def read_findings(disk_cache: DiskCache, place: str) -> Findings:
    """What scans of this place found, by decoders as they are now; empty where none is kept.

    Raises: StorageError: another user can write it.
    """
    return _parse(disk_cache.scans().read_whole(_key(place)))


def write_findings(disk_cache: DiskCache, place: str, findings: Findings) -> None:
    """Add to what is kept of this place.  Raises: StorageError: it cannot be kept."""
    about = {"model": "scan", "boundary": [place], "images": len(findings)}
    disk_cache.scans().update_whole(_key(place), lambda before: _format({**_parse(before), **findings}), about=about)


def _parse(content: bytes | None) -> Findings:
    if content is None:
        return {}
    try:
        rows = json.loads(zlib.decompress(content))
        return {
            str(name): (tuple(map(int, stamp)), str(digest), tuple(more[0]) if more else ())
            for name, (stamp, digest, *more) in rows.items()
        }
    except (ValueError, TypeError, AttributeError, zlib.error):  # of another version
        return {}


def _format(findings: Findings) -> bytes:
    rows = {name: (*first, *([measured] if measured else [])) for name, (*first, measured) in findings.items()}
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 1)


def _key(place: str) -> str:
    """Of the place, and of everything that decides what can be decoded."""
    switches = [ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS]
    facts = {"format": _FORMAT, "place": place, "decoders": _decoders(), "switches": switches}
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
