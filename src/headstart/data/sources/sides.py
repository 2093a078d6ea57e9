"""Names that a mirrored image would belie: turn left and turn right, hand_l and hand_r, a steering angle."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PAIRS = (
    ("left", "right"), ("links", "rechts"), ("linke", "rechte"), ("gauche", "droite"), ("gauche", "droit"),
    ("izquierda", "derecha"), ("izquierdo", "derecho"), ("sinistra", "destra"), ("esquerda", "direita"), ("l", "r"),
    ("lhs", "rhs"), ("lft", "rgt"), ("lt", "rt"), ("east", "west"), ("clockwise", "counterclockwise"),
    ("clockwise", "anticlockwise"), ("cw", "ccw"), ("port", "starboard"), ("os", "od"), ("←", "→"), ("<", ">"),
)  # fmt: skip
"""Words of which mirroring turns one into the other, where names differ in them alone."""
_SIDE = re.compile(r"(?:left|right)(?:s|ward|wards|hand|handed|side|turn|arm|eye|ear|foot|leg|lane|most)?")
_OTHER_RIGHT = {"wrong", "incorrect", "false"}
_ANGLES = {"steering", "steer", "yaw", "azimuth", "heading", "bearing"}
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+|[←→<>]")


def find_sides(names: Sequence[str], *, are_numbers: bool) -> tuple[str, ...]:
    """The names that say a side, so that mirrored images would have the wrong one; sorted, none where there is none.

    ``right`` beside ``wrong`` is no side; ``are_numbers``: names of targets, where an angle has a side as well.
    """
    words = {name: tuple(word.lower() for word in _WORD.findall(_HUMP.sub(" ", name))) for name in names}
    everything = {word for parts in words.values() for word in parts}
    written = set(words.values())
    found = set()
    for name, parts in words.items():
        sides = {word for word in parts if _SIDE.fullmatch(word)} - ({"right"} if everything & _OTHER_RIGHT else set())
        has_angle = are_numbers and not _ANGLES.isdisjoint(parts)
        if sides or has_angle or not written.isdisjoint(_mirror(parts)):
            found.add(name)
    return tuple(sorted(found))


def _mirror(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The name with one side's word in place of the other's, for each pair that it has a word of."""
    turns = [turn for pair in _PAIRS for turn in (pair, pair[::-1]) if turn[0] in words]
    return [tuple(there if word == here else word for word in words) for here, there in turns]
