"""The scripts in examples/ run as they are documented, on a small folder of pictures and a small network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

from headstart.cli.train import Train
from headstart.config.flags import EVERY, parse_args

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.name != "slurm.py")
MODEL = ["--model", "timm/test_resnet.r160_in1k", "--weights", "none", "--epochs", "2"]  # 0.5 M parameters, no download


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten 32 px squares, reddish and bluish."""
    top = tmp_path_factory.mktemp("squares")
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (top / name).mkdir()
        for number in range(10):
            shade = tuple(part + 5 * number for part in colour)
            Image.new("RGB", (32, 32), shade).save(top / name / f"{number}.png")
    return top


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_writes_where_it_is_told(script: Path, squares: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, script, squares, out, *MODEL],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert any(out.iterdir())
    assert list(tmp_path.iterdir()) == [out]


def test_both_ways_of_the_readme_have_an_example() -> None:
    assert [script.name for script in EXAMPLES] == ["own_loop.py", "train_from_python.py"]


def test_the_cluster_example_trains_in_two_processes_on_this_machine(squares: Path, tmp_path: Path) -> None:
    """Through submitit's own local executor: two tasks, one run folder."""
    script = (FOLDER / "slurm.py").read_text().replace("MACHINES, GPUS = 2, 8", "MACHINES, GPUS = 1, 2")
    here = script.replace(
        "print(submit(sys.argv[1:]).job_id)", 'print(submit(sys.argv[1:], cluster="local").results())'
    )
    assert here.count("GPUS = 1, 2") == here.count("results()") == 1
    (tmp_path / "slurm.py").write_text(here)
    done = subprocess.run(
        [sys.executable, "slurm.py", squares, *MODEL, "--out", "run", "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 0]\n"
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world_size"] == 2


def test_the_kubernetes_example_is_a_command_that_torchrun_and_headstart_take() -> None:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    asked = get_args_parser().parse_args(container["args"])
    assert (asked.nnodes, asked.nproc_per_node, asked.training_script) == ("2", "8", "headstart")
    assert asked.rdzv_endpoint == f"{job['metadata']['name']}-0.{service['metadata']['name']}:29400"
    verb, *words = asked.training_script_args
    assert verb == "train"
    args, flags = parse_args(Train, words, prog="headstart train", sections=EVERY)
    assert (args.data, args.resume, flags) == ("/data/photos", True, {"out": "/runs/photos"})
