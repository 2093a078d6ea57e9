"""Two loops in two threads of one process: each has the bits that it has alone."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import headstart as hs
from headstart.errors import RunError
from headstart.isolation import beside_others, eval_modes, only_run, own_turn, seeded, training_turn


class Drawing(nn.Module):
    """Draws from the generators of torch, Python and NumPy, in training and in evaluation."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = self.inner(images)
        return scores * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand()) + 0.1 * torch.rand(1)


def in_threads(works: list[Callable[[], Any]]) -> list[Any]:
    """What each gives, all of them at once; what one raises is raised."""
    found: list[Any] = [None] * len(works)

    def run(place: int) -> None:
        try:
            found[place] = works[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
        assert not thread.is_alive(), "it waits for ever"
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loops_in_threads_have_the_bits_of_loops_one_after_the_other(net, images, dtype) -> None:
    """With dropout, a module that draws, random changes of pictures, evaluations, another default dtype."""
    models = [Drawing(net(norm=True, dropout=0.5, seed=seed)) for seed in (1, 2)]

    def loop(seed: int) -> list[Any]:
        model = copy.deepcopy(models[seed - 1])
        state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.05))
        found: list[Any] = []
        for event in hs.fit(state, images.train, rules=hs.StepRules(seed=seed), epochs=3):
            found.append(event.loss if isinstance(event, hs.StepDone) else event.train_loss)
            hs.evaluate(state.model, images.val)
        return [*found, *[value.tolist() for value in state.model.state_dict().values()]]

    torch.set_default_dtype(dtype)
    try:
        alone = [loop(1), loop(2)]
        assert in_threads([lambda: loop(1), lambda: loop(2)]) == alone
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_step_leaves_the_generators_as_they_were(net, noise) -> None:
    model = Drawing(net(dropout=0.5))
    state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    for steps in (0, 2):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        np.random.randn()  # which keeps a second number for the next call
        for _ in range(steps):
            hs.train_step(state, noise(4), rules=hs.StepRules())
        seen.append((float(torch.rand(1)), random.random(), float(np.random.randn()), float(np.random.rand())))
    assert seen[0] == seen[1]


def test_what_the_caller_draws_after_a_step_follows_the_callers_own_seed(net, noise) -> None:
    model = Drawing(net(dropout=0.5))
    state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def draw(seed: int, *, steps: int) -> tuple[float, ...]:
        torch.manual_seed(seed)
        for _ in range(steps):
            hs.train_step(state, noise(4), rules=hs.StepRules(seed=3))
        return float(torch.rand(1)), float(torch.randn(1))

    drawn = [draw(seed, steps=1) for seed in (0, 1, 2)]
    assert len(set(drawn)) == 3
    assert drawn == [draw(seed, steps=0) for seed in (0, 1, 2)]


@pytest.mark.parametrize("draw", ["module", "hook", "forward", "loss"])
def test_what_the_users_code_draws_is_a_function_of_seed_and_step(net, noise, draw) -> None:
    """Not of what Python's and NumPy's generators did before."""

    def noisy(scores: torch.Tensor) -> torch.Tensor:
        return scores * (1 + random.random()) + float(np.random.rand())

    def loss(*, seed: int, step: int, before: int) -> float:
        model, rules = net(), hs.StepRules(seed=seed)
        if draw == "module":
            model = Drawing(model)
        elif draw == "hook":
            model.fc.register_forward_hook(lambda _, __, output: noisy(output))
        elif draw == "forward":
            plain = model.fc.forward
            model.fc.forward = lambda features: noisy(plain(features))
        else:
            own = lambda o, t: nn.functional.cross_entropy(noisy(o), t, reduction="none")  # noqa: E731
            rules = hs.StepRules(seed=seed, loss=own)
        state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        state.step = step
        random.seed(before)
        np.random.seed(before)
        return hs.train_step(state, noise(8), rules=rules).loss

    assert loss(seed=1, step=4, before=3) == loss(seed=1, step=4, before=50)
    assert len({loss(seed=seed, step=step, before=0) for seed, step in ((1, 4), (2, 4), (1, 5), (257, 4))}) == 4


def test_turns_nest_exclude_and_end() -> None:
    order = []

    def hold(block: Callable[[], Any], name: str, wait_for: threading.Event, said: threading.Event) -> None:
        wait_for.wait(10)
        with block():
            order.append(name)
            said.set()

    begun, first, second = threading.Event(), threading.Event(), threading.Event()
    threads = [
        threading.Thread(target=hold, args=(own_turn, "step", begun, first), daemon=True),
        threading.Thread(target=hold, args=(beside_others, "look", begun, second), daemon=True),
    ]
    for thread in threads:
        thread.start()
    with own_turn(), own_turn(), beside_others():
        begun.set()
        assert not first.wait(0.1) and not second.wait(0.1)
        order.append("mine")
    for thread in threads:
        thread.join(10)
    assert order[0] == "mine" and sorted(order[1:]) == ["look", "step"]


def test_evaluations_are_not_in_each_others_way_and_a_step_waits_for_them() -> None:
    inside, stepped, go_on = threading.Event(), threading.Event(), threading.Event()

    def look() -> None:
        with beside_others(), beside_others():
            inside.set()
            go_on.wait(10)

    def step() -> None:
        with own_turn():
            stepped.set()

    threads = [threading.Thread(target=look, daemon=True), threading.Thread(target=step, daemon=True)]
    threads[0].start()
    inside.wait(10)
    with beside_others():
        pass
    threads[1].start()
    assert not stepped.wait(0.1)
    go_on.set()
    assert stepped.wait(10)
    for thread in threads:
        thread.join(10)


def test_a_turn_ends_with_an_error() -> None:
    for block in (own_turn, beside_others):
        with pytest.raises(ValueError, match="x"), block():
            raise ValueError("x")
    in_threads([lambda: own_turn()(lambda: None)()])


def test_a_second_run_in_another_thread_is_refused_and_one_in_the_same_is_not() -> None:
    with only_run("hs.train"):
        with only_run("hs.plan"):
            pass
        said = r"hs.plan: hs.train is going on in another thread of this process.*call hs.plan when that one has"
        with pytest.raises(RunError, match=said):
            in_threads([lambda: only_run("hs.plan").__enter__()])
    in_threads([lambda: only_run("hs.plan")(lambda: None)()])


def test_seeding_starts_again_and_goes_on_where_the_caller_was() -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected = (float(torch.rand(1)), random.random())
    torch.manual_seed(1)
    random.seed(1)
    with seeded(7, device=torch.device("cpu"), everywhere=True) as again:
        first = (float(torch.rand(1)), random.random(), float(np.random.rand()))
        again()
        assert first == (float(torch.rand(1)), random.random(), float(np.random.rand()))
    assert (float(torch.rand(1)), random.random()) == expected
    with seeded(7, device=torch.device("cpu"), everywhere=False):
        state = random.getstate()
    assert random.getstate() == state


def test_predictions_in_threads_are_those_of_one_and_leave_the_mode(net, images) -> None:
    model = net(norm=True, dropout=0.5)
    expected = hs.predict(model, images.val).outputs

    def look() -> list[bool]:
        return [torch.equal(hs.predict(model, images.val).outputs, expected) for _ in range(4)]

    for _ in range(3):
        model.train()
        assert all(map(all, in_threads([look, look, look])))
        assert all(part.training for part in model.modules())


def test_predictions_of_a_module_in_training_are_each_of_one_step(net, images) -> None:
    """And the loop has the bits that it has alone."""

    def loop(model: nn.Module, look: Callable[[], Any]) -> list[float]:
        state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.05))
        found = []
        for event in hs.fit(state, images.train, rules=hs.StepRules(), epochs=3):
            if isinstance(event, hs.StepDone):
                found.append(event.loss)
                look()
        return found

    alone, shared, steps, seen = net(norm=True, dropout=0.5), net(norm=True, dropout=0.5), [], []
    steps.append(hs.predict(alone, images.val).outputs)
    expected = loop(alone, lambda: steps.append(hs.predict(alone, images.val).outputs))
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(hs.predict(shared, images.val).outputs)

    def train() -> list[float]:
        try:
            return loop(shared, lambda: None)
        finally:
            done.set()

    assert in_threads([train, look])[0] == expected
    assert seen and all(any(torch.equal(one, other) for other in steps) for one in seen)


def test_training_within_the_turn_of_a_plan_does_not_wait_for_another_threads_evaluation(net) -> None:
    model, inside, go_on = net(), threading.Event(), threading.Event()

    def look() -> None:
        with eval_modes(model, root=model):
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    inside.wait(10)
    try:
        with (
            own_turn(),
            pytest.raises(RunError, match=r"another thread evaluates this module .* a copy: copy"),
        ):
            training_turn(model).__enter__()
        with training_turn(net()):
            pass
    finally:
        go_on.set()
        thread.join(10)
    with own_turn(), training_turn(model):
        pass
