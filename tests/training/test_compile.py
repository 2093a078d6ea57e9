"""torch.compile in training: the steps are those without it, a resumed run has the same bits, evaluation goes past."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor

import headstart as hs
from headstart.errors import ConfigError, RunError
from headstart.optim.groups import param_groups
from headstart.planning import compile as compiling
from headstart.planning.preflight import prepare

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU torch.compile needs g++")


class Noting(nn.Module):
    """Refuses to be compiled in evaluation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, width, 3, stride=4), nn.Linear(width, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.training or not torch.compiler.is_compiling()
        return self.fc(self.conv(images).relu().mean((2, 3)))


def config(settings, **sections) -> hs.Config:
    usual = {"recipe": "full", "precision": "fp32", "augment": {"preset": "none"}}
    return hs.load_config(settings(**(usual | sections)) | {"model": {"image_size": 32}})


def ready(settings, **sections):
    return prepare(config(settings, **sections), module=Noting(), loss=None, emit=lambda _: None)


@needs_compiler
@pytest.mark.parametrize("accumulate", [1, 2])
def test_compiled_steps_are_the_others(net, noise, accumulate) -> None:
    losses = {}
    for how in ("never", "default"):
        model = net(norm=True)
        state = hs.TrainState(model, torch.optim.SGD(param_groups(model, lr=0.1)))
        rules = hs.StepRules(compile=how, accumulate=accumulate)
        losses[how] = [hs.train_step(state, noise(6, seed=step), rules=rules).loss for step in range(3)]
        assert state.model is model and not any("_orig_mod" in name for name in model.state_dict())
    assert losses["default"] == pytest.approx(losses["never"], rel=1e-4)


@needs_compiler
def test_training_is_compiled_evaluation_is_not_and_a_resumed_run_has_the_same_bits(settings, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: object) -> None:
        if isinstance(event, hs.EpochDone):
            raise Stop

    whole = hs.train(config(settings, compile="default", out=str(tmp_path / "whole")), model=Noting())
    again = config(settings, compile="default", out=str(tmp_path / "again"))
    with pytest.raises(Stop):
        hs.train(again, model=Noting(), watch=stop)
    torch.compiler.reset()
    hs.train(again, model=Noting(), resume=True)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1] and whole.path == tmp_path / "whole"


@needs_compiler
def test_what_the_compiler_cannot_do_is_one_sentence(net, noise) -> None:
    model = net()
    state = hs.TrainState(model, torch.optim.SGD(param_groups(model, lr=0.1)))
    with inductor.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}):
        torch.compiler.reset()
        with pytest.raises(
            RunError, match=r"compile: torch cannot compile this model here \(.*\); give --compile never"
        ):
            hs.train_step(state, noise(6), rules=hs.StepRules(compile="default"))


def test_a_cpu_does_not_compile_by_itself(settings) -> None:
    made = ready(settings)
    assert made.training_plan.rules.compile == "never" and made.document["choices"]["compile"] == {
        "how": "never",
        "why": "",
    }
    assert "compile" not in [one.name for one in made.plan.decisions]


@needs_compiler
@pytest.mark.parametrize(("margin", "how"), [(float("-inf"), "default"), (float("inf"), "never")])
def test_it_is_measured_whether_it_pays_and_kept_by_a_resume(settings, monkeypatch, margin, how) -> None:
    monkeypatch.setattr(compiling, "_may_pay", lambda _: True)
    monkeypatch.setattr(compiling, "_SHORT_SECONDS", 0.0)
    monkeypatch.setattr(compiling, "_MARGIN", margin)
    made = ready(settings)
    (told,) = (one for one in made.plan.decisions if one.name == "compile")
    assert told.value == made.training_plan.rules.compile == how
    assert "auto: a step takes" in told.reason and "compiling took" in told.reason
    monkeypatch.setattr(compiling, "_measure_compile", lambda *_: pytest.fail("measured again"))
    again = prepare(made.config, module=Noting(), loss=None, emit=lambda _: None, recorded=made.document["choices"])
    assert again.training_plan.rules.compile == how


def test_few_steps_are_not_worth_a_compiler(settings, monkeypatch) -> None:
    monkeypatch.setattr(compiling, "_may_pay", lambda _: True)
    assert ready(settings).document["choices"]["compile"] == {"how": "never", "why": ""}


def test_what_does_not_go_together_is_refused(settings) -> None:
    with pytest.raises(ConfigError, match=r"compile: not with activation_checkpointing"):
        prepare(
            hs.load_config(settings(recipe="full", compile="default", activation_checkpointing=True)),
            module=None, loss=None, emit=lambda _: None,
        )  # fmt: skip
