"""Several processes make the step that one makes, see each image once, and end together."""

from __future__ import annotations

import itertools
import os
import signal

import pytest
import torch
from PIL import Image

from headstart.distributed.fsdp import can_shard
from headstart.runs.checkpoint import read_checkpoint

WORLDS = (2, 3, 4)
needs_sharding = pytest.mark.skipif(not can_shard(), reason="fsdp is refused with this torch")


def gave(found):
    assert all("gave" in one for one in found), found
    return [one["gave"] for one in found]


def assert_same_steps(alone, ranks):
    for step, one in enumerate(alone):
        whole = torch.tensor(one["gradient"], dtype=torch.float64)
        for rank in ranks:
            cut = torch.tensor(rank[step]["gradient"], dtype=torch.float64)
            assert (whole - cut).norm() <= 1e-12 * whole.norm()
            same = [rank[step][name] for name in ("loss", "weight", "norm")]
            assert same == pytest.approx([one["loss"], one["weight"], one["norm"]], rel=1e-12)
            assert rank[step]["images"] == one["images"]
        assert sum(rank[step]["own"] for rank in ranks) == one["images"]


@pytest.mark.parametrize("loss", ["plain", "weighted", "own"])
def test_the_gradient_is_that_of_one_process_however_it_is_cut(ranks, few, loss) -> None:
    """11 images in batches of 8 and 3, float64: with 4 processes one has no image of the last batch."""
    (alone,) = gave(ranks("gradients", world=1, folder=few, loss=loss, accumulate=1))
    assert [step["images"] for step in alone] == [8, 3]
    for world, accumulate in itertools.product(WORLDS, (1, 2, 4, 8)):
        found = gave(ranks("gradients", world=world, folder=few, loss=loss, accumulate=accumulate))
        assert_same_steps(alone, found)
    assert 0 in [rank[1]["own"] for rank in found]


@pytest.mark.parametrize("mixing", [{"mixup": 0.5}, {"cutmix": 0.5}, {"mixup": 0.5, "cutmix": 0.5}])
def test_images_are_mixed_with_their_neighbours_in_the_whole_batch(ranks, few, mixing) -> None:
    (alone,) = gave(ranks("gradients", world=1, folder=few, loss="plain", accumulate=1, **mixing))
    for world in WORLDS:
        assert_same_steps(
            alone, gave(ranks("gradients", world=world, folder=few, loss="plain", accumulate=1, **mixing))
        )


def test_penalties_clipping_and_unused_parameters_are_as_in_one_process(ranks, few) -> None:
    options = {"folder": few, "loss": "weighted", "accumulate": 2, "l1": 0.3, "clip_norm": 0.5, "unused": True}
    (alone,) = gave(ranks("gradients", world=1, **options))
    assert_same_steps(alone, gave(ranks("gradients", world=3, **options)))


def test_every_process_ends_with_the_first_ones_statistics(ranks, few) -> None:
    """BatchNorm over each process's part, dropout drawn by rank: the models stay equal to the bit."""
    first, *others = gave(ranks("statistics", world=3, folder=few))
    assert others == [first, first]
    assert gave(ranks("statistics", world=3, folder=few)) == [first, first, first]


def test_what_a_later_phase_trains_is_averaged_too(ranks, few) -> None:
    (alone,) = gave(ranks("phases", world=1, folder=few))
    found = gave(ranks("phases", world=2, folder=few))
    assert found[0] == found[1]
    for whole, cut in zip(alone, found[0], strict=True):
        torch.testing.assert_close(torch.tensor(whole), torch.tensor(cut), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_metrics_count_every_image_once_and_are_the_same_bits(ranks, many, world) -> None:
    counts = [1, 2, 3, 7, 101]
    (alone,) = gave(ranks("metrics", world=1, folder=many, counts=counts))
    assert [len(keys) for keys, *_ in alone] == counts
    assert gave(ranks("metrics", world=world, folder=many, counts=counts)) == [alone] * world


@needs_sharding
def test_a_model_that_is_shared_out_makes_the_same_step(ranks, few) -> None:
    """FSDP2: loss, gradients (put together), clipping and penalties are those of one process, float64."""
    options = {"folder": few, "loss": "weighted", "l1": 0.3, "clip_norm": 0.5, "mixup": 0.0}
    (alone,) = gave(ranks("gradients", world=1, accumulate=1, **options))
    for world, accumulate in ((2, 1), (3, 4)):
        assert_same_steps(alone, gave(ranks("gradients", world=world, accumulate=accumulate, sharded=True, **options)))


@needs_sharding
def test_a_model_that_is_shared_out_sees_every_image_once(ranks, few) -> None:
    """3 processes, 1 to 3 batches: those without one take part in putting the model together."""
    (alone,) = gave(ranks("metrics", world=1, folder=few, counts=[3, 7, 11]))
    assert gave(ranks("metrics", world=3, folder=few, counts=[3, 7, 11], sharded=True)) == [alone] * 3


@needs_sharding
@pytest.mark.parametrize(
    ("first", "second"), [((2, True), (2, True)), ((3, True), (2, False)), ((2, False), (3, True))]
)
def test_checkpoints_fit_any_number_of_processes(ranks, few, tmp_path, first, second) -> None:
    """Written by a model that is shared out or whole, read by the other: the same steps go on."""
    same = {"folder": few, "norm": first == second}  # its own batch statistics in every process
    options = same | {"before": 99}
    (whole, *_) = gave(ranks("checkpoints", world=second[0], run=str(tmp_path / "a"), sharded=second[1], **options))
    options = same | {"run": str(tmp_path / "b")}
    assert set(gave(ranks("checkpoints", world=first[0], before=3, sharded=first[1], **options))) == {3}
    (cut, *_) = gave(ranks("checkpoints", world=second[0], before=99, sharded=second[1], **options))
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-5)
    if first == second:
        assert whole == cut
        assert read_checkpoint(tmp_path / "a").files == read_checkpoint(tmp_path / "b").files


def test_every_process_learns_what_each_found_in_the_images(ranks, tmp_path) -> None:
    for number in range(5):
        Image.new("RGB", (8, 8), (number // 2, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    (alone,) = gave(ranks("scanned", world=1, folder=str(tmp_path)))
    assert (len(alone[0]), [key for key, _ in alone[1]], alone[2]) == (4, ["3.png"], [["0.png", "1.png"]])
    assert gave(ranks("scanned", world=3, folder=str(tmp_path))) == [alone] * 3


def test_messages_arrive_as_they_were_sent(ranks) -> None:
    found = gave(ranks("told", world=3, odd=2))
    for rank, one in enumerate(found):
        assert one["exchange"] == [{"rank": other, "text": "ä\udcff" * other} for other in range(3)]
        assert one["first"] == ["x", 0]
        assert one["files"] == {"a": [0, 1], "empty": []}
        assert one["no files"] is None
        assert one["any"] == [True, False]
        assert one["part"] == [[0], [1, 2], [3, 4]][rank]


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("how", ["error", "together"])
def test_an_error_is_said_once_by_the_rank_that_has_it(ranks, rank, how) -> None:
    found = ranks("failing", world=3, rank=rank, how=how, timeout=20.0)
    assert [one["error"] for one in found] == ["Error" if other == rank else "OthersFailed" for other in range(3)]
    assert found[rank]["text"] == "it was this one"


@pytest.mark.parametrize(("how", "kind"), [("bug", "AssertionError"), ("own", "RuntimeError")])
def test_a_bug_is_raised_by_the_rank_that_has_it(ranks, how, kind) -> None:
    """A model's own error is not taken for a lost process, whatever words it uses."""
    found = ranks("failing", world=2, rank=1, how=how, timeout=20.0)
    assert [one["error"] for one in found] == ["OthersFailed", kind]


@pytest.mark.parametrize("how", ["work", "suspend"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_beats_is_waited_for_however_long_it_works(ranks, rank, how) -> None:
    """It works for longer than the timeout between two messages; or the whole job is suspended for as long."""
    assert gave(ranks("failing", world=3, rank=rank, how=how, timeout=2.0)) == ["went on"] * 3


@pytest.mark.parametrize(("how", "rank"), [("kill", 0), ("kill", 2), ("leave", 1), ("stop", 0), ("stop", 1)])
def test_a_rank_that_is_lost_is_named_once_by_the_first_of_the_others(ranks, how, rank) -> None:
    """Killed, gone or stopped: the first of those that are left says which one, the rest stay silent."""
    found = ranks("failing", world=3, rank=rank, how=how, timeout=4.0)
    left = [other for other in range(3) if other != rank]
    assert found[left[0]]["error"] == "RunError"
    assert found[left[0]]["text"].startswith(f"rank {rank} (") and " of 3 is lost: " in found[left[0]]["text"]
    assert found[left[1]] == {"error": "OthersFailed", "text": ""}


def test_who_waits_for_a_lost_rank_of_another_machine_ends_by_itself(ranks) -> None:
    """It cannot be killed from here, and its connection stays: both others end with exit code 1, long before it."""
    found = ranks("failing", world=3, rank=1, how="stop for long", timeout=2.0, apart=True)
    assert [one["error"] for one in found] == ["died"] * 3
    assert [os.waitstatus_to_exitcode(int(one["text"])) for one in found] == [1, -signal.SIGKILL, 1]


def test_a_place_that_is_none_is_refused(monkeypatch) -> None:
    from headstart.distributed.processes import in_environment
    from headstart.errors import ConfigError

    for rank, world in (("2", "2"), ("x", "2"), ("0", "-1")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(ConfigError, match=rf"RANK={rank}, WORLD_SIZE={world}, .* start them with torchrun"):
            in_environment()


@pytest.fixture(scope="module")
def without_cache(ranks, few, tmp_path_factory) -> str:
    """The weights of the run that uses no cache, a digest."""
    run = str(tmp_path_factory.mktemp("never") / "run")
    found = gave(ranks("wavering", world=2, folder=few, run=run, use="never", rank=0, where="nowhere"))
    assert found[0]["weights"] == found[1]["weights"]
    return found[0]["weights"]


@pytest.mark.parametrize(("where", "rank"), [("step", 1), ("look", 1), ("validation", 0), ("filling", 1)])
def test_what_one_process_alone_cannot_run_from_the_cache_all_do_without(
    ranks, few, tmp_path, without_cache, where, rank
) -> None:
    """The others do not wait for it, and the run ends as one that used no cache."""
    run = str(tmp_path / "run")
    found = gave(ranks("wavering", world=2, folder=few, run=run, use="always", rank=rank, where=where, timeout=20.0))
    assert [one["weights"] for one in found] == [without_cache] * 2
    word = "cache: not used for train" if where == "filling" else "cache: given up"
    assert sum(word in text for text in found[0]["said"]) == 1, found[0]["said"]
