"""The scripts in examples/ run as they are documented, on a small folder of pictures and a small network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
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
