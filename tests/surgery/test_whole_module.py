"""Modules that are built in unusual ways: each is right, or refused in a sentence that helps when it is followed."""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headstart as hs
from headstart.errors import ModelError
from headstart.surgery.head import find_head
from headstart.surgery.layout import find_layout

IMAGES = torch.rand(2, 3, 32, 32)


class Base(nn.Module):
    """Features, whatever ``build`` adds and ``use`` does with them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 10)
        self.build()

    def build(self) -> None:
        pass

    def use(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(torch.relu(self.conv(x)).mean((2, 3)))


def seen_through_hooks(kind: type[Base]) -> type[Base]:
    class Branching(kind):  # type: ignore[valid-type,misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > -1e9 else -x)

    return Branching


@pytest.fixture
def run_of(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    def train(model: nn.Module, **sections: Any) -> Any:
        own = {"name": "auto", "options": {}, "image_size": 32}
        small = {"model": own, "recipe": "full", "epochs": 1, "out": str(tmp_path / "run")}
        return hs.train(hs.load_config(settings(**{**small, **sections})), model=model)

    return train


class CalledTwice(Base):
    def build(self) -> None:
        self.back = nn.Linear(10, 8)

    def use(self, features: Tensor) -> Tensor:
        return self.fc(features + self.back(self.fc(features)))


class CalledTwiceWithoutMinding(Base):
    def use(self, features: Tensor) -> Tensor:
        return self.fc(features * self.fc(features).mean(1, keepdim=True))


class WeightElsewhere(Base):
    def use(self, features: Tensor) -> Tensor:
        return self.fc(features + F.linear(F.linear(features, self.fc.weight), self.fc.weight.t()))


class Tied(Base):
    def build(self) -> None:
        self.other = nn.Linear(8, 10)
        self.other.weight = self.fc.weight

    def use(self, features: Tensor) -> Tensor:
        return self.fc(features + self.other(features).sum(1, keepdim=True))


@pytest.mark.parametrize("way", [lambda kind: kind, seen_through_hooks], ids=["fx", "hooks"])
@pytest.mark.parametrize("kind", [CalledTwice, CalledTwiceWithoutMinding, WeightElsewhere, Tied])
def test_a_head_that_is_used_elsewhere_too_is_refused_by_name_and_left_there(kind: type[Base], way: Callable) -> None:
    net = way(kind)()
    before, old = net(IMAGES), net.fc
    with pytest.raises(ModelError, match="fc, the head, is used elsewhere too"):
        hs.replace_head(net, outputs=3)
    assert net.fc is old
    assert torch.equal(net(IMAGES), before)


def test_a_tied_head_can_be_replaced_once_the_sentence_was_followed() -> None:
    net = Tied()
    with pytest.raises(ModelError) as caught:
        hs.replace_head(net, outputs=3)
    said = re.search(r"untie them first: (.*)$", str(caught.value))
    assert said is not None
    exec(said[1], {"model": net, "torch": torch})
    hs.replace_head(net, outputs=3)
    assert net(IMAGES).shape == (2, 3)
    assert net.other.weight.shape == (10, 8)


def test_a_head_that_makes_each_of_several_outputs_is_replaced() -> None:
    class Flipped(Base):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) + super().forward(x.flip(3))) / 2

    net = Flipped()
    hs.replace_head(net, outputs=3)
    assert net(IMAGES).shape == (2, 3)


class Alias(Base):
    def build(self) -> None:
        self.classifier = self.fc


class CalledByItsOtherName(Alias):
    def use(self, features: Tensor) -> Tensor:
        return self.classifier(features)


class InAContainerToo(Base):
    def build(self) -> None:
        self.all = nn.Sequential(nn.Identity(), self.fc)

    def use(self, features: Tensor) -> Tensor:
        return self.all(features)


class InAListToo(Base):
    def build(self) -> None:
        self.layers = [self.fc]

    def use(self, features: Tensor) -> Tensor:
        return self.layers[0](features)


class InADictionaryToo(Base):
    def build(self) -> None:
        self.layers = {"head": self.fc}

    def use(self, features: Tensor) -> Tensor:
        return self.layers["head"](features)


@pytest.mark.parametrize("kind", [Alias, CalledByItsOtherName, InAContainerToo, InAListToo, InADictionaryToo])
def test_a_head_under_several_names_is_replaced_under_all_of_them(kind: type[Base], run_of: Callable) -> None:
    net = kind()
    hs.replace_head(net, outputs=3)
    assert net(IMAGES).shape == (2, 3)
    assert not any(part.out_features == 10 for part in net.modules() if isinstance(part, nn.Linear))
    hs.freeze(net, rule="backbone")
    assert [name for name, value in net.named_parameters() if value.requires_grad] == ["fc.weight", "fc.bias"]
    run = run_of(kind(), freeze="backbone")
    opened = hs.open_run(run.path, model=kind())
    assert torch.equal(opened.model(IMAGES), run.model(IMAGES))


@pytest.mark.parametrize("at", ["the model", "a module inside"])
@pytest.mark.parametrize("rule", ["none", "backbone"])
def test_a_plain_tensor_in_a_module_is_no_stumbling_block(at: str, rule: str, run_of: Callable) -> None:
    class Outer(Base):
        def build(self) -> None:
            self.scale = torch.full((8,), 2.0)
            self.inner = nn.Sequential(nn.Sequential(nn.Linear(8, 8)))

        def use(self, features: Tensor) -> Tensor:
            return self.fc(self.inner(features * self.scale))

    class Within(nn.Module):  # torch.fx looks into it, unlike into a linear layer
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(8, 8), torch.full((8,), 2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.scale

    net = Outer()
    if at == "a module inside":
        net.inner[0][0] = Within()
    run = run_of(net, freeze=rule)
    assert find_layout(run.model).how == "fx"
    assert run.metrics["nll"] < 1.2


class InList(Base):
    def build(self) -> None:
        self.blocks = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)]

    def use(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features = block(features)
        return self.fc(features)


class InDictionary(Base):
    def build(self) -> None:
        self.blocks = {"one": nn.Linear(8, 8)}

    def use(self, features: Tensor) -> Tensor:
        return self.fc(self.blocks["one"](features))


class BareParameters(Base):
    def build(self) -> None:
        self.blocks = [nn.Parameter(torch.ones(8))]

    def use(self, features: Tensor) -> Tensor:
        return self.fc(features * self.blocks[0])


class Deeper(Base):
    def build(self) -> None:
        self.inner = InList()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner(x)[:, :8])


@pytest.mark.parametrize("kind", [InList, InDictionary, BareParameters, Deeper])
def test_what_is_not_registered_is_refused_by_name_and_trains_once_it_is(kind: type[Base], run_of: Callable) -> None:
    with pytest.raises(
        ModelError, match=r"forward uses .*blocks.*, which the module does not have registered"
    ) as caught:
        run_of(kind())
    said = re.search(r"register them, e\.g\. (.*), or freeze", str(caught.value))
    assert said is not None
    net = kind()
    exec(said[1], {"model": net, "torch": torch})
    before = {name: value.detach().clone() for name, value in net.named_parameters() if "blocks" in name}
    run = run_of(net)
    now = dict(run.model.named_parameters())
    assert before and not any(torch.equal(now[name], value) for name, value in before.items())


def test_a_frozen_teacher_in_a_list_is_let_be(run_of: Callable) -> None:
    class Taught(Base):
        def build(self) -> None:
            self.teacher = [nn.Linear(8, 8).requires_grad_(False)]

        def use(self, features: Tensor) -> Tensor:
            return self.fc(features + self.teacher[0](features))

    net = Taught()
    run = run_of(net)
    assert torch.equal(run.model.teacher[0].weight, net.teacher[0].weight)


def test_a_lazy_module_is_asked_to_run_once_and_then_trains(run_of: Callable) -> None:
    class Lazy(Base):
        def build(self) -> None:
            self.conv, self.fc = nn.LazyConv2d(8, 3, stride=4), nn.LazyLinear(10)

    for look in (find_head, hs.describe, hs.open_model, lambda net: hs.replace_head(net, outputs=3), run_of):
        with pytest.raises(ModelError, match=r"conv, fc are lazy .*: run one before") as caught:
            look(Lazy())
    said = re.search(r"e\.g\. (.*)$", str(caught.value))
    assert said is not None
    net = Lazy()
    exec(said[1], {"model": net, "torch": torch})
    assert run_of(net).metrics["nll"] < 1.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_refused_and_train_once_they_are_whole(dtype: Any, run_of: Callable) -> None:
    with pytest.raises(ModelError, match=r"4 of its parameters are b?float16, .* call model\.float\(\) first"):
        run_of(Base().to(dtype))
    model = Base().to(dtype).float()
    assert run_of(model).metrics["nll"] < 1.2


class MadeLayer(Base):
    def use(self, features: Tensor) -> Tensor:
        if not hasattr(self, "extra"):
            self.extra = nn.Linear(features.shape[1], 8)
        return self.fc(self.extra(features))


class MadeHead(Base):
    def use(self, features: Tensor) -> Tensor:
        if not hasattr(self, "extra"):
            self.extra = nn.Linear(8, 10)
        return self.extra(features)


class MadeParameter(Base):
    def use(self, features: Tensor) -> Tensor:
        if not hasattr(self, "extra"):
            self.extra = nn.Parameter(torch.ones(8))
        return self.fc(features * self.extra)


class MadeBuffer(Base):
    def use(self, features: Tensor) -> Tensor:
        if "extra" not in self._buffers:
            self.register_buffer("extra", features.detach().mean(0))
        return self.fc(features - self.extra)


class FilledBuffer(Base):
    def build(self) -> None:
        self.register_buffer("extra", None)

    def use(self, features: Tensor) -> Tensor:
        if self.extra is None:
            self.extra = features.detach().mean(0)
        return self.fc(features - self.extra)


class MadeInTraining(Base):
    def use(self, features: Tensor) -> Tensor:
        if features.sum() > -1e9 and self.training and not hasattr(self, "extra"):
            self.extra = nn.Linear(8, 8)
        return self.fc(self.extra(features) if hasattr(self, "extra") else features)


@pytest.mark.parametrize("kind", [MadeLayer, MadeHead, MadeParameter, MadeBuffer, FilledBuffer, MadeInTraining])
def test_what_the_first_forward_makes_is_refused_by_name_and_right_once_a_batch_was_run(
    kind: type[Base], run_of: Callable
) -> None:
    looks = () if kind is MadeInTraining else (find_head, hs.describe, lambda net: hs.replace_head(net, outputs=3))
    for look in (*looks, run_of):
        net = kind()
        with pytest.raises(ModelError, match=r"extra \(a \w+\) is made by the first forward pass") as caught:
            look(net)
        assert not any("extra" in name for name in net.state_dict())
    said = re.search(r"too: (.*)$", str(caught.value))
    assert said is not None

    def followed() -> Base:
        net = kind()
        exec(said[1], {"model": net, "torch": torch})
        return net

    run = run_of(followed())
    opened = hs.open_run(run.path, model=followed()).model
    assert torch.equal(opened(IMAGES), run.model(IMAGES))


@pytest.mark.parametrize("way", [torch.jit.script, lambda net: torch.jit.trace(net, IMAGES)], ids=["script", "trace"])
@pytest.mark.parametrize("at", ["", "conv"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_torch_jit_compiled_is_refused_by_name_and_found_once_it_is_made_again(way: Callable, at: str) -> None:
    model = Base()
    if at:
        model.conv = way(model.conv)
    else:
        model = way(model)
    for look in (find_head, hs.describe, lambda net: hs.replace_head(net, outputs=3), hs.open_model):
        with pytest.raises(ModelError, match=rf"{at or 'the module'} is compiled by torch\.jit") as caught:
            look(model)
    said = re.search(r"e\.g\. (.*)$", str(caught.value))
    assert said is not None
    names: dict[str, Any] = {"model": model, "Net": (lambda: nn.Conv2d(3, 8, 3, stride=4)) if at else Base}
    exec(said[1].replace(", and put it there:", ";"), names)
    assert find_head(model if at else names["made"]).paths == ("fc",)


def test_a_module_in_data_parallel_is_refused_and_the_one_inside_is_found() -> None:
    model = nn.DataParallel(Base())
    for look in (find_head, hs.describe, hs.open_model, lambda net: hs.param_groups(net, lr=0.1)):
        with pytest.raises(ModelError, match=r"wrapped in DataParallel; give the one inside, module\.module"):
            look(model)
    assert find_head(model.module).paths == ("fc",)


def test_frozen_weights_in_half_precision_are_let_be(run_of: Callable) -> None:
    class Mixed(Base):
        def build(self) -> None:
            self.conv.bfloat16().requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.use(torch.relu(self.conv(x.bfloat16())).mean((2, 3)).float())

    assert run_of(Mixed(), precision="fp32").metrics["nll"] < 1.2


def test_hooks_on_the_head_stay_and_can_still_be_taken_off() -> None:
    net, seen = Base(), list[tuple[int, ...]]()
    handle = net.fc.register_forward_hook(lambda part, inputs, outputs: outputs + 100)
    net.fc.register_forward_pre_hook(lambda part, inputs: seen.append(tuple(inputs[0].shape)))
    hs.replace_head(net, outputs=3)
    assert (net(IMAGES) > 90).all()
    assert seen == [(2, 8)]
    handle.remove()
    assert (net(IMAGES) < 90).all()


def test_a_head_with_a_forward_of_its_own_is_refused() -> None:
    net = Base()
    weight = net.fc.weight
    net.fc.forward = lambda x: F.linear(F.normalize(x), F.normalize(weight))
    with pytest.raises(ModelError, match="fc, the head, has a forward of its own"):
        hs.replace_head(net, outputs=3)


def test_a_model_that_stops_running_with_a_new_head_is_refused_and_left_as_it_was() -> None:
    class Picky(Base):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return scores.view(-1, 2, 5).flatten(1)

    net = Picky()
    old = net.fc
    with pytest.raises(ModelError, match=r"with 3 outputs at fc the model does not run any more"):
        hs.replace_head(net, outputs=3)
    assert net.fc is old
    twin = copy.deepcopy(net)
    assert torch.equal(twin(IMAGES), net(IMAGES))


class Expanded(Base):
    def build(self) -> None:
        self.scale = nn.Parameter(torch.ones(1).expand(8))

    def use(self, features: Tensor) -> Tensor:
        return self.fc(features * self.scale)


class ExpandedInside(Base):
    def build(self) -> None:
        self.tail = nn.BatchNorm1d(8)
        self.tail.running_var = torch.ones(1).expand(8)

    def use(self, features: Tensor) -> Tensor:
        return self.fc(self.tail(features))


def step_once(net: nn.Module) -> None:
    hs.replace_head(net, outputs=3)
    state = hs.TrainState(net, torch.optim.SGD(net.parameters(), lr=0.01))
    hs.train_step(state, (IMAGES, torch.tensor([0, 1])), rules=hs.StepRules())


@pytest.mark.parametrize("kind", [Expanded, ExpandedInside])
def test_numbers_in_one_place_are_refused_and_train_once_they_have_their_own(
    kind: type[Base], run_of: Callable
) -> None:
    for use in (run_of, hs.open_model, step_once, lambda net: run_of(hs.InPlace(net))):
        with pytest.raises(ModelError, match=r"of shape \(8,\) whose numbers share places in memory") as caught:
            use(kind())
    said = re.search(r"or give each number its place: (.*)$", str(caught.value))
    assert said is not None
    net = kind()
    exec(said[1], {"model": net})
    assert run_of(net).metrics["nll"] < 1.2


class Turning(Base):
    def build(self) -> None:
        self.tail = nn.Linear(8, 8)

    def use(self, features: Tensor) -> Tensor:
        return self.fc(self.tail.double()(features.double()).float())


def test_a_forward_that_turns_weights_is_refused_and_right_once_a_batch_was_run(run_of: Callable) -> None:
    with pytest.raises(ModelError, match=r"tail\.weight \(and 1 more\) is a float32 parameter and a float64") as caught:
        run_of(Turning())
    said = re.search(r"too: (model\(.*\))$", str(caught.value))
    assert said is not None
    net = Turning()
    exec(said[1], {"model": net, "torch": torch})
    assert run_of(net).metrics["nll"] < 1.2


class Proxied(Base):
    def build(self) -> None:
        self.tail = nn.Identity()
        self.tail.parent = weakref.proxy(self)


class ProxiedAside(Base):
    def build(self) -> None:
        self.tail = nn.Identity()
        vars(self.tail)["parent"] = weakref.proxy(self)


@pytest.mark.parametrize("kind", [Proxied, ProxiedAside])
def test_a_proxy_of_the_module_is_refused_and_trains_once_it_is_a_reference(kind: type[Base], run_of: Callable) -> None:
    for look in (find_head, hs.describe, hs.open_model, run_of):
        with pytest.raises(ModelError, match=r"tail\.parent is a weakref\.proxy of a module") as caught:
            look(kind())
    said = re.search(r"(del model\S+),", str(caught.value))
    assert said is not None
    net = kind()
    exec(said[1], {"model": net})
    net.tail.parent = weakref.ref(net)
    assert run_of(net).metrics["nll"] < 1.2


class Sealed(Base):
    def __setattr__(self, name: str, value: object) -> None:
        if "fc" in vars(self).get("_modules", ()) and name != "training":
            raise AttributeError(f"{name}: sealed")
        super().__setattr__(name, value)


class Deaf(Base):
    def __setattr__(self, name: str, value: object) -> None:
        if "fc" not in vars(self).get("_modules", ()) or name == "training":
            super().__setattr__(name, value)


@pytest.mark.parametrize(("kind", "said"), [(Sealed, "AttributeError: fc: sealed"), (Deaf, "it is not there")])
def test_a_module_that_does_not_take_a_new_head_says_so_and_stays(kind: type[Base], said: str) -> None:
    net = kind()
    old = net.fc
    with pytest.raises(ModelError, match=rf"the __setattr__ of {kind.__name__} does not take a new fc \({said}"):
        hs.replace_head(net, outputs=3)
    assert net.fc is old


class Unequal(Base):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        return 1


def test_a_module_with_an_equality_of_its_own_trains(run_of: Callable) -> None:
    kept = Unequal()
    find_layout(kept)
    assert run_of(Unequal()).metrics["nll"] < 1.2
