"""Training begins again with tcmalloc where it is installed, once, and with the same result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from headstart.cli.allocator import installed_tcmalloc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
USUAL = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "MALLOC_"))}
BEGIN = """
import os, sys
from headstart.cli.allocator import begin_with_tcmalloc
print(os.getpid(), sys.argv[1:], os.environ.get("LD_PRELOAD"), flush=True)
begin_with_tcmalloc()
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Some library under tcmalloc's name, in a virtual environment."""
    found = next(Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/libm" in line)
    (tmp_path / "lib").mkdir()
    return Path(shutil.copy(found, tmp_path / "lib" / "libtcmalloc_minimal.so.4"))


def begun(library: Path, **more: str) -> list[str]:
    environment = USUAL | {"VIRTUAL_ENV": str(library.parent.parent)} | more
    command = [sys.executable, "-c", BEGIN, "train", "a b"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_same_command_goes_on_in_the_same_process_with_the_library(library: Path) -> None:
    first, second = begun(library)
    assert first.endswith("['train', 'a b'] None")
    assert second == first.replace("None", str(library))


@pytest.mark.parametrize(
    "chosen", [{"LD_PRELOAD": ""}, {"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}]
)
def test_what_the_user_has_chosen_stays(library: Path, chosen: dict[str, str]) -> None:
    assert len(begun(library, **chosen)) == 1


@pytest.mark.skipif(installed_tcmalloc() is None, reason="tcmalloc is not installed (apt: libtcmalloc-minimal4)")
def test_a_run_with_tcmalloc_says_so_and_has_the_same_bits(colours: Path, tmp_path: Path) -> None:
    found = {}
    for name, environment in (("with", USUAL), ("without", USUAL | {"LD_PRELOAD": ""})):
        command = [sys.executable, "-m", "headstart", "train", str(colours), "--model", "starter", "--epochs", "1"]
        command += ["--out", str(tmp_path / name), "--device", "cpu", "--workers", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        allocators = [line for line in done.stderr.splitlines() if line.startswith("allocator")]
        assert len(allocators) == (name == "with"), done.stderr
        found[name] = load_file(tmp_path / name / "model" / "model.safetensors")
        plan = json.loads((tmp_path / name / "plan.json").read_text())
        recorded = [one["value"] for one in plan["decisions"] if one["name"] == "allocator"]
        assert recorded == (["tcmalloc"] if name == "with" else [])
    assert all(found["with"][name].equal(value) for name, value in found["without"].items())


def test_memory_that_is_free_goes_back_with_tcmalloc_too() -> None:
    library = installed_tcmalloc()
    if library is None:
        pytest.skip("tcmalloc is not installed (apt: libtcmalloc-minimal4)")
    code = """
import torch
from headstart.train.heap import has_tcmalloc, release_memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
made = [torch.ones(1 << 22) for _ in range(16)]
full = resident()
del made
release_memory()
print(has_tcmalloc(), full - resident() > 200e6)
"""
    environment = USUAL | {"LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
