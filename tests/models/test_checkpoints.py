"""Checkpoints as training scripts write them: what is read of each, what is said of it, and what is refused."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ModelError
from headstart.models.pickles import how_to_save

SPEC, CLASSES = "timm/test_resnet", 5
BODY = "layer1.0.conv1.weight"
State = dict[str, Tensor]


def model() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=CLASSES)


GOOD: State = model().state_dict()
OTHER: State = {name: torch.full_like(value, 7) for name, value in GOOD.items()}


def below(prefix: str, state: State = GOOD) -> State:
    return {prefix + name: value for name, value in state.items()}


def within(wrapper: str) -> State:
    """The names of a model whose stages were wrapped one by one."""
    return {re.sub(r"^(layer\d\.)", rf"\1{wrapper}", name): value for name, value in GOOD.items()}


def averaged_model() -> State:
    return torch.optim.swa_utils.AveragedModel(model()).state_dict()


def optimizer() -> dict[str, Any]:
    trained = model()
    made = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.zeros(2, 3, 64, 64)).sum().backward()
    made.step()
    return made.state_dict()


OPTIONS = argparse.Namespace(model="test_resnet", lr=0.1, mean=None, betas=[0.9, 0.99], deep=argparse.Namespace(a=1))
HEADLESS = {name: value for name, value in GOOD.items() if not name.startswith("fc.")}
READ: dict[str, tuple[Callable[[], object], str]] = {  # what the file holds, and what is said of it
    "a state dict": (lambda: GOOD, "92 of 92 tensors loaded"),
    "compiled": (lambda: below("_orig_mod."), "the prefix '_orig_mod.' stripped from every name"),
    "of several GPUs": (lambda: below("module."), "the prefix 'module.' stripped from every name"),
    "DDP of compiled": (lambda: below("module._orig_mod."), "the prefix 'module._orig_mod.' stripped"),
    "compiled of DDP": (lambda: below("_orig_mod.module."), "the prefix '_orig_mod.module.' stripped"),
    "stages compiled": (lambda: within("_orig_mod."), "'_orig_mod.' taken out of the names"),
    "stages recomputed": (lambda: within("_checkpoint_wrapped_module."), "taken out of the names"),
    "FSDP": (lambda: within("_fsdp_wrapped_module."), "'_fsdp_wrapped_module.' taken out of the names"),
    "Lightning": (
        lambda: {"state_dict": below("model."), "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.5.0",
                 "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"Checkpoint": {"best": torch.ones(1)}},
                 "optimizer_states": [optimizer()], "lr_schedulers": [], "hparams_name": "kwargs",
                 "hyper_parameters": {"lr": 0.1, "args": OPTIONS}},
        "taken from the file's 'state_dict'; the prefix 'model.' stripped from every name",
    ),
    "Lightning compiled": (lambda: {"state_dict": below("model._orig_mod.")}, "the prefix 'model._orig_mod.' stripped"),
    "Lightning with a loss": (
        lambda: {"state_dict": {**below("model."), "criterion.weight": torch.ones(5)}},
        "1 of the file not used: criterion.weight; taken from the file's 'state_dict'; the prefix 'model.' stripped "
        "from 92 of 93 names",
    ),
    "Lightning with an average": (
        lambda: {"state_dict": {**below("model.", OTHER), **below("ema_model.module.")}},
        "the averaged weights (the raw ones: --model.weights-part raw)",
    ),
    "an average beside bare names": (lambda: {**OTHER, **below("ema.")}, "the averaged weights"),
    "a backbone and another head": (
        lambda: {"state_dict": {**below("backbone.", HEADLESS), "classifier.weight": torch.ones(5, 64)}},
        "head new; 1 of the file not used: classifier.weight",
    ),
    "MoCo": (lambda: {"state_dict": {**below("module.encoder_q."), "queue": torch.ones(2)}}, "'module.encoder_q.'"),
    "MMPretrain": (
        lambda: {"meta": {"epoch": 1}, "state_dict": {**below("backbone.", HEADLESS), "head.fc.weight": torch.ones(5)}},
        "head new",
    ),
    "transformers' wrapper of timm": (lambda: below("timm_model."), "the prefix 'timm_model.' stripped"),
    "SWA": (averaged_model, "the prefix 'module.' stripped from 92 of 93 names; they are an average (n_averaged)"),
    "torchvision's reference": (
        lambda: {"model": OTHER, "optimizer": optimizer(), "lr_scheduler": {}, "epoch": 1, "args": OPTIONS,
                 "model_ema": averaged_model(), "scaler": {}},
        "taken from the file's 'model_ema', the averaged weights (the raw ones: --model.weights-part model)",
    ),
    "a tutorial": (
        lambda: {"model_state_dict": GOOD, "optimizer_state_dict": optimizer(), "epoch": 5, "loss": torch.ones(())},
        "taken from the file's 'model_state_dict'",
    ),
    "net": (lambda: {"net": GOOD, "acc": 90.0, "epoch": 3}, "taken from the file's 'net'"),
    "an average alone": (lambda: {"ema": GOOD}, "taken from the file's 'ema', the averaged weights"),
    "an average within": (
        lambda: {"model": OTHER, "ema": {"module": below("module."), "updates": 9}},
        "taken from the file's 'ema.module', the averaged weights (the raw ones: --model.weights-part model)",
    ),
    "DeepSpeed": (lambda: {"module": GOOD, "buffer_names": [], "ds_version": "0.15"}, "taken from the file's 'module'"),
    "fastai": (lambda: {"model": GOOD, "opt": optimizer()}, "taken from the file's 'model'"),
    "a name of one's own": (lambda: {"resnet_weights": GOOD, "epoch": 3}, "taken from the file's 'resnet_weights'"),
}  # fmt: skip


def open_file(path: Path, part: str = "auto") -> Any:
    return hs.open_model(SPEC, weights=str(path), weights_part=part)


@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".pt", ".bin", ".pth.tar"])
def test_every_ending_of_torch_save_is_read(ending: str, tmp_path: Path) -> None:
    torch.save({"state_dict": below("model.")}, tmp_path / f"last{ending}")
    opened = open_file(tmp_path / f"last{ending}")
    assert torch.equal(opened.module.state_dict()[BODY], GOOD[BODY])
    assert opened.num_outputs == CLASSES


@pytest.mark.parametrize("kind", READ)
def test_a_checkpoint_is_read_and_it_is_said_what_was_taken(kind: str, tmp_path: Path) -> None:
    content, words = READ[kind]
    torch.save(content(), tmp_path / "w.pth")
    opened = open_file(tmp_path / "w.pth")
    assert words in str(opened.coverage)
    found = opened.module.state_dict()
    assert torch.equal(found[BODY], GOOD[BODY])
    if "head new" not in words:
        assert all(torch.equal(found[name], value) for name, value in GOOD.items())
        assert (opened.coverage.loaded, opened.num_outputs) == (92, CLASSES)


@pytest.mark.parametrize("kind", ["compiled", "Lightning with a loss", "SWA", "a backbone and another head"])
def test_a_module_of_ones_own_is_filled_as_well(kind: str, tmp_path: Path) -> None:
    torch.save(READ[kind][0](), tmp_path / "w.pth")
    own = nn.Sequential()
    own = model()
    nn.init.zeros_(own.get_parameter(BODY))
    opened = hs.open_model(own, weights=str(tmp_path / "w.pth"))
    assert torch.equal(own.state_dict()[BODY], GOOD[BODY])
    assert "stripped" in str(opened.coverage)


def test_names_that_are_the_models_own_stay(tmp_path: Path) -> None:
    """A module with a part called ``module`` or ``model``: its names fit as they are."""
    own = nn.ModuleDict({"module": model()})
    own.forward = lambda images: own["module"](images)  # type: ignore[method-assign]
    torch.save(own.state_dict(), tmp_path / "w.pth")
    opened = hs.open_model(own, weights=str(tmp_path / "w.pth"))
    assert str(opened.coverage) == "92 of 92 tensors loaded"


@pytest.mark.parametrize(
    ("content", "part", "taken"),
    [
        ({"state_dict": OTHER, "state_dict_ema": GOOD}, "auto", GOOD),
        ({"state_dict": OTHER, "state_dict_ema": GOOD}, "averaged", GOOD),
        ({"state_dict": OTHER, "state_dict_ema": GOOD}, "raw", OTHER),
        ({"state_dict": OTHER, "state_dict_ema": GOOD}, "state_dict", OTHER),
        ({"model": OTHER, "model_ema": below("module."), "args": OPTIONS}, "raw", OTHER),
        ({**below("model.", OTHER), **below("ema_model.")}, "raw", OTHER),
        ({**below("model.", OTHER), **below("ema_model.")}, "averaged", GOOD),
        ({"state_dict": {**below("model.", OTHER), **below("ema_model.")}}, "ema_model", GOOD),
        ({**below("module.encoder_q."), **below("module.encoder_k.", OTHER)}, "encoder_k", OTHER),
        ({"student": below("module.", OTHER), "teacher": below("module.")}, "teacher", GOOD),
        (averaged_model(), "averaged", GOOD),
    ],
)
def test_which_weights_are_meant_can_be_said(content: object, part: str, taken: State, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    opened = open_file(tmp_path / "w.pth", part)
    assert torch.equal(opened.module.state_dict()[BODY], taken[BODY])


def test_safetensors_have_parts_by_their_names(tmp_path: Path) -> None:
    save_file({**below("student.", OTHER), **below("teacher.")}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"below student, teacher; .* --model.weights-part student"):
        open_file(tmp_path / "w.safetensors")
    assert torch.equal(open_file(tmp_path / "w.safetensors", "teacher").module.state_dict()[BODY], GOOD[BODY])


@pytest.mark.parametrize(
    ("content", "part", "words"),
    [
        ({"student": GOOD, "teacher": OTHER}, "auto", "2 state dicts, student, teacher"),
        ({**below("module.encoder_q."), **below("module.encoder_k.")}, "auto", "module.encoder_k, module.encoder_q"),
        ({"ema_0": GOOD, "ema_1": OTHER}, "auto", "--model.weights-part ema_0"),
        (GOOD, "averaged", "no averaged weights are in it"),
        ({"ema": GOOD}, "raw", "averaged weights alone (ema)"),
        (averaged_model(), "raw", "no raw weights are in it"),
        (GOOD, "encoder", "there is no 'encoder' in it; its names begin with conv1"),
        (optimizer(), "auto", "it is an optimizer's state"),
        ({"epoch": 3}, "auto", "1 entries are not tensors: epoch"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_to_type(content: object, part: str, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        open_file(tmp_path / "w.pth", part)
    assert words in str(caught.value)
    for suggested in re.findall(r"--model\.weights-part (\S+)", str(caught.value)):
        if suggested != "out,":
            assert open_file(tmp_path / "w.pth", suggested.rstrip(";")).coverage.loaded == 92


def test_a_part_of_published_weights_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.weights_part: raw is of weights from a file"):
        hs.open_model(SPEC, weights="none", weights_part="raw")


def test_the_checkpoint_of_timms_own_saver_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    made = model()
    average = ModelEmaV3(made)
    with torch.no_grad():
        for value in average.module.parameters():
            value.add_(1)
    saver = CheckpointSaver(
        model=made, optimizer=torch.optim.SGD(made.parameters(), lr=0.1), args=OPTIONS, model_ema=average,
        checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=50.0)
    path = tmp_path / "model_best.pth.tar"
    mine, theirs = open_file(path).module.state_dict(), timm.models.load_state_dict(str(path))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert torch.equal(open_file(path, "raw").module.state_dict()[BODY], GOOD[BODY])


UNSAFE: dict[str, tuple[Callable[[], object], str]] = {  # the file, and the class that is named
    "a whole model": (model, "timm.models.resnet.ResNet"),
    "a model in a checkpoint": (lambda: {"epoch": 1, "model": model(), "ema": None}, "timm.models.resnet.ResNet"),
    "an average that is a model": (lambda: {"model": None, "ema": model()}, "timm.models.resnet.ResNet"),
    "a path among the options": (lambda: {"model": GOOD, "args": argparse.Namespace(out=Path("x"))}, "pathlib"),
    "NumPy's numbers": (lambda: {"state_dict": GOOD, "best": np.float64(0.5)}, "numpy"),
    "nested": (lambda: {"checkpoint": [Path("x")], "state_dict": below("model.")}, "pathlib"),
}
RUN = re.compile(r"run: (torch\.save\(.*\))$")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", UNSAFE)
def test_what_is_advised_for_a_file_with_classes_works(kind: str, old: bool, tmp_path: Path) -> None:
    content, name = UNSAFE[kind]
    torch.save(content(), tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(ModelError) as caught:
        open_file(tmp_path / "w.pth")
    assert name in str(caught.value)
    assert "code in a file is never run" in str(caught.value)
    advice = RUN.search(str(caught.value))
    assert advice is not None, caught.value
    checkpoint = torch.load(tmp_path / "w.pth", weights_only=False)  # as the script has it that wrote the file
    exec(advice[1].replace("'weights.pth'", "path"), {
        "torch": torch, "checkpoint": checkpoint, "model": checkpoint, "path": tmp_path / "weights.pth",
    })  # fmt: skip
    assert torch.equal(open_file(tmp_path / "weights.pth").module.state_dict()[BODY], GOOD[BODY])


def write_torchscript(root: Path) -> str:
    torch.jit.trace(model().eval(), torch.zeros(1, 3, 64, 64)).save(str(root / "w.pt"))
    return "w.pt"


def write_distributed(root: Path) -> str:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": GOOD}, checkpoint_id=str(root / "w"), no_dist=True)
    return "w"


def write_exported(root: Path) -> str:
    torch.export.save(torch.export.export(model().eval(), (torch.zeros(1, 3, 64, 64),)), root / "w.pt2")
    return "w.pt2"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("write", [write_torchscript, write_distributed, write_exported])
def test_what_is_advised_for_another_format_works(write: Callable[[Path], str], tmp_path: Path) -> None:
    name = write(tmp_path)
    with pytest.raises(ModelError) as caught:
        open_file(tmp_path / name)
    advice = re.search(r"run: (?:import torch; )?(.*?'weights\.pth'\))", str(caught.value))
    assert advice is not None, caught.value
    line = advice[1].replace("FILE", repr(name))
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import torch; {line}"], cwd=tmp_path, check=True)
    assert torch.equal(open_file(tmp_path / "weights.pth").module.state_dict()[BODY], GOOD[BODY])


def test_a_wrong_ending_is_named_and_the_right_one_is_read(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"give it the ending \.pth"):
        open_file(tmp_path / "w.safetensors")
    assert open_file((tmp_path / "w.safetensors").rename(tmp_path / "w.pth")).coverage.loaded == 92
    save_file(GOOD, tmp_path / "s.ckpt")
    with pytest.raises(ModelError, match=r"give it the ending \.safetensors"):
        open_file(tmp_path / "s.ckpt")


def test_a_folder_of_weights_is_answered_with_the_file_in_it(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        open_file(tmp_path)
    named = re.search(r"--weights (\S+)\)", str(caught.value))
    assert named is not None
    assert open_file(Path(named[1])).coverage.loaded == 92


class Trap:
    """Would write a file if a pickle of it were followed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_nothing_is_run_to_find_out_what_to_advise(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"model": Trap(str(proof)), "args": argparse.Namespace(a=Trap(str(proof)))}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="code in a file is never run"):
        open_file(tmp_path / "w.pth")
    assert not proof.exists()


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02.", b"\x80\x02}q\x00h\x09.", b"PK\x03\x04", b"(" * 1000, b"\x80\x02u."]
)
def test_a_damaged_pickle_gets_the_general_advice(data: bytes) -> None:
    assert "torch.save(model.state_dict(), 'weights.pth')" in how_to_save(data)
