"""Near copies in a scan: found among many, kept, joined by the split, and told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import headstart
from headstart.config.load import load_config
from headstart.config.schema import Config, Data
from headstart.data import near_copies
from headstart.data.images import Images, load_images
from headstart.data.near_copies import find_like_pairs
from headstart.data.sources import files
from headstart.models.preprocess import Preprocess
from headstart.planning.preflight import prepare
from tests.data.decoding.test_likeness import draw, encode


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def load(tmp_path: Path, preprocess: Preprocess) -> Callable[..., Images]:
    def make(*, join_near: bool = True, **data: object) -> Images:
        config = Config(data=Data(source=str(tmp_path / "data"), **data), workers=0)
        return load_images(config, preprocess, join_near=join_near)

    return make


def write(tmp_path: Path, seeds: dict[str, int], *, copies: dict[str, str]) -> None:
    """Pictures by seed, and of some of them a smaller JPEG."""
    drawn = {name: draw(seed) for name, seed in seeds.items()}
    contents = {name: encode(picture) for name, picture in drawn.items()}
    contents |= {name: encode(drawn[original].resize((100, 75)), 70) for name, original in copies.items()}
    for name, content in contents.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def flat(tmp_path: Path) -> None:
    """Two classes of eight pictures; of six of them there is a smaller JPEG."""
    seeds = {f"{label}/{place}.png": 10 * number + place for number, label in enumerate("ab") for place in range(8)}
    write(
        tmp_path, seeds, copies={f"{label}/{place}s.jpg": f"{label}/{place}.png" for label in "ab" for place in "135"}
    )


def sides(images: Images) -> dict[str, str]:
    return {sample.key: split for split in ("train", "val") for sample in getattr(images, split).samples}


def test_a_split_keeps_resized_copies_on_one_side_and_says_which_copies(load, tmp_path: Path) -> None:
    flat(tmp_path)
    for seed in range(3):
        images = load(val=0.1 * (seed + 2))
        pairs = sorted(tuple(sorted(pair)) for pair in images.scan.near_copies)
        assert pairs == sorted((f"{label}/{place}.png", f"{label}/{place}s.jpg") for label in "ab" for place in "135")
        found = sides(images)
        assert all(found[one] == found[other] for one, other in images.scan.near_copies)
    text = "; ".join(images.notes)
    assert "copies (exact, resized or re-encoded) stay on one side" in text
    assert "6 images have resized or re-encoded copies, e.g. 'a/1.png' and 'a/1s.jpg'" in text


FORMS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.generic]]] = {
    "bands_last": lambda colours: colours / 255,
    "bands_first": lambda colours: (colours.transpose(2, 0, 1) / 255).astype(np.float16),
    "bytes": lambda colours: colours.astype(np.uint8),
    "twelve_bits": lambda colours: (colours * 16).astype(np.uint16),
    "grey": lambda colours: 250 + colours[:, :, 0] / 10,
    "seven_bands": lambda colours: np.concatenate([colours, 100 * colours[:, :, ::-1], colours[:, :, :1]], axis=2),
    "holes": lambda colours: np.where(colours < 3, np.nan, colours),
}


@pytest.mark.parametrize("form", FORMS)
def test_smaller_copies_of_arrays_are_found_and_stay_on_one_side(form: str, load, tmp_path: Path, preprocess) -> None:
    """In any order of the axes, of any number of bands and any range of values."""
    for number, label in enumerate("ab"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for place in range(8):
            picture = draw(10 * number + place)
            for name, size in ((f"{place}", picture.size), *([(f"{place}s", (100, 75))] if place % 2 else [])):
                colours = np.asarray(picture.resize(size).convert("RGB"), dtype=np.float32)
                np.save(tmp_path / "data" / label / f"{name}.npy", FORMS[form](colours))
    scan = headstart.audit(tmp_path / "data")
    pairs = {tuple(sorted(pair)) for pair in scan.near_copies}
    assert pairs == {(f"{label}/{place}.npy", f"{label}/{place}s.npy") for label in "ab" for place in "1357"}
    if form != "seven_bands":  # which this model does not take
        images = load(val=0.3, axes="auto" if form != "bands_first" else "chw")
        assert all(sides(images)[one] == sides(images)[other] for one, other in images.scan.near_copies)
        assert "copies (exact, resized or re-encoded) stay on one side" in "; ".join(images.notes)


def test_smaller_copies_of_more_than_8_bits_are_found(tmp_path: Path) -> None:
    """As a TIFF, stored on its side, and as a PNG."""
    (tmp_path / "data").mkdir()
    for place in range(4):
        picture = draw(place).convert("L")
        deep = np.asarray(picture, dtype=np.uint16) * 16
        Image.fromarray(deep).save(tmp_path / "data" / f"{place}.png")
        turned = np.asarray(picture.resize((100, 75)), dtype=np.uint16).T[:, ::-1] * 16
        exif = Image.Exif()
        exif[0x0112] = 8  # turned to the left when it is shown
        Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "data" / f"{place}.tif", exif=exif)
    (tmp_path / "data.csv").write_text(
        "image,label\n" + "".join(f"data/{p.name},{p.stem}\n" for p in sorted((tmp_path / "data").iterdir()))
    )
    found = headstart.audit(tmp_path / "data.csv").near_copies
    assert found == tuple((f"data/{place}.png", f"data/{place}.tif") for place in range(4))


@pytest.mark.parametrize(
    ("sides_of", "said"),
    [
        ((20,), "copies (exact ones alone: all images are too small or too plain to tell resized ones by) stay"),
        (
            (20, 60),
            "copies (exact, resized or re-encoded; of 8 images too small or too plain to tell by exact ones alone)",
        ),
    ],
)
def test_it_is_said_of_which_images_exact_copies_alone_are_looked_for(sides_of, said: str, load, tmp_path) -> None:
    for place in range(8):
        for number, label in enumerate("ab"):
            path = tmp_path / "data" / label / f"{place}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            side = sides_of[number % len(sides_of)]
            np.save(path, np.asarray(draw(10 * number + place).convert("L").resize((side, side))))
    assert said in "; ".join(load(val=0.3).notes)


def test_a_run_from_before_keeps_its_split(load, tmp_path: Path) -> None:
    flat(tmp_path)
    before, now = load(join_near=False, val=0.3), load(val=0.3)
    assert any(sides(before)[one] != sides(before)[other] for one, other in before.scan.near_copies)
    assert sides(before) != sides(now)
    assert "copies (exact ones) stay on one side" in "; ".join(before.notes)


def test_a_resume_makes_the_split_that_the_run_began_with(tmp_path: Path) -> None:
    flat(tmp_path)
    config = load_config(
        {
            "data": {"source": str(tmp_path / "data"), "val": 0.3},
            "model": {"name": "timm/resnet18", "weights": "none", "options": {"channels": [8] * 4}, "image_size": 32},
            "epochs": 1, "device": "cpu", "precision": "fp32", "memory_format": "contiguous", "compile": "never",
        }
    )  # fmt: skip
    new = prepare(config, module=None, loss=None, emit=lambda _: None)
    choices = {name: choice for name, choice in new.document["choices"].items() if name != "join_near_copies"}
    assert choices != new.document["choices"]
    old = prepare(config, module=None, loss=None, emit=lambda _: None, recorded=choices)
    again = prepare(config, module=None, loss=None, emit=lambda _: None, recorded=new.document["choices"])
    assert sides(old.images) != sides(new.images) == sides(again.images)
    assert again.document["data"]["digest"] == new.document["data"]["digest"]
    assert old.document["choices"]["join_near_copies"] is False


def test_copies_across_given_splits_are_counted_and_named_and_stay(load, tmp_path: Path) -> None:
    seeds = {
        f"{split}/{label}/{at}.png": 100 * at + 10 * (split == "val") + (label == "b")
        for split in ("train", "val")
        for label in "ab"
        for at in range(3)
    }
    write(tmp_path, seeds, copies={"val/a/old.jpg": "train/a/0.png", "val/b/old.jpg": "train/b/2.png"})
    images = load()
    assert {key: side for key, side in sides(images).items() if "old" in key} == dict.fromkeys(
        ("val/a/old.jpg", "val/b/old.jpg"), "val"
    )
    (note,) = [note for note in images.notes if "resized" in note]
    assert note == (
        "2 images are in both train and val (resized or re-encoded copies, e.g. "
        f"{images.scan.near_copies[0][0]!r} and {images.scan.near_copies[0][1]!r})"
    )


def test_copies_with_different_labels_are_shown_with_both(load, tmp_path: Path) -> None:
    write(
        tmp_path,
        {f"{label}/{at}.png": 10 * (label == "b") + at for label in "ab" for at in range(4)},
        copies={"a/x.jpg": "a/1.png", "b/x.jpg": "a/1.png"},
    )
    (note,) = [note for note in load().notes if "different labels" in note]
    assert note == "1 image has copies with different labels, e.g. 'a/1.png' is 'a' and 'b/x.jpg' is 'b'"


def test_what_was_compared_is_kept_and_not_read_again(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat(tmp_path)
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**12))
    first = load().scan
    monkeypatch.setattr(near_copies, "sketch_image", lambda *_, **__: pytest.fail("it was compared before"))
    second = load().scan
    assert replace(second, known=0) == first


def test_pairs_are_found_among_very_many_and_very_alike(load) -> None:
    rng = random.Random(0)
    texts = [f"{rng.getrandbits(64):016x}" for _ in range(20_000)]
    wanted = []
    for at in range(0, 2000, 20):
        bits = rng.sample(range(48), 5)  # one band of 16 bits stays
        texts.append(f"{int(texts[at], 16) ^ sum(1 << bit for bit in bits):016x}")
        wanted.append((at, len(texts) - 1))
    assert set(wanted) <= set(find_like_pairs(texts))
    assert len(find_like_pairs(["0123456789abcdef"] * 3000)) == 12_000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 3, 255, 2**63, 2**64 - 1, 0x5555555555555555]), max_size=12))
def test_pairs_are_those_of_a_search_through_all(values: list[int]) -> None:
    texts = [f"{value:016x}" if value != 1 else "" for value in values]
    among = [(at, later) for at in range(len(values)) for later in range(at + 1, len(values))]
    close = [
        (at, later)
        for at, later in among
        if texts[at] and texts[later] and (values[at] ^ values[later]).bit_count() <= 8
    ]
    found = find_like_pairs(texts)
    assert set(found) <= set(close)
    if len(close) <= 4 * sum(map(bool, texts)):
        assert set(found) == set(close)
