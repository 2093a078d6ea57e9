"""Optimizers: a step of each by hand, and how each decays weights."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim.lamb import Lamb
from torch import nn

from headstart.config.schema import Adam, AdamW, RmsProp, Sgd, TimmOptimizer
from headstart.errors import ConfigError
from headstart.optim.optimizers import decay_kind, make_optimizer

LR, DECAY = 0.1, 0.5


def stepped(options, gradients, *, value: float = 2.0, decay: float = DECAY) -> float:
    """A parameter of one element after steps with these gradients."""
    parameter = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    optimizer = make_optimizer([{"params": [parameter], "lr": LR, "weight_decay": decay}], options)
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    return parameter.item()


def adam(gradients, *, value: float = 2.0, coupled: bool, betas=(0.9, 0.999)) -> float:
    """Kingma & Ba 2015, algorithm 1; decay as in Loshchilov & Hutter 2019, algorithm 2."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        slope = gradient + DECAY * value if coupled else gradient
        value = value if coupled else value * (1 - LR * DECAY)
        mean, square = betas[0] * mean + (1 - betas[0]) * slope, betas[1] * square + (1 - betas[1]) * slope**2
        unbiased = mean / (1 - betas[0] ** step), square / (1 - betas[1] ** step)
        value -= LR * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
    return value


def test_adamw_and_adam_are_the_papers() -> None:
    gradients = [0.3, -1.0, 0.2]
    assert stepped(AdamW(lr=LR), gradients) == pytest.approx(adam(gradients, coupled=False))
    assert stepped(Adam(lr=LR), gradients) == pytest.approx(adam(gradients, coupled=True))
    other = stepped(AdamW(lr=LR, betas=(0.5, 0.6)), gradients)
    assert other == pytest.approx(adam(gradients, coupled=False, betas=(0.5, 0.6)))


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_momentum_with_coupled_decay(nesterov) -> None:
    value, speed = 2.0, 0.0
    for gradient in (0.3, -1.0, 0.2):
        slope = gradient + DECAY * value
        speed = 0.9 * speed + slope
        value -= LR * (slope + 0.9 * speed if nesterov else speed)
    assert stepped(Sgd(nesterov=nesterov), [0.3, -1.0, 0.2]) == pytest.approx(value)


def test_a_first_gradient_may_come_later_than_those_of_others() -> None:
    """As of a block that random depth left out; from there on it is a parameter like the others."""
    early, late = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    groups = [{"params": [early, late], "lr": LR, "weight_decay": 0.0}]
    optimizer = make_optimizer(groups, Sgd(nesterov=False))
    for gradients in ((0.3, None), (-1.0, None), (0.2, 0.3), (0.5, -1.0)):
        early.grad, late.grad = (None if value is None else torch.tensor([value]) for value in gradients)
        optimizer.step()
    plain = [nn.Parameter(torch.tensor([2.0])) for _ in range(2)]
    for parameter, gradients in zip(plain, ((0.3, -1.0, 0.2, 0.5), (0.3, -1.0)), strict=True):
        by_torch = torch.optim.SGD([parameter], lr=LR, momentum=0.9, foreach=False)
        for gradient in gradients:
            parameter.grad = torch.tensor([gradient])
            by_torch.step()
    assert [early.item(), late.item()] == [parameter.item() for parameter in plain]


def test_sgd_without_momentum_is_plain_descent() -> None:
    assert stepped(Sgd(momentum=0.0), [0.3]) == pytest.approx(2.0 - LR * (0.3 + DECAY * 2.0))


def test_rmsprop_is_the_lectures_with_coupled_decay() -> None:
    value, square, speed = 2.0, 0.0, 0.0
    for gradient in (0.3, -1.0, 0.2):
        slope = gradient + DECAY * value
        square = 0.99 * square + 0.01 * slope**2
        speed = 0.5 * speed + slope / (math.sqrt(square) + 1e-8)
        value -= LR * speed
    assert stepped(RmsProp(momentum=0.5), [0.3, -1.0, 0.2]) == pytest.approx(value)


@pytest.mark.parametrize("options", [AdamW(), Adam(), RmsProp()], ids=lambda options: options.kind)
def test_the_words_for_weight_decay_are_what_it_does(options) -> None:
    """Decoupled decay shrinks a weight by rate x decay whatever the gradient; coupled decay is lost beside a large one.

    (SGD's step is linear in the gradient: there the two are one.)
    """
    shrunk = stepped(options, [1e6], decay=0.0) - stepped(options, [1e6], decay=DECAY)
    assert decay_kind(options) == ("decoupled" if shrunk == pytest.approx(LR * DECAY * 2.0) else "coupled L2")
    assert shrunk == pytest.approx(LR * DECAY * 2.0 if isinstance(options, AdamW) else 0.0, abs=1e-6)


def test_every_group_keeps_its_own_rate_and_decay() -> None:
    for options in (AdamW(), Adam(), Sgd(), RmsProp(), TimmOptimizer(name="lamb", lr=9.0)):
        groups = [
            {"params": [nn.Parameter(torch.ones(2, 2))], "lr": 0.1, "weight_decay": 0.3, "name": "a"},
            {"params": [nn.Parameter(torch.ones(2))], "lr": 0.2, "weight_decay": 0.0, "name": "b"},
        ]
        made = make_optimizer(groups, options)
        assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [(0.1, 0.3), (0.2, 0.0)]


def test_timms_optimizers_are_taken_by_name_with_their_options() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    group = [{"params": [ours], "lr": LR, "weight_decay": DECAY}]
    lamb = make_optimizer(group, TimmOptimizer(name="lamb", lr=LR, options={"betas": (0.5, 0.9)}))
    reference = Lamb([theirs], lr=LR, weight_decay=DECAY, betas=(0.5, 0.9))
    for _ in range(3):
        for parameter, optimizer in ((ours, lamb), (theirs, reference)):
            parameter.grad = torch.arange(6.0).view(3, 2)
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lambb", {}, r"optimizer.name: timm has no optimizer 'lambb'; near names: lamb, "),
        ("zzz", {}, r"timm has no optimizer 'zzz'; near names: lamb, lion, nadamw"),
        ("kron", {}, r"optimizer.name: kron keeps state that a checkpoint cannot hold"),
        ("adahessian", {}, r"adahessian needs second derivatives, .* give another, e.g. nadamw"),
        ("lamb", {"speed": 3}, r"optimizer.options: timm's lamb with \{'speed': 3\}: .*unexpected keyword"),
    ],
)
def test_what_timm_cannot_make_is_refused(name, options, said) -> None:
    with pytest.raises(ConfigError, match=said):
        make_optimizer(
            [{"params": [nn.Parameter(torch.ones(1))], "lr": LR}], TimmOptimizer(name=name, lr=LR, options=options)
        )


@pytest.mark.parametrize("options", [AdamW(), Adam(), Sgd()])
def test_one_fused_kernel_steps_what_is_on_the_cpu_and_torch_chooses_elsewhere(options) -> None:
    for device, fused in (("cpu", True), ("meta", None)):
        parameter = nn.Parameter(torch.zeros(2, device=device))
        made = make_optimizer([{"params": [parameter], "lr": LR, "weight_decay": 0.0}], options)
        assert made.param_groups[0]["fused"] is fused


@pytest.mark.parametrize("options", [AdamW(), Adam(), Sgd(momentum=0.0, nesterov=False)])
def test_numbers_between_those_of_a_parameter_stay(options) -> None:
    flat = torch.zeros(8)
    parameter = nn.Parameter(flat[::2])
    optimizer = make_optimizer([{"params": [parameter], "lr": LR, "weight_decay": 0.0}], options)
    parameter.grad = torch.ones(4)
    optimizer.step()
    assert flat[1::2].tolist() == [0, 0, 0, 0]
    assert flat[::2].tolist() == pytest.approx([-LR] * 4)
