"""The boundary of modules of a user's own: proved on images, ended before what is not fixed, or not used."""

from __future__ import annotations

import importlib
import json
import os
import random
import types
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import headstart as hs
from headstart.data.images import Images
from headstart.errors import ModelError
from headstart.surgery.boundary import find_boundary
from headstart.surgery.culprit import find_culprit
from headstart.surgery.freeze import freeze
from headstart.surgery.no_trace import no_trace
from headstart.surgery.proof import Calls, compute_activations
from headstart.training.boundary_proof import prove_boundary
from headstart.training.rules import StepRules

proof = importlib.import_module("headstart.training.boundary_proof")  # headstart.train is a function, too
Change = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Three convolutions and a head; ``after`` changes what the second convolution gives, ``last`` the features."""

    def __init__(self, after: Change | None = None, last: Change | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 6), (6, 6), (6, 8)))
        self.fc = nn.Linear(8, 10)
        self.after, self.last = after or same, last or same
        self.calls, self.register = 0, None
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("gain", torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.second(torch.relu(self.first(images))))
        maps = self.after(self, maps)
        features = torch.relu(self.third(maps)).mean((2, 3))
        return self.fc(self.last(self, features))


def same(_: nn.Module, values: Tensor) -> Tensor:
    return values


def counted(net: nn.Module, values: Tensor) -> Tensor:
    net.calls += 1
    return values * min(1.0, net.calls / 20)


def buffered(net: nn.Module, values: Tensor) -> Tensor:
    if net.training:
        net.count += 1
    return values * (net.count / 20).clamp(max=1.0)


def renewed(net: nn.Module, values: Tensor) -> Tensor:
    net.count = net.count + 1
    return values + net.count


def remembering(net: nn.Module, values: Tensor) -> Tensor:
    shifted = values + (0 if net.register is None else net.register)
    net.register = values.detach().mean()
    return shifted


def sometimes(draw: Callable[[], float]) -> Change:
    def change(net: nn.Module, values: Tensor) -> Tensor:
        return values * 2 if net.training and draw() < 0.5 else values

    return change


FIXED: dict[str, Change] = {
    "relu": lambda _, maps: functional.relu(maps, inplace=True),
    "pad and pool": lambda _, maps: functional.max_pool2d(functional.pad(maps, (1, 1, 1, 1)), 2),
    "tokens": lambda _, maps: maps.flatten(2).softmax(-1).view_as(maps),
    "einsum": lambda net, maps: torch.einsum("bchw,oc->bohw", maps, net.second.weight[:, :, 0, 0]),
    "double": lambda _, maps: maps.double().square().float(),
    "buffer": lambda net, maps: maps * net.gain,
}
MIXING: dict[str, Change] = {
    "less the mean": lambda _, maps: maps - maps.mean(0),
    "less a little of the mean": lambda _, maps: maps + 0.01 * maps.mean(0),
    "rolled": lambda _, maps: maps + maps.roll(1, 0),
    "turned": lambda _, maps: maps + maps.flip(0),
    "softmax over images": lambda _, maps: maps.softmax(0),
    "sorted": lambda _, maps: maps.sort(0).values,
    "batch statistics": lambda _, maps: functional.batch_norm(maps, None, None, training=True),
    "the first image": lambda _, maps: maps + maps[:1],
    "place in the batch": lambda _, maps: maps * torch.arange(1.0, maps.shape[0] + 1.0)[:, None, None, None],
}
RANDOM: dict[str, Change] = {
    "normal": lambda _, maps: maps + torch.normal(0.0, 1.0, maps.shape),
    "exponential_": lambda _, maps: maps + torch.empty_like(maps).exponential_(),
    "poisson": lambda _, maps: torch.poisson(maps.abs()),
    "gumbel_softmax": lambda _, maps: functional.gumbel_softmax(maps, dim=1),
    "rrelu": lambda _, maps: functional.rrelu(maps, training=True),
    "geometric_": lambda _, maps: maps + torch.empty_like(maps).geometric_(0.5),
    "Python": lambda _, maps: maps * random.random(),
    "NumPy": lambda _, maps: maps * float(np.random.rand()),
}
STATEFUL: dict[str, Change] = {
    "counter": counted, "buffer written": buffered, "buffer renewed": renewed, "remembers": remembering,
    "Python": sometimes(random.random), "torch": sometimes(lambda: torch.rand(1).item()),
    "NumPy": sometimes(lambda: float(np.random.rand())),
}  # fmt: skip


@pytest.fixture
def proved(images: Images) -> Callable[..., tuple[str, ...]]:
    """What crosses the boundary of a module, and why nothing later does."""

    def prove(module: nn.Module, *, until: str = "third") -> tuple[tuple[str, ...], tuple[str, ...]]:
        boundary = prove_boundary(module, freeze(module, until=until), images.train, StepRules())
        return boundary.labels, boundary.refused

    return prove


@pytest.mark.parametrize("name", FIXED)
def test_what_is_fixed_stays_before_the_boundary(proved, name: str):
    (labels, refused) = proved(Net(after=FIXED[name]))
    assert len(labels) == 1 and labels[0] not in ("first", "second", "relu", "relu_1")
    assert refused == ()


@pytest.mark.parametrize("name", MIXING)
def test_the_boundary_ends_before_what_mixes_images(proved, name: str):
    labels, refused = proved(Net(after=MIXING[name]))
    assert all(place.startswith("relu") for place in labels), labels
    assert "the other images of the batch" in refused[0] or "not known" in refused[0]


@pytest.mark.parametrize("name", [name for name in RANDOM if name not in ("Python", "NumPy")])
def test_the_boundary_ends_before_what_is_random(proved, name: str):
    labels, refused = proved(Net(after=RANDOM[name]))
    assert all(place.startswith(("relu", "abs", "log")) for place in labels), labels
    assert len(refused) == 1


def hook_on_root(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda _, args: (args[0].flip(1) * 3,))


def hook_behind_root(module: nn.Module) -> None:
    module.register_forward_hook(lambda _, args, made: made * 2)


def patched(module: nn.Module) -> None:
    module.forward = types.MethodType(lambda self, images: Net.forward(self, images.flip(1)), module)


def patched_by_partial(module: nn.Module) -> None:
    module.forward = partial(lambda own, images: own(images * 2), module.forward)


@pytest.mark.parametrize("change", [hook_on_root, hook_behind_root, patched, patched_by_partial])
def test_what_the_module_does_when_it_is_called_is_what_counts(images: Images, change: Callable[[nn.Module], None]):
    module = Net()
    change(module)
    assert_right_or_refused(module, images.train)


@pytest.mark.parametrize("place", ["after", "last"])
@pytest.mark.parametrize("name", STATEFUL)
def test_state_and_chance_are_those_of_the_module_itself(images: Images, name: str, place: str):
    assert_right_or_refused(Net(**{place: STATEFUL[name]}), images.train)


REFUSED: list[str] = []


def assert_right_or_refused(module: nn.Module, batches: Any) -> None:
    """Over six training calls in a row both halves do as the module does, or there are none."""
    frozen = freeze(module, until="second")
    try:
        boundary = prove_boundary(module, frozen, batches, StepRules())
    except ModelError as error:
        assert len(str(error)) > 20
        REFUSED.append(str(error))
        return
    images, found = torch.randn(4, 3, 24, 24), []
    with no_trace(module):
        activations = compute_activations(boundary.prefix, images, nullcontext)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    attributes = dict(vars(module))
    for call in (module, lambda _: boundary.train_suffix(*[value.clone() for value in activations])):
        module.load_state_dict(start)
        vars(module).update({name: attributes[name] for name in ("calls", "register")})
        module.train()
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        found.append([call(images) for _ in range(6)] + [torch.tensor(random.random()), module.count.clone()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Switched(nn.Module):
    """Frozen maps turn over when an environment variable is set: nothing of the module shows it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.fc(torch.relu(-maps if os.environ.get("TURNED") else maps).mean((2, 3)))


@pytest.mark.parametrize("first_at", [1, 6])
def test_a_difference_found_late_ends_the_use_of_the_cache_and_nothing_computed_from_it_stays(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_at: int
):
    monkeypatch.setattr(proof, "_SHARE", 1e9)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    checkpoint = {"every_steps": 1, "keep": 20}
    found: dict[str, Any] = {}
    for use in ("always", "never"):
        said: list[str] = []

        def watch(event: object, use: str = use, said: list[str] = said) -> None:
            said.append(getattr(event, "text", ""))
            if use == "always" and getattr(event, "step", 0) == first_at:
                monkeypatch.setenv("TURNED", "1")

        out = tmp_path / use
        given = settings(recipe="probe", epochs=3, cache={"use": use}, checkpoint=checkpoint, out=str(out))
        given["model"] = {"image_size": 32}
        run = hs.train(hs.load_config(given), model=Switched(), watch=watch)
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        history = [(event["step"], event["loss"]) for event in events if event["event"] == "step"]
        found[use] = {name: value.tolist() for name, value in run.model.state_dict().items()}
        found[use] |= {"steps": history, "predictions": (out / "predictions.csv").read_text()}
        given_up = [text for text in said if "given up" in text]
        assert len(given_up) == (use == "always"), said
        assert all("first seen in what fc is given" in text for text in given_up), given_up
    assert found["always"] == found["never"]
    plan = json.loads((tmp_path / "always" / "plan.json").read_text())
    assert [choice["cached"] for choice in plan["choices"]["cache"]] == [[]]
    assert not any((tmp_path / "cache").glob("*/pages"))


def decided(limit: float, net: nn.Module, values: Tensor) -> Tensor:
    return values * 2 if values.mean() > limit else values + 1


@pytest.mark.parametrize("limit", [0.05, 0.5])
def test_the_boundary_is_before_a_branch_that_other_images_take_another_way(images: Images, limit: float):
    """Images of noise, twice theirs, or black ones go another way."""
    module = Net(after=partial(decided, limit))
    boundary = prove_boundary(module, freeze(module, until="third"), images.train, StepRules())
    assert boundary.labels == ("the model's own forward",) or boundary.labels == ("second",), boundary.labels
    module.eval()
    for given in (torch.zeros(3, 3, 24, 24), torch.randn(3, 3, 24, 24), torch.randn(3, 3, 24, 24) * 50):
        with torch.no_grad():
            activations = compute_activations(boundary.prefix, given, nullcontext)
            assert torch.equal(boundary.eval_suffix(*activations), module(given))


def test_a_boundary_is_proved_anew_once_its_graphs_read_a_tensor_that_the_module_no_longer_holds(images: Images):
    module = Net(last=lambda net, features: features * net.gain)
    frozen = freeze(module, until="second")
    before = prove_boundary(module, frozen, images.train, StepRules())
    assert before is prove_boundary(module, frozen, images.train, StepRules())
    assert before.find_replaced(module) is None
    module.gain = module.gain * 3  # as a way of loading of one's own may put another tensor in its place
    assert before.find_replaced(module) == "gain"
    after = prove_boundary(module, frozen, images.train, StepRules())
    module.eval()
    with torch.no_grad():
        activations = compute_activations(after.prefix, given := torch.randn(3, 3, 24, 24), nullcontext)
        assert torch.equal(after.eval_suffix(*activations), module(given))


class Moded(nn.Module):
    """What its hook and its own ``train`` do depends on the mode of the whole, which no layer of the head has."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.mid, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 8), nn.Linear(8, 10)
        self.how, self.gain, self.seen = how, 1.0, list[float]()
        if how == "hook":
            self.mid.register_forward_hook(self._count)

    def _count(self, _: nn.Module, __: object, made: Tensor) -> Tensor:
        self.seen += [1.0] if self.training else []
        return made * (1 + len(self.seen) / 50)

    def train(self, mode: bool = True) -> Moded:
        self.gain = 1.0 if mode or self.how != "train" else 0.5
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.mid(torch.relu(self.conv(images)).mean((2, 3)))) * self.gain)


@pytest.mark.parametrize("how", ["hook", "train"])
def test_the_whole_module_is_in_evaluation_mode_while_a_part_of_it_is_evaluated(settings, tmp_path: Path, how: str):
    found = {}
    for use in ("always", "never"):
        out = tmp_path / use
        given = settings(recipe="full", freeze="until:conv", epochs=2, cache={"use": use}, out=str(out))
        given["model"] = {"image_size": 32}
        metrics = list[dict[str, float]]()
        watch = lambda event, metrics=metrics: metrics.append(getattr(event, "metrics", {}))  # noqa: E731
        run = hs.train(hs.load_config(given), model=Moded(how), watch=watch)
        found[use] = [run.metrics, [each for each in metrics if each], (out / "predictions.csv").read_text()]
        found[use] += [len(run.model.seen), run.model.gain]
    assert found["always"] == found["never"]


class Turning(nn.Module):
    """A layer of one's own that computes otherwise once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.turned = nn.Linear(8, 8), False

    def forward(self, features: Tensor) -> Tensor:
        return -self.linear(features) if self.turned else self.linear(features)


def test_the_part_where_a_module_leaves_the_way_of_its_halves_is_named() -> None:
    class WithTail(Switched):
        def __init__(self) -> None:
            super().__init__()
            self.tail = Turning()

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.tail(torch.relu(self.conv(images)).mean((2, 3))))

    module, images = WithTail(), torch.rand(2, 3, 16, 16)
    frozen = freeze(module, until="conv")
    halves = find_boundary(module, frozen, example=images)
    activations = compute_activations(halves.prefix, images, nullcontext)
    options: dict[str, Any] = {"arithmetic": nullcontext, "calls": Calls(modes=(True,), seed=1)}
    assert find_culprit(module, halves, images, activations, **options) == "the model's own forward"  # there is none
    module.tail.turned = True
    assert find_culprit(module, halves, images, activations, **options) == "what fc is given"
    module.tail.turned = False
    assert find_culprit(module, halves, images, (activations[0] + 1,), **options) == "what tail.linear is given"
    assert module.training and not module.fc._forward_hooks
