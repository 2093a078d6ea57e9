"""What decoding changes in many pictures, and pictures that show nothing, as sentences and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headstart.data.sources.caution import Caution
from headstart.data.sources.samples import some
from headstart.models.preprocess import Preprocess
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
    "gaps": (
        "a tenth of their pixels or more that are no numbers (NaN, which becomes black) or infinite (black or white)",
        "fill them in where that is not right",
    ),
    "first": ("several frames or pages, of which the first is taken", "save those that matter as images of their own"),
    "long": (
        "sides of 4 to 1 or more, so that the model, which is shown the centre, sees a quarter of them or less",
        "cut them to what matters, or into pieces",
    ),
}
"""What pictures have that decoding marks so, and what to do about it, by the mark."""
_PLAIN_ADVICE = "look at them: broken or empty pictures teach nothing; mend or remove them"


def describe_conversions(
    marks: Mapping[str, Sequence[str]], *, count: int, preprocess: Preprocess
) -> tuple[tuple[str, ...], tuple[Caution, ...]]:
    """Sentences on what decoding changes in some of ``count`` pictures, and warnings of what it changes in most of
    them, and of pictures of one colour.

    marks: by name (see ``decoding/marks.py``); preprocess: of the model, which may take the opacity as a band.
    """
    notes, cautions = list[str](), list[Caution]()
    for mark, (what, advice) in _TEXTS.items():
        names = sorted(name for name, words in marks.items() if mark in words)
        if not names or mark in _list_harmless(preprocess):
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


def _list_harmless(form: Preprocess) -> list[str]:
    """Marks of what this model is shown all the same."""
    is_square_centre = form.crop_mode == "center" and form.height == form.width
    return ["opacity"] * (form.channels not in (1, 3)) + ["long"] * (not is_square_centre)


def _have(names: Sequence[str]) -> str:
    return "have" if len(names) > 1 else "has"
