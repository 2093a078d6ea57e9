"""How people spell the names of splits: train, dev, training_set, seg_test, val2017."""

from __future__ import annotations

import re

from headstart.data.sources.source import Split

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"), "val"),
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""The words that name a split, in lower case."""
_OTHER_WORDS = (
    "set sets data dataset datasets image images img imgs pic pics picture pictures photo photos split splits folder "
    "dir seg file files subset sample samples fold jpg jpeg png crop crops cropped resized small full new the"
)
_FILLERS = frozenset(_OTHER_WORDS.split())
_GLUED = re.compile(
    r"(train|training|val|valid|validation|dev|eval|test|testing)(?:set|data|images|image|imgs|img|dir)"
)
_WORD = re.compile(r"[^\W\d_]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def read_split(name: str) -> Split | None:
    """The split that a folder or cell names, or None: ``Training_Set`` and ``seg_train`` are train, ``dev2`` is val.

    A name with another word in it (``bullet train``) is no split. ``trainval`` is train, beside a test split.
    """
    words = [word.lower() for word in _WORD.findall(_HUMP.sub(" ", name))]
    words = [glued[1] if (glued := _GLUED.fullmatch(word)) else word for word in words]
    if words in (["trainval"], ["train", "val"]):
        return "train"
    named = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    others = [word for word in words if word not in SPLIT_WORDS and word not in _FILLERS]
    return named[0] if len(named) == 1 and not others else None


def is_plain_spelling(name: str) -> bool:
    """Whether it is one of the names that need no word: train, val, test and their long forms."""
    return name.lower() in {"train", "training", "val", "valid", "validation", "test", "testing"}
