"""The plan proposes tcmalloc where it is installed; with it the result is the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headstart.allocator import find_tcmalloc
from headstart.planning.device import TCMALLOC_SAVES, about_allocator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
USUAL = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "MALLOC_"))}
CPU = torch.device("cpu")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some library under tcmalloc's name, in this Python's environment; nothing of malloc's is set."""
    loaded = next(
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/libm" in line
    )
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    for name in os.environ.keys() - USUAL.keys() | {"GLIBC_TUNABLES"}:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "environment" / "lib").mkdir(parents=True)
    return Path(shutil.copy(loaded, tmp_path / "environment" / "lib" / "libtcmalloc_minimal.so.4"))


def test_the_plan_says_what_an_find_tcmalloc_saves_and_what_to_type(library: Path) -> None:
    (decision,) = about_allocator(CPU)
    assert decision.value == "the system's"
    assert "3.9 GB in place of 4.9" in decision.reason
    assert decision.reason.endswith(f"LD_PRELOAD={library} headstart train ...")
    assert about_allocator(torch.device("cuda")) == ()  # what lies there is not malloc's


def test_what_is_said_to_be_saved_was_measured() -> None:
    page = (Path(__file__).parents[2] / "docs/measured/speed.md").read_text(encoding="utf-8").splitlines()
    for tool, megabytes in (("headstart", "4,870"), ("headstart, tcmalloc", "3,861")):
        assert any(re.fullmatch(rf"\| resnet50 \| {tool} \| fp32 \|.*\| {megabytes} \|", line) for line in page), tool
    assert TCMALLOC_SAVES.endswith("3.9 GB in place of 4.9")


@pytest.mark.parametrize(
    ("name", "value"),
    [("LD_PRELOAD", ""), ("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")],
)
def test_nothing_is_said_where_the_user_has_chosen(
    library: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_tcmalloc() == library
    monkeypatch.setenv(name, value)
    assert about_allocator(CPU) == ()


def test_what_cannot_be_loaded_is_passed_over(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_tcmalloc() == library
    library.write_bytes(b"no library")
    assert find_tcmalloc() != library
    spaced = tmp_path / "my environment" / "lib"
    spaced.mkdir(parents=True)
    shutil.copy(sys.executable, spaced / library.name)  # LD_PRELOAD cannot name it
    monkeypatch.setattr(sys, "prefix", str(spaced.parent))
    assert spaced / library.name != find_tcmalloc()


def test_the_command_runs_once_with_what_it_was_given(library: Path, tmp_path: Path) -> None:
    script = tmp_path / "headstart"  # the command's own name
    script.write_text(
        "import os, sys\nfrom headstart.cli.main import main\n"
        f"sys.prefix = {str(library.parent.parent)!r}\n"
        "print(os.environ.get('LD_PRELOAD'), flush=True)\nsys.exit(main())\n"
    )
    command = [sys.executable, str(script), "train", str(tmp_path / "nothing here")]
    done = subprocess.run(command, env=USUAL, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("None\n", 2), done.stderr


@pytest.mark.skipif(find_tcmalloc() is None, reason="tcmalloc is not installed (apt: libtcmalloc-minimal4)")
def test_a_run_with_tcmalloc_says_so_and_has_the_same_bits(colours: Path, tmp_path: Path) -> None:
    found = {}
    for value, environment in (("tcmalloc", {"LD_PRELOAD": str(find_tcmalloc())}), ("the system's", {})):
        command = [sys.executable, "-m", "headstart", "train", str(colours), "--model", "starter", "--epochs", "1"]
        command += ["--out", str(tmp_path / value), "--device", "cpu", "--workers", "1"]
        done = subprocess.run(command, env=USUAL | environment, capture_output=True, text=True, check=True)
        said = [line for line in done.stderr.splitlines() if line.startswith("allocator")]
        assert len(said) == 1 and said[0].startswith(f"allocator: {value}"), done.stderr
        found[value] = load_file(tmp_path / value / "model" / "model.safetensors")
        plan = json.loads((tmp_path / value / "plan.json").read_text())
        assert [one["value"] for one in plan["decisions"] if one["name"] == "allocator"] == [value]
    assert all(found["tcmalloc"][name].equal(weight) for name, weight in found["the system's"].items())


def test_memory_that_is_free_goes_back_with_tcmalloc_too() -> None:
    library = find_tcmalloc()
    if library is None:
        pytest.skip("tcmalloc is not installed (apt: libtcmalloc-minimal4)")
    code = """
import torch
from headstart.allocator import has_tcmalloc, keep_no_memory, keep_freed_memory, release_memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
def freed(made):
    full = resident()
    made.clear()
    return full - resident() > 200e6
def some():
    return [torch.ones(1 << 22) for _ in range(16)]
with keep_freed_memory():
    kept = freed(some())
    before = resident()
    release_memory()
    released = before - resident() > 200e6
    keep_no_memory()
    scarce = freed(some())
with keep_freed_memory():
    print(has_tcmalloc(), kept, released, scarce, freed(some()))
"""

    def found(**more: str) -> list[str]:
        environment = USUAL | {"LD_PRELOAD": str(library)} | more
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert found() == ["True", "False", "True", "True", "False"]
    at_once = found(TCMALLOC_AGGRESSIVE_DECOMMIT="true")  # the user's choice
    assert (at_once[1], at_once[4]) == ("True", "True")
