"""The head of a module of one's own: kept where its outputs are known to mean the same, or where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import headstart as hs
from headstart.errors import ConfigError

SMALL = {"recipe": "full", "epochs": 1}
STILL = {"optimizer": {"lr": 1e-12, "head_lr": 1e-12}, "norm_statistics": "frozen"}
Decide = Callable[..., dict[str, hs.Decision]]


@pytest.fixture
def of_module(settings) -> Callable[..., dict[str, Any]]:
    """Options of a small run of a module, which names no model."""
    return lambda **sections: settings(**SMALL | sections) | {"model": {"image_size": 32}}


@pytest.fixture
def decide(of_module) -> Decide:
    """What is decided on a module, by name: ``decide(net(), head={"keep": True})``."""

    def plan(module: nn.Module, **sections: Any) -> dict[str, hs.Decision]:
        found = hs.plan(hs.load_config(of_module(**sections)), model=module)
        return {decision.name: decision for decision in found.decisions}

    return plan


def named(net: nn.Module, *labels: str) -> nn.Module:
    """The module with labels as those of transformers have them."""
    net.config = SimpleNamespace(id2label=dict(enumerate(labels)))  # type: ignore[assignment]
    return net


def test_outputs_that_nothing_names_get_a_new_head_and_it_is_said(decide: Decide, net) -> None:
    why = decide(net(classes=3))["head"].reason
    assert "is not kept: nothing says that its 3 outputs mean blue, green, red; if so: --head.keep true" in why
    assert "kept" not in decide(net(classes=4))["head"].reason


def test_the_classes_of_a_transformers_model_are_compared(decide: Decide, net) -> None:
    assert ": kept, 3 outputs" in decide(named(net(), "blue", "green", "red"))["head"].value
    other = decide(named(net(), "red", "green", "blue"))["head"]
    assert "kept" not in other.value
    assert "is not kept: its outputs are red, green, blue; these images have blue, green, red" in other.reason
    assert "nothing says that" in decide(named(net(), "LABEL_0", "LABEL_1", "LABEL_2"))["head"].reason
    with pytest.raises(ConfigError, match=r"head\.keep: .* cannot be kept: its outputs are red, green, blue"):
        decide(named(net(), "red", "green", "blue"), head={"keep": True})


def test_a_head_of_other_outputs_cannot_be_kept(decide: Decide, net) -> None:
    with pytest.raises(ConfigError, match=r"head\.keep: fc of .* gives 4 outputs, .* ask for 3 outputs \(blue"):
        decide(net(classes=4), head={"keep": True})
    with pytest.raises(ConfigError, match="another one is asked for"):
        decide(net(), head={"keep": True, "dropout": 0.5})


def test_a_head_that_is_kept_on_request_goes_on_and_is_opened_again(of_module, net, tmp_path: Path) -> None:
    module = net(classes=3)
    with torch.no_grad():
        list(module.parameters())[-1].copy_(torch.tensor([0.0, 9.0, 0.0]))
    config = hs.load_config(of_module(**STILL, head={"keep": True}))
    run = hs.train(config, model=module, watch=None)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=0, atol=1e-6)
    opened = hs.open_run(run.path, model=module)
    for name, value in run.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], value)


def test_the_model_that_a_run_left_goes_on_with_its_head(settings, of_module, decide: Decide, tmp_path: Path) -> None:
    first = hs.train(hs.load_config(settings(**SMALL, head={"kind": "mlp", "hidden": [6]})), watch=None)
    opened = hs.open_run(first.path)
    for module in (first.model, opened.model):
        found = decide(module, out=str(tmp_path / "second"))
        assert found["head"].value == "fc: kept, 3 outputs, hidden 6", found["head"].reason
    still = of_module(**STILL, out=str(tmp_path / "second"))
    second = hs.train(hs.load_config(still), model=first.model, watch=None)
    again = hs.open_run(second.path, model=first.model)
    for name, value in second.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    hs.replace_head(opened.model, outputs=3)
    assert "kept" not in decide(opened.model, out=str(tmp_path / "third"))["head"].value


def test_numbers_of_a_kept_head_are_taken_in_their_own_units(of_module, net, tmp_path: Path) -> None:
    rows = ["image,size"]
    for number in range(24):
        Image.new("RGB", (40, 40), (9 * number,) * 3).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{100 + number}")
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    module = net(classes=1)
    with torch.no_grad():
        list(module.parameters())[-1].fill_(111.0)
    options = of_module(**STILL, head={"keep": True}, data={"source": str(tmp_path / "all.csv")})
    run = hs.train(hs.load_config(options), model=module, watch=None)
    assert run.metrics["mae"] < 14 and 109 < hs.predict(run, [tmp_path / "3.png"])[0].values["size"] < 113
