"""Which images a run was trained, validated and tested on, so that no later evaluation takes them for new ones.

Of each image the first 8 bytes of its SHA-256 are in the bundle: 8 MB for a million images. The chance that any of a
million others begins with the same bytes is 1 in 18 million. Of training images there are the fingerprints as well, 8
bytes each, by which a picture that was saved again, or resized, is recognised. Two different pictures may look as much
alike from far away, and the training images are not there to be compared: such are told, and not left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors

from headstart.data.images import Images
from headstart.data.near_copies import find_alike
from headstart.data.sources.samples import Sample, some
from headstart.data.sources.source import Record
from headstart.errors import DataError, ModelError
from headstart.storage.buffers import Buffers
from headstart.storage.tensors import make_buffers
from headstart.wording import switch

USED_IMAGES = "images.digests"
"""The bundle's file: in the format of safetensors, sorted whole numbers of 64 bits for each split."""
_DIGITS = 16  # hexadecimal ones, 8 bytes
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class UsedImages:
    """The beginnings of the SHA-256 of a run's images, by split. ``looks``: fingerprints of its training images, none
    in bundles that an earlier headstart wrote.
    """

    train: frozenset[int]
    val: frozenset[int]
    test: frozenset[int]
    looks: frozenset[int] = frozenset()

    @classmethod
    def of(cls, images: Images) -> UsedImages:
        """The images of a run's data."""
        test = images.test.samples if images.test is not None else ()
        splits = {"train": images.train.samples, "val": images.val.samples, "test": test}
        prints = (images.scan.fingerprints.get(sample.key, "") for sample in images.train.samples)
        looks = frozenset(_to_signed(text) for text in prints if text)
        return cls(
            **{name: _shorten(sample.digest for sample in samples) for name, samples in splits.items()}, looks=looks
        )

    def to_buffers(self) -> Buffers:
        """The content of the bundle's file."""
        return make_buffers({name: torch.tensor(sorted(some), dtype=torch.int64) for name, some in vars(self).items()})

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> UsedImages:
        """What ``to_buffers`` wrote.  Raises: ModelError: it is something else."""
        try:
            tensors = read_tensors(content)
            names = [name for name in ("train", "val", "test", "looks") if name != "looks" or name in tensors]
            return cls(**{name: frozenset(map(int, tensors[name].tolist())) for name in names})
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{where}: {error}; not a bundle that this headstart wrote") from error


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Images to evaluate. ``noun``: whose they are, where the run's own split was taken; ``note``: what was left out,
    or put up with, to be added to a sentence.
    """

    records: tuple[Record, ...]
    noun: str | None
    note: str


def choose_unseen(
    records: Sequence[Record], digests: Mapping[str, str], used: UsedImages, *, include_trained: bool, source: str
) -> Unseen:
    """The records, without those that the run was trained on.

    Where more than half of its own test images are among them, or else of its validation images, exactly these are
    taken. Where all of them are its test images, or all its validation images, they are taken as they were in the run,
    copies of training images included, which are counted and named. ``digests``: SHA-256 by name; ``source``: how
    messages call the whole.

    Raises: DataError: the run was trained on all of them.
    """
    short = {record.name: _shorten_one(digests[record.name]) for record in records}
    trained = [record.name for record in records if short[record.name] in used.train]
    shown = some(trained, limit=_NAMED)
    if not trained:
        return Unseen(records=tuple(records), noun=None, note=_name_validated(records, short, used))
    if include_trained or any(held.issuperset(short.values()) for held in (used.test, used.val)):
        note = f"; the run was trained on {len(trained)} of them ({shown})"
        return Unseen(records=tuple(records), noun=None, note=note)
    for noun, held in (("test", used.test - used.train), ("validation", used.val - used.train)):
        ours = tuple(record for record in records if short[record.name] in held)
        if 2 * len({short[record.name] for record in ours}) > len(held):
            validation = used.val - used.train - held
            validated = sum(digest in validation for digest in short.values())
            others = len(records) - len(ours) - len(trained) - validated
            gone = [f"{len(trained)} that it was trained on"]
            gone += [f"{validated} of its validation"] if validated else []
            gone += [f"{others} that it does not know"] if others else []
            return Unseen(records=ours, noun=noun, note=f", the run's own; left out: {', '.join(gone)}")
    left = tuple(record for record in records if short[record.name] not in used.train)
    if not left:
        raise DataError(
            f"{source}: the run was trained on all {len(records)} images that are to be evaluated, e.g. {shown}; "
            f"give images that it has not seen, or take these all the same: {switch('include_trained')}"
        )
    note = f"; left out: {len(trained)} that the run was trained on ({shown}){_name_validated(left, short, used)}"
    return Unseen(records=left, noun=None, note=note)


def _name_validated(records: Sequence[Record], short: Mapping[str, int], used: UsedImages) -> str:
    """What is said of the run's validation images among others; nothing where all are, which is its own split."""
    names = [record.name for record in records if short[record.name] in used.val - used.test]
    if not names or len(names) == len(records):
        return ""
    return f"; {len(names)} of them chose the run's epoch, as its validation images ({some(names, limit=_NAMED)})"


def find_lookalikes(
    records: Sequence[Record], prints: Mapping[str, str], digests: Mapping[str, str], used: UsedImages
) -> tuple[str, ...]:
    """The names of images that look as one that the run was trained on does, and are not the same file.

    prints, digests: fingerprint and SHA-256 by name.
    """
    others = [record.name for record in records if _shorten_one(digests[record.name]) not in used.train]
    known = {look % 2**64 for look in used.looks}
    return tuple(others[place] for place in find_alike([prints[name] for name in others], known))


def list_trained(samples: Iterable[Sample], used: UsedImages) -> list[str]:
    """The names of the images that the run was trained on."""
    return [sample.key for sample in samples if _shorten_one(sample.digest) in used.train]


def _shorten(digests: Iterable[str]) -> frozenset[int]:
    return frozenset(_shorten_one(digest) for digest in digests)


def _shorten_one(digest: str) -> int:
    """The first 8 bytes of a SHA-256 as a number that a tensor can hold."""
    return _to_signed(digest[:_DIGITS])


def _to_signed(digits: str) -> int:
    return int.from_bytes(bytes.fromhex(digits), "big", signed=True)
