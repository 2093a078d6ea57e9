"""Small runs to kill: their data, their configuration, and what they are given in Python."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import headstart as hs

SIZE = 32
RUN = {
    "workers": 0, "epochs": 3, "recipe": "full", "batch": {"size": 6}, "device": "cpu", "precision": "fp32",
    "memory_format": "contiguous", "checkpoint": {"every_steps": 1, "every_seconds": 0.0, "keep": 4},
}  # fmt: skip
NAMED = {"name": "timm/resnet18", "image_size": SIZE, "options": {"channels": [8, 8, 8, 8]}}
SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

FACTOR = 1.0

def scaled(value, by=1.0):
    return value * by * FACTOR

class Tail(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8)
        self.power = 1

    def forward(self, x):
        return F.relu(self.norm(self.conv(x))) ** self.power

class Net(nn.Module):
    slope = 0.0

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2)
        self.tail = Tail()
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8, 5)
        self.steps = [1, 2]
        self.register_buffer("shift", torch.zeros(6, 1, 1), persistent=False)

    def forward(self, x):
        x = F.leaky_relu(self.first(x) + self.shift, self.slope)
        return self.fc(self.drop(scaled(self.tail(x).mean((2, 3)))))
"""
LOSS = """
import torch
from torch import nn
from torch.nn import functional as F

WEIGHT = 1.0

class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.smoothing = 0.1
        self.register_buffer("weights", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, outputs, targets):
        losses = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.smoothing)
        return losses * self.weights[targets] * WEIGHT

def make(factor=1.0):
    inner = Loss()

    def loss(outputs, targets, add=0.0):
        return inner(outputs, targets) * factor + add

    return loss, inner
"""


def module_from(source: str = SOURCE, *, seed: int = 0) -> nn.Module:
    """The network that a source text defines."""
    space: dict[str, Any] = {"__name__": "my_model"}
    exec(compile(source, "my_model.py", "exec"), space)
    torch.manual_seed(seed)
    return space["Net"]()


def loss_from(source: str = LOSS, factor: float = 1.0) -> Any:
    """The loss that a source text defines, and the module inside it."""
    space: dict[str, Any] = {"__name__": "my_loss"}
    exec(compile(source, "my_loss.py", "exec"), space)
    return space["make"](factor)


@dataclasses.dataclass
class Given:
    """What ``train`` is given; a change may replace any of it."""

    sections: dict[str, Any]
    make_model: Callable[[], nn.Module] | None = None
    loss: Any = None

    def config(self) -> hs.Config:
        """The configuration."""
        return hs.load_config(self.sections)

    def model(self) -> nn.Module | None:
        """A module made anew, where it is one's own."""
        return self.make_model() if self.make_model else None

    def change_model(self, change: Callable[[Any], Any]) -> None:
        """Make the module as before, and then change it."""
        before = self.make_model
        assert before is not None

        def made() -> nn.Module:
            module = before()
            again = change(module)
            return again if isinstance(again, nn.Module) and again not in set(module.modules()) else module

        self.make_model = made


@dataclasses.dataclass(frozen=True)
class World:
    """A folder with data, weights, the cache and a run."""

    root: Path
    first: Given

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.root / "run"

    @property
    def data(self) -> Path:
        """The folder of the images."""
        return self.root / "data"

    def given(self) -> Given:
        """What the run was given, to be changed."""
        os.environ["HEADSTART_CACHE"] = str(self.root / "cache")
        return Given(copy.deepcopy(self.first.sections), self.first.make_model, self.first.loss)


Made = Callable[[World, Given], AbstractContextManager[None] | None]


@dataclasses.dataclass(frozen=True)
class Change:
    """A change with its name; ``names``: one of them is in the words of a refusal."""

    name: str
    make: Made
    names: tuple[str, ...] = ()

    @contextmanager
    def made(self, world: World, given: Given) -> Iterator[None]:
        """Within, it is made."""
        with self.make(world, given) or nullcontext():
            yield


def draw_pictures(folder: Path, *, each: int = 8) -> None:
    """Three classes of noise with a tint, as PNG files."""
    for label, name in enumerate(("blue", "green", "red")):
        for number in range(each):
            draw_picture(folder / name / f"{number:02}.png", tint=label, seed=100 * label + number)


def draw_picture(path: Path, *, tint: int, seed: int) -> None:
    """A picture of 40 px."""
    values = np.random.default_rng(seed).integers(0, 150, (40, 40, 3), dtype=np.uint8)
    values[..., tint] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def own_world(root: Path) -> World:
    """A module and a loss of one's own, with a pull to the start and an average."""
    draw_pictures(root / "data")
    sections = RUN | {
        "data": {"source": str(root / "data")}, "out": str(root / "run"), "model": {"image_size": SIZE},
        "penalties": {"l2_start": 0.1}, "average": {"kind": "ema"},
    }  # fmt: skip
    return World(root, Given(sections, module_from, loss_from()[0]))


def named_world(root: Path) -> World:
    """A model of timm with weights in a file, its backbone frozen first and cached, then all of it trained."""
    draw_pictures(root / "data")
    torch.manual_seed(3)
    weights = hs.open_model(NAMED["name"], weights="none", options=NAMED["options"]).module.state_dict()
    save_file(weights, root / "weights.safetensors")
    sections = RUN | {
        "data": {"source": str(root / "data")}, "out": str(root / "run"),
        "model": NAMED | {"weights": str(root / "weights.safetensors")}, "recipe": "lp_ft",
        "cache": {"use": "always", "views": 2},
    }  # fmt: skip
    return World(root, Given(sections))


def table_world(root: Path) -> World:
    """Two numbers per image from a table with patients and splits."""
    draw_pictures(root / "data")
    names = sorted(path.relative_to(root / "data").as_posix() for path in (root / "data").rglob("*.png"))
    draw = np.random.default_rng(1)
    rows = ["file,width,height,patient,note"]
    rows += [f"{name},{draw.normal():.4f},{draw.normal():.4f},p{i // 3},{i}" for i, name in enumerate(names)]
    (root / "data" / "table.csv").write_text("\n".join(rows) + "\n")
    data = {"source": str(root / "data" / "table.csv"), "target": ["width", "height"], "group": "patient"}
    sections = RUN | {
        "data": data, "out": str(root / "run"), "model": NAMED | {"weights": "none"},
    }  # fmt: skip
    return World(root, Given(sections))


WORLDS: dict[str, Callable[[Path], World]] = {"own": own_world, "named": named_world, "table": table_world}
