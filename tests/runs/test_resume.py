"""A run that was killed, interrupted or could not write goes on, and ends as one that was not."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.config.load import plain, write_yaml
from headstart.errors import ConfigError
from headstart.runs.checkpoint import read_checkpoint
from tests.reliability.lives import survivors
from tests.runs.edits import edit_json

EVERYTHING = {
    "recipe": "lp_ft", "epochs": 4, "head": {"kind": "mlp", "hidden": [8], "dropout": 0.5},
    "augment": {"preset": "strong", "mixup": 0.4, "cutmix": 0.4}, "average": {"kind": "ema", "half_life": 0.2},
    "batch": {"size": 8, "accumulate": 3, "clip_norm": 1.0}, "penalties": {"l1": 1e-4, "l2_start": 0.01},
    "checkpoint": {"every_steps": 1, "every_seconds": 0.0, "keep": 1}, "schedule": {"kind": "cosine"},
}  # fmt: skip
CHILD = """
import sys, torch
torch.set_num_threads(1)
import headstart as hs
def told(event):
    if type(event).__name__ == "StepDone":
        print(event.step, flush=True)
hs.train(hs.load_config(sys.argv[1]), resume=True, watch=told)
"""
CLOCK = ("seconds", "images_per_second", "input_seconds", "copy_seconds")


def facts(run: Path) -> dict[str, Any]:
    """Everything that a run leaves, without its clock."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        "last": {p.name: p.read_bytes() for p in read_checkpoint(run / "checkpoints").path.iterdir()},
        "predictions": (run / "predictions.csv").read_text(),
        "events": [{name: value for name, value in event.items() if name not in CLOCK} for event in events],
        "rows": rows,
        "result": {name: value for name, value in result.items() if name != "seconds"},
    }


def config_file(path: Path, sections: dict[str, Any]) -> Path:
    path.write_text(write_yaml(hs.load_config(sections)))
    return path


def killed_at_a_random_instant(config: Path, after: int, seconds: float) -> bool:
    """A life that ends by SIGKILL some time after so many steps; whether it was still alive."""
    with subprocess.Popen([sys.executable, "-c", CHILD, str(config)], stdout=subprocess.PIPE, text=True) as child:
        for _ in range(after):
            child.stdout.readline()
        time.sleep(seconds)
        alive = child.poll() is None
        child.kill()
    return alive


def test_a_run_killed_three_times_ends_as_one_that_was_not(settings, tmp_path) -> None:
    """Bit for bit: weights, optimizer, average, metrics and history; with everything random switched on."""
    whole = hs.train(hs.load_config(settings(**EVERYTHING, out=str(tmp_path / "whole"))))
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    config = config_file(tmp_path / "c.yaml", settings(**EVERYTHING, out=str(tmp_path / "killed")))
    alive = [killed_at_a_random_instant(config, draw.randint(1, 4), draw.uniform(0, 0.15)) for _ in range(3)]
    assert alive == [True] * 3, f"draws of seed {seed}"
    killed = hs.train(hs.load_config(str(config)), resume=True)
    expected, found = facts(whole.path), facts(killed.path)
    for name, value in expected.items():
        assert found[name] == value, f"{name}, draws of seed {seed}"
    assert killed.metrics == whole.metrics


def steps_told(run: Path) -> int:
    path = run / "events.jsonl"
    return path.read_text().count('"event": "step"') if path.exists() else 0


def started(config: Path, run: Path, *, steps: int) -> subprocess.Popen[str]:
    """``headstart train --config CONFIG`` in a session of its own, when it has done so many steps."""
    words = [sys.executable, "-m", "headstart.cli.main", "train", "--config", str(config)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(words, **streams, start_new_session=True, preexec_fn=heard)
    deadline = time.monotonic() + 300
    while steps_told(run) < steps and time.monotonic() < deadline:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    return child


def heard() -> None:
    """Signals that whoever started the tests ignores (a job in the background) would stay ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_finishes_its_step_saves_and_says_how_to_go_on(settings, tmp_path, number, code) -> None:
    """With loading processes that get the signal too, as from a terminal; the command that is printed goes on."""
    run = tmp_path / "it's a run"
    sections = settings(epochs=3, batch={"size": 2}, checkpoint={"every_seconds": 0.0}, workers=2, out=str(run))
    child = started(config_file(tmp_path / "my c.yaml", sections), run, steps=3)
    os.killpg(child.pid, number)
    _, said = child.communicate()
    assert child.returncode == code, said
    step = read_checkpoint(run / "checkpoints").counters["step"]
    assert steps_told(run) == step >= 3
    *_, last = said.splitlines()
    before, _, again = last.partition("; go on with: ")
    assert before == f"headstart: stopped by {number.name} after step {step}, and saved in {run}"
    assert "Traceback" not in said
    assert survivors(child.pid) == []
    if number == signal.SIGINT:
        done = subprocess.run(again, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"going on from step {step}" in done.stderr
        assert json.loads((run / "result.json").read_text())["metrics"]


def test_no_loading_process_outlives_a_run_that_is_killed(settings, tmp_path) -> None:
    run = tmp_path / "run"
    child = started(config_file(tmp_path / "c.yaml", settings(epochs=60, workers=3)), run, steps=1)
    child.kill()
    child.communicate()
    assert survivors(child.pid) == []


def test_a_loading_process_that_the_system_kills_is_reported_in_one_sentence(settings, tmp_path) -> None:
    run = tmp_path / "run"
    sections = settings(recipe="full", epochs=400, batch={"size": 2}, workers=2)
    child = started(config_file(tmp_path / "c.yaml", sections), run, steps=1)
    workers: list[str] = []
    while not workers:
        workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)
    _, said = child.communicate()
    assert child.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith(
        "headstart: a process that loads images died; usually the system was out of memory: fewer"
    ), said
    assert "Traceback" not in said
    assert survivors(child.pid) == []


SWALLOWED = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))  # as before the run: leaves at once
from headstart.runs.saving import interruptible
with interruptible():
    os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
    if os.fork() == 0:
        os._exit(0)
    os._exit(1)
"""


def test_an_interruption_that_lands_in_a_callback_is_neither_lost_nor_shown_as_a_traceback() -> None:
    """Python drops what is raised there: here while a loading process is forked."""
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


STRUCK = """
import importlib, os, sys, torch
torch.set_num_threads(1)
module, _, name = sys.argv.pop(1).rpartition(".")
number = int(sys.argv.pop(1))
home = importlib.import_module(module)
real = getattr(home, name)
def struck(*given, **named):
    os.kill(os.getpid(), number)
    return real(*given, **named)
setattr(home, name, struck)
from headstart.cli.main import main
sys.argv[0] = "headstart.py"
sys.exit(main())
"""
OUTSIDE = [  # the run has 2 epochs of 4 steps
    (signal.SIGINT, 130, "headstart.planning.data.load_images", ""),
    (signal.SIGHUP, 129, "headstart.app.begin", " before a step was done"),
    (signal.SIGTERM, 143, "headstart.training.phases.evaluate", " after step 4, and saved in RUN"),
    (signal.SIGINT, 130, "headstart.runs.finish.write_bundle", " after step 8, and saved in RUN"),
]


def test_a_signal_outside_the_steps_ends_with_one_line_and_loses_nothing(settings, tmp_path) -> None:
    """In the scan, the start, validation and the last writing: at once; the run then ends as one that was not."""
    sections = settings(epochs=2, recipe="full", checkpoint={"every_seconds": 0.0}, average={"kind": "ema"})
    expected = facts(hs.train(hs.load_config(sections)).path)
    for number, code, where, when in OUTSIDE:
        run = tmp_path / where
        config = config_file(tmp_path / "c.yaml", sections | {"out": str(run)})
        words = [sys.executable, "-c", STRUCK, where, str(int(number)), "train", "--config", str(config)]
        done = subprocess.run(words, capture_output=True, text=True, preexec_fn=heard)
        assert done.returncode == code, (where, done.stderr)
        again = f"{sys.executable} -m headstart.cli.main train --config {config} --resume"
        said = f"headstart: stopped by {number.name}{when.replace('RUN', str(run))}; go on with: {again}"
        assert done.stderr.splitlines()[-1] == said
        assert "Traceback" not in done.stderr
        if "saved" in when:
            assert read_checkpoint(run / "checkpoints").counters["step"] == int(when.split()[2].strip(","))
        found = facts(hs.train(hs.load_config(str(config)), resume=True).path)
        for history in (expected, found):  # when it was saved is not part of what was trained
            history["events"] = [event for event in history["events"] if event["event"] != "saved"]
        assert [name for name, value in expected.items() if found[name] != value] == [], where


def test_a_folder_that_a_crash_left_before_the_first_step_is_gone_on_with(settings, tmp_path) -> None:
    """Only a lock, or temporary files: there is nothing yet, and nothing in the way."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("1")
    (run / ".new-config.yaml").write_text("half a conf")
    hs.train(hs.load_config(settings(recipe="full", epochs=1)), resume=True)
    assert not (run / ".new-config.yaml").exists()
    assert (run / "result.json").exists()


@pytest.mark.parametrize("missing", ["plan.json", "environment.json", "checkpoints", "events.jsonl"])
def test_a_crash_among_the_first_files_is_gone_on_with(settings, tmp_path, missing) -> None:
    config = hs.load_config(settings(recipe="full", epochs=1))

    class Crash(Exception):
        pass

    def crash(event: object) -> None:
        if type(event).__name__ == "PhaseStarted":
            raise Crash

    with pytest.raises(Crash):
        hs.train(config, watch=crash)
    path = tmp_path / "run" / missing
    path.rmdir() if path.is_dir() else path.unlink()
    assert hs.train(config, resume=True).metrics


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def broken_off(settings, **sections: Any) -> tuple[hs.Config, Path]:
    """A run whose last files are missing, as after a kill."""
    config = hs.load_config(settings(recipe="full", checkpoint={"every_steps": 1, "keep": 3}, **sections))
    run = hs.train(config).path
    (run / "result.json").unlink()
    return config, run


FACTS = {
    "threads": 7, "instruction_set": "AVX9", "instruction_limits": "ONEDNN_MAX_CPU_ISA=SSE41", "torch": "2.0.0",
    "python": "3.9.1", "world_size": 4, "device": "cuda", "platform": "Darwin-arm64",
}  # fmt: skip


def test_a_resume_with_another_fact_that_decides_the_bits_is_refused_by_name(settings) -> None:
    """Each of eight; nothing is written."""
    config, run = broken_off(settings, epochs=1)
    for name, value in FACTS.items():
        before = edit_json(run / "environment.json", **{name: value})
        there = contents(run)
        with pytest.raises(ConfigError) as refused:
            hs.train(config, resume=True)
        now = before[name] if before[name] != "" else "none"
        assert f"not be exact to the bit ({name} was {value}, is {now});" in str(refused.value)
        assert "--allow-inexact" in str(refused.value)
        assert contents(run) == there
        edit_json(run / "environment.json", **before)
    edit_json(run / "environment.json", kernel="1.0", cores=99)
    hs.train(config, resume=True)


def test_the_command_refuses_a_resume_on_a_process_that_computes_otherwise(settings, tmp_path) -> None:
    config, _ = broken_off(settings, epochs=1)
    file = config_file(tmp_path / "c.yaml", plain(config))
    words = [sys.executable, "-m", "headstart.cli.main", "train", "--config", str(file), "--resume"]
    limited = os.environ | {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    refused = subprocess.run(words, capture_output=True, text=True, env=limited)
    assert refused.returncode == 2, refused.stderr
    said = "not be exact to the bit (instruction_limits was none, is ONEDNN_MAX_CPU_ISA=AVX2);"
    assert said in refused.stderr
    allowed = subprocess.run([*words, "--allow-inexact"], capture_output=True, text=True, env=limited)
    assert allowed.returncode == 0, allowed.stderr
    assert "this resume is not exact to the bit: instruction_limits was none" in allowed.stderr


def test_an_inexact_resume_that_was_allowed_is_said_and_marked_in_the_report(settings) -> None:
    """With a damaged checkpoint that is passed over."""
    config, run = broken_off(settings, epochs=2)
    newest = read_checkpoint(run / "checkpoints").path
    (newest / "state.json").write_text("{}")
    now = edit_json(run / "environment.json", timm="0.9.0")["timm"]
    said = []
    hs.train(config, resume=True, allow_inexact=True, watch=lambda event: said.append(getattr(event, "text", "")))
    text = "\n".join(said)
    assert f"passed over: {newest / 'state.json'}: 2 bytes that do not match the manifest" in text
    assert f"not exact to the bit: timm was 0.9.0, is {now}" in text
    assert "going on from step" in text
    log = (run / "log.txt").read_text()
    assert all(line in log for line in text.splitlines() if not line.startswith("data: "))  # of the plan
    assert f"timm was 0.9.0, then {now}." in (run / "report.html").read_text()
    hs.train(config, resume=True)  # it is finished: nothing is left to compare


def test_a_life_that_left_nothing_does_not_count_as_inexact(settings, tmp_path) -> None:
    """Killed before its first save, it is forgotten when the run goes on where it began; else its mark stays."""
    config, run = broken_off(settings, epochs=1)
    step = read_checkpoint(run / "checkpoints").counters["step"]
    changed = {"step": step, "changed": {"torch": ["2.0.0", "2.1.0"]}}
    now = edit_json(run / "environment.json", inexact=[changed])["torch"]
    changed["changed"] = {"torch": [now, "2.1.0"]}
    edit_json(run / "environment.json", torch="2.1.0", inexact=[changed])
    hs.train(config, resume=True)
    assert "inexact" not in json.loads((run / "environment.json").read_text())
    (run / "result.json").unlink()
    edit_json(run / "environment.json", inexact=[changed | {"step": step - 1}])
    hs.train(config, resume=True)
    assert f"after step {step - 1} torch was {now}, then 2.1.0" in (run / "report.html").read_text()


def test_the_number_of_workers_and_the_caches_limit_may_change_between_lives(settings) -> None:
    config, run = broken_off(settings, epochs=1)
    larger = dataclasses.replace(config.cache, limit_gb=30.0)
    hs.train(dataclasses.replace(config, workers=2, cache=larger), resume=True)
    (run / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"other options \(seed: the run has 42, now 3\)"):
        hs.train(dataclasses.replace(config, workers=2, seed=3), resume=True)


def test_another_number_of_processes_is_refused_by_name_and_goes_on_where_it_is_allowed(settings) -> None:
    """The option itself is none of the bits; a run of one process is taken for one of two, as its record says."""
    config, run = broken_off(settings, epochs=1)
    edit_json(run / "environment.json", world_size=2)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("\ndevices: auto\n", "\ndevices: 2\n"))
    with pytest.raises(ConfigError, match=r"exact to the bit \(world_size was 2, is 1\); go back .* --allow-inexact"):
        hs.train(config, resume=True)
    hs.train(dataclasses.replace(config, devices=1), resume=True, allow_inexact=True)
    assert "world_size was 2, then 1." in (run / "report.html").read_text()
    assert "\ndevices: 1\n" in file.read_text()


def test_a_run_that_was_killed_before_its_report_gets_one(settings, tmp_path) -> None:
    config = hs.load_config(settings(recipe="full", epochs=1))
    run = hs.train(config)
    (run.path / "report.html").unlink()
    assert hs.train(config, resume=True).metrics == run.metrics
    assert (run.path / "report.html").is_file()


def test_a_run_that_was_killed_while_it_wrote_its_results_writes_them_again(settings, tmp_path) -> None:
    config = hs.load_config(settings(recipe="full", epochs=1, checkpoint={"every_steps": 1}))
    run = hs.train(config)
    before = facts(run.path)
    (run.path / "result.json").unlink()
    (run.path / "predictions.csv").write_text("half")
    (run.path / "model").rename(run.path / ".old-model")
    hs.train(config, resume=True)
    assert facts(run.path) == before
    assert not (run.path / ".old-model").exists()
