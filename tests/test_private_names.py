"""Where torch has renamed a private name that there is a way without, headstart runs all the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headstart import private_names
from headstart.private_names import USES, flatten_each, lerp_each_, multiply_each_, norm_each

RENAMED = """
import sys, types
from pathlib import Path
path = Path(sys.argv.pop(1))
text = path.read_text()
for name in sys.argv.pop(1).split(","):
    assert f'"{name}", ' in text, name
    text = text.replace(f'"{name}", ', f'"{name}_renamed", ')
module = types.ModuleType("headstart.private_names")
sys.modules["headstart.private_names"] = module
exec(compile(text, str(path), "exec"), vars(module))
from headstart.cli.main import main
sys.exit(main())
"""
LOOKED_UP = [use.name for use in USES if use.without and use.files == ("private_names.py",)]


def train(colours: Path, out: Path, *begin: str) -> dict[str, torch.Tensor]:
    command = [sys.executable, *begin, "train", str(colours), "--model", "starter", "--epochs", "2", "--out", str(out)]
    command += ["--device", "cpu", "--workers", "1", "--batch.clip-norm", "0.1", "--average.kind", "ema"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(out / "model" / "model.safetensors")


def test_a_run_without_the_private_names_gives_the_same_weights_but_for_rounding(colours: Path, tmp_path: Path) -> None:
    usual = train(colours, tmp_path / "usual", "-m", "headstart")
    file = str(private_names.__file__)
    without = train(colours, tmp_path / "without", "-c", RENAMED, file, ",".join(LOOKED_UP))
    for name, value in usual.items():
        torch.testing.assert_close(without[name], value, rtol=1e-3, atol=1e-4)


def test_the_ways_one_by_one_are_those_of_torch() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5)]
    ends = [torch.randn(3, 4), torch.randn(5)]
    torch.testing.assert_close(norm_each(tensors, 2.0), list(torch._foreach_norm(tensors, 2.0)))
    mine, theirs = [value.clone() for value in tensors], [value.clone() for value in tensors]
    multiply_each_(mine, 0.3)
    torch._foreach_mul_(theirs, 0.3)
    torch.testing.assert_close(mine, theirs)
    lerp_each_(mine, ends, weight=0.3)
    torch._foreach_lerp_(theirs, ends, weight=0.3)
    torch.testing.assert_close(mine, theirs)


def test_nested_values_are_flattened_in_order_and_compared_by_shape() -> None:
    leaves, structure = flatten_each({"a": (1, [2, 3]), "b": 4})
    assert leaves == [1, 2, 3, 4]
    assert structure == flatten_each({"a": (5, [6, 7]), "b": 8})[1]
    assert structure != flatten_each({"a": (5, (6, 7)), "b": 8})[1]


@pytest.mark.parametrize("kind", ["_BATCH_NORMS", "_CONVOLUTIONS", "_DROPOUTS", "_INSTANCE_NORMS"])
def test_the_public_classes_are_those_of_the_private_one(kind: str) -> None:
    base = {
        "_BATCH_NORMS": private_names.BATCH_NORMS, "_CONVOLUTIONS": private_names.CONVOLUTIONS,
        "_DROPOUTS": private_names.DROPOUTS, "_INSTANCE_NORMS": private_names.NORMS_WITH_STATISTICS,
    }[kind]  # fmt: skip
    public = {
        value for name, value in vars(torch.nn).items()
        if isinstance(value, type) and issubclass(value, base) and not name.startswith("_")
    }  # fmt: skip
    listed = getattr(private_names, kind)
    if kind == "_INSTANCE_NORMS":
        listed = (*listed, *private_names._BATCH_NORMS)
    assert {each for each in public if not issubclass(each, listed)} == set()


def test_where_the_lazy_form_of_disable_is_renamed_the_compiler_is_imported_with_the_rest() -> None:
    code = (
        "import torch._compile; del torch._compile._disable_dynamo;"
        "import headstart as hs; print(hs.open_model.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "open_model\n", done.stderr


def test_the_table_says_which_versions_were_looked_at() -> None:
    assert re.fullmatch(r"torch [\d.]+, timm [\d.]+", private_names.SEEN_IN)
    assert torch.__version__.split("+")[0] in private_names.SEEN_IN
