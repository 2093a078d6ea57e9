"""What crosses from the part of a module that is kept to the part that runs at every step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.surgery.fixed_values import IMAGES, Book, Call, Geometry, NotReplayable
from headstart.surgery.pairing import Pairs
from headstart.surgery.recording import Need, Obstacle, Recording

_SPLITS = "it splits the batch, so that what an image gives may depend on its place there"


@dataclass(frozen=True)
class BoundaryTensor:
    """A tensor that crosses: a content, and the part of it (None: all); ``label``: the module that made it."""

    content: int
    geometry: Any
    label: str


class Cut:
    """Chooses what crosses, from two runs in training and two in evaluation. ``decides``: nothing crosses that was made
    after Python read a number of the images, by which it may go another way for others.
    """

    def __init__(self, book: Book, pairs: Pairs, recordings: list[list[Recording]], *, decides: bool = False) -> None:
        self.book, self.pairs, self.recordings = book, pairs, recordings
        (train, train_again, *_), (judged, judged_again, *_) = recordings
        self.first = [recording for mode in recordings for recording in (mode[0], *mode[2:])]
        deciding = self.first if decides else []
        self.decided = set[int]().union(*(recording.decided for recording in deciding))
        self.deciding = dict.fromkeys(place for recording in deciding for place in recording.reads.values())
        trained = set[int]().union(*(recording.seen for recording in (train, *recordings[0][2:])))
        self.seen = trained.intersection(*(recording.seen for recording in (judged, *recordings[1][2:])))
        prints = train.prints | judged.prints
        again = train_again.prints | judged_again.prints
        both = {c: (prints[c], again[pairs.ours[c]]) for c in pairs.rows if c in prints and pairs.ours[c] in again}
        self.mixing = pairs.mixed | {content for content, rows in both.items() if _differ(*rows, book.calls[content])}
        self.mixing |= {
            content
            for content, call in book.calls.items()
            if any((ref.content, ref.geometry) in pairs.picked for ref in call.refs())
        }
        self.tainted: set[int] = set()
        for content, call in sorted(book.calls.items()):
            if content in self.mixing | self.decided or any(ref.content in self.tainted for ref in call.refs()):
                self.tainted.add(content)

    def obstacles(self) -> tuple[Obstacle, ...]:
        """The operations behind which nothing is kept, and why."""
        noted = dict.fromkeys(o for mode in self.recordings for recording in mode for o in recording.obstacles)
        made = self.book.calls
        roots = [c for c in sorted(self.mixing) if not any(ref.content in self.tainted for ref in made[c].refs())]
        mixing = [Obstacle(made[c].label, self._why_mixing(made[c])) for c in roots if self._matters(c)]
        way = "it decides by the images of a batch which way it takes"
        deciding = [Obstacle(place, way) for place in self.deciding]
        obstacles = tuple(dict.fromkeys((*deciding, *noted, *mixing)))
        return obstacles or self._find_changing()

    def _why_mixing(self, call: Call) -> str:
        return _SPLITS if self._takes_some(call) else "it mixes the images of a batch"

    def _takes_some(self, call: Call) -> bool:
        """Whether a call takes some of a batch's images and not the others."""
        for ref in call.refs():
            whole = self.book.calls[ref.content].base.geometry.size if ref.content in self.book.calls else None
            rows, rest = ref.geometry.size[:1], ref.geometry.size[1:]
            is_of_images = ref.content == IMAGES or (whole is not None and whole == (self.book.batch, *rest))
            if is_of_images and rows and rows[0] < self.book.batch:
                return True
        return False

    def _find_changing(self) -> tuple[Obstacle, ...]:
        """The first computation that differs from call to call, where something frozen follows."""
        for content, call in sorted(self.book.calls.items()):
            is_same = content in self.seen and content in self.pairs.ours
            if content in self.book.of_images - self.tainted and not is_same and self._matters(content):
                both = "in training and in evaluation" if content in self.pairs.ours else "in every call"
                return (
                    Obstacle(call.label, _SPLITS if self._takes_some(call) else f"it does not compute the same {both}"),
                )
        return ()

    def _matters(self, root: int) -> bool:
        """Whether something frozen is computed at every step because this content is."""
        behind = {root}
        if not self.book.of_images.issuperset(ref.content for ref in self.book.calls[root].refs()):
            return True
        for content, call in sorted(self.book.calls.items()):
            sources = [ref.content for ref in call.refs()]
            if behind.intersection(sources):
                behind.add(content)
                if not self.book.of_images.issuperset(sources):
                    return True
        return False

    def find_boundary_tensors(self) -> tuple[BoundaryTensor, ...]:
        """What crosses, in the order in which it is made."""
        parts: dict[int, dict[Need, None]] = {}
        waiting = [need for recording in self.first for need in recording.needs]
        done = set[Need]()
        while waiting:
            need = waiting.pop()
            if need in done or need.content not in self.book.of_images:
                continue
            done.add(need)
            if need.content == IMAGES or self._is_storable(need.content):
                parts.setdefault(need.content, {})[need] = None
            else:
                waiting += self._sources(need.content)
        self._check_reads(set(parts))
        chosen = [content for content in sorted(parts) if not self._is_cheap(content, set(parts) - {content})]
        return tuple(kept for content in chosen for kept in self._choose_views(content, list(parts[content])))

    def _check_reads(self, kept: Collection[int]) -> None:
        """Raises: NotReplayable: Python reads a value that cannot be known without the images."""
        for content, place in (
            (c, p) for mode in self.recordings for recording in mode for c, p in recording.reads.items()
        ):
            waiting = [content] if content in self.book.of_images else []
            while waiting:
                here = waiting.pop()
                if here == IMAGES:
                    raise NotReplayable(
                        f"model: {place} decides by what depends on the images of a batch before anything can be kept, "
                        "so the model does not run from a cache"
                    )
                if here not in kept or not self._is_storable(here):
                    waiting += [need.content for need in self._sources(here) if need.content in self.book.of_images]

    def _sources(self, content: int) -> list[Need]:
        call = self.book.calls[content]
        needs = [Need(ref.content, ref.geometry) for ref in call.refs()]
        if call.writes and needs:  # into a copy of all of it
            first = needs[0].content
            needs.append(Need(first, self.book.calls[first].base.geometry if first else needs[0].geometry))
        return needs

    def _is_storable(self, content: int) -> bool:
        return content in self.seen and content in self.pairs.rows and content not in self.tainted

    def _is_cheap(self, content: int, others: Collection[int]) -> bool:
        """Whether a content is made without weights from others that cross too."""
        waiting, seen = [content], {content}
        while waiting:
            source = waiting.pop()
            if source == IMAGES:
                return False
            for ref in self.book.calls[source].refs():
                if ref.content not in self.book.of_images and ref.content not in self.book.calls:
                    return False
                if ref.content not in others and ref.content not in seen:
                    seen.add(ref.content)
                    waiting.append(ref.content)
        return True

    def _choose_views(self, content: int, needs: list[Need]) -> list[BoundaryTensor]:
        """The whole of a content, or the small parts of it that are needed."""
        if content == IMAGES:
            return [BoundaryTensor(content, None, "the images")]
        call = self.book.calls[content]
        asked = {need.geometry for need in needs}
        outer = {need.geometry: None for need in needs if not asked & set(need.within)}
        parts = [self.pairs.match_rows(content, geometry) for geometry in outer]
        size = sum(_count(geometry) for geometry in outer)
        if None in parts or 2 * size > _count(call.base.geometry):
            return [BoundaryTensor(content, None, call.label)]
        return [BoundaryTensor(content, part, call.label) for part in parts]


def _count(geometry: Geometry) -> int:
    count = 1
    for side in geometry.size:
        count *= side
    return count


def _differ(ours: Tensor, theirs: Tensor, call: Call) -> bool:
    """Whether images have other numbers in another batch, beyond rounding: the other one is the batch turned around."""
    few = min(len(ours), len(theirs))
    ours, theirs = ours.flip(0)[:few], theirs[:few]
    exact = call.base.dtype in (torch.float32, torch.float64)
    near = (ours - theirs).abs() <= (1e-3 if exact else 0.05) * ours[:, :1].abs() + 1e-6
    return not bool((near | (ours.isnan() & theirs.isnan()) | (ours == theirs)).all())
