"""What a caller has before ``train``, ``plan`` and ``open_run`` is the caller's afterwards: the module and all in it,
and the global generators of random numbers.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import headstart as hs
from headstart.errors import ConfigError, ModelError, RunError
from headstart.planning import evaluation
from headstart.planning import precision as arithmetic
from headstart.training.average import make_average
from tests.arithmetic import default_dtype


class Busy(nn.Module):
    """It counts its calls, writes buffers, draws from three generators, and is frozen and in eval in parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Linear(8, 10)
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.seen = 0, []
        self.conv.weight.requires_grad_(False)
        self.norm.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.seen.append(len(images))
        self.calls += 1
        noise = random.random() + np.random.rand() + torch.rand(()) if self.training else 0.0
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)) + noise)


def facts(module: nn.Module) -> dict[str, Any]:
    """Everything that could be told apart from outside, but for the functions of hooks."""
    return {
        "tensors": {name: value.tolist() for name, value in module.state_dict().items()},
        "gradients": {
            name: value.grad if value.grad is None else value.grad.tolist() for name, value in module.named_parameters()
        },
        "trainable": {name: value.requires_grad for name, value in module.named_parameters()},
        "modes": {name: part.training for name, part in module.named_modules()},
        "types": {name: type(part) for name, part in module.named_modules()},
        "plain": (module.count, tuple(module.seen)),
        "attributes": {name: sorted(vars(part)) for name, part in module.named_modules()},
        "hooks": {name: [*part._forward_hooks.values()] for name, part in module.named_modules()},
    }


def generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.fixture
def own(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., hs.Config]:
    """A short run of a module of one's own: ``own("name", recipe="full")``."""

    def make(out: str = "run", **sections: Any) -> hs.Config:
        model = {"name": "auto", "weights": "pretrained", "options": {}}
        return hs.load_config(settings(model=model, out=str(tmp_path / out), **{"epochs": 2, **sections}))

    return make


def busy() -> Busy:
    module = Busy()
    module(torch.ones(2, 3, 8, 8)).sum().backward()
    module.register_forward_hook(lambda part, args, out: out * 1.5)
    return module


@pytest.mark.parametrize("recipe", ["lp_ft", "lora", "probe"])
def test_neither_a_plan_nor_a_run_changes_what_is_the_callers(own, recipe) -> None:
    module, config = busy(), own(recipe=recipe, **({"lora": {"rank": 2}} if recipe == "lora" else {}))
    before, drawn = facts(module), generators()
    hs.plan(config, model=module)
    assert (facts(module), generators()) == (before, drawn)
    run = hs.train(config, model=module)
    assert (facts(module), generators()) == (before, drawn)
    hs.train(config, model=module, resume=True)
    hs.open_run(run.path, model=module)
    assert (facts(module), generators()) == (before, drawn)


def test_the_callers_things_are_the_callers_after_an_error_too(own) -> None:
    module = busy()
    before, drawn = facts(module), generators()

    def stop(event: object) -> None:
        if isinstance(event, hs.StepDone):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hs.train(own(), model=module, watch=stop)
    with pytest.raises(ConfigError):
        hs.plan(own(loss={"kind": "mse"}), model=module)
    assert (facts(module), generators()) == (before, drawn)


def test_a_run_in_a_thread_has_the_bits_of_one_outside_and_kernels_stay_as_chosen(own) -> None:
    found: dict[str, bytes] = {}

    def one(name: str) -> None:
        run = hs.train(own(name), model=busy(), watch=lambda _: setattr(torch.backends.cudnn, "benchmark", True))
        found[name] = (run.path / "model" / "model.safetensors").read_bytes()

    thread = threading.Thread(target=one, args=("thread",))
    thread.start()
    thread.join()
    one("outside")
    assert found["thread"] == found["outside"]
    assert torch.backends.cudnn.benchmark is False


def test_runs_from_one_module_are_independent_and_go_on_to_the_same_bits(own) -> None:
    module, options = busy(), {"recipe": "full", "average": {"kind": "none"}}
    weights = lambda run: (run.path / "model" / "model.safetensors").read_bytes()  # noqa: E731
    first, second = (hs.train(own(name, **options), model=module) for name in "ab")
    torch.rand(3)
    random.random()
    assert weights(first) == weights(second)

    def stop(event: object) -> None:
        if isinstance(event, hs.EpochDone):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hs.train(own("c", **options), model=module, watch=stop)
    assert weights(hs.train(own("c", **options), model=module, resume=True)) == weights(first)


def test_a_module_that_cannot_be_copied_is_trained_in_place_once(own) -> None:
    module = busy()
    module.conv.lock = threading.Lock()
    for call in (hs.plan, hs.train):
        with pytest.raises(ModelError, match=r"conv.lock \(lock: .*; train the module itself: hs.train"):
            call(own(), model=module)
    with pytest.raises(ConfigError):
        hs.train(own(loss={"kind": "mse"}), model=hs.InPlace(module))
    run = hs.train(own(), model=hs.InPlace(module))
    assert run.model is module
    for given in (hs.InPlace(module), module):
        with pytest.raises(ModelError, match=r"was trained in place before, .* began; make it anew$"):
            hs.train(own("other"), model=given)
    del module.conv.lock
    with pytest.raises(ModelError, match=r"make it anew, or give a copy: model=copy.deepcopy\(module\)"):
        hs.train(own("other"), model=module)
    hs.train(own("other"), model=copy.deepcopy(module))


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr"])
def test_what_can_neither_be_copied_nor_saved_is_not_said_to_be_trained_in_place(own, form) -> None:
    module = Busy()
    module.register_buffer("mix", getattr(torch.eye(8), form)())
    with pytest.raises(ModelError, match=r"mix is a sparse_(coo|csr) tensor, which a safetensors file cannot hold"):
        hs.train(own(), model=module)
    module.register_buffer("mix", torch.empty(2, device="meta"))
    with pytest.raises(ModelError, match="mix is on the meta device and has no values"):
        hs.train(own(), model=module)


def test_a_finished_run_gives_its_model_a_module_of_its_own(own) -> None:
    module = busy()
    run = hs.train(own(), model=module)
    opened, again = hs.open_run(run.path, model=module), hs.open_run(run.path, model=module)
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(opened.model(images), run.model(images))
    assert opened.model is not again.model
    with torch.no_grad():
        again.model.fc.weight.zero_()
    assert torch.equal(opened.model(images), run.model(images))
    assert hs.open_run(run.path, model=hs.InPlace(copy.deepcopy(module))).model.fc.out_features == 3


@pytest.mark.parametrize("recipe", ["probe", "lp_ft", "bias", "lora"])
def test_the_model_of_a_run_is_plain_trainable_but_for_what_the_user_froze(own, recipe) -> None:
    module = busy()
    config = own(recipe=recipe, norm_statistics="frozen", **({"lora": {"rank": 2}} if recipe == "lora" else {}))
    run = hs.train(config, model=module)
    images = torch.rand(4, 3, 32, 32)
    for model in (
        run.model,
        hs.open_run(run.path, model=module).model,
        hs.train(config, model=module, resume=True).model,
    ):
        assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["conv.weight"]
        assert [*model.state_dict()] == [*module.state_dict()]
        assert torch.equal(model(images), run.model.eval()(images))
        assert not any(part.training for part in model.modules())
        assert all(part.training for part in model.train().modules())
        assert all("train" not in vars(part) for part in model.modules())
        assert all(value.grad is None for value in model.parameters())
    if recipe != "lora":  # adapters are merged into whatever they stand beside
        assert torch.equal(run.model.conv.weight, module.conv.weight)


def test_the_model_of_a_named_run_is_trainable_and_not_pinned_to_eval(settings) -> None:
    run = hs.train(hs.load_config(settings(recipe="probe")))
    for model in (run.model, hs.open_run(run.path).model):
        assert all(value.requires_grad for value in model.parameters())
        assert all(part.training for part in model.train().modules())


def test_what_the_user_froze_does_not_move_and_the_plan_says_so(own) -> None:
    module = Busy()
    hs.freeze(module, until="norm")  # weights, statistics and evaluation mode
    module.fc.bias.requires_grad_(False)  # of the old head
    plan = hs.plan(own(recipe="full"), model=module).to_dict()
    (said,) = [one for one in plan["decisions"] if one["name"] == "stays frozen"]
    assert said["value"] == "4 parameters: conv.weight, conv.bias, norm.weight, ..."
    assert plan["phases"][0]["trainable_parameters"] == 3 * 8 + 3
    run = hs.train(own(recipe="full", norm_statistics="batch"), model=module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]) == name.startswith(("conv", "norm")), name
    assert run.model.fc.bias.requires_grad


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad, torch.inference_mode,
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.float64), lambda: default_dtype(torch.bfloat16),
    ],
    ids=["autocast", "no_grad", "inference_mode", "meta", "float64", "bfloat16"],
)  # fmt: skip
def test_what_surrounds_the_call_does_not_reach_into_it(settings, tmp_path, around) -> None:
    config = {"precision": "fp32", "memory_format": "contiguous"}
    images = torch.rand(4, 3, 32, 32)
    inside, outside = (hs.load_config(settings(**config, out=str(tmp_path / name))) for name in ("inside", "outside"))
    with around():
        plan = hs.plan(inside)
        run = hs.train(inside)
        opened = hs.open_run(run.path).model
        bare = hs.open_model("timm/test_resnet", weights="none").module
        again = hs.train(inside, resume=True).model
    plain = hs.train(outside)
    assert (run.path / "model/model.safetensors").read_bytes() == (plain.path / "model/model.safetensors").read_bytes()
    assert (run.path / "predictions.csv").read_bytes() == (plain.path / "predictions.csv").read_bytes()
    assert run.metrics == plain.metrics
    assert plan.to_dict()["phases"] == hs.plan(outside).to_dict()["phases"]
    for model in (run.model, opened, again):
        assert torch.equal(model(images), plain.model(images))
        model(images).sum().backward()
    assert {(value.dtype, value.device.type, value.is_inference()) for value in bare.parameters()} == {
        (torch.float32, "cpu", False)
    }


class Moved(nn.Module):
    """What it computes depends on how often it was called before, in ways of which each is kept elsewhere."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 10)
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.seen, self.draw = 0, [], np.random.default_rng(0)
        closed = {"calls": 0}

        def forward(images: torch.Tensor) -> torch.Tensor:
            closed["calls"] += 1
            COUNTED["calls"] += 1
            scale = self.ticked() + closed["calls"] + COUNTED["calls"] + random.random() + torch.rand(())
            return self.fc(self.conv(images).relu().mean((2, 3)) * (1 + scale / 1000))

        self.forward = forward

    def ticked(self) -> float:
        self.count += 1
        Moved.total += 1
        self.seen.append(1)
        self.calls = self.calls + 1
        return self.count + Moved.total + len(self.seen) + float(self.calls) + float(self.draw.random())


COUNTED = {"calls": 0}


def test_what_planning_tries_does_not_reach_the_run(own, monkeypatch) -> None:
    """A run whose choices were measured has the bits of one that was told them."""
    for part in (arithmetic, evaluation):
        monkeypatch.setattr(part, "_SHORT_SECONDS", 0.0)
    for name, value in (("_FEW_PASSES", 0), ("_HOPELESS", 1e9), ("_MARGIN", 0.0)):
        monkeypatch.setattr(arithmetic, name, value)
    monkeypatch.setattr(evaluation, "_SHARE", float("inf"))
    options = {"recipe": "full", "cache": {"use": "never"}}
    told = {"precision": "fp32", "memory_format": "contiguous", "batch": {"size": 8, "evaluation": 8}}
    weights = {}
    for name, more in (("tried", {}), ("told", told)):
        COUNTED["calls"], Moved.total = 0, 0
        config = own(name, **options, **more)
        before = (dict(COUNTED), Moved.total)
        plan = hs.plan(config, model=Moved()).to_dict()
        assert (COUNTED, Moved.total) == before
        run = hs.train(config, model=Moved())
        weights[name] = (run.path / "model" / "model.safetensors").read_bytes()
        (why,) = [one["reason"] for one in plan["decisions"] if one["name"] == "precision"]
        assert ("images/s" in why) == (name == "tried")
        assert run.model.count == len(run.model.seen) > 0
    assert weights["tried"] == weights["told"]


def test_a_module_whose_forward_leaves_what_cannot_be_put_back_is_refused_by_name(own) -> None:
    module = busy()
    module.numbers = (number for number in range(10**6))
    module.register_forward_pre_hook(lambda part, args: setattr(part, "last", next(part.numbers)))
    with pytest.raises(ModelError, match=r"cannot be copied: numbers \(generator: cannot pickle"):
        hs.plan(own(recipe="full"), model=module)
    with pytest.raises(ModelError, match="running it once changes numbers, and that cannot be undone"):
        hs.train(own(recipe="full"), model=hs.InPlace(module))


def test_the_average_computes_with_its_own_weights_where_the_module_was_wrapped(own) -> None:
    """A closure over the module's own forward would make the average the trained model."""
    module = Busy()
    inner = module.forward
    module.forward = lambda images: inner(images)
    state = hs.TrainState(module, torch.optim.SGD(module.parameters(), lr=0.1))
    state.average = make_average(module, half_life=0.5, total_steps=10)
    with torch.no_grad():
        state.average.module.fc.weight.zero_()
        state.average.module.fc.bias.fill_(7.0)
    assert state.average.module(torch.rand(2, 3, 8, 8)).unique().tolist() == [7.0]


def test_a_run_beside_a_run_of_another_thread_is_refused(own) -> None:
    told: list[str] = []

    def beside() -> None:
        for call in (hs.plan, hs.train):
            try:
                call(own("other"), model=busy())
            except RunError as error:
                told.append(str(error))

    def watch(event: object) -> None:
        if isinstance(event, hs.EpochDone) and not told:
            thread = threading.Thread(target=beside)
            thread.start()
            thread.join()

    hs.train(own(), model=busy(), watch=watch)
    assert [text.partition(":")[0] for text in told] == ["hs.plan", "hs.train"]
    assert "hs.train is going on in another thread" in told[0]
    assert hs.plan(own("other"), model=busy())


def test_a_module_without_values_is_refused(own) -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"model: 0.weight is on the meta device and has no values; .*to_empty"):
        hs.train(own(), model=module)


class Inner(nn.Module):
    """All names of its tensors begin with ``module.``, as in a file of DataParallel; a buffer holds infinities."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
        self.module.register_buffer("limits", torch.tensor([-torch.inf, torch.inf]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(images.clamp(*self.module.limits.tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_opened_again_is_what_was_saved(own, dtype) -> None:
    module = Inner().to(dtype)
    run = hs.train(own(recipe="full", precision="fp32"), model=module)
    opened, images = hs.open_run(run.path, model=module).model, torch.rand(4, 3, 32, 32, dtype=dtype)
    assert torch.equal(opened(images), run.model(images))
    assert {value.dtype for value in opened.state_dict().values()} == {dtype}


def test_wrappers_are_refused_with_what_to_give(own) -> None:
    with pytest.raises(ModelError, match=r"wrapped in DataParallel; give the one inside, module.module"):
        hs.plan(own(), model=nn.DataParallel(busy()))
    with pytest.raises(ModelError, match=r"compiled by torch.compile; give the one .*, module._orig_mod"):
        hs.train(own(), model=torch.compile(busy()))


def test_a_module_made_in_inference_mode_trains(own) -> None:
    with torch.inference_mode():
        module = busy_without_gradients()
    assert hs.train(own(recipe="full"), model=module).metrics


def busy_without_gradients() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
