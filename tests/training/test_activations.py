"""What is kept at a boundary: under which key, what is computed and read, and what each process does of it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import headstart as hs
from headstart import machine
from headstart.data.batch import Batch
from headstart.data.decoding.decoded_cache import Decoded
from headstart.data.images import load_images
from headstart.data.loader import Batches
from headstart.data.reading import ChangedFiles, ChangedImage
from headstart.data.transforms.transforms import eval_transform, train_transform
from headstart.distributed.processes import Processes
from headstart.errors import RunError, StorageError
from headstart.models.preprocess import imagenet_preprocess
from headstart.storage.disk_cache import DiskCache
from headstart.surgery.boundary import find_boundary
from headstart.surgery.fixed_values import NotReplayable
from headstart.surgery.freeze import freeze
from headstart.surgery.replay import find_replay
from headstart.training import activation_cache as cache_module
from headstart.training.activation_cache import ActivationDataset, CacheRules, open_activations
from headstart.training.rules import StepRules


@pytest.fixture(scope="module")
def colours(split_colours: Path) -> Path:
    return split_colours


@pytest.fixture(autouse=True)
def own_shelf(tmp_path: Path, forget_proofs: None) -> Path:
    return tmp_path / "shelf"


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    made[1].running_mean.uniform_(-1, 1)
    return made


@pytest.fixture
def pictures(colours: Path, tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for path in colours.rglob("*.png"):
        copied = root / path.relative_to(colours)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    return root


def of_images(batches: Batches, **changes: Any) -> Batches:
    return replace(batches, dataset=replace(batches.images, **changes))


def world(pictures: Path, shelf: Path) -> SimpleNamespace:
    config = hs.load_config({"data": {"source": str(pictures)}, "batch": {"size": 8}, "augment": {"preset": "light"}})
    preprocess = replace(imagenet_preprocess(channels=3, source="test"), height=32, width=32)
    train = load_images(config, preprocess).train
    train = of_images(train, augmentation=replace(train.augmentation, views=1))
    where = CacheRules(folder=shelf, model="net", dtype="auto", limit_bytes=10**9)
    return SimpleNamespace(net=net(), batches=train, rules=StepRules(), where=where, frozen={"until": "3"})


def cut(made: SimpleNamespace) -> Any:
    return find_boundary(made.net, freeze(made.net, **made.frozen), example=torch.zeros(2, 3, 32, 32))


def opened(made: SimpleNamespace) -> Any:
    """Activations that are closed at the end of a ``with``."""
    return closing(open_activations(cut(made), made.batches, rules=made.rules, where=made.where))


def done(activations: ActivationDataset) -> list[tuple[int, int]]:
    return [(event.done, event.total) for event in activations.fill()]


def computed(made: SimpleNamespace) -> int:
    with opened(made) as activations:
        return max((total for _, total in done(activations)), default=0)


def test_what_fills_the_cache_is_changed_by_loading_on_every_device(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, left = world(pictures, tmp_path / "shelf"), []
    compute = cache_module.through_prefix

    def note(prefix: nn.Module, batch: Batch, rules: StepRules) -> tuple[Tensor, ...]:
        left.append(batch.deferred)
        return compute(prefix, batch, rules)

    monkeypatch.setattr(cache_module, "through_prefix", note)
    made.batches = of_images(made.batches, augment_on_device=True)  # as batches are for an accelerator
    assert computed(made) > 0
    assert left == [None, None, None], "no change of the pictures is left to the device"
    made.batches = of_images(made.batches, augment_on_device=False)
    assert computed(made) == 0


def training(made: SimpleNamespace, **changes: Any) -> None:
    made.batches = of_images(made.batches, augmentation=replace(made.batches.augmentation, **changes))


def set_preprocess(made: SimpleNamespace, **changes: Any) -> None:
    preprocess = replace(made.batches.preprocess, **changes)
    made.batches = of_images(made.batches, preprocess=preprocess)


def file_of(batches: Batches, place: int) -> Path:
    return batches.source.paths[batches.samples[place].key]


def repainted(made: SimpleNamespace) -> None:
    sample, path = made.batches.samples[11], file_of(made.batches, 11)
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    record = replace(sample.record, digest=hashlib.sha256(path.read_bytes()).hexdigest())
    made.batches = of_images(
        made.batches,
        samples=tuple(replace(one, record=record) if one is sample else one for one in made.batches.samples),
    )


def without_gelu(made: SimpleNamespace) -> None:
    made.net[2] = nn.ReLU()


def subclassed(made: SimpleNamespace) -> None:
    class Other(nn.GELU):
        pass

    made.net[2] = Other()


def moved(made: SimpleNamespace) -> None:
    made.net[0].weight.data[0, 0, 0, 0] += 1e-7


def renamed(made: SimpleNamespace) -> None:
    transform = made.batches.images.transform
    other = type("Renamed", (type(transform),), {})(**vars(transform))
    made.batches = of_images(made.batches, transform=other)


MUTATIONS: dict[str, Callable[[SimpleNamespace], object]] = {
    "a weight": moved,
    "a buffer": lambda made: made.net[1].running_mean.add_(1e-6),
    "a layer's number": lambda made: setattr(made.net[1], "eps", 1e-4),
    "a layer's option": lambda made: setattr(made.net[2], "approximate", "tanh"),
    "a layer": without_gelu,
    "a layer's class": subclassed,
    "the boundary": lambda made: setattr(made, "frozen", {"names": ["0"]}),
    "the precision": lambda made: setattr(made, "rules", StepRules(precision="bf16")),
    "the memory format": lambda made: setattr(made, "rules", StepRules(memory_format="channels_last")),
    "the stored type": lambda made: setattr(made, "where", replace(made.where, dtype="bf16")),
    "the batch size": lambda made: setattr(made, "batches", replace(made.batches, batch_size=4)),
    "how many are computed at a time": lambda made: setattr(made, "where", replace(made.where, batch_size=4)),
    "pictures decoded before": lambda made: setattr(
        made, "batches", of_images(made.batches, decoded=Decoded(transform=made.batches.images.transform))
    ),
    "mirrors that alternate": lambda made: training(made, alternating=True),
    "the mean": lambda made: set_preprocess(made, mean=(0.5, 0.456, 0.406)),
    "the deviation": lambda made: set_preprocess(made, std=(0.229, 0.224, 0.3)),
    "the transform": lambda made: setattr(
        made, "batches",
        of_images(made.batches, transform=train_transform("standard", flip="auto", preprocess=made.batches.preprocess)),
    ),
    "a transform that changes some pictures the same way": renamed,
    "no random changes": lambda made: setattr(
        made, "batches", of_images(made.batches, transform=eval_transform(made.batches.preprocess))
    ),
    "the seed": lambda made: training(made, seed=43),
    "the epoch of the changes": lambda made: training(made, first_epoch=3),
    "an image's content": repainted,
    "the order": lambda made: setattr(made, "batches", of_images(made.batches, samples=made.batches.samples[::-1])),
    "one image less": lambda made: setattr(made, "batches", of_images(made.batches, samples=made.batches.samples[:-1])),
    "an image's number": lambda made: setattr(
        made, "batches",
        of_images(made.batches, samples=tuple(replace(one, index=one.index + 1) for one in made.batches.samples)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_change_of_what_decides_the_bits_costs_every_page(pictures: Path, own_shelf: Path, name: str):
    assert computed(world(pictures, own_shelf)) == 24
    assert computed(world(pictures, own_shelf)) == 0
    made = world(pictures, own_shelf)
    MUTATIONS[name](made)
    assert computed(made) == len(made.batches.samples)
    assert computed(world(pictures, own_shelf)) == 0  # what was there is there still


@pytest.mark.parametrize("fact", ["torch", "pillow", "threads", "instruction_set"])
def test_another_library_or_machine_costs_every_page(pictures, own_shelf, monkeypatch: pytest.MonkeyPatch, fact: str):
    assert computed(world(pictures, own_shelf)) == 24
    there = machine.environment(torch.device("cpu"))
    monkeypatch.setattr(cache_module, "environment", lambda _: there | {fact: "another"})
    assert computed(world(pictures, own_shelf)) == 24


def test_a_picture_that_was_changed_on_the_disk_costs_every_page(pictures: Path, own_shelf: Path):
    assert computed(world(pictures, own_shelf)) == 24
    path = next((pictures / "train").rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert computed(world(pictures, own_shelf)) == 24


def test_pages_of_other_bits_under_the_same_key_are_found_and_made_anew(pictures: Path, own_shelf: Path, monkeypatch):
    """As if a layer's code had changed with nothing else: what is there is proven by a batch, computed again."""
    assert computed(world(pictures, own_shelf)) == 24
    made = world(pictures, own_shelf)
    monkeypatch.setattr(cache_module, "prefix_digest", lambda _: "the same")
    assert computed(made) == 24
    made.net[0].weight.data += 1e-3
    assert computed(made) == 24


def scaled_by(share: float) -> Callable[[nn.Module], None]:
    def change(part: nn.Module) -> None:
        part.register_forward_hook(lambda _, __, made: made * share)

    return change


def tripled(part: nn.Module) -> None:
    inner = part.forward
    part.forward = lambda maps: inner(maps) * 3


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def test_a_hook_a_replaced_method_a_value_in_a_closure_and_a_parametrization_are_in_the_key(
    net: Callable[..., nn.Module],
):
    changes: list[Callable[[nn.Module], Any]] = [
        lambda _: None,
        scaled_by(2.0),
        scaled_by(3.0),
        tripled,
        lambda part: part.register_forward_pre_hook(lambda _, given: (given[0] * 2,)),
        lambda part: nn.utils.parametrize.register_parametrization(part, "weight", Halved()),
    ]
    keys = []
    for change in (*changes, changes[0], changes[1]):
        module = net()
        change(module.conv1)
        boundary = find_boundary(module, freeze(module, until="conv2"), example=torch.zeros(2, 3, 32, 32))
        keys.append(cache_module.prefix_digest(boundary.prefix))
    assert len(set(keys)) == len(changes), "each change is another key"
    assert keys[-2:] == keys[:2], "and the same change the same one"


# ---- what is there, and what is computed


def by_hand(made: SimpleNamespace, *, epoch: int) -> list[Tensor]:
    """What the frozen part makes of every image as the epoch changes it, a tensor for each that crosses."""
    layers, found = made.net[:5].eval(), []
    count = len(made.batches.samples)
    for start in range(0, count, 8):
        (batch,) = of_images(made.batches, augment_on_device=False).pad_batches(
            [range(start, min(start + 8, count))], epoch=epoch
        )
        with torch.no_grad():
            found.append(layers(batch.inputs(torch.device("cpu"), torch.contiguous_format))[: batch.size])
    return [torch.cat(found)]


def read(activations: ActivationDataset, *, epoch: int, parts: Any = (tuple(range(24)),)) -> list[Tensor]:
    return [torch.cat(some) for some in zip(*activations.read_batches(parts, epoch=epoch), strict=True)]


def kept(made: SimpleNamespace) -> dict[str, dict[str, Any]]:
    return {entry.key: dict(entry.about) for entry in DiskCache(made.where.folder, limit_bytes=1).content()}


def random_views(made: SimpleNamespace, count: int, *, first: int = 0) -> SimpleNamespace:
    transform = train_transform("strong", flip="auto", preprocess=made.batches.preprocess)
    made.batches = of_images(made.batches, transform=transform)
    training(made, views=count, first_epoch=first)
    return made


def test_every_view_is_what_the_frozen_part_makes_of_that_epochs_pictures(pictures: Path, own_shelf: Path):
    made = random_views(world(pictures, own_shelf), 3, first=1)
    made.batches = of_images(made.batches, augment_on_device=True)
    with opened(made) as activations:
        assert done(activations) == [(8 * count, 72) for count in range(1, 10)]
        for epoch in (1, 2, 3, 4, 6):
            expected = by_hand(made, epoch=epoch)
            assert all(map(torch.equal, read(activations, epoch=epoch), expected)), epoch
        assert not torch.equal(read(activations, epoch=1)[0], read(activations, epoch=2)[0])
        assert activations.take_mended() == ()


def test_more_views_begin_with_those_that_are_there(pictures: Path, own_shelf: Path):
    assert computed(random_views(world(pictures, own_shelf), 2)) == 48
    made = random_views(world(pictures, own_shelf), 3)
    with opened(made) as activations:
        assert done(activations)[-1] == (24, 24)
        for epoch in range(3):
            assert all(map(torch.equal, read(activations, epoch=epoch), by_hand(made, epoch=epoch)))


def test_without_changes_the_seed_is_no_matter_and_there_must_be_an_end_of_views(pictures: Path, own_shelf: Path):
    made = world(pictures, own_shelf)
    made.batches = of_images(made.batches, transform=eval_transform(made.batches.preprocess))
    training(made, random=False)
    assert computed(made) == 24
    training(made, seed=43)
    assert computed(made) == 0
    training(made, views=0)
    with pytest.raises(AssertionError, match="no end"):
        computed(made)


def test_validation_has_one_view(pictures: Path, own_shelf: Path):
    made = world(pictures, own_shelf)
    made.batches = made.batches.for_evaluation()
    with opened(made) as activations:
        assert done(activations) == [(8, 24), (16, 24), (24, 24)]
        assert all(map(torch.equal, read(activations, epoch=5), by_hand(made, epoch=0)))
    assert len(kept(made)) == 1


def test_what_is_told_of_it(pictures: Path, own_shelf: Path):
    made = random_views(world(pictures, own_shelf), 2)
    size = "0.0 MiB"  # 48 x 4 numbers
    with opened(made) as activations:
        assert activations.summary() == f"24 images x 2 views, {size}; 0 computed, 48 read"
        done(activations)
        assert activations.summary() == f"24 images x 2 views, {size}; 48 computed, 0 read"
    told = [(about["view"], about["model"], about["boundary"], about["images"]) for about in kept(made).values()]
    assert sorted(told) == [(0, "net", ["4"], 24), (1, "net", ["4"], 24)]
    assert all(about["complete"] for about in kept(made).values())


def test_half_the_bytes_round_and_the_error_is_kept_with_them(pictures: Path, own_shelf: Path):
    made = world(pictures, own_shelf)
    made.where = replace(made.where, dtype="bf16")
    with opened(made) as activations:
        done(activations)
        (expected,) = by_hand(made, epoch=0)
        (found,) = read(activations, epoch=0)
        assert torch.equal(found, expected.bfloat16().float())
        assert activations.summary().startswith("24 images, 0.0 MiB, stored as bf16 (relative error 2.1e-03);")
    (about,) = kept(made).values()
    assert 1e-3 < about["rounding"] < 3e-3
    with opened(made) as activations:
        done(activations)  # the proof computes a batch, whose error is another
    assert next(iter(kept(made).values())) == about


def test_the_system_is_told_two_batches_ahead_what_is_read(pictures, own_shelf, monkeypatch: pytest.MonkeyPatch):
    made, told = world(pictures, own_shelf), []
    parts = [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    with opened(made) as activations:
        done(activations)
        monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, __: told.append(start // length))
        seen = [list(told) for _ in activations.read_batches(parts, epoch=0)]
    assert seen == [list(range(6)), list(range(8)), *[list(range(9))] * 3]


def test_another_number_of_processes_shares_the_pages(pictures, own_shelf, monkeypatch: pytest.MonkeyPatch):
    assert computed(world(pictures, own_shelf)) == 24
    there = machine.environment(torch.device("cpu"))
    monkeypatch.setattr(cache_module, "environment", lambda _: there | {"world_size": 2, "kernel": "6", "cores": 99})
    assert computed(world(pictures, own_shelf)) == 0


# ---- what fails, and what is damaged


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def is_free(made: SimpleNamespace) -> bool:
    """Whether nobody has a file of the shelf open: each can be removed."""
    shelf = DiskCache(made.where.folder, limit_bytes=1)
    removed = [shelf.remove(key) for key in kept(made)]
    return all(removed)


def test_files_are_open_until_they_are_closed(pictures: Path, own_shelf: Path):
    made = world(pictures, own_shelf)
    with opened(made) as activations:
        done(activations)
        assert not is_free(made)
    assert is_free(made) and not kept(made)


def test_where_there_is_no_room_for_every_view_none_stays_open(pictures: Path, own_shelf: Path):
    made = random_views(world(pictures, own_shelf), 2)
    made.where = replace(made.where, limit_bytes=24 * (16 + 24) + 100)
    with pytest.raises(StorageError, match="bytes needed"), opened(made):
        pass
    assert len(kept(made)) == 1 and is_free(made)


def test_where_another_process_cannot_open_them_this_one_closes_its_own(pictures, own_shelf, monkeypatch):
    made = world(pictures, own_shelf)
    monkeypatch.setattr(cache_module, "any_of", lambda *_: (True,))
    with pytest.raises(StorageError, match="another process cannot open them"), opened(made):
        pass
    assert is_free(made)


def test_what_cannot_be_written_is_said_and_not_called_whole(pictures, own_shelf, monkeypatch: pytest.MonkeyPatch):
    made = world(pictures, own_shelf)
    with opened(made) as activations:
        with monkeypatch.context() as change:
            change.setattr(os, "pwritev", refuse)
            with pytest.raises(StorageError, match="No space left"):
                done(activations)
        assert not next(iter(kept(made).values()))["complete"]
        with monkeypatch.context() as change:
            change.setattr(cache_module, "any_of", lambda *_: (True,))
            with pytest.raises(StorageError, match="another process cannot compute or write them"):
                done(activations)
        with monkeypatch.context() as change:
            change.setattr(os, "fsync", refuse)
            with pytest.raises(StorageError, match="No space left"):
                done(activations)
        assert not next(iter(kept(made).values()))["complete"]


def test_a_page_that_was_damaged_is_told_once_and_mended(pictures: Path, own_shelf: Path):
    made = world(pictures, own_shelf)
    with opened(made) as activations:
        done(activations)
        (pages,) = own_shelf.glob("*/pages")
        data = bytearray(pages.read_bytes())
        for page in (5, 11):
            data[page * len(data) // 24] ^= 4
        with pages.open("r+b") as file:
            file.write(data)
        parts = [[3, 11, 5], [11, 0], [1, 2]]
        for _ in range(2):
            expected = by_hand(made, epoch=0)[0]
            found = [rows for (rows,) in activations.read_batches(parts, epoch=0)]
            assert all(torch.equal(rows, expected[part]) for rows, part in zip(found, parts, strict=True))
        assert activations.take_mended() == tuple(made.batches.samples[place].key for place in (5, 11))
        assert activations.take_mended() == ()


def test_what_is_made_of_a_file_that_has_changed_is_not_kept_and_nothing_is_called_whole(pictures, own_shelf):
    made = world(pictures, own_shelf)
    made.batches = of_images(made.batches, changed=ChangedFiles())
    path = file_of(made.batches, 5)
    with opened(made) as activations:
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        assert done(activations)[-1] == (24, 24)
        assert made.batches.samples[5].key in made.batches.images.changed
        (page_file,) = own_shelf.glob("*/pages")
        data = page_file.read_bytes()
        step = len(data) // 24
        assert [place for place in range(24) if not any(data[place * step : (place + 1) * step])] == [5]
        assert not next(iter(kept(made).values()))["complete"]
        (rows,) = read(activations, epoch=0)
        assert torch.equal(rows, by_hand(made, epoch=0)[0])
        assert activations.take_mended() == (), "there was nothing to mend"


def test_a_file_that_has_changed_is_seen_in_the_first_and_the_last_picture_before_anything_is_computed(
    pictures: Path, own_shelf: Path
):
    made = world(pictures, own_shelf)
    for place in (0, 23):
        was = file_of(made.batches, place).read_bytes()
        Image.new("RGB", (32, 32)).save(file_of(made.batches, place))
        with pytest.raises(ChangedImage), opened(made):
            pass
        file_of(made.batches, place).write_bytes(was)


def test_what_this_process_made_or_found_right_is_not_proved_again_and_what_it_discards_is(
    pictures: Path, own_shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache_module, "_PROVEN", set())
    monkeypatch.setattr(cache_module, "prefix_digest", lambda _: "the same")
    made = world(pictures, own_shelf)
    assert computed(made) == 24
    shutil.copytree(own_shelf, own_shelf.with_name("aside"))
    made.net[0].weight.data += 1e-3
    assert computed(made) == 0
    with opened(made) as activations:
        pass
    activations.discard()
    assert not kept(made)
    shutil.copytree(own_shelf.with_name("aside"), own_shelf, dirs_exist_ok=True)
    assert computed(made) == 24


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_computes_its_share_and_the_first_calls_it_whole(pictures: Path, own_shelf: Path, rank: int):
    made = world(pictures, own_shelf)
    made.batches = replace(made.batches, processes=Processes(rank=rank, world_size=2, local_rank=rank, local_size=2))
    with opened(made) as activations:
        assert done(activations) == [(16, 24), (24, 24)]
        data = next(own_shelf.glob("*/pages")).read_bytes()
    step = len(data) // 24
    written = [place // 8 for place in range(0, 24, 8) if any(data[place * step : (place + 8) * step])]
    assert written == ([1] if rank else [0, 2])
    assert next(iter(kept(made).values()))["complete"] is not bool(rank)


class Failing(nn.Module):
    """A frozen part that takes another way than before when it is told to."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.fails = layers, False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.fails:
            raise NotReplayable("it took another way")
        return (self.layers(images),)


def test_a_frozen_part_that_takes_another_way_is_said_whenever_it_does(pictures: Path, own_shelf: Path):
    made = world(pictures, own_shelf)
    prefix = Failing(made.net[:5])
    boundary = replace(cut(made), prefix=prefix)
    with closing(open_activations(boundary, made.batches, rules=made.rules, where=made.where)) as activations:
        prefix.fails = True
        with pytest.raises(NotReplayable, match="another way"):
            done(activations)
        prefix.fails = False
        done(activations)
        (pages,) = own_shelf.glob("*/pages")
        with pages.open("r+b") as file:
            file.write(b"!")
        prefix.fails = True
        with pytest.raises(NotReplayable, match="another way"):
            read(activations, epoch=0)
        activations._batches = replace(made.batches, processes=Processes(rank=0, world_size=2))
        with pytest.raises(RunError, match=rf"the page of {made.batches.samples[0].key} is damaged and cannot"):
            read(activations, epoch=0)


# ---- what a prefix computes


def digest_of(change: Callable[[nn.Module], object], **kinds: Any) -> str:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc, self.bend = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.GELU()
            self.register_buffer("shift", torch.zeros(4, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            maps = kinds.get("function", torch.relu)(self.conv(images)) + self.shift
            return self.fc(self.bend(maps).mean((2, 3)))

    module = Made()
    change(module)
    frozen = freeze(module, names=["conv", "shift"])
    if kinds.get("replayed"):
        return str(cache_module.prefix_digest(find_replay(module, torch.randn(2, 3, 8, 8), frozen.tensors).prefix))
    return str(cache_module.prefix_digest(find_boundary(module, frozen, example=torch.zeros(1, 3, 8, 8)).prefix))


@pytest.mark.parametrize("replayed", [False, True])
def test_the_digest_of_a_prefix_is_that_of_what_is_frozen_in_it(replayed: bool):
    def plain(_: nn.Module) -> None:
        pass

    first = digest_of(plain, replayed=replayed)
    assert digest_of(plain, replayed=replayed) == first
    assert digest_of(lambda net: net.fc.weight.data.add_(1), replayed=replayed) == first
    others = [
        digest_of(lambda net: net.conv.weight.data.add_(1e-3), replayed=replayed),
        digest_of(lambda net: net.shift.add_(1), replayed=replayed),
        digest_of(lambda net: setattr(net, "shift", net.shift.int()), replayed=replayed),
        digest_of(lambda net: setattr(net, "bend", nn.GELU("tanh")), replayed=replayed),
        digest_of(plain, replayed=replayed, function=torch.sigmoid),
    ]
    assert len({first, *others}) == 6
