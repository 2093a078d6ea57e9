"""A run in two processes, through the command line: one process's steps, resumed to the bit, and ended as one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

import headstart as hs
from headstart.config.load import write_yaml

EVERYTHING = {
    "model": {"name": "starter"}, "recipe": "lp_ft", "epochs": 3, "devices": 2,
    "head": {"kind": "mlp", "hidden": [8], "dropout": 0.5}, "augment": {"preset": "strong", "mixup": 0.4},
    "average": {"kind": "ema", "half_life": 0.2}, "batch": {"size": 8, "accumulate": 2, "clip_norm": 1.0},
    "penalties": {"l1": 1e-4, "l2_start": 0.01}, "checkpoint": {"every_steps": 1, "every_seconds": 0.0, "keep": 1},
}  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
CLOCK = ("seconds", "images_per_second", "input_seconds", "copy_seconds")


@pytest.fixture(scope="module")
def colours(draw_colours, tmp_path_factory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("colours") / "data", each=7)


@pytest.fixture
def started(colours, tmp_path):
    """Starts a run; what is left of it is killed at the end."""
    marks = []

    def start(*words: str, sections: dict[str, Any] = EVERYTHING, run: str = "run") -> Started:
        child = begin(colours, tmp_path / run, *words, sections=sections)
        marks.append(child.mark)
        return child

    yield start
    for mark in marks:
        for process in members(mark):
            os.kill(process, signal.SIGKILL)


class Started(subprocess.Popen):
    """A run that was started; its processes carry ``mark`` in their environment."""

    mark: str


def begin(data: Path, run: Path, *words: str, sections: dict[str, Any]) -> Started:
    path = run.with_suffix(".yaml")
    path.write_text(write_yaml(hs.load_config({"data": {"source": str(data)}} | sections | {"out": str(run)})))
    return marked("-m", "headstart", "train", "--config", str(path), "--resume", *words)


def marked(*words: str) -> Started:
    mark = uuid.uuid4().hex
    child = Started(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT | {"MARK": mark}, start_new_session=True,
    )  # fmt: skip
    child.mark = mark
    return child


@pytest.fixture(scope="module")
def whole(colours, tmp_path_factory) -> Path:
    """A run of two processes that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    child = begin(colours, run, sections=EVERYTHING)
    said = child.communicate()
    assert child.returncode == 0, said
    return run


def members(mark: str) -> dict[int, str]:
    """Living processes of a run, with their ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"MARK={mark}".encode() in variables and state != "Z":
            rank = [value[5:].decode() for value in variables if value.startswith(b"RANK=")]
            found[int(folder.name)] = rank[0] if rank else ""
    return found


def kill_all(mark: str, number: int) -> None:
    for process in members(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def nobody_left(mark: str) -> bool:
    for _ in range(300):
        if not members(mark):
            return True
        time.sleep(0.1)
    return False


def wait_for_step(run: Path, step: int, child: subprocess.Popen) -> None:
    while child.poll() is None:
        events = run / "events.jsonl"
        if events.exists() and events.read_text().count('"event": "step"') >= step:
            return
        time.sleep(0.02)


def facts(run: Path) -> dict[str, Any]:
    """Everything that a run leaves, without its clock."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        "predictions": (run / "predictions.csv").read_text(),
        "events": [{name: value for name, value in event.items() if name not in CLOCK} for event in events],
        "result": {name: value for name, value in result.items() if name != "seconds"},
    }


def test_two_processes_do_what_one_does(started, tmp_path) -> None:
    """The same steps in the same order, one result, one set of files; numbers differ by rounding alone."""
    plain = {"model": {"name": "starter"}, "epochs": 2, "batch": {"size": 8}, "augment": {"preset": "light"}}
    said = {}
    for devices in (1, 2):
        child = started(
            "--json",
            sections=plain | {"devices": devices, "activation_checkpointing": devices == 2},
            run=f"run{devices}",
        )
        said[devices] = child.communicate()
        assert child.returncode == 0, said[devices]
    assert [len(out.splitlines()) for out, _ in said.values()] == [1, 1]
    one, two = (facts(tmp_path / f"run{devices}") for devices in (1, 2))
    for alone, both in zip(one["events"], two["events"], strict=True):
        assert alone.keys() == both.keys()
        assert [alone.get("loss", 0)] == pytest.approx([both.get("loss", 0)], rel=1e-4)
    assert [line.split(",")[:2] for line in one["predictions"].splitlines()] == [
        line.split(",")[:2] for line in two["predictions"].splitlines()
    ]
    assert json.loads((tmp_path / "run2" / "environment.json").read_text())["world_size"] == 2
    assert "Warning" not in said[2][1] and "W1" not in said[2][1]


def test_a_run_of_two_processes_killed_at_random_instants_ends_as_one_that_was_not(started, tmp_path, whole) -> None:
    """Bit for bit, with everything random switched on."""
    draw = random.Random(5)
    for after in (2, 5):
        child = started()
        wait_for_step(tmp_path / "run", after, child)
        time.sleep(draw.uniform(0, 0.3))
        kill_all(child.mark, signal.SIGKILL)
        child.communicate()
    child = started()
    said = child.communicate()
    assert child.returncode == 0, said
    assert facts(tmp_path / "run") == facts(whole)


def test_a_run_that_shares_the_model_out_is_the_same_stopped_and_resumed(started, tmp_path) -> None:
    """FSDP2 from the first step to a whole bundle; SIGTERM in between; the losses are those of one process."""
    plain = {"model": {"name": "starter"}, "recipe": "lp_ft", "epochs": 2, "batch": {"size": 8, "accumulate": 2}}
    child = started(sections=plain, run="alone")
    assert child.communicate() and child.returncode == 0
    shared = plain | {"devices": 2, "parallel": {"kind": "fsdp"}, "checkpoint": {"every_steps": 1}}
    shared["activation_checkpointing"] = True
    child = started(sections=shared)
    wait_for_step(tmp_path / "run", 1, child)
    kill_all(child.mark, signal.SIGTERM)
    child.communicate()
    assert any((tmp_path / "run" / "checkpoints").glob("step-*/model-00002-of-00002.safetensors"))
    child = started(sections=shared)
    said = child.communicate()
    assert child.returncode == 0, said
    alone, both = facts(tmp_path / "alone"), facts(tmp_path / "run")
    losses = [[event["loss"] for event in run["events"] if event["event"] == "step"] for run in (alone, both)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    weights = [load(run["weights"]) for run in (alone, both)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)


def test_a_sharded_run_goes_on_in_one_process_where_that_is_allowed(started, tmp_path) -> None:
    plain = {"model": {"name": "starter"}, "recipe": "full", "epochs": 2, "batch": {"size": 8}}
    sections = plain | {"parallel": {"kind": "fsdp"}, "checkpoint": {"every_steps": 1}}
    child = started(sections=sections | {"devices": 2})
    wait_for_step(tmp_path / "run", 1, child)
    kill_all(child.mark, signal.SIGTERM)
    child.communicate()
    child = started(sections=sections | {"devices": 1})
    _, said = child.communicate()
    assert child.returncode == 2 and "world_size was 2, is 1" in said, said
    child = started("--allow-inexact", sections=sections | {"devices": 1})
    _, said = child.communicate()
    assert child.returncode == 0, said
    assert "not exact to the bit: world_size was 2, is 1" in said and "going on from step" in said
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(("was", "now"), [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_a_run_goes_on_shared_out_in_another_way_where_that_is_allowed(started, tmp_path, was: str, now: str) -> None:
    """Weights and optimizer state are gathered from the parts, or parted: the losses are those of one way."""
    plain = {"model": {"name": "starter"}, "recipe": "full", "epochs": 2, "batch": {"size": 8}, "devices": 2}
    plain |= {"checkpoint": {"every_steps": 1}}
    ways = [plain | {"parallel": {"kind": kind}} for kind in (was, now)]
    child = started(sections=ways[0], run="whole")
    assert child.communicate() and child.returncode == 0
    child = started(sections=ways[0])
    wait_for_step(tmp_path / "run", 2, child)
    kill_all(child.mark, signal.SIGTERM)
    child.communicate()
    child = started(sections=ways[1])
    _, said = child.communicate()
    assert child.returncode == 2 and f"parallel.kind was {was}, is {now}" in said and "--allow-inexact" in said, said
    child = started("--allow-inexact", sections=ways[1])
    _, said = child.communicate()
    assert child.returncode == 0, said
    assert f"not exact to the bit: parallel.kind was {was}, is {now}" in said and "going on from step" in said
    runs = [facts(tmp_path / name)["events"] for name in ("whole", "run")]
    losses = [[event["loss"] for event in events if event["event"] == "step"] for events in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_killed_rank_ends_the_run_and_is_named(started, tmp_path) -> None:
    child = started(sections=EVERYTHING | {"epochs": 500})
    wait_for_step(tmp_path / "run", 2, child)
    victim = next(process for process, rank in members(child.mark).items() if rank == "1")
    os.kill(victim, signal.SIGKILL)
    said = child.communicate()[1]
    assert child.returncode == 1
    assert "rank 1" in said.partition("headstart: ")[2].splitlines()[0], said
    assert "Traceback" not in said
    assert nobody_left(child.mark)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_of_all_saves_once_and_says_how_to_go_on(started, tmp_path, number, code) -> None:
    """Ctrl-C reaches every process of the terminal, and the launcher sends it once more."""
    child = started(sections=EVERYTHING | {"epochs": 500})
    wait_for_step(tmp_path / "run", 2, child)
    kill_all(child.mark, number)
    said = child.communicate()[1]
    assert child.returncode == code, said
    assert said.count("; go on with: ") == 1 and "Traceback" not in said
    assert nobody_left(child.mark)
    assert json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())["step"] >= 2


def test_a_mistake_is_said_once(started) -> None:
    child = started(sections=EVERYTHING | {"data": {"source": "/nowhere"}})
    out, said = child.communicate()
    assert (child.returncode, out) == (2, ""), said
    assert said.count("headstart: ") == 1 and "there is no /nowhere" in said and "Traceback" not in said


def test_a_launcher_that_is_killed_takes_its_processes_along(started, tmp_path) -> None:
    child = started(sections=EVERYTHING | {"epochs": 500})
    wait_for_step(tmp_path / "run", 2, child)
    child.kill()
    said = child.communicate()[1]
    assert nobody_left(child.mark)
    assert said.count("; go on with: ") == 1 and "Traceback" not in said, said


def test_torchrun_restarts_a_run_that_goes_on_by_itself(tmp_path, whole) -> None:
    """A rank is killed once; the next life starts without --resume and ends as an uninterrupted run."""
    config = whole.with_suffix(".yaml").read_text().replace("devices: 2", "devices: auto")
    (tmp_path / "again.yaml").write_text(config.replace(str(whole), str(tmp_path / "again")))
    child = marked(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
        "-m", "headstart", "train", "--config", str(tmp_path / "again.yaml"),
    )  # fmt: skip
    wait_for_step(tmp_path / "again", 3, child)
    victim = next(process for process, rank in members(child.mark).items() if rank == "0")
    os.kill(victim, signal.SIGKILL)
    said = child.communicate()
    assert child.returncode == 0, said
    assert facts(tmp_path / "again") == facts(whole)


def test_processes_share_the_work_of_the_cache_and_its_files(started, tmp_path, monkeypatch) -> None:
    """Two compute what one then reads, page by page the same, and train on it as on pictures."""
    monkeypatch.setitem(ENVIRONMENT, "HEADSTART_CACHE", str(tmp_path / "cache"))
    probe = EVERYTHING | {"recipe": "probe", "augment": {"preset": "strong"}, "average": {"kind": "none"}}
    plans = {"two": (2, "always"), "one": (1, "always"), "plain": (2, "never")}
    notes, losses = {}, {}
    for name, (devices, use) in plans.items():
        sections = probe | {"devices": devices, "cache": {"use": use, "views": 2}}
        child = started(sections=sections, run=name)
        said = child.communicate()
        assert child.returncode == 0, said
        notes[name] = (tmp_path / name / "log.txt").read_text()
        events = (json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines())
        losses[name] = [event["train_loss"] for event in events if event["event"] == "epoch"]
    images = json.loads((tmp_path / "two" / "plan.json").read_text())["data"]
    assert f"{2 * images['train']} computed, 0 read" in notes["two"]
    assert f"{images['val']} computed, 0 read" in notes["two"]
    assert f"0 computed, {2 * images['train']} read" in notes["one"]
    assert losses["two"] == pytest.approx(losses["plain"], rel=1e-5)
