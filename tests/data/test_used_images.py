"""Which images of a source a run has used: what is taken, what is left out, and how that is said."""

import hashlib
from collections.abc import Mapping

import pytest

from headstart.data.sources.source import Record
from headstart.data.used_images import Unseen, UsedImages, choose_unseen
from headstart.errors import DataError


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def shorten(names: str) -> frozenset[int]:
    return frozenset(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True) for name in names)


def used(*, train: str, val: str, test: str = "") -> UsedImages:
    return UsedImages(train=shorten(train), val=shorten(val), test=shorten(test))


def choose(names: str | Mapping[str, str], of: UsedImages, *, include_trained: bool = False) -> Unseen:
    """``names``: of the images, each with what is in its file where that is not the name."""
    contents = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    digests = {name: digest(content) for name, content in contents.items()}
    records = [Record(name=name) for name in contents]
    return choose_unseen(records, digests, of, include_trained=include_trained, source="photos")


def taken(chosen: Unseen) -> str:
    return "".join(record.name for record in chosen.records)


def test_a_file_of_digests_is_read_as_it_was_written() -> None:
    for images in (used(train="abcdefgh", val="ij", test="k"), used(train="a", val="b")):
        content = bytes(images.to_buffers())
        assert UsedImages.from_bytes(content, where="x") == images
        assert content == bytes(UsedImages.from_bytes(content, where="x").to_buffers())


def test_a_million_images_take_eight_megabytes() -> None:
    many = UsedImages(train=frozenset(range(1_000_000)), val=frozenset(), test=frozenset())
    assert len(many.to_buffers()) < 8_001_000


LEFT_OUT = "; left out: 1 that the run was trained on "
OWN = ", the run's own; left out: "
ON = "that it was trained on"


@pytest.mark.parametrize(
    ("names", "of", "wanted", "noun", "note"),
    [
        ("xyz", used(train="abc", val="de"), "xyz", None, ""),
        ("dexyz", used(train="abc", val="de"), "dexyz", None, ""),
        ("abcde", used(train="abc", val="de"), "de", "validation", f"{OWN}3 {ON}"),
        (
            "abcdefgxy", used(train="abc", val="de", test="fg"), "fg", "test",
            f"{OWN}3 {ON}, 2 of its validation, 2 that it does not know",
        ),
        ("abcdef", used(train="abc", val="def", test="ghi"), "def", "validation", f"{OWN}3 {ON}"),
        ("adefx", used(train="abc", val="defg"), "def", "validation", f"{OWN}1 {ON}, 1 that it does not know"),
        ("adx", used(train="abc", val="defg"), "dx", None, f"{LEFT_OUT}('a')"),
        ("adex", used(train="abc", val="defg"), "dex", None, f"{LEFT_OUT}('a')"),
        ({"p": "a", "q": "x"}, used(train="a", val="b"), "q", None, f"{LEFT_OUT}('p')"),
        # copies on both sides of a split that was given
        ("cde", used(train="abc", val="cde"), "cde", None, "; the run was trained on 1 of them ('c')"),
        ("acdef", used(train="abc", val="cdef"), "def", "validation", f"{OWN}2 {ON}"),
    ],
)  # fmt: skip
def test_what_is_evaluated_and_what_is_said(names, of: UsedImages, wanted: str, noun: str | None, note: str) -> None:
    found = choose(names, of)
    assert (taken(found), found.noun, found.note) == (wanted, noun, note)


def test_all_are_taken_where_that_is_asked_for_and_it_is_said() -> None:
    found = choose("abcde", used(train="abcd", val="e"), include_trained=True)
    assert (taken(found), found.noun) == ("abcde", None)
    assert found.note == "; the run was trained on 4 of them ('a', 'b', 'c' and 1 more)"
    with pytest.raises(DataError, match=r"photos: the run was trained on all 2 images that are to be evaluated, e\.g"):
        choose("ab", used(train="abcd", val="e"))
