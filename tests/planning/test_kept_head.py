"""A run as the model of another: its head goes on where it answers the same, else a new one is made; both are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headstart as hs
from headstart.errors import ConfigError

SMALL = {"recipe": "full", "epochs": 1}


@pytest.fixture
def first(settings) -> Path:
    """A run of three classes, its head of two layers."""
    head = {"kind": "mlp", "hidden": [6], "dropout": 0.25}
    return hs.train(hs.load_config(settings(**SMALL, head=head))).path


@pytest.fixture
def further(settings, first: Path):
    """What is decided on a run whose model is the first one: ``further(...)``, by name."""

    def decide(**sections: Any) -> dict[str, Any]:
        plan = hs.plan(hs.load_config(on_top(settings, first, **sections)))
        return {decision.name: decision for decision in plan.decisions}

    return decide


def on_top(settings, first: Path, **sections: Any) -> dict[str, Any]:
    """The options of a run whose model is the first one, and which leaves the recipe open."""
    options = settings(**{"out": f"{first}-2", "epochs": 2} | sections)
    options["model"] = {"name": str(first)}
    return options if "recipe" in sections else {key: value for key, value in options.items() if key != "recipe"}


def test_the_head_goes_on_for_the_same_classes_without_a_phase_of_its_own(further, first: Path) -> None:
    found = further()
    assert found["head"].value == "fc: kept, 3 outputs, hidden 6, dropout 0.25"
    assert found["head"].reason == f"that of {first / 'model'}, the same outputs; a new one: --head.keep false"
    assert found["recipe"].value == "full (full 2 epochs)"
    assert found["recipe"].reason == "auto: the head is a trained one, and needs no phase of its own"
    assert found["rates"].value == "full 0.00011, x0.85 per stage towards the input, head 0.00011"


def test_its_weights_are_those_of_the_run_and_so_is_its_bundle(settings, first: Path) -> None:
    still = on_top(settings, first, recipe="full", epochs=1, optimizer={"lr": 1e-12, "head_lr": 1e-12})
    second = hs.train(hs.load_config(still))
    before, after = hs.open_run(first), hs.open_run(second.path)
    for name, value in before.model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after.model.state_dict()[name], value, rtol=0, atol=1e-6)
    assert {**after.facts["head"]} == {**before.facts["head"]}
    assert json.loads((second.path / "plan.json").read_text())["choices"]["head"] == "kept"
    third = on_top(settings, first, recipe="full", epochs=1, head={"keep": True}, out=f"{first}-3")
    hs.train(hs.load_config(third | {"model": {"name": str(second.path)}}))


def test_a_new_head_is_made_and_why_is_said(further, first: Path, draw_colours, tmp_path: Path) -> None:
    more = draw_colours(tmp_path / "more", each=6)
    for number in range(6):
        (more / "yellow").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (250, 250, number)).save(more / "yellow" / f"{number}.png")
    found = further(data={"source": str(more)})
    assert found["head"].value == "fc: 3 -> 4 outputs"
    assert (
        "is not kept: its outputs are blue, green, red; these images have blue, green, red, yellow"
        in found["head"].reason
    )
    assert found["recipe"].value.startswith("lp_ft")
    assert further(head={"kind": "linear", "dropout": 0.5})["head"].reason.endswith(
        "is not kept: another one is asked for (kind, dropout)"
    )
    assert further(head={"keep": False})["head"].reason.endswith("is not kept: head.keep: false")


def test_a_head_that_cannot_be_kept_is_refused_where_it_was_asked_for(further, settings, first: Path) -> None:
    with pytest.raises(ConfigError, match=r"head\.keep: the head of .* cannot be kept: another one is asked for"):
        further(head={"keep": True, "dropout": 0.5})
    with pytest.raises(ConfigError, match=r"head\.keep: timm/resnet18 is no run of headstart, whose head is known"):
        hs.plan(hs.load_config(settings(**SMALL, head={"keep": True}, out=f"{first}-2")))


def test_images_that_the_weights_have_seen_are_named_where_they_validate(further, first: Path) -> None:
    assert "seen before" not in further()
    found = further(seed=7)["seen before"]
    assert " validation images (" in found.value and "so that the validation comes out too good" in found.reason


def test_numbers_keep_their_meaning_although_other_images_have_another_mean(settings, tmp_path: Path) -> None:
    rows = ["image,size"]
    for number in range(40):
        shade = np.full((40, 40, 3), 5 * number, dtype=np.uint8)
        Image.fromarray(shade).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{number}")
    for name, part in (("all.csv", rows[1:]), ("upper.csv", rows[20:])):
        (tmp_path / name).write_text("\n".join([rows[0], *part]) + "\n")
    first = hs.train(hs.load_config(settings(**SMALL, data={"source": str(tmp_path / "all.csv")}))).path
    still = on_top(
        settings, first, recipe="full", epochs=1, optimizer={"lr": 1e-12, "head_lr": 1e-12},
        data={"source": str(tmp_path / "upper.csv")}, norm_statistics="frozen",
    )  # fmt: skip
    second = hs.train(hs.load_config(still)).path
    tasks = [hs.open_run(run).task for run in (first, second)]
    assert tasks[0].mean != tasks[1].mean
    before, after = ([p.values["size"] for p in hs.predict(str(run), [tmp_path / "39.png"])] for run in (first, second))
    assert after == pytest.approx(before, rel=1e-4)
