"""A copy shares nothing with its original: weights, hooks, closures, aliases, gradients' hooks, attributes."""

from __future__ import annotations

import functools
import random
import threading
import types
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from headstart.errors import ModelError
from headstart.surgery.module_copy import can_copy, copy_module

INSTEAD = "type this"


def copied(module: nn.Module) -> nn.Module:
    return copy_module(module, free_bytes=None, instead=INSTEAD)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def closure_over_forward(module: nn.Sequential) -> None:
    inner = module.forward
    module.forward = lambda images: inner(images) * 2


def hook_around_a_part(module: nn.Sequential) -> None:
    last = module[2]
    module[0].register_forward_hook(lambda _, args, out: out * last.weight.mean())


def parts_in_a_list(module: nn.Sequential) -> None:
    parts = [module[0], {"last": module[2]}]
    module.register_forward_hook(lambda _, args, out: out + parts[0].weight.sum() + parts[1]["last"].bias.sum())


def bound_method(module: nn.Sequential) -> None:
    module.forward = types.MethodType(lambda self, images: nn.Sequential.forward(self, images) * 3, module)


def partial_of_a_closure(module: nn.Sequential) -> None:
    scale = module[2].bias
    module[0].register_forward_pre_hook(functools.partial(lambda more, _, args: (args[0] + scale[0] * more,), 2.0))


def weak_reference(module: nn.Sequential) -> None:
    module.first = weakref.ref(module[0])
    module.register_forward_hook(types.MethodType(lambda self, _, args, out: out * self.first().weight.sum(), module))


def default_argument(module: nn.Sequential) -> None:
    def add(_: nn.Module, args: object, out: torch.Tensor, *, weight: torch.Tensor = module[0].weight) -> torch.Tensor:
        return out + weight.sum()

    module.register_forward_hook(add)


def object_around_it(module: nn.Sequential) -> None:
    class Around:
        def __init__(self) -> None:
            self.inner = module.forward

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images) * 5

    module.forward = Around()


def a_function_in_its_own_cell(module: nn.Sequential) -> None:
    inner = module.forward

    def forward(images: torch.Tensor, times: int = 2) -> torch.Tensor:
        return inner(images) if times == 0 else 2 * forward(images, times - 1)

    module.forward = forward


def two_functions_in_each_others_cells(module: nn.Sequential) -> None:
    inner = module.forward

    def one(images: torch.Tensor, times: int) -> torch.Tensor:
        return inner(images) if times == 0 else other(images, times - 1)

    def other(images: torch.Tensor, times: int = 1) -> torch.Tensor:
        return 3 * one(images, times)

    module.forward = other


AROUND = [
    closure_over_forward, hook_around_a_part, parts_in_a_list, bound_method, partial_of_a_closure, weak_reference,
    default_argument, object_around_it, a_function_in_its_own_cell, two_functions_in_each_others_cells,
]  # fmt: skip


@pytest.mark.parametrize("change", AROUND, ids=lambda change: change.__name__)
def test_what_speaks_to_the_module_speaks_to_the_copy_in_the_copy(change: Callable[[nn.Sequential], None]) -> None:
    module, images = small(), torch.ones(3, 4)
    change(module)
    made, before = copied(module), module(images).detach()
    assert torch.equal(made(images), before)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(-2.0)
    assert torch.equal(module(images), before)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(-2.0)
    assert torch.equal(made(images), module(images))
    made(images).sum().backward()
    assert all(parameter.grad is None for parameter in module.parameters())


def seven(parameter: torch.Tensor) -> None:
    parameter.grad.fill_(7.0)


class Tally:
    """An object of the program's own."""

    def __init__(self) -> None:
        self.calls, self.sizes = 0, [0]


def keep_in_closure(module: nn.Sequential) -> Callable[[], object]:
    seen, tally, draws, count = list[int](), Tally(), random.Random(1), 0
    inner = module.forward

    def forward(images: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        seen.append(len(images))
        tally.calls += 1
        tally.sizes[0] = count
        return inner(images) * draws.random()

    module.forward = forward
    return lambda: (count, list(seen), tally.calls, list(tally.sizes), draws.getstate())


def keep_in_defaults(module: nn.Sequential) -> Callable[[], object]:
    def hook(_: nn.Module, args: object, out: object, seen: list[int] = [0], *, more: dict[str, int] = {}) -> None:  # noqa: B006
        seen.append(1)
        more["seen"] = len(seen)

    module[0].register_forward_hook(hook)
    return lambda: (list(hook.__defaults__[0]), dict(hook.__kwdefaults__["more"]))


def keep_in_attributes(module: nn.Sequential) -> Callable[[], object]:
    def hook(*about: object) -> None:
        hook.calls += 1

    hook.calls = 0
    module[2].weight.register_hook(hook)
    return lambda: hook.calls


def keep_behind_another(module: nn.Sequential) -> Callable[[], object]:
    total = torch.zeros(1)

    def count() -> None:
        total.add_(1)

    module[0].register_forward_hook(functools.partial(lambda call, *about: call(), count))
    module[2].register_forward_hook(lambda *about: [count][0]())
    return total.item


@pytest.mark.parametrize("keep", [keep_in_closure, keep_in_defaults, keep_in_attributes, keep_behind_another])
def test_what_functions_keep_is_copied_and_the_programs_own_stays(
    keep: Callable[[nn.Sequential], Callable[[], object]],
) -> None:
    module = small()
    look = keep(module)
    before = look()
    made = copied(module)
    made(torch.ones(3, 4)).sum().backward()
    assert look() == before
    module(torch.ones(3, 4)).sum().backward()
    assert look() != before, "the original still has its own"


def test_two_functions_of_a_copy_share_what_they_shared() -> None:
    module, cell = small(), [0]
    module.seen = seen = [0]

    def count(*about: object) -> None:
        cell[0] += 1
        seen[0] += 1

    module.register_forward_hook(count)
    module.peek = lambda: cell[0]
    made = copied(module)
    for _ in range(3):
        made(torch.ones(3, 4))
    assert (made.peek(), made.seen) == (3, [3])
    assert (module.peek(), module.seen, cell) == (0, [0], [0])


def test_what_is_no_data_is_shared() -> None:
    """Locks, other modules and tensors that train: a copy would not be what the program means."""
    module, lock, teacher, scale = small(), threading.Lock(), small(), torch.ones(1, requires_grad=True)
    module.register_forward_hook(lambda _, args, out: out * scale + teacher(args[0]) if not lock.locked() else out)
    made = copied(module)
    made(torch.ones(3, 4)).sum().backward()
    assert scale.grad is not None and teacher[0].weight.grad is not None
    with lock:
        assert torch.equal(made(torch.ones(3, 4)), nn.Sequential.forward(made, torch.ones(3, 4)))


def test_hooks_on_gradients_and_attributes_of_parameters_come_along() -> None:
    module = small()
    module[0].weight.register_hook(lambda gradient: gradient * 0)
    module[2].bias.register_post_accumulate_grad_hook(seven)
    module[2].weight.kind = ["mine"]
    made = copied(module)
    made(torch.ones(3, 4)).sum().backward()
    assert made[0].weight.grad.abs().sum() == 0
    assert made[2].bias.grad.tolist() == [7.0, 7.0]
    assert made[2].weight.kind == ["mine"] and made[2].weight.kind is not module[2].weight.kind


def test_what_shares_memory_shares_it_in_the_copy() -> None:
    module = small()
    module[2].tied = module[2].weight
    module.view = module[0].weight.data[1]
    module.register_buffer("other", module[0].bias.data[:2])
    module[0].weight.requires_grad_(False)
    made = copied(module)
    assert made[2].tied is made[2].weight
    assert not made[0].weight.requires_grad and made[2].weight.requires_grad
    with torch.no_grad():
        made[0].weight.fill_(3.0)
        made[0].bias.fill_(4.0)
    assert made.view.tolist() == [3.0] * 4 and made.other.tolist() == [4.0] * 2
    assert module.view.tolist() != [3.0] * 4 and module.other.tolist() != [4.0] * 2


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, pruned])
@pytest.mark.filterwarnings("ignore")
def test_weights_that_hooks_of_torch_compute_are_copied(norm: Callable[[nn.Module], nn.Module]) -> None:
    module = nn.Sequential(norm(nn.Linear(4, 4)))
    module(torch.ones(2, 4))
    made = copied(module).eval()
    module.eval()
    images = torch.rand(3, 4)
    assert torch.equal(made(images), module(images))
    made(images).sum().backward()
    assert sum(value.grad is not None for value in made.parameters()) == 2 + (norm is nn.utils.weight_norm)


def test_slots_and_what_holds_parameters_are_copied() -> None:
    class Slotted(nn.Linear):
        __slots__ = ("extra",)

    module = Slotted(4, 2)
    module.extra = [module.bias]
    module.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    made = copied(module)
    assert made.extra[0] is made.bias
    assert made.optimizer.param_groups[0]["params"][0] is made.weight


def test_parametrized_and_lazy_modules_are_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.LazyLinear(2))
        made = copied(module)
    assert made(torch.ones(2, 4)).shape == (2, 2)
    assert isinstance(module[1], nn.LazyLinear)


GLOBAL = small()


def test_what_cannot_be_copied_is_named_with_what_to_type() -> None:
    def refused(module: nn.Module) -> str:
        with pytest.raises(ModelError, match=f"{INSTEAD}$") as caught:
            copied(module)
        return str(caught.value)

    module = small()
    module[0].lock = threading.Lock()
    assert "cannot be copied: 0.lock (lock: cannot pickle" in refused(module)
    module = small()
    module[2].last = module[2].weight * 2
    assert "2.last is a tensor with a history" in refused(module)
    GLOBAL.register_forward_hook(lambda _, args, out: out * GLOBAL[0].weight.sum())
    assert "by the global name GLOBAL" in refused(GLOBAL)
    module = small()
    view = module[2].weight[0].detach()
    module.register_forward_hook(lambda _, args, out: out * view.sum())
    assert "_forward_hooks refers to a part of the module's weights" in refused(module)
    with pytest.raises(ModelError, match=r"a copy of the module takes .* GB of memory, 0.0 GB are free; type this"):
        copy_module(small(), free_bytes=10, instead=INSTEAD)


class Forgetful(nn.Linear):
    """Its copies begin anew."""

    def __deepcopy__(self, memo: dict[int, object]) -> Forgetful:
        made = Forgetful(4, 4)
        nn.init.zeros_(made.weight)
        return made


class Stubborn(nn.Linear):
    """Its copies are itself, or none."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(4, 4)
        self.error = error

    def __deepcopy__(self, memo: dict[int, object]) -> Stubborn:
        if self.error is not None:
            raise self.error
        return self


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Forgetful(4, 4), "0.weight of a copy.deepcopy of it is not as in the module; have __deepcopy__ copy it, or t"),
        (Stubborn(KeyError("odd")), "cannot be copied: 'odd'; type this"),
        (Stubborn(None), "its own __deepcopy__ leaves out"),
    ],
)
def test_a_way_of_copying_of_the_users_own_is_held_to_its_word(part: nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        copied(nn.Sequential(part))


def test_libraries_in_attributes_are_shared_and_left_alone() -> None:
    module = small()
    module.t, module.draw = torch, random
    before = dict(vars(random))
    assert copied(module).t is torch and copied(module).draw is random
    assert all(vars(random)[name] is value for name, value in before.items())


def test_a_generator_is_not_said_to_be_helped_by_training_in_place() -> None:
    module = small()
    module.counter = (number for number in range(3))
    with pytest.raises(ModelError, match="keep numbers, lists or tensors there, or, if forward leaves it alone, type"):
        copied(module)


def test_whether_a_copy_can_be_made_is_known_without_copying_tensors() -> None:
    assert can_copy(small()) and can_copy(nn.Sequential(Forgetful(4, 4)))
    for part in (Stubborn(None), Stubborn(ValueError())):
        assert not can_copy(nn.Sequential(part))
