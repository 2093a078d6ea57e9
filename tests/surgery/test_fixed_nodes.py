"""Where a small traced module is cut: what is fixed, what is random, what is written in place, and how it is said."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.errors import ModelError
from headstart.surgery.boundary import Boundary, find_boundary, refuse_computation
from headstart.surgery.fixed_nodes import Search
from headstart.surgery.freeze import freeze

Change = Callable[["Net", Tensor], Tensor]
EXAMPLE = torch.zeros(1, 3, 8, 8)


class Turn(nn.Module):
    """A layer of the user's own that draws by its method, and one that does by its function."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, maps: Tensor) -> Tensor:
        return self.draw(maps)


class Net(nn.Module):
    """A convolution, what the test says of its maps (or, ``early``, of the images), and a head."""

    def __init__(self, change: Change, *, early: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.drop, self.still, self.alike, self.random = nn.Dropout(0.5), nn.Dropout(0.0), nn.Identity(), nn.RReLU()
        self.asleep = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
        self.act, self.bend = nn.ReLU(inplace=True), nn.GELU()
        self.turn = Turn(torch.bernoulli)
        self.gain, self.table = nn.Parameter(torch.rand(4, 1, 1) + 0.5), nn.Parameter(torch.rand(11, 4))
        self.scale_ = nn.Parameter(torch.rand(4, 1, 1))
        self.unused = nn.Linear(2, 2)
        self.register_buffer("total", torch.ones(4, 6, 6))
        self.change, self.early = change, early

    def forward(self, images: Tensor) -> Tensor:
        if self.early:
            return self.fc(self.conv(self.change(self, images)).mean((2, 3)))
        return self.fc(self.change(self, self.conv(images)))


def pooled(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


def cut(change: Change, *names: str, early: bool = False) -> tuple[Net, Boundary]:
    module = Net(change, early=early)
    return module, find_boundary(module, freeze(module, names=names or ("conv",)), example=EXAMPLE)


def why_none(change: Change, *names: str) -> str:
    with pytest.raises(ModelError) as caught:
        cut(change, *names, early=True)
    return str(caught.value)


def assert_whole(module: Net, boundary: Boundary) -> None:
    """Both halves are the module, in evaluation and in training, from the same state of the generator."""
    images = torch.randn(5, 3, 8, 8)
    for suffix, mode in ((boundary.eval_suffix, False), (boundary.train_suffix, True)):
        module.train(mode)
        with torch.no_grad():
            torch.manual_seed(1)
            made = suffix(*boundary.prefix(images))
            torch.manual_seed(1)
            assert torch.equal(made, module(images))


@contextmanager
def counted_runs() -> Iterator[list[str]]:
    """Within it, the kind of the device of every convolution that is executed is noted."""

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **kwargs or {})
            if "convolution" in str(func):
                devices.append(made.device.type)
            return made

    devices: list[str] = []
    with Counter():
        yield devices


DROPOUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "dropout": lambda maps, p: functional.dropout(maps, p, True),
    "dropout of torch, in place": lambda maps, p: torch.dropout_(maps, p, True),
    "dropout1d": lambda maps, p: functional.dropout1d(maps.flatten(2), p, True).view_as(maps),
    "dropout2d": lambda maps, p: functional.dropout2d(maps, p, True),
    "dropout3d": lambda maps, p: functional.dropout3d(maps, p, True),
    "alpha_dropout": lambda maps, p: functional.alpha_dropout(maps, p, True),
    "feature_alpha_dropout": lambda maps, p: functional.feature_alpha_dropout(maps, p, True),
    "all by default": lambda maps, p: functional.dropout(maps) if p else maps,
    "the share by name": lambda maps, p: functional.dropout(maps, p=p),
    "the mode by name": lambda maps, p: functional.dropout(maps, p, training=True),
    "the share by default": lambda maps, p: functional.dropout(maps, training=p > 0),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_a_dropout_function_ends_what_is_fixed_where_it_drops_something(name: str):
    drop = DROPOUTS[name]
    module, boundary = cut(lambda _, maps: pooled(drop(torch.relu(maps), 0.5)))
    assert boundary.labels[0] in ("relu", "flatten")
    assert_whole(module, boundary)
    module, boundary = cut(lambda _, maps: pooled(drop(torch.relu(maps), 0.0)))
    assert boundary.labels == ("mean",)
    assert_whole(module, boundary)


@pytest.mark.parametrize("name", [name for name in DROPOUTS if "dropout" in name])
def test_a_dropout_function_is_named_as_random_in_training(name: str):
    drop = DROPOUTS[name]
    plain = "dropout_" if "in place" in name else name
    assert why_none(lambda _, images: drop(images, 0.5)).endswith(
        f"nothing that is frozen executes before what trains, so there is no boundary: {plain}() "
        "is random in training mode"
    )


def test_a_layer_that_is_random_in_training_is_named():
    assert why_none(lambda net, images: net.drop(images)).endswith("boundary: drop is random in training mode")
    assert why_none(lambda net, images: net.random(images)).endswith("boundary: random is random in training mode")


def test_what_trains_is_not_called_random():
    no_more = "so there is no boundary"
    assert why_none(lambda net, images: net.conv(images)[:, :3], "norm").endswith(no_more)
    assert why_none(lambda net, images: images * net.gain[:3], "norm").endswith(no_more)
    assert why_none(lambda net, images: net.gain[:3] * images, "norm").endswith(no_more)


def test_an_operation_that_is_not_known_is_named_with_the_module_that_calls_it():
    module = Net(lambda net, maps: pooled(net.turn(torch.sigmoid(maps))))
    boundary = find_boundary(module, freeze(module, names=["conv"]), example=EXAMPLE)
    assert boundary.labels == ("sigmoid",)
    unknown = "uses aten.bernoulli.default, which is not known to give the same every time and for each image alone"
    assert boundary.refused == (f"bernoulli() in turn {unknown}",)
    _, boundary = cut(lambda _, maps: pooled(torch.sigmoid(maps).bernoulli()))
    assert boundary.refused == (f"bernoulli() {unknown}",)


def test_what_is_refused_is_named_as_its_user_knows_it_and_the_next_search_ends_before_it():
    module = Net(lambda net, maps: pooled(net.bend(maps) * net.gain))
    frozen, search = freeze(module, names=["conv", "gain"]), Search()
    boundary = find_boundary(module, frozen, example=EXAMPLE, search=search)
    assert boundary.labels == ("mean",)
    nodes = {node.op: node for node in boundary.prefix.graph.nodes}
    for op, name, place in (("get_attr", "gain", "bend"), ("call_module", "bend", "conv")):
        refuse_computation(boundary, nodes[op], "differs", search=search)
        found = find_boundary(module, frozen, example=EXAMPLE, search=search)
        assert found.labels == (place,)
        assert found.refused[-1] == f"{name} differs"
        assert_whole(module, found)
    refuse_computation(boundary, nodes["placeholder"], "differs", search=search)
    with pytest.raises(ModelError, match=r"no boundary: gain differs$"):
        find_boundary(module, frozen, example=EXAMPLE, search=search)
    assert "images differs" in search.refused.values()


@pytest.mark.parametrize("layer", ["drop", "random"])
def test_a_layer_that_does_otherwise_in_training_ends_what_is_fixed(layer: str):
    module, boundary = cut(lambda net, maps: pooled(getattr(net, layer)(torch.sigmoid(maps))))
    assert boundary.labels == ("sigmoid",)
    assert_whole(module, boundary)


@pytest.mark.parametrize("layer", ["still", "alike", "bend", "act"])
def test_a_plain_layer_without_weights_is_fixed(layer: str):
    module, boundary = cut(lambda net, maps: pooled(getattr(net, layer)(torch.sigmoid(maps))))
    assert boundary.labels == ("mean",)
    assert_whole(module, boundary)


@pytest.mark.parametrize("layer", ["still", "alike", "asleep.1"])
def test_a_layer_that_gives_what_it_gets_is_nothing_where_one_mode_passes_it_by(layer: str):
    def change(net: Net, maps: Tensor) -> Tensor:
        maps = net.asleep[0](maps)
        return pooled(torch.sigmoid(net.get_submodule(layer)(maps) if net.training else maps))

    module, boundary = cut(change, "conv", "asleep")
    assert boundary.labels == ("mean",), "the same in both modes"
    assert_whole(module, boundary)


@pytest.mark.parametrize(
    "drop", [lambda maps: torch.dropout_(maps, 0.5, False), lambda maps: functional.dropout(maps, 0.5, training=False)]
)
def test_a_dropout_function_that_is_told_not_to_train_is_fixed(drop: Callable[[Tensor], Tensor]):
    module, boundary = cut(lambda _, maps: pooled(drop(torch.sigmoid(maps))))
    assert boundary.labels == ("mean",)
    assert_whole(module, boundary)


def test_a_dropout_function_that_drops_nothing_is_nothing_whatever_the_mode():
    module, boundary = cut(lambda net, maps: pooled(functional.dropout(torch.sigmoid(maps), 0.0, net.training)))
    assert boundary.labels == ("mean",)
    assert_whole(module, boundary)


def test_what_is_behind_something_random_in_the_order_of_execution_may_still_be_fixed():
    def change(net: Net, maps: Tensor) -> Tensor:
        return pooled(functional.dropout(maps, 0.5, True)) + pooled(net.norm(maps))

    module, boundary = cut(change, "conv", "norm")
    assert boundary.labels == ("conv", "mean_1")
    assert_whole(module, boundary)


def test_what_is_fixed_in_evaluation_alone_is_behind_the_cut():
    def change(net: Net, maps: Tensor) -> Tensor:
        return pooled(torch.sigmoid(functional.dropout(maps, 0.5, net.training)))

    module, boundary = cut(change)
    assert boundary.labels == ("conv",)
    assert_whole(module, boundary)


def test_where_everything_on_the_way_is_frozen_the_scores_cross():
    module = Net(lambda net, maps: pooled(net.norm(maps)))
    frozen = freeze(module, names=["conv", "norm"])
    module.fc.requires_grad_(False)
    names = tuple(name for name, _ in (*module.named_parameters(), *module.named_buffers()))
    frozen = type(frozen)(rule="names", tensors=names, modules=(*frozen.modules, "fc"), parameters=1, of=1)
    boundary = find_boundary(module, frozen, example=EXAMPLE)
    assert boundary.labels == ("fc",)


# ---- what crosses, and what is made again behind


def test_what_is_made_without_weights_from_what_crosses_is_made_again():
    module, boundary = cut(lambda net, maps: pooled(net.drop(maps) + net.drop(net.bend(maps) + maps * 2)))
    assert boundary.labels == ("conv",)
    assert_whole(module, boundary)


def test_what_is_made_with_weights_crosses_beside_its_source():
    module, boundary = cut(lambda net, maps: pooled(net.drop(maps) + net.drop(net.norm(maps))), "conv", "norm")
    assert boundary.labels == ("conv", "norm")
    assert_whole(module, boundary)


def test_a_layer_within_another_is_named_by_its_path():
    module, boundary = cut(lambda net, maps: pooled(net.drop(net.asleep[0](maps))), "conv", "asleep")
    assert boundary.labels == ("asleep.0",)
    assert not boundary.mixes_in_evaluation
    assert_whole(module, boundary)


def test_what_is_made_from_the_images_without_weights_crosses_too():
    def change(net: Net, maps: Tensor) -> Tensor:
        return pooled(net.drop(maps))

    class Beside(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + self.drop(images.square().mean((2, 3)))[:, :2]

    module = Beside(change)
    boundary = find_boundary(module, freeze(module, names=["conv"]), example=EXAMPLE)
    assert boundary.labels == ("conv", "mean_1")
    assert_whole(module, boundary)


def test_tensors_of_the_module_and_constants_of_the_trace_are_on_both_sides():
    def change(net: Net, maps: Tensor) -> Tensor:
        scaled = net.gain * maps * torch.tensor([0.5, 1.5, 2.5, 3.5])[:, None, None]
        return net.drop(pooled(scaled)) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + net.unused.weight[0, 0]

    module, boundary = cut(change, "conv", "gain")
    assert boundary.labels == ("mean",)
    assert_whole(module, boundary)


def test_a_table_with_as_many_rows_as_there_are_images_in_the_look_is_not_of_the_images():
    def change(net: Net, maps: Tensor) -> Tensor:
        return net.drop(pooled(maps) @ net.table.exp().t()) @ net.drop(net.table.exp())

    module, boundary = cut(change, "conv", "table")
    assert boundary.labels == ("matmul",)
    assert_whole(module, boundary)


def test_one_number_per_image_is_made_again_from_what_has_rows():
    module, boundary = cut(lambda net, maps: net.drop(maps.mean((1, 2, 3)))[:, None].expand(-1, 4))
    assert boundary.labels == ("conv",)
    assert_whole(module, boundary)


COUNTS: dict[str, Change] = {
    "shape": lambda net, maps: net.norm(maps).reshape(maps.shape[0], maps.shape[1], -1).mean(-1),
    "size": lambda net, maps: net.norm(maps).reshape(maps.size(0), maps.size(1), -1).mean(-1),
    "len of a turned tensor": lambda net, maps: net.norm(maps).reshape(-1, maps.transpose(0, 1).shape[0], 36).mean(-1),
    "rows without weights": lambda net, maps: pooled(net.norm(maps.new_zeros(maps.shape[0], 4, 1, 1) + maps)),
    "counted twice": lambda net, maps: net.norm(maps).view(maps.shape[0] * maps.size(0) // maps.shape[0], 4, -1).sum(2),
    "windows": lambda net, maps: pooled(
        net.norm(maps.reshape(maps.shape[0] * 9, 4, 2, 2)).reshape(maps.shape[0], 4, 6, 6)
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_images_is_that_of_what_crosses(name: str):
    module, boundary = cut(COUNTS[name])
    assert_whole(module, boundary)


def test_what_nobody_needs_is_not_computed():
    module, boundary = cut(lambda net, maps: pooled(net.drop(torch.sigmoid(maps) + maps.exp().sum() * 0)))
    assert boundary.labels == ("add",)
    module, boundary = cut(lambda net, maps: (maps.exp(), torch.relu(maps), pooled(net.drop(maps)))[-1])
    assert boundary.labels == ("conv",)
    assert [node.name for node in boundary.prefix.graph.nodes] == ["images", "conv", "output"]
    assert_whole(module, boundary)


# ---- what is written in place


def written(write: Callable[[Net, Tensor], object]) -> Change:
    def change(net: Net, maps: Tensor) -> Tensor:
        values = maps * 2
        write(net, values)
        return pooled(net.drop(values))

    return change


IN_PLACE: dict[str, Callable[[Net, Tensor], object]] = {
    "function": lambda _, maps: torch.relu_(maps),
    "method": lambda _, maps: maps.add_(3),
    "part": lambda _, maps: maps[:, 0].mul_(3),
    "layer": lambda net, maps: net.act(maps),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_written_in_place_and_used_by_nobody_is_done_all_the_same(name: str):
    module, boundary = cut(written(IN_PLACE[name]))
    assert_whole(module, boundary)


WRITES: dict[str, Callable[[Net, Tensor], object]] = {
    "function": lambda net, _: torch.relu_(net.gain),
    "method": lambda net, maps: net.total.add_(maps.detach().mean()),
    "part": lambda net, maps: operator.setitem(net.total, 0, maps.mean()),
    "a view": lambda net, _: net.gain.view(-1).add_(1),
    "an element": lambda net, _: net.gain[0].mul_(2),
    "an element of a view": lambda net, _: torch.relu_(net.gain.view(-1)[2:]),
}


def test_what_draws_in_place_is_behind_the_cut():
    module, boundary = cut(lambda _, maps: pooled(torch.sigmoid(maps).bernoulli_()))
    assert boundary.labels == ("sigmoid",)
    assert_whole(module, boundary)


@pytest.mark.parametrize("name", WRITES)
def test_a_forward_that_writes_to_what_the_module_holds_is_not_split(name: str):
    with pytest.raises(ModelError, match=r"model: forward writes to (total|gain), so its traced graph is not split"):
        cut(written(WRITES[name]))


def test_reading_what_the_module_holds_and_writing_to_what_a_layer_made_of_it_is_no_writing_to_it():
    def change(net: Net, maps: Tensor) -> Tensor:
        shift = net.bend(net.gain)
        shift.add_(1)
        return pooled(net.gain.view(4, 1, 1) + net.scale_ * maps + shift)

    module, boundary = cut(change, "conv", "gain", "scale_")
    assert boundary.labels == ("mean",)
    assert_whole(module, boundary)


# ---- how it is looked at


def test_the_look_computes_shapes_alone_and_once():
    module = Net(
        lambda net, maps: net.drop(pooled(net.gain * maps * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]))
    )
    frozen = freeze(module, names=["conv", "gain"])
    with counted_runs() as devices:
        boundary = find_boundary(module, frozen, example=EXAMPLE)
    assert devices == ["meta"]
    assert boundary.labels == ("mean",)


def test_a_module_whose_shapes_depend_on_values_is_looked_at_for_real():
    def change(net: Net, maps: Tensor) -> Tensor:
        return pooled(maps * net.gain[:, 0, 0].nonzero().size(0))

    module, boundary = cut(change, "conv", "gain")
    assert boundary.labels
    assert_whole(module, boundary)


def test_a_graph_that_does_not_run_on_the_images_says_so():
    module = Net(lambda _, maps: pooled(maps))
    frozen = freeze(module, names=["conv"])
    with pytest.raises(ModelError, match="model: its traced graph does not run, so it has no boundary: "):
        find_boundary(module, frozen, example=torch.zeros(1, 5, 8, 8))


def test_a_module_under_two_names_holds_its_weights_after_the_look():
    module = Net(lambda net, maps: pooled(net.again(net.norm(maps))))
    module.again = module.norm
    held = dict(module.named_parameters(remove_duplicate=False))
    boundary = find_boundary(module, freeze(module, names=["conv", "norm", "again"]), example=EXAMPLE)
    assert all(value is held[name] for name, value in module.named_parameters(remove_duplicate=False))
    assert boundary.labels == ("mean",)
    assert_whole(module, boundary)
