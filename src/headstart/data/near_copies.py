"""Pairs of images that are one picture, resized or saved again: found by fingerprints, then compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headstart.data.decoding.decode import UnreadableImage
from headstart.data.decoding.interruptible import map_in_threads
from headstart.data.decoding.likeness import FINGERPRINT_BITS, Sketch, show_one_picture, sketch_image
from headstart.data.sources.source import Record, Source, read_content
from headstart.distributed.collectives import all_gather_object
from headstart.distributed.processes import current

Verdicts = Mapping[str, bool]
"""Whether two contents show one picture, by the beginnings of both SHA-256."""
Pair = tuple[Record, ...]
"""Two records."""

_BANDS, _BAND_BITS = 4, FINGERPRINT_BITS // 4
_MOST_BITS = 8  # that may differ
_PLACE_BITS = 29  # of an image's place among all
_NEIGHBOURS = 500  # that an image is held against where many begin with the same band
_AT_ONCE = 2000  # images of which a sketch is held in memory: 20 kB each
_KEY_DIGITS = 16
_PAIRS_PER_IMAGE = 4  # that are compared where many look alike, as the frames of a camera that stands still


def find_near_copies(
    source: Source, contents: Mapping[str, tuple[Record, str]], *, verdicts: Verdicts, threads: int
) -> tuple[tuple[Pair, ...], dict[str, bool]]:
    """Pairs of records that show one picture, and what was compared for that beside the ``verdicts`` of earlier scans.
    Of several processes each compares its part, and each gets the whole result.

    contents: by SHA-256, a record and its fingerprint.
    """
    ours, digests = current(), list(contents)
    close = find_like_pairs([fingerprint for _, fingerprint in contents.values()])
    pairs = [tuple(replace(contents[digests[at]][0], digest=digests[at]) for at in places) for places in close]
    part = pairs[ours.rank :: ours.world_size]
    decided = {key: verdicts[key] for key in map(_key, part) if key in verdicts}
    decided |= _compare_all(source, [pair for pair in part if _key(pair) not in decided], threads=threads)
    everywhere = {key: verdict for some in all_gather_object(decided) for key, verdict in some.items()}
    copies = tuple(pair for pair in pairs if everywhere.get(_key(pair), False))
    return copies, {key: verdict for key, verdict in everywhere.items() if key not in verdicts}


def _key(pair: Pair) -> str:
    return "".join(sorted(record.digest[:_KEY_DIGITS] for record in pair))


def _compare_all(source: Source, pairs: Sequence[Pair], *, threads: int) -> dict[str, bool]:
    """Whether the two of each pair show one picture, by key; an image that can no longer be read is like no other."""
    verdicts: dict[str, bool] = {}
    rest = list(pairs)
    while rest:
        needed: dict[str, Record] = {}
        count = 0
        while count < len(rest) and len(needed) < _AT_ONCE:
            needed |= {record.name: record for record in rest[count]}
            count += 1
        sketching = map_in_threads(partial(_sketch, source), list(needed.values()), threads=threads)
        with closing(sketching) as made:
            sketches = dict(zip(needed, made, strict=True))
        for pair in rest[:count]:
            one, other = (sketches[record.name] for record in pair)
            if one is not None and other is not None:
                verdicts[_key(pair)] = show_one_picture(one, other)
        rest = rest[count:]
    return verdicts


def _sketch(source: Source, record: Record) -> Sketch | None:
    try:
        return sketch_image(read_content(source, record)[0], where=source.where(record))
    except UnreadableImage:
        return None


def find_like_pairs(fingerprints: Sequence[str]) -> list[tuple[int, int]]:
    """Places of images whose fingerprints differ in at most 8 of 64 bits, the likest first; none of an empty one.

    Images that share one of the four bands of 16 bits are held against one another: sorted, so that a million take
    seconds. 98 to 100 % of the pairs with at most 8 bits share one. Of very many pairs the likest are taken, four times
    as many as there are images.
    """
    places = np.asarray([place for place, text in enumerate(fingerprints) if text], dtype=np.int64)
    values = np.asarray([int(text, 16) for text in fingerprints if text], dtype=np.uint64)
    most = _PAIRS_PER_IMAGE * len(values)
    found = [np.zeros(0, dtype=np.int64)]
    for band in range(_BANDS):
        found += _hold_against(_turn(values, band), most=most)
    numbers = np.unique(np.concatenate(found))[:most]
    low = (1 << _PLACE_BITS) - 1
    return [(int(places[number >> _PLACE_BITS & low]), int(places[number & low])) for number in numbers]


def find_alike(fingerprints: Sequence[str], known: Collection[int]) -> list[int]:
    """Places of those that differ from one of the ``known`` fingerprints, numbers of 64 bits, in at most 8 of them."""
    numbers, found = np.fromiter(known, dtype=np.uint64, count=len(known)), set[int]()
    asked = {place: np.uint64(int(text, 16)) for place, text in enumerate(fingerprints) if text}
    for band in range(_BANDS):
        ordered = np.sort(_turn(numbers, band))
        for place in asked.keys() - found:
            (value,) = _turn(np.array([asked[place]]), band)
            at = int(np.searchsorted(ordered, value))
            beside = ordered[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS]
            if len(beside) and np.bitwise_count(beside ^ value).min() <= _MOST_BITS:
                found.add(place)
    return sorted(found)


def _turn(values: NDArray[np.uint64], band: int) -> NDArray[np.uint64]:
    """The values with another of the bands of 16 bits first."""
    return np.roll(values.view(np.uint8).reshape(-1, 8), 2 * band, axis=1).reshape(-1).view(np.uint64)


def _hold_against(values: NDArray[np.uint64], *, most: int) -> Iterator[NDArray[np.int64]]:
    """Pairs of values that agree in their first 16 bits, and in most others. A pair is a number: how many bits differ,
    one place, a later one.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    band, left, count = ordered >> np.uint64(FINGERPRINT_BITS - _BAND_BITS), np.arange(len(values)), 0
    for distance in range(1, _NEIGHBOURS + 1):
        left = left[left + distance < len(values)]
        left = left[band[left] == band[left + distance]]
        if not len(left) or count > most:
            return
        bits = np.bitwise_count(ordered[left] ^ ordered[left + distance]).astype(np.int64)
        near = bits <= _MOST_BITS
        one, other = order[left[near]], order[left[near] + distance]
        count += len(one)
        yield (bits[near] << 2 * _PLACE_BITS) | (np.minimum(one, other) << _PLACE_BITS) | np.maximum(one, other)
