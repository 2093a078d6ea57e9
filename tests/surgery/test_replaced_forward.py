"""A forward that is replaced on the object itself, and calls the class's: found and replaced as any other."""

from __future__ import annotations

import copy

import pytest
import torch

import headstart as hs


def through_type(net):
    net.forward = lambda images: type(net).forward(net, images * 2)


def through_class(net):
    net.forward = lambda images: net.__class__.forward(net, images * 2)


def through_kept(net):
    before = net.forward
    net.forward = lambda images: before(images * 2)


@pytest.mark.parametrize("wrap", [through_type, through_class, through_kept])
def test_a_forward_that_calls_the_classs_own_is_looked_through(net, wrap) -> None:
    made, images = net(), torch.rand(2, 3, 16, 16)
    expected = copy.deepcopy(made).eval()(images * 2)
    wrap(made)
    kind = type(made)
    assert hs.find_head(made).paths == ("fc",)
    assert type(made) is kind
    assert torch.equal(made.eval()(images), expected)
    assert hs.replace_head(made, outputs=7).path == "fc"
    assert made(images).shape == (2, 7)
