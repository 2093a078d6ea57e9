"""The bytes that are read are those that were scanned: a file that was rewritten in between is an error, or a note."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headstart.config.schema import Config, Data
from headstart.data.decoding.decoded_cache import Decoded, open_decoded_cache
from headstart.data.images import Images, load_images, open_images
from headstart.data.loader import Batches
from headstart.data.reading import ChangedImage
from headstart.data.sources import files
from headstart.storage.disk_cache import DiskCache


@pytest.fixture
def root(folders) -> Path:
    return folders({"train/a": 5, "train/b": 4, "val/a": 3, "val/b": 2})


@pytest.fixture
def images(root: Path, preprocess) -> Images:
    return open_images(root, like=preprocess, batch_size=4)


@pytest.fixture
def noting(root: Path, preprocess) -> Images:
    return load_images(Config(data=Data(source=str(root), changed="note"), workers=0), preprocess)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as untouched for long: their stamps prove something."""
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**12))


@pytest.fixture
def rewrite(draw) -> Callable[[Batches, int], Path]:
    """Puts another picture where the sample at this place is."""
    return lambda batches, place: draw(file_of(batches, place), seed=99)


def file_of(batches: Batches, place: int) -> Path:
    return batches.source.paths[batches.samples[place].key]


def of_kept(batches: Batches, decoded: Decoded) -> Batches:
    return replace(batches, dataset=replace(batches.images, decoded=decoded))


def pixels(batches: Batches, epoch: int = 0) -> torch.Tensor:
    return torch.cat([batch.pixels for batch in batches.epoch(epoch)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_rewritten_file_ends_the_epoch_and_is_named(images: Images, rewrite, split: str, workers: int) -> None:
    batches = getattr(images, split)
    before = hashlib.sha256(file_of(batches, 3).read_bytes()).hexdigest()
    after = hashlib.sha256(rewrite(batches, 3).read_bytes()).hexdigest()
    with pytest.raises(ChangedImage) as caught:
        pixels(replace(batches, workers=workers))
    assert caught.value.exit_code == 1
    for words in (str(file_of(batches, 3)), before[:16], after[:16], "--resume"):
        assert words in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.usefixtures("settled")
def test_a_file_of_the_same_size_and_time_is_noticed(images: Images) -> None:
    path = file_of(images.train, 2)
    content, times = path.read_bytes(), path.stat()
    pixels(images.train)
    path.write_bytes(content[:-20] + b"\0" + content[-19:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ChangedImage, match=path.name):
        pixels(images.train)


@pytest.mark.usefixtures("settled")
def test_a_file_that_was_written_again_with_the_same_bytes_is_the_same(images: Images) -> None:
    wanted = pixels(images.train)
    path = file_of(images.train, 2)
    path.write_bytes(path.read_bytes())
    path.touch()
    assert torch.equal(pixels(images.train), wanted)


@pytest.mark.usefixtures("settled")
def test_the_stamp_spares_the_digest_in_training_and_not_where_pixels_are_kept(images: Images, tmp_path: Path) -> None:
    samples = tuple(
        replace(sample, record=replace(sample.record, digest="0" * 64)) for sample in images.train.samples
    )  # told apart by digests only
    assert all(sample.stamp for sample in samples)
    wrong = images.train.with_samples(samples)
    assert torch.equal(pixels(wrong), pixels(images.train))
    with pytest.raises(ChangedImage):
        list(wrong.pad_batches([[0, 1]], epoch=0))
    shelf = DiskCache(tmp_path / "shelf", limit_bytes=10**9)
    kept = open_decoded_cache(Decoded(transform=wrong.images.transform), samples, shelf, about="t")
    with pytest.raises(ChangedImage):
        pixels(of_kept(wrong, kept))


def test_a_file_written_just_before_the_scan_has_no_stamp(images: Images) -> None:
    assert {sample.stamp for sample in images.train.samples} == {()}


@pytest.mark.parametrize("workers", [0, 2])
def test_noted_files_are_used_as_they_are_and_told_once(noting: Images, rewrite, workers: int) -> None:
    train, wanted = replace(noting.train, workers=workers), pixels(noting.val)
    path = rewrite(noting.val, 1)
    found = pixels(replace(noting.val, workers=workers))
    differ = [place for place in range(5) if not torch.equal(found[place], wanted[place])]
    assert differ == [1]
    pixels(noting.val)
    pixels(train)
    (told,) = noting.train.images.changed.news()
    assert str(path) in told
    assert noting.train.images.changed.news() == []


def test_noted_files_are_not_kept_among_decoded_images(noting: Images, rewrite, tmp_path: Path) -> None:
    shelf = DiskCache(tmp_path / "shelf", limit_bytes=10**9)
    kept = open_decoded_cache(Decoded(transform=noting.val.images.transform), noting.val.samples, shelf, about="t")
    path, wanted = file_of(noting.val, 1), pixels(noting.val)
    content = path.read_bytes()
    rewrite(noting.val, 1)
    assert not torch.equal(pixels(of_kept(noting.val, kept)), wanted)
    path.write_bytes(content)
    assert torch.equal(pixels(of_kept(noting.val, kept)), wanted)


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_file_that_can_no_longer_be_read_ends_the_run_whatever_was_asked(noting: Images, content) -> None:
    path = file_of(noting.val, 1)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ChangedImage, match=r"and it could be read when the run began; put the file back"):
        pixels(noting.val)
