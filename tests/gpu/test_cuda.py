"""The same step on a CUDA device: run where there is one."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch

import headstart as hs
from headstart.data.batch import Batch
from headstart.planning.preflight import prepare
from headstart.training.fit import Timed
from headstart.training.precision import make_scaler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def batch(count: int = 16) -> Batch:
    made = torch.Generator().manual_seed(0)
    return Batch(
        pixels=torch.randint(0, 256, (count, 3, 64, 64), generator=made, dtype=torch.uint8),
        targets=torch.randint(0, 3, (count,), generator=made),
        indices=torch.arange(count),
        keys=tuple(f"{place}.png" for place in range(count)),
        mean=torch.full((3,), 0.5),
        std=torch.full((3,), 0.5),
        size=count,
    )


def stepped(model: torch.nn.Module, device: str, precision: str, memory_format: str = "contiguous") -> hs.StepDone:
    model = copy.deepcopy(model).to(device)
    optimizer = torch.optim.SGD(hs.param_groups(model, lr=0.01))
    scaler = make_scaler(torch.device(device), precision)
    state = hs.TrainState(model, optimizer, scaler=scaler)
    rules = hs.StepRules(precision=precision, memory_format=memory_format, accumulate=2, clip_norm=1.0)
    return hs.train_step(state, batch(), rules=rules)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=3)
    hs.freeze(net, rule="norm")  # batch statistics would make the pieces of a step differ
    return net


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.05)])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_step_on_the_gpu_has_the_cpus_loss_and_gradient(model, precision, tolerance, memory_format) -> None:
    on_cpu, on_gpu = stepped(model, "cpu", "fp32"), stepped(model, "cuda", precision, memory_format)
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=tolerance)
    assert on_gpu.grad_norm == pytest.approx(on_cpu.grad_norm, rel=max(tolerance, 0.01))


@pytest.mark.parametrize("how", ["default", "reduce-overhead"])
def test_compiled_steps_have_the_losses_of_the_others(model, how) -> None:
    losses = {}
    for kind in ("never", how):
        net = copy.deepcopy(model).to("cuda")
        state = hs.TrainState(net, torch.optim.SGD(hs.param_groups(net, lr=0.01)))
        rules = hs.StepRules(compile=kind, accumulate=2)
        losses[kind] = [hs.train_step(state, batch(), rules=rules).loss for _ in range(4)]
    assert losses[how] == pytest.approx(losses["never"], rel=1e-3)


@pytest.mark.parametrize("recipe", ["full", "probe"])
def test_batches_wait_for_the_device_in_pinned_memory(settings, recipe: str) -> None:
    made = prepare(hs.load_config(settings(device="cuda", recipe=recipe)), module=None, loss=None, emit=lambda _: None)
    pixels = next(made.images.train.epoch(0)).pixels
    assert pixels.is_pinned()


def test_the_gpu_is_chosen_and_a_whole_run_works_on_it(tmp_path) -> None:
    from PIL import Image

    for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            shade = tuple(min(255, value + number) for value in colour)
            Image.new("RGB", (40, 40), shade).save(tmp_path / "data" / label / f"{number}.png")
    settings = {
        "data": {"source": str(tmp_path / "data")},
        "model": {"name": "timm/test_resnet", "weights": "none", "image_size": 64},
        "precision": "bf16", "epochs": 2, "out": str(tmp_path / "run"),
    }  # fmt: skip
    run = hs.train(hs.load_config(settings))
    assert next(run.model.parameters()).device.type == "cuda"
    assert (run.path / "report.html").is_file()


def test_changes_of_a_batch_are_made_on_the_gpu_as_a_loading_process_makes_them(settings) -> None:
    options = settings(device="cuda", recipe="full", augment={"preset": "standard", "mixup": 0.2})
    made = prepare(hs.load_config(options), module=None, loss=None, emit=lambda _: None).images.train
    level = 1 / 255 / min(made.preprocess.std)
    for late, early in zip(
        made.epoch(0), replace(made, dataset=replace(made.images, augment_on_device=False)).epoch(0), strict=True
    ):
        assert late.deferred is not None and early.deferred is None
        there = late.inputs(torch.device("cuda"), torch.channels_last).cpu()
        assert (there - early.inputs(torch.device("cpu"), torch.channels_last)).abs().max() <= 1.01 * level
        assert torch.equal(late.targets, early.targets)


def test_copying_takes_time_on_a_gpu() -> None:
    made = Timed(iter([batch()]))
    assert made.copying(torch.device("cuda")) == 0  # none is there yet
    next(made)
    assert 0 < made.copying(torch.device("cuda")) < 10
    without = Timed(iter([replace(batch(), size=0)]))  # of a process that has no image of it
    next(without)
    assert 0 < without.copying(torch.device("cuda")) < 10
    assert made.copying(torch.device("cpu")) == 0
