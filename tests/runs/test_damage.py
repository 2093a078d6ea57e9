"""Damage is refused by name: no damaged checkpoint, bundle or model folder is read as anything but what was written."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import headstart as hs
from headstart.errors import Error, StorageError
from headstart.models.sources import open_model
from headstart.runs.checkpoint import read_checkpoint
from headstart.storage.durable import MANIFEST
from tests.reliability import damaged_files as damage
from tests.reliability.saves import scratch

CHECKPOINTS, BUNDLES = 250, 60


@pytest.fixture(scope="module")
def bundles(colours, tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    model = {"name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}}
    config = hs.load_config({
        "data": {"source": str(colours)}, "model": model, "recipe": "full", "epochs": 1, "workers": 0, "device": "cpu",
        "out": str(tmp_path_factory.mktemp("runs") / "run"),
    })  # fmt: skip
    run = hs.train(config)
    with scratch() as work:
        yield damage.bundles(run.path, work / "bundles")


def test_no_damaged_checkpoint_is_read_as_something_else() -> None:
    with scratch() as work:
        one, two = damage.checkpoints(work)
        check(one, two, damage.read_as_checkpoint, CHECKPOINTS)


@pytest.mark.parametrize("read", [damage.read_as_run, damage.read_as_model], ids=["as a run", "as a model"])
def test_no_damaged_bundle_is_read_as_something_else(bundles, read) -> None:
    check(*bundles, read, BUNDLES)


def check(one: Path, two: Path, read: damage.Read, count: int) -> None:
    draw, whole = random.Random(3), (read(one), read(two))
    assert whole[0] != whole[1]
    found = Counter(damage.judged(one, two, read, whole, draw) for _ in range(count))
    assert set(found) <= {"refused", "same"}, found
    assert found["refused"] > 0.8 * count


def test_a_checkpoint_under_another_ones_name_is_refused(tmp_path) -> None:
    one, _ = damage.checkpoints(tmp_path)
    one.rename(one.with_name("step-00000009"))
    with pytest.raises(
        StorageError, match=r"step-00000009: holds the checkpoint of step 1; rename it to step-00000001"
    ):
        read_checkpoint(one.parent)
    one.with_name("step-00000009").rename(one.with_name("mine"))
    assert read_checkpoint(one.with_name("mine")).counters["step"] == 1


def test_a_bundle_without_its_description_is_not_taken_for_a_plain_model_folder(bundles, tmp_path) -> None:
    """Whose weights nothing would check."""
    folder = shutil.copytree(bundles[0], tmp_path / "model")
    (folder / "headstart.json").unlink()
    with pytest.raises(Error, match=r"headstart\.json: cannot be read: No such file"):
        open_model(str(folder))
    (folder / MANIFEST).unlink()
    with pytest.raises(Error, match="no finished run is there"):
        hs.open_run(folder)
