"""Timing: candidates take turns, what is spoiled decides nothing, what has no memory is a candidate's own failure."""

from __future__ import annotations

import time

import pytest
import torch

from headstart.timing import Looks, Timing, clock_for, is_faster, is_out_of_memory, time_calls, wall_seconds


class Clock:
    """Moved by the calls alone; ``order`` has who was called when."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, *seconds: float):
        """A call that takes these seconds, one after the other, and then the last of them."""
        left = list(seconds)

        def call() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_candidates_take_turns_and_the_first_calls_do_not_count() -> None:
    clock = Clock()
    calls = {"a": clock.taking("a", 9.0, 1.0), "b": clock.taking("b", 9.0, 2.0)}
    found = time_calls(calls, Looks(warm=1, least=3), clock=clock)
    assert clock.order == ["a", "b", *["a", "b"] * 3]
    assert found == {"a": Timing(seconds=(1.0,) * 3, warm=(9.0,)), "b": Timing(seconds=(2.0,) * 3, warm=(9.0,))}


def test_a_hopeless_candidate_is_left_alone_and_a_spoiled_one_is_not() -> None:
    clock = Clock()
    calls = {"slow": clock.taking("slow", 5.0), "fast": clock.taking("fast", 8.0, 1.0)}
    found = time_calls(calls, Looks(least=4, hopeless=1.5, chances=2), clock=clock)
    assert (len(found["slow"].seconds), len(found["fast"].seconds)) == (2, 4)
    assert found["fast"].median == 1.0


@pytest.mark.parametrize(
    ("looks", "each", "count"),
    [
        (Looks(least=1, most=5, seconds=0.2), 0.3, 1),
        (Looks(least=1, most=5, seconds=0.2), 0.09, 3),
        (Looks(least=1, most=5, seconds=0.2), 0.01, 5),
        (Looks(least=10, most=99, seconds=1.0, budget_seconds=10.0, few=3), 4.0, 3),
        (Looks(least=10, most=99, seconds=1.0, budget_seconds=10.0, few=3), 0.05, 20),
    ],
)
def test_as_many_calls_as_say_something(looks: Looks, each: float, count: int) -> None:
    clock = Clock()
    (found,) = time_calls({0: clock.taking("it", each)}, looks, clock=clock).values()
    assert len(found.seconds) == count


@pytest.mark.parametrize(
    ("one", "usual", "faster"),
    [
        ((0.8, 0.8, 0.8), (1.0, 1.0, 1.0), True),
        ((0.8, 9.0, 0.8), (1.0, 1.0, 1.0), True),  # one of its own calls was spoiled
        ((0.99, 0.99, 0.99), (1.0, 9.0, 9.0), False),  # the usual one's were: its fastest says that
        ((0.5, 0.99, 0.99), (1.0, 1.0, 1.0), False),  # one lucky call
        ((0.95, 0.95, 0.95), (1.0, 1.0, 1.0), False),
    ],
)
def test_noise_has_to_move_both_median_and_fastest(one, usual, faster: bool) -> None:
    assert is_faster(Timing(seconds=one), Timing(seconds=usual), margin=0.92) == faster


def test_what_cannot_be_called_is_never_faster() -> None:
    def fail() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: ...")

    clock = Clock()
    found = time_calls({"no": fail, "yes": clock.taking("yes", 1.0)}, Looks(least=2), clock=clock)
    assert found["no"] == Timing(failure="there is too little memory for it")
    assert not is_faster(found["no"], found["yes"], margin=0.92) and not is_faster(found["yes"], found["no"], margin=9)


def test_only_memory_is_a_failure_other_errors_are_errors() -> None:
    def fail() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        time_calls({0: fail}, Looks(), clock=wall_seconds)


def test_torchs_own_words_for_no_memory_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("no such layer")) and is_out_of_memory(MemoryError())


def test_what_others_do_with_the_processor_is_not_in_a_threads_time() -> None:
    """A thread that waits for the processor spends none of it: here it sleeps."""
    clock = clock_for(torch.device("cpu"))
    assert torch.get_num_threads() == 1
    (found,) = time_calls({0: lambda: time.sleep(0.2)}, Looks(), clock=clock).values()
    (wall,) = time_calls({0: lambda: time.sleep(0.2)}, Looks(), clock=wall_seconds).values()
    assert found.median < 0.1 < 0.2 <= wall.median
