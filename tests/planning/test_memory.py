"""What training takes of the CPU's memory is measured; what cannot fit is refused with what can."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError
from headstart.planning import memory
from headstart.planning.preflight import prepare


class Flat(nn.Module):
    """Two layers on all pixels: what a backward pass needs is known."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.one, self.act, self.fc = nn.Flatten(), nn.Linear(3 * 32 * 32, 50), nn.ReLU(), nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.one(self.flat(x))))


def ready(settings, module: nn.Module | None = None, **sections):
    model = {"model": {"image_size": 32}} if module is not None else {}
    tree = settings(recipe="full", **sections) | model
    return prepare(hs.load_config(tree), module=module, loss=None, emit=lambda _: None)


def measured(made) -> memory.MemoryNeed:
    return memory.measure(made.config, made.opened.module, made.training_plan, made.opened.preprocess)


def test_what_is_kept_is_every_layers_input_once(settings) -> None:
    """The input of the first, and the ReLU's output, which is the second's input too."""
    need = measured(ready(settings, Flat(), average={"kind": "ema"}))
    weights = 4 * (3 * 32 * 32 * 50 + 50 + 50 * 3 + 3)
    assert (need.retained, need.retained_per_image) == (0, 4 * (3 * 32 * 32 + 50))
    assert need.largest_per_image == 4 * 3 * 32 * 32
    assert (need.gradients, need.optimizer, need.average) == (weights, 2 * weights, weights)  # AdamW keeps two


@pytest.mark.parametrize(("kind", "share"), [("sgd", 1.0), ("adamw", 2.0)])
def test_the_optimizers_state_is_counted(settings, kind: str, share: float) -> None:
    need = measured(ready(settings, Flat(), optimizer={"kind": kind}))
    assert need.optimizer == share * need.gradients


def test_a_frozen_body_keeps_and_learns_less(settings) -> None:
    whole = measured(ready(settings))
    probe = ready(settings, freeze="backbone")
    assert measured(probe).about(8) < whole.about(8) / 2


def test_measuring_leaves_model_modes_and_random_numbers_alone(settings) -> None:
    made = ready(settings)
    module = made.opened.module
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measured(made)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes


def test_nothing_of_the_measured_passes_stays(settings) -> None:
    """A graph that is handed its own outputs by a hook is never freed."""
    made, seen = ready(settings), []
    for part in made.opened.module.modules():
        part.register_forward_hook(lambda _, __, found: seen.append(weakref.ref(found)))
    measured(made)
    assert len(seen) > 20
    assert not any(one() is not None for one in seen)


def test_what_cannot_fit_is_refused_and_what_is_proposed_fits(settings, monkeypatch) -> None:
    made = ready(settings, batch={"size": 24})
    need = measured(made)
    for free, said in (
        (need.at_least(24) - 1, "batch: 24 images at once take at least"),
        ((need.at_least(24) + need.about(24)) // 2, "memory: about"),
        (need.about(24), ""),
    ):
        monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
        try:
            decisions = {one.name: one for one in ready(settings, batch={"size": 24}).plan.decisions}
            found = f"memory: {decisions['memory'].value} {decisions['memory'].reason}" if "memory" in decisions else ""
        except ConfigError as error:
            found = str(error)
        assert found.startswith(said)
        assert bool(found) == bool(said)
        if found:
            accumulate = int(re.search(r"--batch.accumulate (\d+)", found)[1])
            fits = ready(settings, batch={"size": 24, "accumulate": accumulate}).plan
            assert "memory" not in {one.name for one in fits.decisions}


def test_what_is_freed_is_kept_only_where_there_is_room(settings, monkeypatch) -> None:
    about = measured(ready(settings)).about(8)
    for share, can_retain_memory in ((1.6, True), (1.2, False)):
        monkeypatch.setattr(memory, "available_bytes", lambda share=share: int(share * about))
        made = ready(settings)
        told = [one.value for one in made.plan.decisions if one.name == "freed memory"]
        assert (made.can_retain_memory, told) == (can_retain_memory, [] if can_retain_memory else ["goes back at once"])


def test_where_not_even_two_images_fit_a_smaller_model_is_proposed(settings, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match="give a smaller --image-size or --model, or train less of it"):
        ready(settings)


@pytest.mark.parametrize(("size", "images", "tried"), [(1, 1, [1]), (2, 2, [2]), (24, 24, [2, 3])])
def test_no_more_images_are_tried_than_a_step_has(settings, monkeypatch, size: int, images: int, tried) -> None:
    seen: list[int] = []
    measure_retained = memory._measure_retained

    def noted(*arguments, images: int, limit: int):
        seen.append(images)
        return measure_retained(*arguments, images=images, limit=limit)

    monkeypatch.setattr(memory, "_measure_retained", noted)
    ready(settings, Flat(), batch={"size": size, "evaluation": size})
    assert seen == tried


class Large(nn.Module):
    """Keeps ``megabytes`` of every image for the backward pass."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.conv, self.fc, self.megabytes = nn.Conv2d(3, 1, 1), nn.Linear(1, 3), megabytes

    def forward(self, x: Tensor) -> Tensor:
        wide = self.conv(x).mean((2, 3)).expand(len(x), self.megabytes << 18).contiguous()
        return self.fc((wide * wide).mean(1, keepdim=True))


def test_measuring_stops_where_memory_would_run_out(settings, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 40 << 20)
    with pytest.raises(ConfigError, match=r"batch: 2 images at once take more than the 0\.0 GiB of memory that are"):
        ready(settings, Large(30), precision="fp32")
    with pytest.raises(ConfigError, match=r"batch: one image takes more than .* at 32 x 32 pixels; give a smaller"):
        ready(settings, Large(60), precision="fp32", batch={"size": 1, "evaluation": 1})


LIMITED = """
import resource, sys
from headstart.cli.main import main
import torch
with open("/proc/self/statm") as pages:
    used = int(pages.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20),) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is read from /proc")
@pytest.mark.parametrize("size", [32, 1536])
def test_a_plan_of_large_images_ends_with_a_plan_or_one_sentence(colours, tmp_path, size: int) -> None:
    """In 800 MiB more than the libraries take."""
    words = ["plan", str(colours), "--model", "timm/resnet18", "--weights", "none", "--image-size", str(size)]
    command = [sys.executable, "-c", LIMITED, "800", *words, "--batch-size", "1", "--recipe", "full", "--workers", "0"]
    command += ["--norm-statistics", "frozen"]  # of one image BatchNorm has no statistics
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HEADSTART_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, size) in ((0, 32), (2, 1536)), done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
    if size > 1000:
        assert "memory" in done.stderr and "--image-size" in done.stderr
