"""What decoding changes in many pictures, and pictures that show nothing, as sentences and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headstart.data.sources.caution import Caution
from headstart.data.sources.samples import some
from headstart.wording import option

_MOST = 0.5  # of all pictures: what changes so many is a warning, what changes fewer a note
_TEXTS = {
    "opacity": (
        "a tenth of their pixels or more transparent, which become white",
        "lay them over the background that is right, and save them as RGB",
    ),
    "print": (
        "the colours of print (CMYK), and are converted without their profile, so that colours may be off",
        "convert them to RGB by a program that minds profiles, where colours matter",
    ),
    "first": ("several frames or pages, of which the first is taken", "save those that matter as images of their own"),
}
"""By the mark: what pictures have, and what to do."""
_PLAIN_ADVICE = "look at them: broken or empty pictures teach nothing; mend or remove them"


def describe_conversions(
    marks: Mapping[str, Sequence[str]], *, count: int, channels: int
) -> tuple[tuple[str, ...], tuple[Caution, ...]]:
    """Sentences on what decoding changes in some of ``count`` pictures, and warnings of what it changes in most of
    them, and of pictures of one colour.

    marks: by name (see ``decoding/marks.py``); channels: of the model, which may take the opacity as one.
    """
    notes, cautions = list[str](), list[Caution]()
    for mark, (what, advice) in _TEXTS.items():
        names = sorted(name for name, words in marks.items() if mark in words)
        if not names or (mark == "opacity" and channels not in (1, 3)):
            continue
        if mark == "opacity" and len(names) == count:
            advice += f"; opacity as a band of its own: {option('model.options', {'in_chans': 4})}"
        text = f"{len(names)} of {count} images {_have(names)} {what}, e.g. {some(names, limit=2)}"
        if len(names) >= _MOST * count:
            cautions.append(Caution(text=text, count=len(names), example=names[0], advice=advice))
        else:
            notes.append(text)
    plain = sorted(name for name, words in marks.items() if "plain" in words)
    if plain:
        text = f"{len(plain)} of {count} images {_have(plain)} one colour everywhere, e.g. {some(plain, limit=2)}"
        cautions.append(Caution(text=text, count=len(plain), example=plain[0], advice=_PLAIN_ADVICE))
    return tuple(notes), tuple(cautions)


def _have(names: Sequence[str]) -> str:
    return "have" if len(names) > 1 else "has"
