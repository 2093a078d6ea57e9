"""What is kept of a frozen part, and the module's own code behind it, give what the module gives: to the bit."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.surgery.freeze import freeze
from headstart.surgery.replay import NotReplayable, Replay, find_replay

Made = Callable[[], nn.Module]


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    with torch.no_grad():
        yield
    for part, mode in modes.items():
        part.training = mode


def pictures(count: int, size: int = 8, *, channels_last: bool = False) -> Tensor:
    made = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))
    return made.contiguous(memory_format=torch.channels_last) if channels_last else made


def generators() -> list[Any]:
    state = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), state[1].tolist(), state[2]]  # type: ignore[union-attr]


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


def outputs(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for each in (value.values() if isinstance(value, dict) else value) for t in outputs(each)]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(same(*both) for both in zip(ours, theirs, strict=True))
    if isinstance(ours, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return bool(ours == theirs)


def state(module: nn.Module) -> dict[str, Any]:
    """Buffers, and plain attributes of every part."""
    found: dict[str, Any] = {name: value.clone() for name, value in module.state_dict().items()}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, (int, float, str, bool)):
                found[f"{path}.{name}"] = value
            if isinstance(value, Tensor):
                assert type(value) in (Tensor, nn.Parameter), (path, name)
                found[f"{path}.{name}"] = value.detach().clone()
    return found


def run(call: Callable[..., Any], module: nn.Module, given: Sequence[Tensor], training: bool, bf16: bool) -> list[Any]:
    """Outputs, gradients, generators and state after two calls."""
    module.train(training)
    seed(7)
    found: list[Any] = []
    for _ in range(2):
        module.zero_grad()
        with torch.set_grad_enabled(training):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outs = outputs(call(*given))
            if training:
                sum(out.float().square().mean() for out in outs if out.is_floating_point()).backward()  # type: ignore
        found += [out.detach().clone() for out in outs]
        found += [None if p.grad is None else p.grad.clone() for p in module.parameters()] if training else []
    return [found, generators(), state(module)]


def check(module: nn.Module, frozen: Sequence[str], *, size: int = 8, bf16: bool = False, last: bool = False) -> Replay:
    """The law: prefix, then suffix, is the module; for the batch that was recorded and for others."""
    start = copy.deepcopy(module)
    ambient = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with ambient:
        replay = find_replay(copy.deepcopy(module), pictures(4, size, channels_last=last), frozen)
    for count in (4, 7, 3):
        images = pictures(count, size, channels_last=last)
        for training in (True, False):
            plain, ours = copy.deepcopy(start), copy.deepcopy(start)
            replay.prefix.module = replay.suffix.module = ours
            with in_eval(replay.prefix), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                activations = replay.prefix(images)
            assert all(len(value) == count and type(value) is Tensor for value in activations)
            replay.suffix.module = ours = copy.deepcopy(start)
            expected = run(plain, plain, [images], training, bf16)
            found = run(replay.suffix, ours, activations, training, bf16)
            for place, (theirs, mine) in enumerate(zip(expected, found, strict=True)):
                assert same(theirs, mine), (("outputs and gradients", "generators", "state")[place], count, training)
    return replay


class Net(nn.Module):
    """A frozen body of two blocks, a trained part that changes, a head."""

    def __init__(self, *, body: nn.Module | None = None, tail: nn.Module | None = None) -> None:
        super().__init__()
        seed(0)
        self.body = body or nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2), nn.GELU()
        )
        self.tail = tail or nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.tail(self.body(images)).mean((2, 3)))


def body_names(module: nn.Module, part: str = "body") -> list[str]:
    """Freeze a part as ``freeze`` does: no gradients, and always in evaluation mode."""
    inner = module.get_submodule(part)
    inner.requires_grad_(False)
    inner.eval()
    for each in inner.modules():
        each.train = lambda mode=True, each=each: type(each).train(each, False)  # type: ignore[assignment, misc]
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name.startswith(f"{part}.")]


def tail(forward: Callable[[nn.Module, Tensor], Any], **members: Any) -> nn.Module:
    """A trained part with a convolution, members, and a forward of its own."""

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            for name, value in members.items():
                setattr(self, name, value)

        def forward(self, maps: Tensor) -> Any:
            return forward(self, maps)

    return Tail()


def counting(self: Any, maps: Tensor) -> Tensor:
    self.calls += 1
    return self.conv(maps) * (1 + self.calls)


def buffered(self: Any, maps: Tensor) -> Tensor:
    self.seen.add_(1)
    self.mean = 0.9 * self.mean + 0.1 * maps.mean((0, 2, 3)).detach()
    return self.conv(maps - self.mean[:, None, None])


def with_buffers() -> nn.Module:
    made = tail(buffered)
    made.register_buffer("seen", torch.zeros(()))
    made.register_buffer("mean", torch.zeros(8))
    return made


def windows(self: Any, maps: Tensor) -> Tensor:
    batch, channels, *_ = maps.shape
    cut = maps[:, :, :2, :2].reshape(batch, channels, 2, 2).permute(0, 2, 3, 1).reshape(batch * 4, channels)
    return self.conv(maps) + cut.reshape(batch, 4, channels).mean(1)[:, :, None, None]


def written(self: Any, maps: Tensor) -> Tensor:
    view = maps.flatten(2)
    view.mul_(2)
    maps += self.conv.bias[:, None, None]
    maps[:, :4].mul_(2)
    return self.conv(maps) + view.view(maps.shape)


def filled(self: Any, maps: Tensor) -> Tensor:
    out = maps.new_zeros(maps.shape)
    out[:, :4] = self.conv(maps)[:, :4]
    out[:, 4:] = maps[:, 4:]
    return torch.zeros_like(maps).copy_(out) + out


def stored(self: Any, maps: Tensor) -> Tensor:
    self.features = maps
    return self.conv(maps)


TAILS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: tail(lambda self, maps: self.conv(maps)),
    "random.random": lambda: tail(lambda self, x: x if self.training and random.random() < 0.5 else x + self.conv(x)),
    "torch scalar": lambda: tail(lambda self, x: x + self.conv(x) if torch.rand(1).item() < 0.5 else x * 2),
    "numpy": lambda: tail(lambda self, x: self.conv(x) * float(np.random.rand())),
    "noise": lambda: tail(lambda self, x: self.conv(x + torch.randn_like(x))),
    "dropout": lambda: tail(lambda self, x: F.dropout(self.conv(F.dropout2d(x, 0.3, self.training)), 0.5)),
    "mixup": lambda: tail(lambda self, x: self.conv(x.lerp(x[torch.randperm(len(x))], 0.3))),
    "batch statistics": lambda: tail(lambda self, x: self.conv((x - x.mean(0)) / (x.std(0) + 1))),
    "counter": lambda: tail(counting, calls=0),
    "buffers": with_buffers,
    "windows": lambda: tail(windows),
    "in place on a view": lambda: tail(written),
    "filled": lambda: tail(filled),
    "rolled": lambda: tail(lambda self, x: self.conv(x.roll(1, 0))),
    "own relu": lambda: tail(lambda self, x: self.conv(x.relu_().mul_(2))),
    "checkpoint": lambda: tail(
        lambda self, x: torch.utils.checkpoint.checkpoint(self.conv, x, use_reentrant=False) + x.detach()
    ),
    "features kept": lambda: tail(stored),
    "weight of it": lambda: tail(lambda self, x: self.conv(x) * x.abs().amax((1, 2, 3), keepdim=True).sqrt()),
    "normed weight": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    "constant": lambda: tail(
        lambda self, x: self.conv(x + torch.arange(8.0)[:, None, None]) + torch.ones(len(x), 1, 1, 1)
    ),
    "frozen inside": lambda: tail(lambda self, x: self.conv(x).add_(self.scale), scale=nn.Parameter(torch.ones(1))),
    "branch on training": lambda: tail(lambda self, x: self.conv(x) if self.training else self.conv(x) + x.tanh()),
    "data-dependent": lambda: tail(lambda self, x: self.conv(x) if x.mean() > 0 else self.conv(x * 2) + x),
    "custom function": lambda: tail(lambda self, x: self.conv(Doubled.apply(x))),
    "bool mask": lambda: tail(lambda self, x: self.conv(torch.where(x > 0.1, x, self.conv.bias[:, None, None]))),
}  # fmt: skip


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2


@pytest.mark.parametrize("name", TAILS)
def test_what_trains_runs_its_own_code(name: str) -> None:
    module = Net(tail=TAILS[name]())
    replay = check(module, body_names(module))
    assert replay.labels in (("body.4",), ("tail",))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_precision_and_layout(bf16: bool, last: bool) -> None:
    module = Net()
    replay = check(module, body_names(module), bf16=bf16, last=last)
    assert len(replay.labels) == 1


class Attending(nn.Module):
    """Torch's own attention, which asks whether query, key and value are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)
        return self.mix(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(maps.shape)


class Recurrent(nn.Module):
    """An LSTM, which rounds otherwise where gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.LSTM(8, 8, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        return self.over(maps.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(maps.shape)


@pytest.mark.parametrize(
    "middle, last",
    [(Attending, "body.3"), (lambda: nn.InstanceNorm2d(8, affine=True), "body.3"), (Recurrent, "body.1")],
)
def test_layers_of_torch_in_the_frozen_part(middle: Callable[[], nn.Module], last: str) -> None:
    module = Net(body=cut_body(middle()))
    assert check(module, body_names(module)).labels == (last,)


class CacheableTransform(nn.Module):
    """Keeps what it makes of its weights, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.rand(8, 1, 1)), {}

    def forward(self, maps: Tensor) -> Tensor:
        if not self.kept:
            self.kept["bias"] = self.weight.flip(0) * 2
        return maps + self.kept["bias"][:4].repeat(2, 1, 1)


def test_what_is_kept_of_frozen_weights_is_known_in_the_next_call() -> None:
    module = Net(body=cut_body(CacheableTransform()))
    replay = check(module, body_names(module))
    assert replay.labels == ("body.3",)


class Written(nn.Module):
    """Writes to a buffer through ``data``, which no operation on the buffer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(()))

    def forward(self, maps: Tensor) -> Tensor:
        self.seen.data.add_(1)
        return maps * self.seen


class Calling(nn.Module):
    calls = 0

    def forward(self, maps: Tensor) -> Tensor:
        self.calls += 1
        return maps * self.calls


def test_two_images_of_one_channel_in_any_layout() -> None:
    module = Net(body=nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()))
    names = body_names(module)
    for images in (torch.randn(2, 8, 8, 1).permute(0, 3, 1, 2), torch.randn(2, 1, 8, 8)[:, :, ::2, ::2]):
        replay = find_replay(module, images, names)
        with in_eval(module):
            assert torch.equal(replay.suffix(*replay.prefix(images)), module(images))
            one = images[:1]
            torch.testing.assert_close(replay.prefix(one)[0], module.body(one))


def hooked(where: str) -> nn.Module:
    module = Net()
    module.calls = 0  # type: ignore[assignment]

    def count(*_: Any) -> None:
        module_of = replay_module[-1]
        module_of.calls += 1

    replay_module = [module]
    match where:
        case "root":
            module.register_forward_hook(lambda _m, _i, out: out.flip(1) * 2)
        case "root before":
            module.register_forward_pre_hook(lambda _m, args: (args[0] * 0.5,))
        case "leaf":
            module.body[0].register_forward_hook(lambda _m, _i, out: out * 3)
        case "trained leaf":
            module.tail[0].register_forward_hook(lambda _m, _i, out: out * torch.rand(1).item())
        case "last frozen":
            module.body.register_forward_hook(lambda _m, _i, out: out + 1)
        case "replaced":
            module.tail.forward = lambda maps: maps.sigmoid() + 1  # type: ignore[method-assign]
        case "replaced root":
            module.forward = lambda images: Net.forward(module, images) - 1  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("where", ["root", "root before", "leaf", "trained leaf", "last frozen", "replaced"])
def test_hooks_and_replaced_methods_run(where: str) -> None:
    module = hooked(where)
    check(module, body_names(module))


class Random(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps * (1 + torch.rand(1))


class Mixing(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        rows = maps.flatten(1)
        return maps + (rows @ rows.T).softmax(1).matmul(rows).view(maps.shape)


class Shifted(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps + maps.reshape(-1).roll(1).reshape(maps.shape)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        self.count.add_(1)
        return maps * self.count


class Assigning(Counting):
    def forward(self, maps: Tensor) -> Tensor:
        self.count = self.count + 1
        return maps * self.count


class PythonRandom(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps * random.random()


def cut_body(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), middle, nn.Conv2d(8, 8, 3, 2))


@pytest.mark.parametrize(
    "middle, reason",
    [
        (Random(), "body.2: rand draws random numbers"), (Mixing(), "body.2: it mixes the images"), (Counting(), ""),
        (Assigning(), ""), (nn.BatchNorm2d(8, track_running_stats=False), "body.2: native_batch_norm is not"),
        (PythonRandom(), "body.2: it does not compute the same"), (Written(), ""),
        (Calling(), "body.2: it does not compute the same"), (Shifted(), "body.2: it mixes the images"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_what_is_not_fixed_is_behind_the_cut_although_it_is_frozen(middle: nn.Module, reason: str) -> None:
    module = Net(body=cut_body(middle))
    names = body_names(module)
    replay = check(module, names)
    assert replay.labels == ("body.1",)
    assert not reason or reason in str(replay.obstacles[0])


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, maps: Tensor) -> Tensor:
        half = len(maps) // 2
        return torch.cat([self.conv(maps[:half]), self.conv(maps[half:])])


class LastPart(Halved):
    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.conv(maps[len(maps) // 2 :]).mean()


@pytest.mark.parametrize("middle", [Halved(), LastPart()], ids=["halves", "last"])
def test_a_batch_that_is_split_is_said_to_be_split(middle: nn.Module) -> None:
    module = Net(body=cut_body(middle))
    replay = check(module, body_names(module))
    assert replay.labels == ("body.1",)
    assert str(replay.obstacles[0]).startswith("body.2.conv: it splits the batch")


class Experts(nn.Module):
    """Each image goes through the one that its features choose."""

    def __init__(self, *, ask: bool) -> None:
        super().__init__()
        self.ask, self.gate = ask, nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, maps: Tensor) -> Tensor:
        rows = maps.mean((2, 3))
        chosen, made = self.gate(rows).argmax(1), torch.zeros_like(rows)
        for place, expert in enumerate(self.experts):
            mask = chosen == place
            if not self.ask or mask.any():
                made[mask] = expert(rows[mask])
        return maps + made[:, :, None, None]


@pytest.mark.parametrize("ask", [False, True])
def test_experts_chosen_by_a_mask_are_behind_a_cut_that_is_before_them(ask: bool) -> None:
    torch.manual_seed(0)
    module = Net(body=cut_body(Experts(ask=ask)))
    replay = check(module, body_names(module))
    assert set(replay.labels) <= {"body.1", "body.2", "body.2.gate"}
    assert str(replay.obstacles[0]).startswith("body.2: a mask that depends on the images picks some of them")


def test_a_mask_of_channels_is_the_same_for_every_image() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.arange(8) % 2 == 0)

        def forward(self, maps: Tensor) -> Tensor:
            return maps[:, self.mask].repeat(1, 2, 1, 1)

    module = Net(body=cut_body(Masked()))
    assert check(module, body_names(module)).labels == ("body.3",)


def test_code_of_the_model_in_none_of_its_parts_is_called_its_own_forward() -> None:
    class Rooted(Net):
        def forward(self, images: Tensor) -> Any:
            return self.fc(torch.relu(self.body(images) * 2).mean((2, 3)) * (1 + torch.rand(1)))

    module = Rooted()
    names = body_names(module)
    replay = find_replay(module, pictures(4), names)
    assert set(replay.labels) == {"the model's own forward"}


class AsArray(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps if (maps.sum((1, 2, 3)).numpy() > 0).any() else -maps


class Asking(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps if maps.mean() > 0 else -maps


def test_what_reads_numbers_of_the_frozen_part_is_refused_with_its_place() -> None:
    for part in (AsArray(), nn.Sequential(Asking())):
        module = Net(body=nn.Sequential(part, nn.Conv2d(3, 8, 3)))
        with pytest.raises(NotReplayable, match=r"body\.0.*cache"):
            find_replay(module, pictures(4), body_names(module))


class AnyWay(nn.Module):
    """Goes one way for the images that it is cut with and for most others."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, maps: Tensor) -> Tensor:
        return maps * 2 if maps.mean() > self.limit else maps - 1


def test_what_is_made_after_numbers_of_the_images_were_read_may_stay_behind_the_cut() -> None:
    module = Net(body=nn.Sequential(nn.Conv2d(3, 8, 3), AnyWay(-9.0), nn.Conv2d(8, 8, 3)))
    names = body_names(module)
    late = find_replay(module, pictures(4), names)
    assert (late.labels, late.decides) == (("body.0", "body.2"), True)  # what is read, too
    early = find_replay(module, pictures(4), names, before_decisions=True)
    assert (early.labels, early.decides) == (("body.0",), False)
    assert str(early.obstacles[0]) == "body.1: it decides by the images of a batch which way it takes"
    with torch.no_grad():
        far = pictures(5) * 1e5
        far = -far if module.body[0](far).mean() > 0 else far  # the mean is far below
    for replay, images in ((late, pictures(5)), (early, pictures(5)), (early, far)):
        with in_eval(replay.prefix):
            activations = replay.prefix(images)
            assert torch.equal(replay.suffix(*activations), module(images))
    with in_eval(late.prefix), pytest.raises(NotReplayable, match=r"body\.2 is not computed for every batch"):
        late.prefix(far)


@pytest.mark.parametrize("make", [list, deque, dict])
def test_what_a_module_collects_is_plain_and_stays_in_the_same_object(make: Callable[[], Any]) -> None:
    """Others may hold it, too: a hook's closure, a logger."""

    class Collecting(Net):
        def forward(self, images: Tensor) -> Any:
            maps = self.body(images)
            put = vars(self)["seen"]
            put.update(last=[maps]) if make is dict else put.append(maps)
            return self.fc(self.tail(maps).mean((2, 3)))

    module = Collecting()
    module.seen = seen = make()
    replay = find_replay(module, pictures(4), body_names(module))
    with in_eval(module):
        replay.suffix(*replay.prefix(pictures(4)))
        expected = module.body(pictures(4))
    last = seen["last"][0] if make is dict else seen[-1]
    assert module.seen is seen and type(last) is Tensor and torch.equal(last, expected)


@dataclass
class Scores:
    logits: Tensor
    more: dict[str, Tensor]


class Told(Net):
    def forward(self, images: Tensor) -> Scores:
        maps = self.body(images)
        return Scores(self.fc(self.tail(maps).mean((2, 3))), {"maps": maps})


def test_outputs_in_a_dataclass_are_plain() -> None:
    module = Told()
    replay = find_replay(module, pictures(4), body_names(module))
    with in_eval(replay.prefix):
        found, expected = replay.suffix(*replay.prefix(pictures(4))), module(pictures(4))
    assert type(found) is Scores and type(found.more["maps"]) is Tensor
    assert torch.equal(found.more["maps"], expected.more["maps"]) and torch.equal(found.logits, expected.logits)


class Held(nn.Module):
    """What crosses, and what is made of it by tensors that are held in every way that there is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.weight = nn.Conv2d(3, 8, 3), nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("gain", torch.rand(8, 1, 1))
        self.plain, self.table = torch.tensor([2.0]).expand(8)[:, None, None], None
        self.tail, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        if self.table is None:
            self.table = torch.tanh(self.weight.detach())  # kept: it is as old as the first call
        made = torch.relu(maps) * self.plain + maps * self.gain + maps * self.weight + maps * self.table
        return self.fc(torch.relu(self.tail(made) + self.tail(maps)).mean((2, 3)))


def put_data(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        value.data = values[name].clone()


PUT_BACK: dict[str, Callable[[nn.Module, dict[str, Tensor]], Any]] = {
    "copied": lambda module, values: module.load_state_dict(values),
    "assigned": lambda module, values: module.load_state_dict(
        {name: value.clone() for name, value in values.items()}, assign=True
    ),
    "data": put_data,
}


@pytest.mark.parametrize("way", PUT_BACK)
def test_weights_that_are_put_back_are_the_ones_that_both_halves_use(way: str) -> None:
    module = Held()
    names = ["conv.weight", "conv.bias", "weight", "gain"]
    for name in names[:3]:
        module.get_parameter(name).requires_grad_(False)
    replay, start = find_replay(module, pictures(4), names), copy.deepcopy(module.state_dict())
    others = {name: value * -1.5 + 0.1 for name, value in start.items()}
    for values in (start, others, start):
        PUT_BACK[way](module, values)
        for name in names[:3]:
            module.get_parameter(name).requires_grad_(False)
        old = module.plain
        with in_eval(module):
            assert torch.equal(replay.suffix(*replay.prefix(pictures(4))), module(pictures(4)))
            module.plain = torch.tensor([2.0]).expand(8)[:, None, None]
            old.untyped_storage().fill_(0)  # nobody's any more
            assert torch.equal(replay.suffix(*replay.prefix(pictures(4))), module(pictures(4)))


def test_nothing_frozen_before_what_trains_is_refused() -> None:
    module = Net()
    with pytest.raises(NotReplayable, match="nothing that is fixed"):
        find_replay(module, pictures(4), body_names(module, "tail"))


def test_another_way_than_before_is_refused_not_guessed() -> None:
    module = Net(tail=tail(lambda self, x: self.conv(x) if not self.other else self.conv(x[:, :, :3, :3]), other=False))
    body = module.body
    module.forward = lambda images: module.fc(  # type: ignore[method-assign]
        module.tail(body(images)).mean((2, 3)) + (body[0](images).mean((2, 3)) if module.tail.other else 0)
    )
    replay = find_replay(module, pictures(4), body_names(module))
    with in_eval(replay.prefix):
        activations = replay.prefix(pictures(4))
    replay.suffix(*activations)
    module.tail.other = True  # type: ignore[assignment]
    with pytest.raises(NotReplayable, match=r"body\.0|another way"):
        replay.suffix(*activations)


def test_a_refusal_that_the_module_catches_is_raised_all_the_same() -> None:
    class Catching(Net):
        other = False

        def forward(self, images: Tensor) -> Tensor:
            made = super().forward(images)
            if self.other:
                try:
                    return made + self.fc(self.body[0](images).mean((2, 3)))
                except Exception:
                    return made
            return made

    module = Catching()
    replay = find_replay(module, pictures(4), body_names(module))
    with in_eval(replay.prefix):
        activations = replay.prefix(pictures(4))
        replay.suffix(*activations)
        module.other = True
        with pytest.raises(NotReplayable, match="another way"):
            replay.suffix(*activations)


class Skipping(Net):
    """Two tensors cross, and one made of them is not kept."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        first = self.body[:3](images)
        last = self.body[3:](first)
        maps = self.tail(last)
        pooled = F.adaptive_avg_pool2d(first, maps.shape[-2:])
        return {"scores": self.fc((maps + pooled + last.relu()).mean((2, 3))), "features": [last, (pooled,)]}


def test_several_tensors_cross_and_outputs_are_plain() -> None:
    module = Skipping()
    replay = check(module, body_names(module))
    assert replay.labels == ("body.4", "the model's own forward")


class Tokens(nn.Module):
    """Only the class token is needed."""

    def __init__(self) -> None:
        super().__init__()
        seed(0)
        self.embed, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 5, 5, 8)[:, 0])
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        place = F.interpolate(self.place.transpose(1, 2), size=tokens.shape[1] + 1).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1) + place
        return self.fc(self.block(tokens)[:, 0])


def test_only_the_part_that_is_needed_is_kept() -> None:
    module = Tokens()
    names = [name for name, _ in module.named_parameters() if not name.startswith("fc")]
    for name in ("embed", "block"):
        body_names(module, name)
    module.token.requires_grad_(False), module.place.requires_grad_(False)
    replay = check(module, names)
    with in_eval(replay.prefix):
        assert [tuple(value.shape) for value in replay.prefix(pictures(4))] == [(4, 8)]


NETS = [
    ("test_resnet", "backbone"), ("test_resnet", "until:layer2"), ("test_vit", "backbone"),
    ("test_vit", "until:blocks.2"),
    ("test_convnext", "backbone"), ("test_efficientnet", "until:blocks.2"), ("test_nfnet", "until:stages.1"),
]  # fmt: skip


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name, rule", NETS)
def test_networks_of_timm(name: str, rule: str, bf16: bool) -> None:
    seed(0)
    module = timm.create_model(name, num_classes=3, **({"img_size": 32} if "vit" in name else {}))
    frozen = freeze(module, rule=rule)
    replay = check(module, frozen.tensors, size=32, bf16=bf16, last=bf16)
    assert not replay.obstacles


def test_windows_of_a_swin() -> None:
    seed(0)
    module = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=3, img_size=32, window_size=4, embed_dim=16, depths=(2, 2),
        num_heads=(2, 4), drop_path_rate=0.3,
    )  # fmt: skip
    frozen = freeze(module, rule="until:layers.0")
    replay = check(module, frozen.tensors, size=32)
    assert not replay.obstacles
