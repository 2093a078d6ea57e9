"""Which images of a source a run has used: what is taken, what is left out, and how that is said."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart as hs
from headstart.data.near_copies import find_alike
from headstart.data.sources.source import Record
from headstart.data.used_images import Unseen, UsedImages, choose_unseen
from headstart.errors import DataError
from tests.data.decoding.test_likeness import draw


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
    looking = UsedImages(train=shorten("a"), val=shorten("b"), test=frozenset(), looks=frozenset({-1, 0, 2**62}))
    for images in (used(train="abcdefgh", val="ij", test="k"), used(train="a", val="b"), looking):
        content = bytes(images.to_buffers())
        assert UsedImages.from_bytes(content, where="x") == images
        assert content == bytes(UsedImages.from_bytes(content, where="x").to_buffers())


def test_a_million_images_take_eight_megabytes() -> None:
    many = UsedImages(train=frozenset(range(1_000_000)), val=frozenset(), test=frozenset())
    assert len(many.to_buffers()) < 8_001_000


LEFT_OUT = "; left out: 1 that the run was trained on "
OWN = ", the run's own; left out: "
CHOSE = "; {} of them chose the run's epoch, as its validation images ({})"
ON = "that it was trained on"


@pytest.mark.parametrize(
    ("names", "of", "wanted", "noun", "note"),
    [
        ("xyz", used(train="abc", val="de"), "xyz", None, ""),
        ("dexyz", used(train="abc", val="de"), "dexyz", None, CHOSE.format(2, "'d', 'e'")),
        ("de", used(train="abc", val="de"), "de", None, ""),  # its own split
        ("abcde", used(train="abc", val="de"), "de", "validation", f"{OWN}3 {ON}"),
        (
            "abcdefgxy", used(train="abc", val="de", test="fg"), "fg", "test",
            f"{OWN}3 {ON}, 2 of its validation, 2 that it does not know",
        ),
        ("abcdef", used(train="abc", val="def", test="ghi"), "def", "validation", f"{OWN}3 {ON}"),
        ("adefx", used(train="abc", val="defg"), "def", "validation", f"{OWN}1 {ON}, 1 that it does not know"),
        ("adx", used(train="abc", val="defg"), "dx", None, f"{LEFT_OUT}('a')" + CHOSE.format(1, "'d'")),
        ("adex", used(train="abc", val="defg"), "dex", None, f"{LEFT_OUT}('a')" + CHOSE.format(2, "'d', 'e'")),
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


def test_fingerprints_are_found_by_what_few_bits_differ() -> None:
    dice = np.random.default_rng(0)
    known = [int(value) for value in dice.integers(0, 2**64, 2000, dtype=np.uint64)]
    near = [value ^ (1 << int(dice.integers(64))) ^ (1 << int(dice.integers(64))) for value in known[:50]]
    far = [value ^ 0x5A5A_5A5A_5A5A_5A5A for value in known[:50]]
    asked = [f"{value:016x}" for value in (*near, *far)] + [""]
    assert find_alike(asked, known) == list(range(50))
    assert find_alike(asked, []) == find_alike([], known) == []


def test_copies_that_were_saved_again_are_told_with_the_score_without_them(
    settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    names = {f"{label}/{at}.png": draw(10 * number + at) for number, label in enumerate("ab") for at in range(5)}
    for name, picture in names.items():
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "old" / name)
    run = hs.train(hs.load_config(settings(data={"source": str(tmp_path / "old")}, recipe="full", epochs=1)))
    validated = {sample for sample in names if sample in (run.path / "predictions.csv").read_text()}
    trained = sorted(names.keys() - validated)
    again = {
        "a/again.jpg": names[trained[0]].resize((120, 90)),
        "a/new.jpg": draw(70),
        "b/new.jpg": draw(71),
        f"b/{Path(trained[-1]).name}": names[trained[-1]],
        f"a/val{Path(min(validated)).name}": names[min(validated)],
    }
    for name, picture in again.items():
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "new" / name)
    found = hs.evaluate(run, tmp_path / "new")
    assert f"; left out: 1 that the run was trained on ('b/{Path(trained[-1]).name}')" in found.note
    assert "; 1 of them chose the run's epoch, as its validation images" in found.note
    assert (
        "; 1 of them looks as images of its training do, perhaps resized or saved again ('a/again.jpg')" in found.note
    )
    further = {"name": str(run.path), "weights": "pretrained", "options": {}}
    split = {"source": str(tmp_path / "new"), "val": 0.9}
    plan = hs.plan(hs.load_config(settings(data=split, model=further)))
    seen = [[decision.value, decision.reason] for decision in plan.decisions if decision.name == "seen before"]
    bundle = run.path / "model"
    assert [
        "1 of 3 validation images look as images that it was trained on do",
        f"{bundle}: resized or saved again ('a/again.jpg'), they make the validation too good; remove them",
    ] in seen
    assert all(pair in [[one["value"], one["reason"]] for one in plan.document["decisions"]] for pair in seen)
    rest = [row for row, key in enumerate(found.predictions.keys) if key != "a/again.jpg"]
    right = (found.predictions.outputs[rest].argmax(1) == found.truth[rest]).double().mean()
    assert f"; without them accuracy is {right:.4g} on 3" in found.note
    assert len(found.truth) == 4
