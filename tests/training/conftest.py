"""Coloured pictures as batches, for classes, tags and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.config.schema import Augment, Config, Data
from headstart.config.schema import Batch as BatchOptions
from headstart.data.images import Images, load_images
from headstart.data.sources.samples import Sample
from headstart.models.preprocess import Preprocess
from headstart.tasks.regress import make_spec
from headstart.tasks.task import TaskSpec
from headstart.training import activation_cache

PREPROCESS = Preprocess(
    height=24, width=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear", crop_pct=0.875, source="t"
)


@pytest.fixture(scope="session")
def images(colours: Path) -> Images:
    """28 training and 8 validation pictures in batches of 8, changed at random in training."""
    config = Config(
        data=Data(source=str(colours), val=0.22), batch=BatchOptions(size=8), workers=0, augment=Augment(preset="light")
    )
    return load_images(config, PREPROCESS)


@pytest.fixture(scope="session")
def split_colours(draw_colours: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures to train on, three whole batches of 8, and 9 to validate with."""
    root = tmp_path_factory.mktemp("split")
    draw_colours(root / "train", each=8)
    draw_colours(root / "val", each=3)
    return root


class Forgetful(set[str]):
    """Holds nothing."""

    def add(self, _: str) -> None:
        pass


@pytest.fixture
def forget_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run proves its cache as in a process of its own."""
    monkeypatch.setattr(activation_cache, "_PROVEN", Forgetful())


@pytest.fixture(scope="session")
def as_task(images: Images) -> Callable[..., Images]:
    """The same pictures with tags or numbers: ``as_task("regress", log=True)``."""

    def make(kind: str, *, log: bool = False) -> Images:
        def target(sample: Sample) -> tuple[float, ...]:
            label, spread = int(sample.target), sample.index % 5
            if kind == "multilabel":
                return (float(label != 0), float(label != 1), float(spread < 3))
            return (1000.0 * (label + 1) + 37.3 * spread, 0.1 + label)

        splits = {
            name: tuple(replace(sample, target=target(sample)) for sample in getattr(images, name).samples)
            for name in ("train", "val")
        }
        task = TaskSpec(kind="multilabel", classes=("x", "y", "z"))
        if kind == "regress":
            task = make_spec(("price", "size"), [sample.target for sample in splits["train"]], log)
        made = {
            name: replace(batches, dataset=replace(batches.images, samples=splits[name], task=task))
            for name, batches in (("train", images.train), ("val", images.val))
        }
        return replace(images, task=task, **made)

    return make
