"""What all tests share: where the real pictures and weights are, one thread (its bits are the ones compared), and a
small world: a network of 1,500 parameters, batches of noise, and a folder of coloured pictures."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.data.batch import Batch

settings.register_profile("tests", deadline=None)  # a machine that others share is no fault of the code
settings.load_profile("tests")
COLOURS = {"blue": (60, 60, 160), "green": (60, 160, 60), "red": (160, 60, 60)}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real pictures and weights, or a skip that says why."""
    folder = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[1] / ".." / "shared")).resolve()
    if not (folder / "data").is_dir() or not (folder / "weights").is_dir():
        pytest.skip(f"HEADSTART_DATA: {folder} has no data/ and weights/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HEADSTART_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _old_torch_reads_the_tests_own_pickles() -> None:
    """A torch below 2.10 is refused other people's; what else is done with such files is tested there, too."""
    from headstart.models import weights

    weights._READS_SAFELY = min(weights._READS_SAFELY, (2, 8))


@pytest.fixture(scope="session")
def net() -> Callable[..., nn.Module]:
    """Makes a network of two convolutions and a linear head: ``net(classes=3, norm=False, dropout=0.0)``."""

    def make(*, classes: int = 3, norm: bool = False, dropout: float = 0.0, seed: int = 0) -> nn.Module:
        import torch
        from torch import nn

        torch.manual_seed(seed)
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 8, 3, 2, 1), **({"bn1": nn.BatchNorm2d(8)} if norm else {}), "act1": nn.ReLU(),
            "conv2": nn.Conv2d(8, 16, 3, 2, 1), "act2": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(), **({"drop": nn.Dropout(dropout)} if dropout else {}), "fc": nn.Linear(16, classes),
        }  # fmt: skip
        return nn.Sequential(OrderedDict(parts))

    return make


@pytest.fixture(scope="session")
def noise() -> Callable[..., Batch]:
    """Makes a batch of noise with labels: ``noise(8, classes=3, seed=0)``, or with the targets given."""

    def make(count: int, *, classes: int = 3, seed: int = 0, size: int = 16, targets: Tensor | None = None) -> Batch:
        import torch

        from headstart.data.batch import Batch

        made = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 3, size, size), generator=made, dtype=torch.uint8)
        labels = torch.randint(0, classes, (count,), generator=made)
        return Batch(
            pixels=pixels, targets=labels if targets is None else targets, indices=torch.arange(count),
            keys=tuple(f"{place:02}.png" for place in range(count)), mean=torch.tensor(MEAN), std=torch.tensor(STD),
            size=count,
        )  # fmt: skip

    return make


@pytest.fixture(autouse=True, scope="session")
def flags_in_messages() -> Iterator[None]:
    """Messages as a command gives them; tests/test_wording.py looks at Python's."""
    from headstart.wording import write_options_as

    with write_options_as("flags"):
        yield


@pytest.fixture(scope="session")
def draw_colours() -> Callable[..., Path]:
    """Writes a folder of noisy coloured pictures, 32 px: ``draw_colours(root, each=12, names=(...))``."""

    def write(root: Path, *, each: int = 12, names: Sequence[str] = tuple(COLOURS)) -> Path:
        import numpy as np
        from PIL import Image

        draw = np.random.default_rng(0)
        for name in names:
            (root / name).mkdir(parents=True)
            for number in range(each):
                pixels = np.array(COLOURS[name]) + draw.normal(0, 50, (32, 32, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{number:02}.png")
        return root

    return write


@pytest.fixture(scope="session")
def colours(draw_colours: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve noisy coloured pictures; do not change it."""
    return draw_colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture
def settings(colours: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Options of a run of about 2 s on the coloured pictures, sections given by name added or replaced."""

    def make(**sections: Any) -> dict[str, Any]:
        small: dict[str, Any] = {
            "data": {"source": str(colours)},
            "model": {
                "name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]},
            },
            "batch": {"size": 8}, "recipe": "lp_ft", "epochs": 2, "workers": 0, "device": "cpu",
            "out": str(tmp_path / "run"),
        }  # fmt: skip
        for name, value in sections.items():
            both = isinstance(value, dict) and isinstance(small.get(name), dict)
            small[name] = small[name] | value if both else value
        return small

    return make
