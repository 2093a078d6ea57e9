"""Changes of one's own module and loss, and of the process around them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.reliability.resume_changes.worlds import LOSS, SOURCE, Change, Given, World, loss_from, module_from

_CODE, _WEIGHTS, _LOSS = "the module's own code", "weights was", "the loss's own code"


def _edit(module: nn.Module, name: str, place: int, value: float) -> None:
    tensor = module.get_parameter(name) if name in dict(module.named_parameters()) else module.get_buffer(name)
    tensor.data.view(-1)[place] = value


def _widen(module: Any) -> None:
    module.tail.conv, module.tail.norm, module.fc = nn.Conv2d(6, 9, 3, 2), nn.BatchNorm2d(9), nn.Linear(9, 5)


def _rename(module: Any) -> None:
    module.head = module.fc
    del module.fc
    module.forward = lambda x: module.head(module.drop(module.tail(module.first(x)).mean((2, 3))))


def _subclass(module: Any) -> None:
    class Loud(nn.Conv2d):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 1.01

    module.first.__class__ = Loud


MODULE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "all weights drawn anew": (lambda m: module_from(seed=1), _WEIGHTS),
    "the first weight + 1e-7": (lambda m: m.first.weight.data.view(-1)[:1].add_(1e-7), _WEIGHTS),
    "the last bias": (lambda m: _edit(m, "fc.bias", -1, 0.5), _WEIGHTS),
    "a running mean": (lambda m: _edit(m, "tail.norm.running_mean", 3, 0.1), _WEIGHTS),
    "a counter of batches": (lambda m: m.tail.norm.num_batches_tracked.add_(1), _WEIGHTS),
    "a buffer outside the state dict": (lambda m: _edit(m, "shift", 2, 0.1), _WEIGHTS),
    "minus zero for zero": (lambda m: m.shift.neg_(), _WEIGHTS),
    "two weights swapped": (lambda m: m.first.weight.data.copy_(m.first.weight.data.flip(0)), _WEIGHTS),
    "weights in float64": (lambda m: m.double(), ""),
    "weights in bfloat16": (lambda m: m.bfloat16(), ""),
    "weights in channels last": (lambda m: m.to(memory_format=torch.channels_last), ""),
    "a wider layer": (_widen, _WEIGHTS),
    "a layer called otherwise": (_rename, _WEIGHTS),
    "one parameter more": (lambda m: m.register_parameter("extra", nn.Parameter(torch.zeros(2))), _WEIGHTS),
    "one buffer more": (lambda m: m.register_buffer("extra", torch.zeros(2)), _WEIGHTS),
    "one layer more, unused": (lambda m: m.add_module("extra", nn.ReLU()), _CODE),
    "a layer frozen": (lambda m: m.first.requires_grad_(False), _CODE),
    "in evaluation mode": (lambda m: m.eval(), ""),
    "a gradient left over": (lambda m: setattr(m.fc.bias, "grad", torch.ones(5)), ""),
    "run once before": (lambda m: m.eval()(torch.zeros(1, 3, 32, 32)), ""),
    "a forward hook": (lambda m: m.tail.register_forward_hook(lambda a, b, c: c * 1.1), _CODE),
    "a forward hook on the model": (lambda m: m.register_forward_hook(lambda a, b, c: c * 1.1), _CODE),
    "a hook before": (lambda m: m.first.register_forward_pre_hook(lambda a, b: (b[0] * 1.1,)), _CODE),
    "a backward hook": (lambda m: m.tail.register_full_backward_hook(lambda a, b, c: None), _CODE),
    "a hook on a parameter": (lambda m: m.fc.bias.register_hook(lambda g: g * 2), _CODE),
    "an attribute": (lambda m: setattr(m, "slope", 0.2), _CODE),
    "an attribute of a part": (lambda m: setattr(m.tail, "power", 2), _CODE),
    "an item of a list": (lambda m: m.steps.__setitem__(0, 9), _CODE),
    "an attribute of the class": (lambda m: setattr(type(m), "slope", 0.2), _CODE),
    "an option of a layer": (lambda m: setattr(m.first, "stride", (1, 1)), _CODE),
    "an epsilon": (lambda m: setattr(m.tail.norm, "eps", 1e-3), _CODE),
    "a momentum": (lambda m: setattr(m.tail.norm, "momentum", 0.5), _CODE),
    "more dropout": (lambda m: setattr(m.drop, "p", 0.5), _CODE),
    "a method of the object": (lambda m: setattr(m, "forward", lambda x: type(m).forward(m, x * 2)), _CODE),
    "a method of a part": (
        lambda m: setattr(m.tail, "forward", functools.partial(type(m.tail).forward, m.tail)), _CODE,
    ),
    "a part of another class": (_subclass, _CODE),
    "a parametrization": (lambda m: parametrizations.weight_norm(m.tail.conv), ""),
    "a default of a function that it calls": (
        lambda m: setattr(type(m).forward.__globals__["scaled"], "__defaults__", (2.0,)), _CODE,
    ),
    "a global that it names": (lambda m: type(m).forward.__globals__.__setitem__("FACTOR", 2.0), _CODE),
}  # fmt: skip
TEXTS = {
    "the class's text": (SOURCE.replace("** self.power", "* self.power"), _CODE),
    "a constant in its text": (SOURCE.replace("nn.Dropout(0.1)", "nn.Dropout(0.2)"), _CODE),
    "comments and blank lines in its text": (SOURCE.replace("FACTOR = 1.0", "# as in the paper\n\nFACTOR = 1.0"), ""),
    "a function that it does not call": (SOURCE + "\ndef unused():\n    return 3\n", ""),
    "the order of its layers": (
        SOURCE.replace("        self.drop = nn.Dropout(0.1)\n", "").replace(
            "        self.first =", "        self.drop = nn.Dropout(0.1)\n        self.first ="), "",
    ),
}  # fmt: skip


def module_changes() -> Iterator[Change]:
    """Of weights, state, hooks, attributes, methods and text."""
    for name, (change, said) in MODULE.items():
        yield Change(name, lambda _, given, change=change: given.change_model(change), (said,) if said else ())
    for name, (text, said) in TEXTS.items():
        yield Change(name, functools.partial(_other_text, text), (said,) if said else ())


def _other_text(text: str, _: World, given: Given) -> None:
    given.make_model = functools.partial(module_from, text)


def loss_changes() -> Iterator[Change]:
    """Of a function's closure, default and text, and of the module in its closure."""

    def inner(change: Callable[[Any], Any]) -> Any:
        loss, module = loss_from()
        change(module)
        return loss

    def default() -> Any:
        loss, _ = loss_from()
        loss.__defaults__ = (0.5,)
        return loss

    def named_global() -> Any:
        loss, module = loss_from()
        type(module).forward.__globals__["WEIGHT"] = 2.0
        return loss

    losses: dict[str, Callable[[], Any]] = {
        "made again": lambda: loss_from()[0],
        "a value in its closure": lambda: loss_from(factor=2.0)[0],
        "its default": default,
        "a global": named_global,
        "an attribute": lambda: inner(lambda m: setattr(m, "smoothing", 0.2)),
        "a weight of a class": lambda: inner(lambda m: m.weights.__setitem__(1, 3.0)),
        "its text": lambda: loss_from(LOSS.replace("* factor + add", "* factor - add"))[0],
        "a partial of it": lambda: functools.partial(loss_from()[0], add=0.5),
        "none": lambda: None,
        "torch's own": lambda: nn.CrossEntropyLoss(reduction="none"),
    }
    for name, make in losses.items():
        yield Change(name, lambda _, given, make=make: setattr(given, "loss", make()), (_LOSS,))


@contextmanager
def _for_now(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def process_changes() -> Iterator[Change]:
    """Of the process that goes on: threads, modes, generators, switches of torch."""

    def around(context: Callable[[], Any]) -> Callable[[World, Given], Any]:
        return lambda *_: context()

    def drawn(*_: object) -> None:
        torch.rand(7), random.random(), np.random.rand(3)

    mkldnn = torch.backends.mkldnn
    yield Change("one thread more", around(lambda: _for_now(
        torch.get_num_threads, torch.set_num_threads, torch.get_num_threads() + 1)), ("threads",))  # fmt: skip
    yield Change("numbers drawn before", drawn)
    yield Change("within no_grad", around(torch.no_grad))
    yield Change("within inference mode", around(torch.inference_mode))
    yield Change("within autocast", around(lambda: torch.autocast("cpu", dtype=torch.bfloat16)))
    yield Change("default type float64", around(lambda: _for_now(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64)))  # fmt: skip
    yield Change("oneDNN off", around(lambda: mkldnn.flags(enabled=False)), ("switches was none, is mkldnn",))
    yield Change("coarser products", around(lambda: _for_now(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium")), ("switches",))  # fmt: skip
    yield Change("deterministic algorithms", around(lambda: _for_now(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True,
    )), ("switches",))  # fmt: skip
    yield Change("denormal numbers flushed", around(lambda: _for_now(
        lambda: False, torch.set_flush_denormal, True)))  # fmt: skip
    yield Change("anomalies looked for", around(torch.autograd.detect_anomaly))
