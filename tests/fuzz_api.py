"""Sequences of public calls against a plain PyTorch loop that does the same by hand, in float64.

FUZZ_API_EXAMPLES=500 FUZZ_API_STEPS=40 python -m pytest -q tests/test_fuzz_api.py
python -m tests.fuzz_api --examples 500 --steps 40 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from arithmetic import default_dtype
from fuzz_laws import World, changes, generators, seed_all, snapshot
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn
from torch.nn import functional as F

import headstart as hs
from headstart.config.schema import Penalties, Schedule
from headstart.models.sources import open_model

CLASSES, LAYERS = 3, ("conv1", "norm1", "conv2", "norm2", "fc")
AVERAGES = "average_steps" in {one.name for one in fields(hs.StepRules)}
RULES = {  # what a freeze rule freezes, by hand; a norm goes with the convolution before it
    "none": (), "backbone": ("conv1", "norm1", "conv2", "norm2"), "until:conv1": ("conv1", "norm1"),
    "until:norm1": ("conv1", "norm1"), "until:conv2": ("conv1", "norm1", "conv2", "norm2"), "names:conv2.*": ("conv2",),
}  # fmt: skip
AROUND: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "half": lambda: default_dtype(torch.float16),
}
_WORLDS: list[World] = []


class Net(nn.Module):
    """Two convolutions with norms and a head. A bias before a norm would get rounding for its gradient."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 5, 4, 2, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, CLASSES)
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        for _ in range(2 if self.tied else 1):
            x = torch.relu(self.norm2(self.conv2(x))) + x
        return self.fc(x.mean((2, 3)))


@dataclass
class Plain:
    """The same model and optimizer in a loop by hand."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    asleep: tuple[str, ...] = ()
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    average: dict[str, Tensor] | None = None
    decay: float = 0.0
    start: dict[str, Tensor] = field(default_factory=dict)
    known: dict[str, nn.Parameter] = field(default_factory=dict)

    def train(self, batch: Any, rules: hs.StepRules) -> float:
        """One optimizer step on a batch; its mean loss."""
        self.begin(rules)
        self.model.train()
        for name in self.asleep:
            self.model.get_submodule(name).eval()
        for parameter in self.model.parameters():
            parameter.grad = None
        mean, std = (values.double()[:, None, None] for values in (batch.mean, batch.std))
        images, size, total = (batch.pixels.double() / 255 - mean) / std, len(batch.targets), 0.0
        count = max(1, min(rules.accumulate, size // 2))
        for place in range(count):
            piece = slice(size * place // count, size * (place + 1) // count)
            losses = F.cross_entropy(self.model(images[piece]), batch.targets[piece], reduction="sum")
            (losses / size).backward()
            total += float(losses.detach()) / size
        self.penalise(rules.penalties)
        self.clip(rules)
        self.optimizer.step()
        if self.average is not None:
            weight = 1.0 if self.step <= 1 else 1 - self.decay
            for name, value in self.model.state_dict().items():
                mixed = value.clone() if not value.is_floating_point() else self.average[name].lerp(value, weight)
                self.average[name] = mixed
        self.step += 1
        return total

    def begin(self, rules: hs.StepRules) -> None:
        """What rules need: the average, and the start of L2-SP, values that parameters had when they came."""
        named = dict(self.model.named_parameters())
        if AVERAGES and rules.average_steps is not None and self.average is None:
            self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.decay = 0.5 ** (1 / max(1.0, rules.average_steps))
        if rules.penalties.l2_start and not self.start:
            self.start = {name: value.detach().clone() for name, value in named.items() if not name.startswith("fc.")}

    def penalise(self, penalties: Penalties) -> None:
        """The gradients of L1 on the head's weights and of L2-SP on all else that trains."""
        trained = [value for group in self.optimizer.param_groups for value in group["params"] if value.requires_grad]
        extra = torch.zeros((), dtype=torch.float64)
        if penalties.l1:
            extra = extra + penalties.l1 * self.model.fc.weight.abs().sum()
        for name, value in self.model.named_parameters():
            if penalties.l2_start and name in self.start and value.requires_grad:
                extra = extra + penalties.l2_start / 2 * ((value - self.start[name]) ** 2).sum()
        if extra.requires_grad:
            for value, more in zip(trained, torch.autograd.grad(extra, trained, allow_unused=True), strict=True):
                if more is not None:
                    value.grad = more if value.grad is None else value.grad + more

    def clip(self, rules: hs.StepRules) -> None:
        """By norm, then by value."""
        trained = [
            value for group in self.optimizer.param_groups for value in group["params"] if value.grad is not None
        ]
        if rules.clip_norm is not None:
            norm = torch.sqrt(sum((value.grad**2).sum() for value in trained))
            for value in trained:
                value.grad = value.grad * min(1.0, float(rules.clip_norm / (norm + 1e-6)))
        if rules.clip_value is not None:
            for value in trained:
                value.grad = value.grad.clamp(-rules.clip_value, rules.clip_value)


def world() -> World:
    """One folder of pictures for all examples."""
    if not _WORLDS:
        _WORLDS.append(World())
    return _WORLDS[0]


class Calls(RuleBasedStateMachine):
    """The calls, in any order."""

    @initialize(
        tied=st.booleans(),
        kind=st.sampled_from(("sgd", "adamw")),
        first=st.sampled_from(list(RULES)),
        numbers=st.integers(0, 9),
    )
    def open(self, tied: bool, kind: str, first: str, numbers: int) -> None:
        """A module of one's own, its data, a head, a rule, an optimizer."""
        seed_all(numbers)
        torch.set_num_threads(1)
        self.kind, self.scheduler, self.saved = kind, None, None
        module = Net(tied=tied).double()
        opened = open_model(module, image_size=32)
        assert opened.module is module
        self.images = hs.open_images(world().root / "data", like=opened, batch_size=8, augment="none")
        self.folder = Path(tempfile.mkdtemp(dir=world().root))
        self.model, self.plain = module, None
        self.state = hs.TrainState(module, torch.optim.SGD(module.parameters(), lr=0.1))
        self.plain = Plain(copy.deepcopy(module), torch.optim.SGD(module.parameters(), lr=0.1))
        self.freeze(first)
        self.group(0.05, 1.0, 0.0)

    def teardown(self) -> None:
        if getattr(self, "folder", None) is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def rules_of(self, drawn: dict[str, Any]) -> hs.StepRules:
        """Step rules of drawn numbers."""
        given = {name: value for name, value in drawn.items() if name not in ("l1", "l2")}
        if not AVERAGES:
            given.pop("average_steps", None)
        return hs.StepRules(penalties=Penalties(l1=drawn["l1"], l2_start=drawn["l2"]), **given)

    drawn_rules = st.fixed_dictionaries(
        {
            "accumulate": st.sampled_from((1, 1, 2, 3)),
            "clip_norm": st.sampled_from((None, None, 0.3)),
            "clip_value": st.sampled_from((None, None, 0.02)),
            "l1": st.sampled_from((0.0, 0.0, 0.01)),
            "l2": st.sampled_from((0.0, 0.0, 0.5)),
            "average_steps": st.sampled_from((None, None, 3.0)),
        }
    )

    @rule(which=st.integers(0, 2), drawn=drawn_rules, around=st.sampled_from(list(AROUND)))
    def step(self, which: int, drawn: dict[str, Any], around: str) -> None:
        """One step, whatever surrounds it."""
        batch = list(self.images.train.epoch(self.plain.epoch))[which]
        rules = self.rules_of(drawn)
        before = generators()
        missing = self.missing()
        with AROUND[around]():
            try:
                done = hs.train_step(self.state, batch, rules=rules)
            except hs.Error as error:
                assert missing, f"refused without a reason: {error}"
                assert all(name in str(error) for name in missing[:1]), f"{error} does not name {missing}"
                return
        assert not missing, f"{missing} train, are in no group, and nothing was said"
        loss = self.plain.train(batch, rules)
        assert abs(done.loss - loss) < 1e-6, (done.loss, loss)
        if AVERAGES:
            assert generators() == before, "a step moved a global generator"

    def missing(self) -> list[str]:
        """Parameters that train and are in no group."""
        grouped = {id(value) for group in self.state.optimizer.param_groups for value in group["params"]}
        named = self.state.model.named_parameters()
        return [name for name, value in named if value.requires_grad and id(value) not in grouped]

    @rule(
        steps=st.integers(1, 5), epochs=st.integers(1, 2), drawn=drawn_rules, cosine=st.booleans(),
        around=st.sampled_from(list(AROUND)),
    )  # fmt: skip
    def fit(self, steps: int, epochs: int, drawn: dict[str, Any], cosine: bool, around: str) -> None:
        """A part of ``fit``, left in the middle."""
        if self.missing():
            return
        rules, schedule = self.rules_of(drawn), Schedule(kind="cosine", warmup=0.0) if cosine else None
        first, per_epoch, done = self.plain.epoch, len(self.images.train), 0
        with AROUND[around]():
            events = hs.fit(self.state, self.images.train, rules=rules, epochs=epochs, schedule=schedule)
            for event in events:
                if isinstance(event, hs.EpochDone):
                    self.plain.epoch, self.plain.epoch_step = self.plain.epoch + 1, 0
                    continue
                assert isinstance(event, hs.StepDone)
                at = (self.plain.epoch - first) * per_epoch + self.plain.epoch_step
                with (
                    torch.inference_mode(False),
                    torch.enable_grad(),
                    torch.device("cpu"),
                    default_dtype(torch.float32),
                    torch.autocast("cpu", enabled=False),
                ):
                    self.mirror(at, epochs * per_epoch, rules, event.loss, cosine=cosine)
                done += 1
                if done == steps:
                    break
            events.close()
        assert (self.state.epochs_done, self.state.epoch_step) == (self.plain.epoch, self.plain.epoch_step)

    def mirror(self, at: int, total: int, rules: hs.StepRules, loss: float, *, cosine: bool) -> None:
        """The step of ``fit`` by hand."""
        batch = list(self.images.train.epoch(self.plain.epoch))[self.plain.epoch_step]
        if cosine:
            import math

            for group in self.plain.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * 0.5 * (1 + math.cos(math.pi * at / total))
        assert abs(self.plain.train(batch, rules) - loss) < 1e-6
        self.plain.epoch_step += 1

    @rule(factor=st.sampled_from((0.5, 2.0)), which=st.integers(0, 3))
    def change_rate(self, factor: float, which: int) -> None:
        """A group's rate by hand."""
        for optimizer in (self.state.optimizer, self.plain.optimizer):
            group = optimizer.param_groups[which % len(optimizer.param_groups)]
            group["lr"] *= factor

    @rule()
    def schedule_by_torch(self) -> None:
        """A scheduler of torch's, over the optimizer as it is."""
        both = self.state.optimizer, self.plain.optimizer
        self.scheduler = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in both]

    @precondition(lambda self: self.scheduler is not None and self.plain.step > 0)
    @rule()
    def scheduler_step(self) -> None:
        """Both one on."""
        for scheduler in self.scheduler:
            scheduler.step()

    @rule(which=st.sampled_from(list(RULES)), regroup=st.sampled_from((True, True, False)))
    def freeze(self, which: str, *, regroup: bool = False) -> None:
        """Another rule; the optimizer stays as it is, or is made again."""
        hs.freeze(self.state.model, rule=which)
        frozen = RULES[which]
        for name, value in self.plain.model.named_parameters():
            value.requires_grad_(name.partition(".")[0] not in frozen)
        self.plain.asleep = tuple(name for name in frozen if name.startswith("norm"))
        trains = {name for name, value in self.state.model.named_parameters() if value.requires_grad}
        assert trains == {name for name, value in self.plain.model.named_parameters() if value.requires_grad}, which
        if regroup:
            self.group(0.05, 1.0, 0.1)

    @rule(lr=st.sampled_from((0.05, 0.01)), decay=st.sampled_from((1.0, 0.5)), weight_decay=st.sampled_from((0.0, 0.1)))
    def group(self, lr: float, decay: float, weight_decay: float) -> None:
        """A new optimizer over groups."""
        groups = hs.param_groups(self.state.model, lr=lr, head_lr=2 * lr, layer_decay=decay, weight_decay=weight_decay)
        named, theirs = dict(self.plain.model.named_parameters()), dict(self.state.model.named_parameters())
        grouped = [name for group in groups for name in group["names"]]
        assert sorted(grouped) == sorted(name for name, value in theirs.items() if value.requires_grad)
        assert all(
            value is theirs[name]
            for group in groups
            for name, value in zip(group["names"], group["params"], strict=True)
        )
        for group in groups:
            assert group["weight_decay"] == (
                weight_decay if named[group["names"][0]].ndim > 1 or not weight_decay else 0
            )
        copied = [{**group, "params": [named[name] for name in group["names"]]} for group in groups]
        self.state.optimizer, self.plain.optimizer = self.made(groups), self.made(copied)
        self.scheduler = None

    def made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The kind of optimizer that was drawn."""
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return torch.optim.AdamW(groups, lr=0.1, eps=1e-3)  # a gradient of rounding alone moves nothing

    @rule(tell=st.booleans())
    def replace_head(self, tell: bool) -> None:
        """A new head; ``tell``: the optimizer gets its parameters in place of the old one's."""
        old = [*self.state.model.fc.parameters()]
        hs.replace_head(self.state.model, outputs=CLASSES)
        previous = [*self.plain.model.fc.parameters()]
        self.plain.model.fc = copy.deepcopy(self.state.model.fc)
        if tell:
            for optimizer, before, module in (
                (self.state.optimizer, old, self.state.model), (self.plain.optimizer, previous, self.plain.model)
            ):  # fmt: skip
                _exchange(optimizer, before, [*module.fc.parameters()])

    @rule()
    def evaluate(self) -> None:
        """Looks, and leaves everything as it was."""
        before, state = snapshot(self.state.model), generators()
        found = hs.evaluate(self.state.model, self.images.val)
        assert not changes(before, snapshot(self.state.model))
        assert generators() == state
        modes = {name: part.training for name, part in self.plain.model.named_modules()}
        batch, count = next(iter(self.images.val.epoch(0))), len(self.images.val.samples)
        mean, std = (values.double()[:, None, None] for values in (batch.mean, batch.std))
        with torch.no_grad():
            made = self.plain.model.eval()((batch.pixels.double() / 255 - mean) / std)[:count].softmax(1)
        for name, part in self.plain.model.named_modules():
            part.training = modes[name]
        assert torch.allclose(found.predictions.outputs.double(), made, atol=1e-6)

    @rule(recipe=st.sampled_from(("probe", "full", "lp_ft")))
    def plan(self, recipe: str) -> None:
        """A plan of the very module leaves it as it was."""
        before, state = snapshot(self.state.model), generators()
        config = hs.load_config({
            "data": {"source": str(world().root / "data")}, "recipe": recipe, "epochs": 2, "workers": 0,
            "device": "cpu", "model": {"image_size": 32}, "batch": {"size": 8}, "precision": "fp32",
            "out": str(self.folder / "run"),
            "memory_format": "contiguous", "augment": {"preset": "none"},
        })  # fmt: skip
        hs.plan(config, model=self.state.model)
        assert not (changed := changes(before, snapshot(self.state.model))), changed
        assert generators() == state

    @rule(drawn=drawn_rules)
    def train_a_copy(self, drawn: dict[str, Any]) -> None:
        """A copy of the whole state is trained; the first one does not move."""
        if self.missing():
            return
        twin = copy.deepcopy(self.state)
        other = copy.deepcopy(self.plain)
        before = snapshot(self.state.model)
        batch = next(iter(self.images.train.epoch(0)))
        rules = self.rules_of(drawn)
        hs.train_step(twin, batch, rules=rules)
        other.train(batch, rules)
        values = {name: value[:3] for name, value in snapshot(self.state.model).items() if isinstance(value, tuple)}
        assert values == {name: value[:3] for name, value in before.items() if isinstance(value, tuple)}
        _compare(twin, other)

    @rule()
    def save(self) -> None:
        """A checkpoint."""
        if self.missing() or self.plain.step == 0:
            return
        shutil.rmtree(self.folder / "saved", ignore_errors=True)
        hs.save(self.state, self.folder / "saved")
        self.saved = (self.structure(), copy.deepcopy(self.plain))

    def structure(self) -> tuple[Any, ...]:
        """What must be the same where a checkpoint is restored."""
        trains = tuple(name for name, value in self.state.model.named_parameters() if value.requires_grad)
        groups = tuple(tuple(group["names"]) for group in self.state.optimizer.param_groups)
        return trains, groups, self.state.average is None, bool(self.plain.start)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self) -> None:
        """The checkpoint back into the state."""
        structure, plain = self.saved
        if self.missing() or structure != self.structure():
            return
        hs.restore(self.state, self.folder / "saved")
        model, asleep = self.plain.model, self.plain.asleep
        back = copy.deepcopy(plain)
        model.load_state_dict(back.model.state_dict())
        values = dict(zip([*back.model.parameters()], [*model.parameters()], strict=True))
        for ours, theirs in zip(self.plain.optimizer.param_groups, back.optimizer.param_groups, strict=True):
            ours.update({name: value for name, value in theirs.items() if name != "params"})
        self.plain.optimizer.state.clear()
        for value, kept in back.optimizer.state.items():
            self.plain.optimizer.state[values[value]] = kept
        back.model, back.optimizer, back.asleep = model, self.plain.optimizer, asleep
        self.plain, self.scheduler = back, None

    @precondition(lambda self: getattr(self, "plain", None) is not None and self.plain.step > 0)
    @rule(drawn=drawn_rules, other=drawn_rules)
    def go_back(self, drawn: dict[str, Any], other: dict[str, Any]) -> None:
        """Save, a step, a change of the rates, and back to what was saved."""
        self.step(0, drawn, "nothing")
        self.save()
        kept = self.structure()
        self.step(1, {**other, "l2": drawn["l2"], "average_steps": drawn["average_steps"]}, "nothing")
        self.change_rate(0.5, 0)
        if self.saved is not None and self.saved[0] == kept:
            self.restore()
            _compare(self.state, self.plain)

    @invariant()
    def equal(self) -> None:
        """Both have the same weights, statistics, optimizer state, average and counters."""
        if getattr(self, "plain", None) is not None:
            _compare(self.state, self.plain)


def _exchange(optimizer: torch.optim.Optimizer, before: list[Tensor], after: list[Tensor]) -> None:
    replaced = dict(zip(map(id, before), after, strict=True))
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(id(value), value) for value in group["params"]]
    for value in before:
        optimizer.state.pop(value, None)


def _compare(state: hs.TrainState, plain: Plain) -> None:
    assert state.step == plain.step
    ours, theirs = state.model.state_dict(), plain.model.state_dict()
    for name, value in ours.items():
        assert torch.allclose(value.double(), theirs[name].double(), atol=1e-6, rtol=1e-6), f"{name} differs"
    for group, other in zip(state.optimizer.param_groups, plain.optimizer.param_groups, strict=True):
        assert abs(group["lr"] - other["lr"]) < 1e-12, "rates differ"
        for value, twin in zip(group["params"], other["params"], strict=True):
            kept, held = state.optimizer.state.get(value, {}), plain.optimizer.state.get(twin, {})
            for name in {*kept, *held}:
                if isinstance(held.get(name), Tensor):
                    assert torch.allclose(kept[name].double(), held[name].double(), atol=1e-6), f"state {name} differs"
    assert (state.average is None) == (plain.average is None)
    if state.average is not None and plain.average is not None:
        for name, value in state.average.module.state_dict().items():
            assert torch.allclose(value.double(), plain.average[name].double(), atol=1e-6), f"average of {name} differs"


def run(*, examples: int, steps: int, number: int | None = None) -> None:
    """Draw so many sequences of at most so many calls; ``number``: a seed, else always the same ones."""
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, derandomize=number is None,
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.normal, print_blob=False,
        phases=[Phase.generate, Phase.shrink] if examples > 20 else [Phase.generate],
    )  # fmt: skip
    machine = Calls if number is None else seed(number)(Calls)
    try:
        run_state_machine_as_test(machine, settings=chosen)
    finally:
        while _WORLDS:
            _WORLDS.pop().close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_api", description=__doc__)
    parser.add_argument("--examples", type=int, default=int(os.environ.get("FUZZ_API_EXAMPLES", "100")))
    parser.add_argument("--steps", type=int, default=int(os.environ.get("FUZZ_API_STEPS", "30")))
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    run(examples=given.examples, steps=given.steps, number=given.seed)


if __name__ == "__main__":
    main()
