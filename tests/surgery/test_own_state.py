"""What a module of one's own holds outside of its state dict is read as plain values and put back."""

from __future__ import annotations

import enum
import json
import random
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from headstart.errors import ModelError
from headstart.surgery.own_state import (
    OwnState,
    covers,
    has_own_code,
    load_tensors,
    read_own_state,
    read_saved_tensors,
    restore_own_state,
)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.calls, self.share, self.seen = 3, 0.1, [1, 2.5, (3, "x")]
        self.limit, self.size = float("inf"), np.float32(0.3)
        self.facts = {"a": [1], "b": None}
        self.shift = torch.tensor([1.5, float("nan")])
        self.python, self.numpy = random.Random(4), np.random.default_rng(5)
        self.torch = torch.Generator().manual_seed(6)
        self.register_buffer("passing", torch.arange(3.0), persistent=False)
        self.register_buffer("kept", torch.ones(1))
        self.strange = object()


def draws(own: Own) -> list[float]:
    return [own.python.random(), float(own.numpy.random()), float(torch.rand(1, generator=own.torch))]


def test_everything_plain_comes_back_through_json_and_the_objects_stay():
    own = Own()
    read = read_own_state(own)
    assert set(read.tensors) == {"shift", "passing"}
    assert "strange" not in read.values and "inner" not in read.values
    values = json.loads(json.dumps(read.values, allow_nan=False))
    seen, facts, expected = own.seen, own.facts, draws(own)
    own.calls, own.share, own.limit, own.size = 9, 0.7, 1.0, np.float32(9)
    own.seen.append(7)
    own.facts["c"] = 1
    own.shift = own.shift * 2
    own.passing += 1
    restore_own_state(own, OwnState(values=values, tensors=read.tensors))
    assert (own.calls, own.share, own.limit, own.size) == (3, 0.1, float("inf"), np.float32(0.3))
    assert type(own.size) is np.float32
    assert own.seen is seen and own.seen == [1, 2.5, (3, "x")]
    assert own.facts is facts and own.facts == {"a": [1], "b": None}
    assert torch.equal(own.shift.nan_to_num(7), torch.tensor([1.5, 7.0]))
    assert torch.equal(own.passing, torch.arange(3.0))
    assert draws(own) == expected


@pytest.mark.parametrize(("name", "is_covered"), [("calls", True), ("buffer passing", True), ("strange", False)])
def test_what_is_read_covers_names_of_differences(name: str, is_covered: bool):
    assert covers(read_own_state(Own()), name) == is_covered


def test_modules_of_libraries_hold_nothing_of_the_users():
    assert read_own_state(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))) == OwnState()


class Holder(nn.Module):
    """Holds one value in an attribute."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.fc, self.value = nn.Linear(2, 2), value


def through_json(state: OwnState) -> OwnState:
    return OwnState(values=json.loads(json.dumps(state.values, allow_nan=False)), tensors=state.tensors)


def moved(value: Any, into: Any = None) -> Any:
    """What another module of the kind, which holds ``into``, has after the value was put into it."""
    other = Holder(into)
    restore_own_state(other, through_json(read_own_state(Holder(value))))
    return other.value


@pytest.mark.parametrize(
    "value",
    [
        None, True, 7, 2**70, "text", 0.25, float("inf"), -float("inf"), b"\0x", np.float32(0.3), np.int64(-3),
        np.uint8(3), np.bool_(True), np.float64(0.1), (1, "a"), [], [1, [2, (3,)]], torch.Size([2, 3]), {"a": {"b": 1}},
        {"=": 1}, {1: "x", (2, 3): [4]}, OrderedDict(b=1, a=(2,)), OrderedDict({5: 1}), {1, 2}, frozenset("ab"), set(),
        {"float": float("inf")}, [None, False],
    ],
    ids=repr,
)  # fmt: skip
def test_a_plain_value_comes_back_as_it_was_with_its_type(value: Any):
    found = moved(value)
    assert found == value
    assert repr(found) == repr(value)
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones((), dtype=torch.bfloat16), torch.zeros(0, 3), torch.tensor([[True], [False]]),
        torch.arange(4, dtype=torch.uint8), torch.tensor([float("nan"), 1.5]), np.zeros((0, 3), np.float16),
        np.array([[1.5, 2.5]], ">f4"), np.array([True]), np.array([1, -2], np.int8), np.array([3], np.uint16),
    ],
    ids=repr,
)  # fmt: skip
def test_tensors_and_arrays_within_containers_keep_shape_and_kind(value: Any):
    for found in (moved([value])[0], moved({"a": (value,)})["a"][0], moved(OrderedDict(a=value))["a"]):
        assert type(found) is type(value) and found.dtype == value.dtype and found.shape == value.shape
        plain = torch.nan_to_num if isinstance(value, torch.Tensor) else np.nan_to_num
        assert (plain(found) == plain(value)).all()


class Mode(enum.StrEnum):
    A = "a"


class Derived(list[int]):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(), Mode.A, namedtuple("Pair", "x y")(1, 2), Derived([1]), random.SystemRandom(), 2j, np.complex64(1),
        np.bytes_(b"a"), np.str_("a"), np.datetime64("2020-01-01"), np.longdouble(1), np.ones(1, complex),
        np.ones(1, np.longdouble), np.ma.masked_array([1], [True]), torch.eye(2).to_sparse(),
        torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64), lambda: 0,
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_would_come_back_as_something_else_is_not_among_what_is_read(value: Any):
    for held in ([value], (value,), {"a": [1, value]}, {1: value}, OrderedDict(a=value)):
        state = read_own_state(Holder(held))
        assert not state.values and not state.tensors and not covers(state, "value")
        into = Holder(held)
        restore_own_state(into, state)
        assert into.value is held


def test_a_container_that_holds_itself_is_not_among_what_is_read():
    held: list[Any] = []
    held.append(held)
    assert read_own_state(Holder(held)) == OwnState()


@pytest.mark.parametrize(
    ("value", "into"),
    [
        ([1, 2], [5]), ({"a": 1}, {"b": 2}), ({1: 2}, {3: 4}), ({1}, {2}), (OrderedDict(a=1), OrderedDict(b=2)),
    ],
    ids=repr,
)  # fmt: skip
def test_the_container_that_an_attribute_holds_stays_the_very_object(value: Any, into: Any):
    assert moved(value, into) is into
    assert into == value


@pytest.mark.parametrize(("value", "into"), [([1], (2,)), ((1,), [2]), ({"a": 1}, [2]), ([1], None), ({1}, {2: 3})])
def test_a_value_takes_the_place_of_one_of_another_kind(value: Any, into: Any):
    assert moved(value, into) == value


def test_lists_within_a_list_are_new_since_several_may_be_the_same_one():
    row = [0]
    assert moved([[1], [2]], [row, row]) == [[1], [2]]
    assert row == [0]


def test_a_tensor_in_a_container_that_is_the_modules_own_stays_that_one():
    """As modules hold a layer's weights that they do not want to register twice."""
    module, other = Holder(), Holder()
    module.value, other.value = [module.fc.weight, torch.ones(1)], [other.fc.weight, torch.zeros(1)]
    state = through_json(read_own_state(module))
    load_tensors(other, read_saved_tensors(module))
    restore_own_state(other, state)
    assert other.value[0] is other.fc.weight and torch.equal(other.value[1], torch.ones(1))


@pytest.mark.parametrize("into", [[torch.zeros(2)], [torch.ones(3)], [torch.ones(2, dtype=torch.float64)], [1], []])
def test_a_tensor_in_a_container_that_differs_is_another_one(into: list[Any]):
    before = list(into)
    (found,) = moved([torch.ones(2)], into)
    assert torch.equal(found, torch.ones(2)) and found.dtype is torch.float32
    assert not any(found is old for old in before)


@pytest.mark.parametrize(
    "shape", [list, tuple, lambda pair: {"a": pair[0], "b": pair[1]}, lambda pair: {1: pair[0], 2: pair[1]}]
)
def test_generators_in_containers_get_their_state_and_stay_the_same_where_they_are_there(shape: Any):
    def parts(held: Any) -> list[Any]:
        return list(held.values() if isinstance(held, dict) else held)

    def draws(held: Any) -> tuple[float, float]:
        first, second = parts(held)
        return first.random(), float(torch.rand(1, generator=second))

    held = shape([random.Random(3), torch.Generator().manual_seed(4)])
    state, expected = through_json(read_own_state(Holder(held))), draws(held)
    own = [random.Random(0), torch.Generator()]
    for into in (shape(own), None):
        other = Holder(into)
        restore_own_state(other, state)
        assert [one is before for one, before in zip(parts(other.value), own, strict=True)] == [into is not None] * 2
        assert draws(other.value) == expected


def test_a_generator_of_numpys_gets_its_state_where_there_is_one():
    held = [np.random.Generator(np.random.MT19937(3))]
    state, expected = through_json(read_own_state(Holder(held))), held[0].random()
    own = Holder([np.random.Generator(np.random.MT19937(5))])
    restore_own_state(own, state)
    assert own.value[0].random() == expected
    other = Holder(np.float32(2))
    restore_own_state(other, OwnState(values={"value": state.values["value"][0]}))
    assert other.value == np.float32(2)


@pytest.mark.parametrize("kind", ["O", "V8", "S3", "M8[s]"])
def test_a_kind_of_number_that_is_never_written_leaves_what_is_there(kind: str):
    other = Holder(5)
    restore_own_state(other, OwnState(values={"value": {"=": kind, "value": 2**40}}))
    assert other.value == 5


class Guarded(Holder):
    """A method, a property, a layer, a class attribute and private names that no file may replace."""

    limit = 3

    def __init__(self) -> None:
        super().__init__(1)
        self._hidden, self.call = 1, len
        self.register_buffer("held", torch.zeros(2), persistent=False)
        self.register_buffer("empty", None, persistent=False)
        self.register_buffer("kept", torch.zeros(2))
        self.late: torch.Tensor | None = None

    def method(self) -> int:
        return 1

    @property
    def made(self) -> int:
        return 2


def test_a_file_says_what_attributes_are_not_what_a_module_does():
    module = Guarded().eval()
    names = ("_hidden", "call", "training", "method", "made", "fc", "limit", "no name", "forward", "fc.in_features")
    restore_own_state(module, OwnState(values=dict.fromkeys((*names, "gone.value", "value", "new"), 9)))
    assert (module._hidden, module.call, module.training, module.method(), module.made) == (1, len, False, 1, 2)
    assert module.limit == 3 and "no name" not in vars(module) and isinstance(module.fc, nn.Linear)
    assert module.fc.in_features == 2
    assert module.value == 9 and module.new == 9


def test_tensors_are_put_into_those_that_are_there_and_made_where_none_is():
    module = Guarded()
    held, kept, one = module.held, module.kept, torch.ones(2)
    values = {"_non_persistent": ["held", "fresh", "empty"]}
    names = ("held", "kept", "empty", "late", "fresh", "value", "call", "_hidden", "gone.x", "fc.extra")
    restore_own_state(module, OwnState(values=values, tensors=dict.fromkeys(names, one)))
    assert module.held is held and module.kept is kept and held.tolist() == kept.tolist() == [1, 1]
    assert "fresh" in module._buffers and "fresh" in module._non_persistent_buffers_set
    assert "empty" in module._buffers and module.empty.tolist() == [1, 1]
    assert "late" not in module._buffers and module.late.tolist() == [1, 1] and module.value.tolist() == [1, 1]
    assert module.call is len and module._hidden == 1 and not hasattr(module.fc, "extra")
    assert not any(tensor is one for tensor in (module.empty, module.late, module.fresh))


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, dtype=torch.float64)])
def test_a_tensor_of_another_shape_or_type_takes_the_place_of_the_one_that_is_there(other: torch.Tensor):
    module = Guarded()
    restore_own_state(module, OwnState(tensors={"held": other}))
    assert torch.equal(module.held, other) and module.held.dtype is other.dtype and "held" in module._buffers


def test_what_is_read_is_a_copy_and_names_buffers_that_forward_may_make():
    module = Guarded()
    module.late = torch.zeros(2)
    module.add_module("norm", nn.BatchNorm1d(2))
    module.norm.register_buffer("more", torch.zeros(1), persistent=False)
    module.register_buffer("odd", torch.eye(2).to_sparse(), persistent=False)
    state = read_own_state(module)
    assert set(state.tensors) == {"held", "late", "norm.more"}
    assert state.values["_non_persistent"] == ["held"]
    assert set(state.values) == {"_non_persistent", "value"}
    module.held += 1
    module.late += 1
    assert not any(tensor.any() for tensor in state.tensors.values())


class Extra(nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self._state, self._again, self.unused, self.count = state, state, None, 4

    def get_extra_state(self) -> Any:
        return self._state

    def set_extra_state(self, state: Any) -> None:
        self._state = state


@pytest.mark.parametrize(
    "value",
    [
        {"a": [torch.ones(2), torch.zeros(1)], "b": (1, {"c": torch.arange(3)}), "d": "text"}, [torch.ones(2), 3], 5,
        (torch.ones(1, dtype=torch.complex64),), {2: torch.ones(1, dtype=torch.bfloat16)}, None, {},
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("at", ["", "inner"])
def test_extra_state_comes_back_with_its_tensors_apart(value: Any, at: str):
    def build(state: Any) -> nn.Module:
        module = nn.Module()
        module.add_module("inner", Extra(state))
        return module if at else module.inner

    module, other = build(value), build({"strange": 1})
    state = through_json(read_own_state(module))
    assert ("tensor" in json.dumps(state.values)) is False
    module.get_submodule(at)._state = None
    load_tensors(other, read_saved_tensors(module))
    assert other.get_submodule(at)._state == {"strange": 1}
    restore_own_state(other, state)
    assert repr(other.get_submodule(at)._state) == repr(value)


def test_an_extra_state_that_is_a_tensor_is_saved_with_the_others():
    module = Extra(torch.ones(2))
    assert list(read_saved_tensors(module)) == ["_extra_state"] and not read_own_state(module).tensors
    other = Extra(torch.zeros(2))
    load_tensors(other, read_saved_tensors(module))
    assert torch.equal(other._state, torch.ones(2))


@pytest.mark.parametrize(
    "value", [object(), [torch.eye(2).to_sparse()], {"a": {2j}}], ids=["object", "sparse", "complex"]
)
@pytest.mark.parametrize(("at", "told"), [("", "the model"), ("inner", "inner")])
def test_extra_state_that_cannot_be_written_is_refused_by_the_parts_name(value: Any, at: str, told: str):
    module = nn.Module()
    module.add_module("inner", Extra(value))
    with pytest.raises(ModelError, match=rf"get_extra_state of {told} \(Extra\) gives a value of type \w+, which"):
        read_own_state(module if at else module.inner)
    held: list[Any] = []
    held.append(held)
    module.inner._state = held
    with pytest.raises(ModelError, match=r"gives (what holds itself|maximum recursion)"):
        read_own_state(module)


def test_attributes_that_extra_state_gives_are_covered_by_it():
    counts = [1]
    module = Extra({"counts": 3, "own": counts})
    module._counts, module._own, module._other, module._none = 0, counts, 7, None
    state = read_own_state(module)
    assert set(state.held) == {"_counts", "_own", "_state", "_again"}
    assert covers(state, "_own[0]") and covers(state, "_counts") and not covers(state, "_other")
    listed = Extra([counts, 7])
    listed._own, listed._seven = counts, 7
    assert set(read_own_state(listed).held) == {"_own", "_state", "_again"}
    plain = Extra(7)
    plain._seven = "7"
    assert set(read_own_state(plain).held) == {"_state", "_again"}


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        ("value", True), ("value.x", True), ("value[0]", True), ("value: text", True), ("valued", False),
        ("buffer held", True), ("fc.value", False),
    ],
)  # fmt: skip
def test_a_name_is_covered_by_the_path_that_it_begins_with(name: str, is_covered: bool):
    assert covers(OwnState(values={"value": 1}, tensors={"held": torch.ones(1)}), name) == is_covered


def test_code_of_ones_own_is_a_class_a_hook_or_a_replaced_forward():
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    plain, pre, after, replaced = (build() for _ in range(4))
    pre[0].register_forward_pre_hook(lambda *_: None)
    after[1].register_forward_hook(lambda *_: None)
    replaced[0].forward = replaced[0].forward
    assert [has_own_code(module) for module in (plain, pre, after, replaced, Holder())] == [
        False,
        True,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "quint8"),
    ],
)  # fmt: skip
def test_a_tensor_that_a_file_cannot_hold_is_refused_by_name_and_kind(odd: torch.Tensor, kind: str):
    module = Holder()
    module.register_buffer("odd", odd)
    with pytest.raises(ModelError, match=rf"model: odd is a {kind} tensor, which a safetensors file cannot hold"):
        read_saved_tensors(module)


def test_parts_of_ones_own_within_and_behind_a_librarys_have_their_values_and_tensors_by_path():
    class Inner(Holder):
        def __init__(self) -> None:
            super().__init__([1])
            self.register_buffer("held", torch.zeros(2), persistent=False)

    module, other = (nn.Sequential(nn.Linear(2, 2), nn.Sequential(Inner()), nn.ReLU(), Inner()) for _ in range(2))
    module[1][0].value.append(2)
    module[3].seen = torch.ones(3)
    module[3].held += 1
    restore_own_state(other, through_json(read_own_state(module)))
    assert (other[1][0].value, other[3].value) == ([1, 2], [1])
    assert (other[1][0].held.tolist(), other[3].held.tolist()) == ([0, 0], [1, 1])
    assert other[3].seen.tolist() == [1, 1, 1] and "seen" not in other[3]._buffers


def test_extra_state_that_nothing_puts_back_is_refused_by_the_parts_name():
    class OneWay(nn.Linear):
        def get_extra_state(self) -> Any:
            return 3

    for module, told in ((OneWay(2, 2), "it"), (nn.Sequential(OneWay(2, 2)), "0")):
        with pytest.raises(ModelError, match=rf"model: {told} \(OneWay\) has a get_extra_state and no set_extra_state"):
            read_saved_tensors(module)


class Nested(nn.Linear):
    def state_dict(self, *args: Any, **keywords: Any) -> Any:
        return {"all": super().state_dict(*args, **keywords)}


def test_a_state_dict_that_a_file_of_tensors_cannot_hold_is_refused():
    two = nn.Linear(2, 2)
    two.weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))
    with pytest.raises(ModelError, match=r"its state_dict has all \((Ordered)?[dD]ict\), which a file of t"):
        read_saved_tensors(Nested(2, 2))
    with pytest.raises(ModelError, match="weight is a TwoTensor tensor, which a safetensors file cannot hold"):
        read_saved_tensors(two)
