from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headstart.config.schema import Augment, Cache, Config, Data
from headstart.config.schema import Batch as BatchOptions
from headstart.data.batch import Batch
from headstart.data.collate import pad_rows
from headstart.data.decoding.decode import UnreadableImage
from headstart.data.images import Images, audit, image_batches, load_images, open_images
from headstart.data.loader import Batches
from headstart.data.reading import ChangedImage
from headstart.distributed.processes import Processes
from headstart.errors import DataError
from headstart.tasks.task import TaskSpec

CPU = torch.device("cpu")


@pytest.fixture
def images(folders, preprocess) -> Images:
    root = folders({"train/a": 5, "train/b": 4, "val/a": 3, "val/b": 2})
    return open_images(root, like=preprocess, batch_size=4, augment="strong")


def by_key(batches: list[Batch]) -> dict[str, Tensor]:
    return {key: batch.pixels[place] for batch in batches for place, key in enumerate(batch.keys)}


def augmented(batches: Batches, **changes) -> Batches:
    images = batches.images
    return replace(batches, dataset=replace(images, augmentation=replace(images.augmentation, **changes)))


def on_device(batches: Batches) -> Batches:
    return replace(batches, dataset=replace(batches.images, augment_on_device=True))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [batch.keys for batch in ours] == [batch.keys for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.indices, other.indices)


def test_pixels_do_not_depend_on_the_workers(images: Images) -> None:
    alone = list(images.train.epoch(3))
    assert_same(list(replace(images.train, workers=2).epoch(3)), alone)


def test_starting_at_a_batch_equals_skipping_to_it(images: Images) -> None:
    mixed = replace(augmented(images.train, mixup=0.4, cutmix=1.0), batch_size=2)
    everything = list(mixed.epoch(2))
    for first in range(len(mixed) + 1):
        assert_same(list(mixed.epoch(2, first=first)), everything[first:])


def test_an_image_is_changed_by_its_index_and_epoch_not_by_its_batch(images: Images) -> None:
    together, apart = by_key(list(images.train.epoch(0))), by_key(list(replace(images.train, batch_size=3).epoch(0)))
    assert together.keys() == apart.keys()
    assert all(torch.equal(together[key], apart[key]) for key in together)
    fewer = by_key(list(images.train.with_samples(images.train.samples[2:]).epoch(0)))
    assert all(torch.equal(together[key], fewer[key]) for key in fewer)
    later = by_key(list(images.train.epoch(1)))
    assert not any(torch.equal(together[key], later[key]) for key in together)


@pytest.mark.parametrize("workers", [0, 2])
def test_alternating_mirrors_each_image_in_every_other_epoch(folders, preprocess, workers: int) -> None:
    root = folders({"train/a": 20, "train/b": 20, "val/a": 3, "val/b": 2})
    config = Config(data=Data(source=str(root)), augment=Augment(preset="none", flip="alternating"), workers=workers)
    train = load_images(config, preprocess).train
    plain = by_key(list(augmented(train, alternating=False).epoch(0)))
    epochs = [by_key(list(train.epoch(epoch))) for epoch in range(3)]
    first = {key: torch.equal(epochs[0][key], plain[key].flip(-1)) for key in plain}
    assert 8 < sum(first.values()) < 32  # of 40, by chance
    for epoch, found in enumerate(epochs):
        for key, pixels in found.items():
            mirrored = first[key] != (epoch % 2 == 1)
            assert torch.equal(pixels, plain[key].flip(-1) if mirrored else plain[key])


def test_batches_leave_torchs_generator_alone(images: Images) -> None:
    before = torch.default_generator.get_state()
    for workers in (0, 1):
        list(replace(images.train, workers=workers).epoch(0))
    assert torch.equal(torch.default_generator.get_state(), before)


def test_training_batches_do_not_depend_on_torchs_generator(images: Images) -> None:
    torch.manual_seed(1)
    first = list(images.train.epoch(0))
    torch.manual_seed(2)
    assert_same(list(images.train.epoch(0)), first)


def test_a_last_training_batch_of_one_is_merged(images: Images) -> None:
    assert [batch.size for batch in images.train.epoch(0)] == [4, 5]
    assert len(images.train) == 2


@pytest.mark.parametrize(("size", "sizes"), [(3, [3, 3, 3]), (2, [2, 2, 2, 3]), (7, [7, 2]), (16, [9]), (1, [1] * 9)])
def test_training_sees_every_image_once_and_keeps_the_remainder(images: Images, size: int, sizes: list[int]) -> None:
    batches = list(replace(images.train, batch_size=size).epoch(5))
    assert [len(batch.pixels) for batch in batches] == sizes
    assert len(replace(images.train, batch_size=size)) == len(sizes)
    assert sorted(key for batch in batches for key in batch.keys) == [sample.key for sample in images.train.samples]


def test_padding_keeps_the_order_in_memory() -> None:
    rows = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
    padded = pad_rows(rows, 5)
    assert padded.stride() == torch.empty(5, 4, 5, 3).permute(0, 3, 1, 2).stride()
    assert torch.equal(padded, torch.cat([rows, torch.zeros(3, 3, 4, 5)]))


def test_evaluation_is_in_order_and_padded_with_zeros(images: Images) -> None:
    first, last = images.val.epoch(0)
    assert len(images.val) == 2
    assert first.keys + last.keys == tuple(sample.key for sample in images.val.samples)
    assert (first.size, last.size) == (4, 1)
    assert last.pixels.shape == first.pixels.shape == (4, 3, 32, 32)
    assert last.targets.shape == (4,)
    assert not last.pixels[1:].any()
    assert last.indices.tolist() == [images.val.samples[4].index, -1, -1, -1]
    assert_same(list(images.val.epoch(7)), [first, last])


def test_targets_belong_to_their_images(images: Images) -> None:
    for part in (images.train, images.val):
        for batch in part.epoch(0):
            names = [images.classes[int(target)] for target in batch.targets[: batch.size]]
            assert names == [key.split("/")[1] for key in batch.keys]
            assert batch.targets.dtype == torch.int64


def test_inputs_are_normalised(images: Images, preprocess) -> None:
    batch = next(iter(images.val.epoch(0)))
    inputs = batch.inputs(CPU, torch.channels_last)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    torch.testing.assert_close(inputs[0], (batch.pixels[0].double() / 255 - mean).float() / std)
    assert batch.pixels.dtype == torch.uint8


def test_mixed_batches_have_soft_targets_of_sum_one(folders, preprocess) -> None:
    root = folders({"train/a": 5, "train/b": 4, "val/a": 3, "val/b": 2})
    config = Config(
        data=Data(source=str(root)), augment=Augment(mixup=0.3, cutmix=1.0), batch=BatchOptions(size=3), workers=0
    )
    images = load_images(config, preprocess)
    for batch in images.train.epoch(0):
        assert batch.targets.shape == (3, 2)
        torch.testing.assert_close(batch.targets.sum(1), torch.ones(3))
        assert batch.inputs(CPU, torch.contiguous_format).isfinite().all()
    assert next(iter(images.val.epoch(0))).targets.dtype == torch.int64


def test_numbers_come_standardised_and_tags_as_zeros_and_ones(table, load) -> None:
    numbers = load(table("f,x\n" + "".join(f"i{n}.png,{n}.5\n" for n in range(6))))
    batch = next(iter(numbers.val.epoch(0)))
    truth = torch.tensor([sample.target for sample in numbers.val.samples])
    torch.testing.assert_close(numbers.task.original(batch.targets[: batch.size]), truth)
    tags = load(table("f,x,y\n" + "".join(f"i{n}.png,{n % 2},{n // 3}\n" for n in range(6))))
    batch = next(iter(tags.val.epoch(0)))
    assert (batch.targets.dtype, batch.targets.shape[1]) == (torch.float32, 2)
    assert tags.val.class_counts().keys() == {"x", "y"}
    assert set(batch.targets.unique().tolist()) <= {0.0, 1.0}


def test_one_channel_models_get_grey_pictures(folders, preprocess) -> None:
    grey = replace(preprocess, mean=(0.5,), std=(0.5,))
    images = open_images(folders({"a": 4, "b": 4}), like=grey, batch_size=4, augment="standard")
    batch = next(iter(images.train.epoch(0)))
    assert batch.pixels.shape == (4, 1, 32, 32)
    assert batch.inputs(CPU, torch.contiguous_format).shape == (4, 1, 32, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_later_is_named_whatever_the_workers(images: Images, workers: int) -> None:
    file_of(images.train, 4).write_bytes(b"")
    with pytest.raises(ChangedImage, match="the file is empty, and it could be read when the run began") as caught:
        list(replace(images.train, workers=workers).epoch(0))
    assert caught.value.path == file_of(images.train, 4)


def test_class_counts_are_in_output_order(images: Images) -> None:
    assert list(images.train.class_counts().items()) == [("a", 5), ("b", 4)]


def test_the_batch_size_follows_the_number_of_images_when_it_is_auto(folders, preprocess) -> None:
    config = Config(data=Data(source=str(folders({"a": 70, "b": 70}))), workers=0)
    assert load_images(config, preprocess).train.batch_size == 8


def file_of(batches: Batches, place: int) -> Path:
    return batches.source.paths[batches.samples[place].key]


def classify() -> TaskSpec:
    return TaskSpec(kind="classify", classes=("a", "b"))


def test_prediction_takes_files_and_folders_in_the_given_order(folders, preprocess, draw, tmp_path: Path) -> None:
    root = folders({"a": 2, "b": 1})
    single = draw(tmp_path / "z.png", seed=5)
    batches: Batches = image_batches([single, root], preprocess=preprocess, task=classify(), batch_size=3)
    read = list(batches.epoch(0))
    assert [key for batch in read for key in batch.keys] == [
        str(single),
        *(f"{root}/{name}" for name in ("a/000.png", "a/001.png", "b/000.png")),
    ]
    assert [batch.pixels.shape[0] for batch in read] == [3, 3]
    assert (read[0].targets.shape, read[0].targets.dtype) == ((0,), torch.int64)


def test_prediction_and_validation_see_the_same_pixels(images: Images, preprocess) -> None:
    paths = [images.val.source.paths[sample.key] for sample in images.val.samples]
    predicted = image_batches(paths, preprocess=preprocess, task=images.task, batch_size=4)
    for one, other in zip(predicted.epoch(0), images.val.epoch(0), strict=True):
        assert torch.equal(one.pixels, other.pixels)


def test_prediction_names_what_is_missing_empty_or_unreadable(preprocess, tmp_path: Path) -> None:
    options = {"preprocess": preprocess, "task": classify(), "batch_size": 2}
    with pytest.raises(DataError, match=r"none\.png: there is no such file or folder"):
        image_batches([tmp_path / "none.png"], **options)
    with pytest.raises(DataError, match="no images in"):
        image_batches([tmp_path], **options)
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UnreadableImage, match=r"a\.png: it is not an image of a known format"):
        list(image_batches([tmp_path], **options).epoch(0))


def test_audit_reports_unreadable_files_and_copies_without_labels(folders, table, tmp_path: Path) -> None:
    root = folders({"a": 2, "b": 2})
    (root / "a/000.png").write_bytes(b"")
    (root / "b/copy.png").write_bytes((root / "b/000.png").read_bytes())
    scan = audit(root)
    assert [image.key for image in scan.unreadable] == ["a/000.png"]
    assert scan.duplicates == (("b/000.png", "b/copy.png"),)
    assert len(scan.hashes) == 4
    assert len(audit(table("f,x,y\ni0.png,1,2\ni1.png,3,4\n")).hashes) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there are no images in it"):
        audit(tmp_path / "empty")


@pytest.mark.parametrize("preset", ["none", "light", "standard", "strong"])
@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.4}, {"cutmix": 1.0}])
@pytest.mark.parametrize("more", [{}, {"workers": 2}, {"processes": Processes(rank=1, world_size=2)}])
def test_changes_left_to_the_device_are_those_of_the_loading_process(folders, preprocess, preset, mixed, more) -> None:
    """To a level of 255 where it rounds otherwise, which few pixels do."""
    root = folders({"train/a": 9, "train/b": 9, "val/a": 3, "val/b": 2})
    augment = Augment(preset=preset, flip=True, **mixed)
    config = Config(data=Data(source=str(root)), augment=augment, batch=BatchOptions(size=5), workers=0)
    early = replace(load_images(config, preprocess).train, **more)
    level = 1 / 255 / min(preprocess.std)
    for epoch in range(2):
        pairs = list(zip(on_device(early).epoch(epoch), early.epoch(epoch), strict=True))
        for one, other in pairs:
            apart = (one.inputs(CPU, torch.channels_last) - other.inputs(CPU, torch.channels_last)).abs()
            assert apart.shape[0] == len(one.targets)
            assert apart.max() <= 1.01 * level
            assert apart.mean() <= 0.001 * level
            assert torch.equal(one.targets, other.targets)
            assert torch.equal(one.indices, other.indices)
        if preset != "strong" or mixed:  # what Pillow changes is changed before
            assert not all(torch.equal(one.pixels, other.pixels) for one, other in pairs)


def test_a_cut_of_kept_pictures_leaves_its_changes_to_the_device_too(folders, preprocess) -> None:
    root = folders({"train/a": 9, "train/b": 9, "val/a": 3, "val/b": 2})
    config = Config(data=Data(source=str(root)), batch=BatchOptions(size=5), workers=0, cache=Cache(decoded=True))
    early = load_images(config, preprocess).train
    for one, other in zip(on_device(early).epoch(0), early.epoch(0), strict=True):
        apart = one.inputs(CPU, torch.contiguous_format) - other.inputs(CPU, torch.contiguous_format)
        assert apart.abs().max() <= 1.01 / 255 / min(preprocess.std)
        assert not torch.equal(one.pixels, other.pixels)
