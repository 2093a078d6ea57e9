"""The state of a module: whatever its code changes is named and put back, and its digest names what it computes."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import random
import subprocess
import sys
import textwrap
from collections import Counter, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart.surgery.freeze import freeze
from headstart.surgery.module_state import code_digest, differences, opaque, read_state, restore_state

COUNT = 0
HISTORY: list[int] = []
GENERATOR = random.Random(5)


def count_globally() -> None:
    global COUNT
    COUNT += 1


class Meter:
    """An object of the user's own."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0.0


class Tail(nn.Module):
    """A layer whose forward pass changes whatever a test gives as ``change``."""

    seen_by_all = 0

    def __init__(self, change: Callable[[Tail], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.change = change
        self.calls = 0
        self.history: list[Any] = [1, [2]]
        self.tally = Counter(a=1)
        self.recent = deque([1, 2], maxlen=3)
        self.names = {"a"}
        self.cache: dict[str, Any] = {}
        self.meter = Meter()
        self.box = SimpleNamespace(inner={"n": 0})
        self.plain = torch.zeros(2)
        self.array = np.zeros(2)
        self.draw = random.Random(1)
        self.numpy_draw = np.random.default_rng(1)
        self.torch_draw = torch.Generator()
        self.steps = iter([1, 2, 3])
        self.outside = [nn.Linear(2, 2)]
        self.register_buffer("n", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.change(self)
        return self.norm(self.linear(x))


class Net(nn.Module):
    def __init__(self, change: Callable[[Tail], object] = lambda tail: None) -> None:
        super().__init__()
        self.tail = Tail(change)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.tail(x))


def put(name: str, value: Callable[[], Any]) -> Callable[[Tail], None]:
    return lambda tail: setattr(tail, name, value())


CHANGES: dict[str, tuple[Callable[[Tail], object], str]] = {
    "a counter": (lambda tail: setattr(tail, "calls", tail.calls + 1), "tail.calls"),
    "a buffer in place": (lambda tail: tail.n.add_(1), "buffer tail.n"),
    "a buffer anew": (lambda tail: setattr(tail, "n", tail.n + 1), "buffer tail.n"),
    "a buffer through .data": (lambda tail: tail.n.data.add_(1), "buffer tail.n"),
    "a buffer of another shape": (lambda tail: setattr(tail.n, "data", torch.ones(3)), "buffer tail.n"),
    "a new buffer": (lambda tail: tail.register_buffer("late", torch.ones(1)), "buffer tail.late"),
    "a buffer taken out": (lambda tail: tail.__delattr__("n"), "buffer tail.n"),
    "a new attribute": (put("extra", lambda: 3), "tail.extra"),
    "an attribute gone": (lambda tail: tail.__delattr__("calls"), "tail.calls"),
    "a list": (lambda tail: tail.history.append(2), "tail.history"),
    "a list in a list": (lambda tail: tail.history[1].append(2), "tail.history[1]"),
    "a list anew": (put("history", lambda: [1, [3]]), "tail.history[1][0]"),
    "a dictionary": (lambda tail: tail.cache.update(a=torch.ones(1)), "tail.cache.a"),
    "a counter of words": (lambda tail: tail.tally.update("a"), "tail.tally.a"),
    "a deque": (lambda tail: tail.recent.append(3), "tail.recent"),
    "a set": (lambda tail: tail.names.add("b"), "tail.names"),
    "an object with slots": (lambda tail: setattr(tail.meter, "total", 1.0), "tail.meter.total"),
    "an object in an object": (lambda tail: tail.box.inner.update(n=1), "tail.box.inner.n"),
    "a plain tensor": (lambda tail: tail.plain.add_(1), "tail.plain"),
    "an array": (lambda tail: tail.array.__iadd__(1), "tail.array"),
    "a generator of Python's": (lambda tail: tail.draw.random(), "tail.draw"),
    "a generator of NumPy's": (lambda tail: tail.numpy_draw.random(), "tail.numpy_draw"),
    "a generator of torch's": (lambda tail: torch.rand(1, generator=tail.torch_draw), "tail.torch_draw"),
    "Python's own": (lambda tail: random.random(), "Python's random generator"),
    "NumPy's own": (lambda tail: np.random.rand(), "NumPy's random generator"),
    "torch's own": (lambda tail: torch.rand(1), "torch's random generator"),
    "an iterator": (lambda tail: next(tail.steps), "tail.steps"),
    "a list of modules": (lambda tail: tail.outside[0].register_buffer("n", torch.ones(1)), "buffer tail.outside[0].n"),
    "a mode": (lambda tail: tail.linear.eval(), "tail.linear.training"),
    "a class attribute": (lambda tail: setattr(Tail, "seen_by_all", Tail.seen_by_all + 1), "Tail.seen_by_all"),
    "a new class attribute": (lambda tail: setattr(Tail, "late", 1), "Tail.late"),
    "a global": (lambda tail: count_globally(), f"global COUNT of {__name__}"),
    "a global list": (lambda tail: HISTORY.append(1), f"global HISTORY of {__name__}"),
    "a global generator": (lambda tail: GENERATOR.random(), f"global GENERATOR of {__name__}"),
    "a parameter": (lambda tail: tail.linear.weight.data.add_(1), "parameter tail.linear.weight"),
    "what is trainable": (lambda tail: tail.linear.weight.requires_grad_(False), "parameter tail.linear.weight"),
    "a gradient": (lambda tail: setattr(tail.norm.bias, "grad", torch.ones(4)), "gradient of parameter tail.norm.bias"),
    "a hook": (lambda tail: tail.linear.register_forward_hook(print), "the hook on tail.linear"),
    "a submodule": (lambda tail: setattr(tail, "late", nn.Identity()), "tail.late"),
    "a replaced forward": (lambda tail: setattr(tail.linear, "forward", print), "tail.linear.forward"),
    "a class": (lambda tail: setattr(tail.linear, "__class__", nn.Identity), "tail.linear.__class__"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_forward_pass_changes_is_named_and_put_back(name: str) -> None:
    change, said = CHANGES[name]
    net = Net(change)
    before = read_state(net, parameters=True)
    change(net.tail)
    after = read_state(net, parameters=True)
    assert said in differences(before, after)
    assert all(name.startswith(said) for name in differences(before, after))
    restore_state(net, before)
    assert differences(before, read_state(net, parameters=True)) == ()
    assert net.tail.n is before.contents[id(net.tail)].target.n
    assert not hasattr(Tail, "late")


def test_a_closure_is_named_and_put_back() -> None:
    net, seen, total = Net(), list[int](), 0

    def hook(*_: object) -> None:
        nonlocal total
        total += 1
        seen.append(total)

    net.tail.register_forward_hook(hook)
    before = read_state(net)
    net(torch.zeros(2, 4))
    named = differences(before, read_state(net))
    assert {"closure of the hook on tail: seen", "closure of the hook on tail: total"} < set(named)
    restore_state(net, before)
    assert (seen, total, differences(before, read_state(net))) == ([], 0, ())


@pytest.mark.parametrize(
    "way", ["a bound method", "a partial", "a default", "an object", "a decorated function", "a replaced forward"]
)
def test_state_behind_hooks_of_every_kind_is_put_back(way: str) -> None:
    net, held = Net(), SimpleNamespace(seen=[])

    class Watcher:
        def __init__(self, seen: list[int]) -> None:
            self.seen = seen

        def note(self, *_: object) -> None:
            self.seen.append(1)

        __call__ = note

    def plain(seen: list[int], *_: object) -> None:
        seen.append(1)

    def default(*_: object, seen: list[int] = held.seen) -> None:
        seen.append(1)

    forward = net.fc.forward

    def replaced(x: torch.Tensor) -> torch.Tensor:
        held.seen.append(1)
        return forward(x)

    match way:
        case "a bound method":
            net.fc.register_forward_pre_hook(Watcher(held.seen).note)
        case "a partial":
            net.fc.register_forward_hook(functools.partial(plain, held.seen))
        case "a default":
            net.fc.register_forward_hook(default)
        case "an object":
            net.fc.register_forward_hook(Watcher(held.seen))
        case "a decorated function":
            net.fc.register_forward_hook(torch.no_grad()(functools.partial(plain, held.seen)))
        case _:
            net.fc.forward = replaced
    before = read_state(net)
    net(torch.zeros(2, 4))
    assert held.seen == [1]
    assert any("seen" in name or "hook" in name for name in differences(before, read_state(net)))
    restore_state(net, before)
    assert held.seen == []


def test_an_iterator_that_cannot_be_put_back_is_named() -> None:
    net = Net()
    net.ids, net.made = itertools.count(3), (number for number in range(3))
    before = read_state(net)
    next(net.ids), next(net.made)
    restore_state(net, before)
    assert set(differences(before, read_state(net))) == {"ids", "made"}


def test_equal_values_are_no_difference_and_nan_equals_nan() -> None:
    net = Net().eval()
    net.limit, net.lowest, net.shape = float("nan"), torch.full((2,), torch.nan), [1.0, "a"]
    before = read_state(net)
    net.limit, net.lowest, net.shape = float("nan"), torch.full((2,), torch.nan), [1.0, "a"]
    assert differences(before, read_state(net)) == ()
    net.shape = [True, "a"]
    assert differences(before, read_state(net)) == ("shape[0]",)


def test_the_order_in_memory_is_no_difference_and_is_put_back() -> None:
    net, whole = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)), torch.randn(8, 4)
    net[1].weight = nn.Parameter(whole[::2])  # a part of another tensor, and to stay one
    before = read_state(net, parameters=True)
    net.to(memory_format=torch.channels_last)
    assert differences(before, read_state(net, parameters=True)) == ()
    restore_state(net, before)
    assert net[0].weight.is_contiguous()
    assert net[1].weight.data_ptr() == whole.data_ptr()


def test_a_copy_of_a_module_differs_in_nothing() -> None:
    net = Net()
    net.tail.change = None
    del net.tail.steps
    twin = copy.deepcopy(net)
    assert differences(read_state(net), read_state(twin)) == ()
    twin.tail.n += 1
    assert differences(read_state(net), read_state(twin)) == ("buffer tail.n",)


@pytest.mark.filterwarnings("ignore")  # it holds what torch advises against
def test_a_module_that_is_odd_in_every_way_is_read() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.me, self.lazy, self.file = [self], nn.LazyLinear(3), open(os.devnull)  # noqa: PTH123, SIM115
            self.script = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
            self.quiet = torch.ao.nn.quantized.Linear(2, 2)
            self.sparse = torch.eye(3).to_sparse()

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        @property
        def broken(self) -> int:
            raise OSError

    net = Odd()
    before, digest = read_state(net), code_digest(net)
    assert differences(before, read_state(net)) == ()
    restore_state(net, before)
    assert code_digest(net) == digest
    assert not any("lazy" in name for name in opaque(net))
    attributes = object.__getattribute__(net, "__dict__")
    attributes["script"] = None
    attributes["_modules"]["script"][1].running_mean.add_(1)
    assert [name.rpartition(".")[2] for name in differences(before, read_state(net))] == ["script", "running_mean"]
    attributes["file"].close()


def test_freezing_is_no_difference() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)).eval()
    net(torch.zeros(1, 3, 32, 32))
    before, digest = read_state(net), code_digest(net)
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    freeze(net, names=["0"])
    assert code_digest(net) == digest
    restore_state(net, before)
    assert differences(before, read_state(net)) == ()
    assert "train" in vars(net[0])


def hook_by(factor: float) -> Callable[..., torch.Tensor]:
    return lambda part, inputs, outputs: outputs * factor


SCALE = 2.0


def scaled(part: nn.Module, inputs: object, outputs: torch.Tensor) -> torch.Tensor:
    return outputs * SCALE


class Halved(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


class Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def digest_of(change: Callable[[Net], object]) -> str:
    net = Net()
    net.tail.change = None
    change(net)
    return code_digest(net)


PLAIN = digest_of(lambda net: None)
COMPUTES_OTHERWISE: dict[str, Callable[[Net], object]] = {
    "a hook": lambda net: net.fc.register_forward_hook(hook_by(2.0)),
    "another value in its closure": lambda net: net.fc.register_forward_hook(hook_by(3.0)),
    "a hook before": lambda net: net.fc.register_forward_pre_hook(lambda part, inputs: None),
    "one with keywords": lambda net: net.fc.register_forward_pre_hook(lambda part, a, k: None, with_kwargs=True),
    "a hook on the model": lambda net: net.register_forward_hook(hook_by(2.0)),
    "a hook backwards": lambda net: net.fc.register_full_backward_hook(lambda part, a, b: None),
    "a hook of a tensor": lambda net: net.fc.weight.register_hook(lambda gradient: gradient * 2),
    "a replaced forward": lambda net: setattr(net.fc, "forward", lambda x: x[:, :2]),
    "another class": lambda net: setattr(net.fc, "__class__", Halved),
    "a parametrization": lambda net: nn.utils.parametrize.register_parametrization(net.fc, "weight", Symmetric()),
    "weight norm": lambda net: nn.utils.parametrizations.weight_norm(net.fc),
    "an attribute": lambda net: setattr(net.tail, "calls", 1),
    "an epsilon": lambda net: setattr(net.tail.norm, "eps", 1e-3),
    "a plain tensor": lambda net: net.tail.plain.add_(1),
    "an array": lambda net: net.tail.array.__iadd__(1),
    "a list": lambda net: net.tail.history[1].append(1),
    "an object's attribute": lambda net: setattr(net.tail.meter, "total", 2),
    "a global of a hook": lambda net: net.fc.register_forward_hook(scaled),
    "a layer more": lambda net: net.add_module("late", nn.ReLU()),
    "a dtype": lambda net: net.half(),
}  # fmt: skip


def test_the_digest_tells_apart_what_computes_otherwise() -> None:
    global SCALE
    digests = {name: digest_of(change) for name, change in COMPUTES_OTHERWISE.items()} | {"nothing": PLAIN}
    SCALE = 3.0
    digests["the global's value"] = digest_of(COMPUTES_OTHERWISE["a global of a hook"])
    SCALE = 2.0
    assert len(set(digests.values())) == len(digests), Counter(digests.values())


ALIKE: dict[str, Callable[[Net], object]] = {
    "a step": lambda net: net.fc.weight.data.add_(1),
    "a buffer": lambda net: net.tail.n.add_(1),
    "a mode": lambda net: net.eval(),
    "what trains": lambda net: net.fc.requires_grad_(False),
    "a gradient": lambda net: setattr(net.fc.bias, "grad", torch.ones(2)),
    "a hook that is gone": lambda net: net.fc.register_forward_hook(print).remove(),
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_digest_leaves_out_values_and_modes(name: str) -> None:
    assert digest_of(ALIKE[name]) == PLAIN


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_parameter_is_in_the_digest_by_what_it_does_not_by_its_number(register: str) -> None:
    doubled, again = (digest_of(lambda net: getattr(net.fc.weight, register)(lambda grad: None)) for _ in range(2))
    other = digest_of(lambda net: getattr(net.fc.weight, register)(lambda grad: 1))
    assert doubled == again
    assert len({doubled, other, PLAIN}) == 3


def test_a_forward_put_into_a_librarys_class_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    before = code_digest(net)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert code_digest(net) != before


def test_a_method_put_into_a_class_or_its_base_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Base(nn.Module):
        def scale(self) -> float:
            return 1.0

    class Own(Base):
        pass

    before = code_digest(Own())
    monkeypatch.setattr(Base, "scale", lambda self: 2.0)
    assert code_digest(Own()) != before


def test_the_digest_is_the_same_in_every_process() -> None:
    code = """
        import random, torch, timm
        from torch import nn
        from headstart.surgery.module_state import code_digest
        WORDS = {"a", "b", "c", "d"}
        class Box:
            pass
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)
                self.box, self.words, self.draw = Box(), {"x", "y", "z"}, random.Random(3)
                self.handle = self.fc.register_forward_hook(lambda part, inputs, outputs: outputs * len(WORDS))
                nn.utils.parametrizations.weight_norm(self.fc)
            def forward(self, x):
                return self.fc(x) if x.sum() in {1, 2, 3} else x
        if SKIP:
            nn.Linear(1, 1).register_forward_hook(print)
        print(code_digest(Net()), code_digest(timm.create_model("resnet18")))
    """
    found = {
        subprocess.run(
            [sys.executable, "-c", f"SKIP = {seed}\n{textwrap.dedent(code)}"],
            env=os.environ | {"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in (0, 1)
    }  # fmt: skip
    assert len(found) == 1


def test_what_nobody_can_look_into_is_listed() -> None:
    net = Net()
    net.tail.lookup = memoryview(b"abc")
    assert opaque(net) == ("tail.lookup (memoryview)",)
