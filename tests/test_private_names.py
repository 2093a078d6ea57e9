"""Where torch has renamed a private name that there is a way without, headstart runs all the same."""

from __future__ import annotations

import ast
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import headstart as hs
from headstart import private_names
from headstart.errors import ModelError
from headstart.models import factory
from headstart.private_names import USES, flatten_each, lerp_each_, multiply_each_, norm_each
from headstart.training.boundary_proof import prove_boundary

RENAMED = """
import re, sys, types
from pathlib import Path
path = Path(sys.argv.pop(1))
text = path.read_text()
for name in sys.argv.pop(1).split(","):
    text, count = re.subn(f'(?<!name=)"{name}(?=["{{])', f'"renamed_{name}', text)
    assert count, name
module = types.ModuleType("headstart.private_names")
sys.modules["headstart.private_names"] = module
exec(compile(text, str(path), "exec"), vars(module))
from headstart.cli.main import main
sys.exit(main())
"""
PACKAGE = Path(private_names.__file__).parent
LOOKED_UP = [use.name for use in USES if "private_names.py" in use.files]
NOT_TORCHS = {  # of Python and its modules, Pillow, transformers; headstart's own ends of names
    "_exit", "_getframe", "_fields", "_replace", "_decoder", "_abc_impl", "_thread", "_io", "_enabled", "_enc",
    "_extra_state", "_non_persistent", "_Event", "_Given", "_Returned", "_Item", "_Key", "_name_or_path",
}  # fmt: skip


def private_uses(package: Path) -> dict[str, set[str]]:
    """Names with a leading underscore that are not the package's own, in strings too, by the files that use them."""
    own, found, quoted = set[str](), dict[str, set[str]](), set[str]()
    for path in package.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        rows = {id(name) for node in nodes for name in names_of_row(node)}
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
                own.add(node.attr)
            for name in names_used(node) if id(node) not in rows else ():
                found.setdefault(name, set()).add(path.relative_to(package).as_posix())
                quoted |= {name} if isinstance(node, ast.Constant) else set()
    return {name: places for name, places in found.items() if name not in NOT_TORCHS | (own - quoted)}


def names_of_row(node: ast.AST) -> list[ast.expr]:
    """What a row of the table says, which is no use of the name."""
    named = isinstance(node, ast.Call) and ast.unparse(node.func) == "PrivateUse"
    return [keyword.value for keyword in node.keywords if keyword.arg == "name"] if named else []


def names_used(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield from (name for name in [node.attr] if name.startswith("_") and not name.startswith("__"))
    elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("torch", "timm", "torchvision"):
        inside = "._" in (node.module or "")
        yield from (alias.name for alias in node.names if inside or alias.name.startswith("_"))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from re.findall(r"^_(?:[a-z]\w*|[A-Z][a-z]\w+)$", node.value, re.ASCII)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("_find", "_kinds"):
        looked_up = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
        yield from (str(name) for name in looked_up if not str(name).startswith("_"))


def test_private_names_of_others_are_those_of_the_table() -> None:
    table = {use.name: set(use.files) for use in USES}
    assert private_uses(PACKAGE) == table
    assert len(table) == len(USES)


def test_each_row_says_what_happens_without_the_name() -> None:
    assert [use.name for use in USES if not use.without] == []


def test_a_planted_private_name_is_found(tmp_path: Path) -> None:
    text = "import torch\nfrom torch._dynamo import x\nfrom timm.models import _hub\ntorch._foreach_add(self._own)\n"
    (tmp_path / "a.py").write_text(text + "getattr(torch, '_asked')\n")
    names = ("x", "_hub", "_foreach_add", "_asked")
    assert private_uses(tmp_path) == {name: {"a.py"} for name in names}


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


def test_where_operations_cannot_be_watched_nothing_is_cached(monkeypatch, colours: Path) -> None:
    monkeypatch.setitem(private_names._WATCHING, "TorchDispatchMode", None)
    opened = hs.open_model("starter")
    batches = hs.open_images(colours, like=opened).train
    frozen = hs.freeze(opened.module, until="layer1")
    with pytest.raises(ModelError, match=r"operations cannot be watched, since torch 2\.\S+ has no TorchDispatchMode"):
        prove_boundary(opened.module, frozen, batches, hs.StepRules())


@pytest.mark.parametrize("renamed", [False, True])
def test_weights_in_their_authors_own_format_are_read_by_the_filter_of_that_name(monkeypatch, renamed: bool) -> None:
    if renamed:
        monkeypatch.setattr(factory, "find_timm_builder", lambda: None)
    architecture = factory.Architecture(library="timm", name="convnext_atto", options={"depths": (1, 1, 1, 1)})
    module = factory.build(architecture, outputs=3)
    theirs = {"stem.": "downsample_layers.0.", "head.norm.": "norm.", "head.fc.": "head."}
    state = dict(module.state_dict())
    for begin, other in theirs.items():
        state = {re.sub(f"^{re.escape(begin)}", other, name): value for name, value in state.items()}
    assert "stem.0.weight" not in state
    read = factory._timm_state(state, architecture, factory._timm_loading(architecture, outputs=3), module)
    assert set(read) == set(module.state_dict())


@pytest.mark.parametrize("write", [private_names.find_config_writer(), private_names.write_plain_config])
def test_timm_makes_the_model_again_from_either_config(write, tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=3, channels=(8, 8, 16, 16)).eval()
    data = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic",
            "crop_pct": 0.9, "crop_mode": "center"}  # fmt: skip
    names = ["blue", "green", "red"]
    options = {"channels": [8, 8, 16, 16]}
    write(model, str(tmp_path / "config.json"), {"label_names": names}, model_args=options, data_config=data)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    config = timm.data.resolve_model_data_config(again)
    assert json.dumps({name: config[name] for name in data}) == json.dumps(data)
    assert again.pretrained_cfg["label_names"] == names


def test_the_public_way_to_resize_gives_the_same_pixels() -> None:
    chance = random.Random(0)
    for _ in range(300):
        rows, columns = chance.randint(9, 90), chance.randint(9, 90)
        size = (chance.randint(3, rows), chance.randint(3, columns))
        extent = (rows - chance.choice([0, chance.random()]), columns - chance.choice([0, chance.random()]))
        pixels = torch.randint(0, 256, (1, 3, rows, columns), dtype=torch.uint8)
        scales = [wanted / length for wanted, length in zip(size, extent, strict=True)]
        for mode in ("bilinear", "bicubic"):
            public = private_names.resize_by_scale(pixels, size, scales=scales, mode=mode)
            usual = private_names.resize_extent(pixels, size, extent=extent, mode=mode)
            assert public.shape == (1, 3, *size)
            assert (public.int() - usual.int()).abs().max() <= 1
            assert (public != usual).float().mean() < 0.01


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
