"""From a recipe to phases: epochs, freeze rules and rates, and why."""

from __future__ import annotations

import math

import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headstart.config.load import load_config
from headstart.config.rules import freeze_text
from headstart.config.schema import AdamW, RmsProp, Sgd
from headstart.errors import ConfigError
from headstart.optim.groups import param_groups
from headstart.planning.phases import auto_rates, make_phases
from headstart.surgery.freeze import what_freezes
from headstart.surgery.head import replace_head
from headstart.surgery.layout import find_layout


def build(name: str) -> nn.Module:
    options = {"channels": (8, 8, 16, 16)} if name == "resnet18" else {}
    model = timm.create_model(name, pretrained=False, **options)
    replace_head(model, outputs=3)
    return model


RESNET, VIT = build("resnet18"), build("test_vit")


def phases(model: nn.Module = RESNET, *, pretrained: bool = True, batch_size: int = 64, **sections):
    return make_phases(load_config(sections), model, batch_size=batch_size, pretrained=pretrained)


def rows(**sections) -> list[tuple[str, int, int]]:
    plans, _ = phases(**sections)
    return [(freeze_text(plan.freeze), plan.first_epoch, plan.epochs) for plan in plans]


@pytest.mark.parametrize(("epochs", "probe"), [(2, 1), (3, 1), (5, 2), (10, 3), (100, 30)])
def test_lp_ft_gives_the_head_thirty_percent_of_the_epochs_at_least_one(epochs, probe) -> None:
    assert rows(recipe="lp_ft", epochs=epochs) == [("backbone", 0, probe), ("none", probe, epochs - probe)]
    assert rows(epochs=epochs) == rows(recipe="lp_ft", epochs=epochs)  # the default


def test_recipes_are_what_their_names_say() -> None:
    assert rows(recipe="probe", epochs=4) == [("backbone", 0, 4)]
    assert rows(recipe="full", epochs=4) == [("none", 0, 4)]
    assert rows(recipe="full", epochs=4, freeze="stages:2") == [("stages:2", 0, 4)]
    assert rows(recipe="lp_ft", epochs=4, freeze="norm") == [("backbone", 0, 1), ("norm", 1, 3)]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.sampled_from([RESNET, VIT]))
def test_gradual_covers_every_epoch_and_frees_more_in_every_phase(epochs, model) -> None:
    plans, _ = phases(model, recipe="gradual", epochs=epochs)
    assert [plan.first_epoch for plan in plans] == [sum(p.epochs for p in plans[:place]) for place in range(len(plans))]
    assert sum(plan.epochs for plan in plans) == epochs
    frozen = [what_freezes(model, plan.freeze).parameters for plan in plans]
    assert frozen == sorted(set(frozen), reverse=True)
    assert (freeze_text(plans[0].freeze), frozen[-1]) == ("backbone", 0)
    assert len(plans) == min(epochs, len(find_layout(model).stages) + 1, 4)


def test_phases_by_hand_are_taken_as_they_are() -> None:
    given = [
        {"freeze": "backbone", "epochs": 3, "lr": 1e-3},
        {"epochs": 5, "lr": 1e-4, "layer_decay": 0.6, "head_lr": 0.1},
    ]
    plans, (recipe, *_) = phases(phases=given)
    assert rows(phases=given) == [("backbone", 0, 3), ("none", 3, 5)]
    assert [(plan.lr, plan.head_lr, plan.layer_decay) for plan in plans][1] == (1e-4, 0.1, 0.6)
    assert (plans[0].head_lr, recipe.reason) == (1e-3, "as asked")


@pytest.mark.parametrize(
    ("sections", "pretrained", "recipe", "reason"),
    [
        ({}, True, "lp_ft (probe 3 epochs, finetune 7 epochs)", "Kumar et al. 2022"),
        ({"epochs": 1}, True, "probe (probe 1 epoch)", "one epoch is for the new head"),
        ({"freeze": "backbone"}, True, "probe (probe 10 epochs)", "the backbone stays frozen"),
        ({}, False, "full (full 10 epochs)", "random weights have no features to probe"),
        ({"recipe": "full"}, True, "full (full 10 epochs)", "as asked"),
    ],
)
def test_the_recipe_that_auto_means_is_said_with_its_reason(sections, pretrained, recipe, reason) -> None:
    _, (decision, *_) = phases(pretrained=pretrained, **sections)
    assert decision.value == recipe
    assert reason in decision.reason


@pytest.mark.parametrize("optimizer", [AdamW(), Sgd(), RmsProp()])
@pytest.mark.parametrize("model", [RESNET, VIT])
def test_auto_rates_grow_with_the_root_of_the_batch_and_say_for_what_network(model, optimizer) -> None:
    one, four = (auto_rates(model, optimizer, batch_size=size) for size in (16, 64))
    assert (four.body / one.body, four.probe / one.probe, four.scratch / one.scratch) == pytest.approx((2, 2, 2))
    assert four.reason.startswith("a BatchNorm network" if model is RESNET else "a network without BatchNorm")
    assert four.body < four.scratch < four.probe or isinstance(optimizer, Sgd)


GIVEN = [
    {}, {"optimizer": {"lr": 1e-4}}, {"optimizer": {"head_lr": 1e-5}}, {"optimizer": {"kind": "sgd", "lr": 0.01}},
    {"optimizer": {"kind": "timm", "name": "lamb", "lr": 1e-3}}, {"optimizer": {"layer_decay": 0.5}},
    {"phases": [{"epochs": 1, "lr": 1e-3}, {"epochs": 1, "freeze": "stages:1"}]},
]  # fmt: skip


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("recipe", ["probe", "full", "lp_ft", "gradual", "bias", "norm"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_rates_never_rise_from_output_to_input_in_any_recipe(given, recipe, pretrained) -> None:
    sections = given if "phases" in given else {**given, "recipe": recipe}
    if not pretrained and sections.get("recipe") in ("bias", "norm"):
        return  # refused
    for plan in phases(pretrained=pretrained, **sections)[0]:
        groups = param_groups(RESNET, lr=plan.lr, head_lr=plan.head_lr, layer_decay=plan.layer_decay)
        rates = [group["lr"] for group in groups]
        assert rates == sorted(rates), plan
        assert all(0 < rate < math.inf for rate in rates)


@pytest.mark.parametrize(
    ("sections", "pretrained", "batch_size", "kinds"),
    [
        ({}, True, 64, ["frozen", "frozen"]),
        ({}, True, 8, ["frozen", "frozen"]),
        ({"recipe": "gradual", "epochs": 3}, True, 64, ["frozen"] * 3),
        ({"recipe": "full"}, True, 64, ["batch"]),
        ({"recipe": "full"}, True, 15, ["frozen"]),
        ({"recipe": "full", "batch": {"accumulate": 8}}, True, 64, ["frozen"]),
        ({}, False, 8, ["batch"]),
        ({"norm_statistics": "batch"}, True, 64, ["batch", "batch"]),
        ({"norm_statistics": "frozen", "phases": [{"epochs": 1}, {"epochs": 1, "norm_statistics": "batch"}]}, True, 64,
         ["frozen", "batch"]),
    ],
)  # fmt: skip
def test_statistics_stay_behind_a_trained_head_and_in_small_batches(sections, pretrained, batch_size, kinds) -> None:
    plans, decisions = phases(pretrained=pretrained, batch_size=batch_size, **sections)
    assert [plan.norm_statistics for plan in plans] == kinds
    assert [decision.name for decision in decisions] == ["recipe", "rates", "batch norm"]
    assert [decision.name for decision in phases(VIT, **sections)[1]] == ["recipe", "rates"]


@pytest.mark.parametrize("recipe", ["lora", "bias", "norm"])
def test_light_recipes_are_one_phase_with_one_rate_for_all_depths_and_a_faster_head(recipe) -> None:
    assert rows(recipe=recipe, epochs=4) == [(f"except:{recipe}", 0, 4)]
    (plan,), decisions = phases(recipe=recipe, epochs=4)
    assert (plan.layer_decay, plan.norm_statistics) == (1.0, "frozen")
    assert plan.lr < plan.head_lr == pytest.approx(5e-3)
    assert decisions[-1].reason == "auto: parameter-efficient fine-tuning leaves them as they are"
    (given,), _ = phases(recipe=recipe, optimizer={"lr": 1e-4, "layer_decay": 0.5})
    assert (given.lr, given.layer_decay) == (1e-4, 0.5)
    assert given.head_lr == pytest.approx(1e-4 * plan.head_lr / plan.lr)
    (low,), _ = phases(recipe=recipe, optimizer={"head_lr": 1e-5})
    assert (low.lr, low.head_lr) == (1e-5, 1e-5)
    assert [plan.norm_statistics for plan in phases(recipe="lp_ft", freeze=f"except:{recipe}")[0]] == [
        "frozen",
        "frozen",
    ]
    assert phases(recipe="lp_ft", freeze=f"except:{recipe}")[0][1].layer_decay == 1.0


def test_peft_of_random_weights_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"recipe: bias keeps the backbone's weights, and these are random; use --rec"
    ):
        phases(recipe="bias", pretrained=False)


def test_rates_given_are_kept_and_the_new_head_learns_faster() -> None:
    probe, finetune = phases(optimizer={"lr": 1e-4})[0]
    assert (probe.head_lr, finetune.lr, finetune.head_lr) == (pytest.approx(1e-3), 1e-4, 1e-4)
    (full,) = phases(recipe="full", optimizer={"lr": 1e-4})[0]
    assert (full.lr, full.head_lr) == (1e-4, pytest.approx(1e-3))
    (scratch,) = phases(recipe="full", pretrained=False)[0]
    assert (scratch.lr, scratch.layer_decay) == (scratch.head_lr, 1.0)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"recipe": "lp_ft", "epochs": 1},
            r"epochs: lp_ft needs at least 2 \(head, then all\); give --epochs 2 or --reci",
        ),
        (
            {"recipe": "gradual", "epochs": 1},
            r"epochs: gradual needs at least 2, not 1; give --epochs 4 or --recipe probe",
        ),
        (
            {"recipe": "gradual", "freeze": "norm"},
            r"freeze: norm does not apply to the recipe gradual, .*--recipe lp_ft",
        ),
        ({"recipe": "probe", "freeze": "norm"}, r"freeze: recipe probe trains the head alone; leave freeze out"),
        ({"recipe": "full", "phases": [{"epochs": 1}]}, r"recipe: .* and phases exclude each other"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(sections, said) -> None:
    with pytest.raises(ConfigError, match=said):
        phases(**sections)
