"""Cutting a model into stages: the pieces that its author strung together, in order of execution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

_WHOLE_MODEL = 0.8  # a container with this share of the layers is the model in other words: its children are the stages
_TORN = 0.5  # a container between whose layers this many others execute, as a share of its own, is no piece


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stage by name, with the units (leaf modules, bare tensors) in it."""

    name: str
    units: tuple[str, ...]


def cut_stages(units: Sequence[str], *, weighty: Mapping[str, bool], heads: Sequence[str]) -> tuple[Cut, ...]:
    """Stages of ``units`` (names in order of execution, the head's left out).

    ``weighty``: per unit, whether it is a layer that can start a stage; a norm, an activation with weights or a bare
    tensor is not: it belongs to the stage before, or to the first one. A container is no stage when it holds a head
    or most of the model, or when many layers of others execute between its own; few are taken into the stage.
    """
    opened = _open_containers(units, [unit for unit in units if weighty[unit]], heads)
    pieces = [next(path for path in _ancestors(unit) if path not in opened or path == unit) for unit in units]
    ends = {piece: index for index, piece in enumerate(pieces) if weighty[units[index]]}
    nexts, following = [""] * len(units), ""
    for index in reversed(range(len(units))):
        following = pieces[index] if weighty[units[index]] else following
        nexts[index] = following  # the piece of the next layer
    cuts, early, end = list[tuple[str, list[str]]](), list[str](), -1
    for index, (unit, piece) in enumerate(zip(units, pieces, strict=True)):
        if cuts and (index <= end or nexts[index] != piece):
            cuts[-1][1].append(unit)
        elif nexts[index] != piece:
            early.append(unit)
        else:
            cuts.append((piece, [*early, unit]))
            early, end = [], ends[piece]
    if early:
        cuts.append((early[0], early))
    return tuple(Cut(name=name, units=tuple(members)) for name, members in cuts)


def _open_containers(units: Sequence[str], layers: Sequence[str], heads: Sequence[str]) -> set[str]:
    """The containers that are no stages themselves."""
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for position, layer in enumerate(layers):
        for path in _ancestors(layer):
            positions[path].append(position)
    opened = {path for head in heads for path in _ancestors(head) if path != head}
    for path, own in positions.items():
        others = own[-1] - own[0] + 1 - len(own)
        if others >= _TORN * len(own):
            opened.add(path)
    return opened | _most(units)


def _most(units: Collection[str]) -> set[str]:
    counts: defaultdict[str, int] = defaultdict(int)
    for unit in units:
        for path in _ancestors(unit):
            counts[path] += 1
    return {path for path, count in counts.items() if count >= _WHOLE_MODEL * len(units)}


def _ancestors(path: str) -> list[str]:
    """Every container of ``path`` from the outermost, and ``path`` itself."""
    names = path.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names) + 1)]
