"""Every module of timm and torchvision, by its smallest architecture: what ``benchmarks.zoo`` checks on all 1,451."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from tests.reliability import architectures as zoo

SMALLEST = (Path(__file__).parent / "smallest.txt").read_text().split()
UNTRACEABLE = {"timm/gemma4_vit_167m"}  # its path depends on values


@pytest.mark.parametrize("name", SMALLEST)
def test_heads_layout_freezing_boundary_and_groups_of(name: str):
    row = zoo.examine(name)
    failed = {check: reason for check, reason in zoo.verdicts(row) if reason != "pass"}
    if name in UNTRACEABLE:
        assert row["layout"] == "hooks"
        assert set(failed) == {f"boundary {depth}" for depth in zoo.DEPTHS}
        assert all("torch.fx cannot trace it, so it has no boundary" in reason for reason in failed.values())
    else:
        assert (row["layout"], failed) == ("fx", {})


@pytest.mark.skipif(timm.__version__ != "1.0.31", reason="the list of modules is that of timm 1.0.31")
def test_no_module_is_left_out():
    libraries = {name.partition("/")[0] for name in SMALLEST}
    assert libraries == {"timm", "torchvision"}
    assert {zoo.family(name) for name in SMALLEST} == {zoo.family(name) for name in zoo.names()}


def test_the_checks_see_what_is_wrong(monkeypatch: pytest.MonkeyPatch):
    module = zoo.build("timm/test_resnet")
    zoo.check_head(module, "tags")
    zoo.check_order(module)
    zoo.check_groups(module)
    monkeypatch.setattr(torch.nn.Module, "train", _wake)
    with pytest.raises(zoo.Refuted, match="is all frozen, and in training mode"):
        zoo.check_freeze(module, 0.5)


def _wake(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
    """A ``train`` that asks nobody, as one that a library might bring."""
    for part in module.modules():
        part.training = mode
    return module


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        ("headstart.optim.groups.param_groups", "check_groups", "a parameter is in no group"),
        ("headstart.surgery.head.replace_head", "check_head", "HeadSwap says"),
    ],
)
def test_a_check_refutes_what_is_broken(monkeypatch: pytest.MonkeyPatch, broken: str, check: str, said: str):
    module = zoo.build("timm/test_resnet")
    place, _, name = broken.rpartition(".")
    right = getattr(__import__(place, fromlist=[name]), name)
    wrong = {
        "param_groups": lambda *args, **options: right(*args, **options)[1:],
        "replace_head": lambda model, **options: right(model, outputs=options["outputs"] + 1),
    }[name]
    monkeypatch.setattr(broken, wrong)
    with pytest.raises(zoo.Refuted, match=said):
        getattr(zoo, check)(*((module, "tags") if check == "check_head" else (module,)))
