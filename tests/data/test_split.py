from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.sources.source import Record
from headstart.data.split import make_clusters, split_records


def entries(labels: list[str], *, groups: list[str | None] | None = None) -> list[Record]:
    return [
        Record(
            name=f"{place:04}.png",
            labels=(label,),
            group=groups[place] if groups else None,
        )
        for place, label in enumerate(labels)
    ]


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[Record], list[list[str]], int]:
    labels = draw(st.lists(st.sampled_from("abcde"), min_size=2, max_size=40))
    groups = draw(st.lists(st.sampled_from([None, None, "g", "h", "i"]), min_size=len(labels), max_size=len(labels)))
    found = entries(labels, groups=groups)
    order = draw(st.permutations([entry.name for entry in found]))
    cuts = draw(st.lists(st.integers(2, 4), max_size=4))
    copies, start = [], 0
    for count in cuts:
        copies.append(order[start : start + count])
        start += count
    return found, [group for group in copies if len(group) > 1], draw(st.integers(0, 2**32 - 1))


@settings(max_examples=150, deadline=None)
@given(sources(), st.sampled_from([0.0, 0.2]))
def test_laws_of_the_split(source: tuple[list[Record], list[list[str]], int], test: float) -> None:
    found, copies, seed = source
    chosen = split_records(found, duplicates=copies, val=0.25, test=test, seed=seed)
    assert set(chosen) == {entry.name for entry in found}
    for keys in copies:
        assert len({chosen[key] for key in keys}) == 1, "copies are on one side"
    sides = defaultdict(set)
    for entry in found:
        sides[entry.group or entry.name].add(chosen[entry.name])
    assert all(len(splits) == 1 for splits in sides.values()), "a group is on one side"
    trained = {entry.labels for entry in found if chosen[entry.name] == "train"}
    assert trained == {entry.labels for entry in found}, "every class is in train"
    again = split_records(found[::-1], duplicates=copies, val=0.25, test=test, seed=seed)
    assert again == chosen, "the order of the listing does not matter"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=40), st.integers(0, 1000))
def test_every_class_of_two_images_or_more_is_in_validation(labels: list[str], seed: int) -> None:
    chosen = split_records(entries(labels), duplicates=[], val=0.2, test=0.0, seed=seed)
    held = {labels[int(key[:4])] for key, split in chosen.items() if split == "val"}
    assert held == {label for label, count in Counter(labels).items() if count >= 2}


def test_classes_keep_their_shares() -> None:
    found = entries(["a"] * 100 + ["b"] * 50 + ["c"] * 10)
    chosen = split_records(found, duplicates=[], val=0.2, test=0.1, seed=3)
    counts = Counter((entry.labels[0], chosen[entry.name]) for entry in found)
    assert [counts[label, "val"] for label in "abc"] == [20, 10, 2]
    assert [counts[label, "test"] for label in "abc"] == [10, 5, 1]


def test_the_seed_decides() -> None:
    found = entries(["a"] * 50 + ["b"] * 50)
    first, same, other = (split_records(found, duplicates=[], val=0.2, test=0, seed=seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_a_class_that_copies_tie_to_another_is_still_trained_on() -> None:
    found = entries(["a", "b", "a", "b", "c", "c"])
    chosen = split_records(found, duplicates=[["0000.png", "0001.png"]], val=0.5, test=0, seed=0)
    assert {found[int(key[:4])].labels[0] for key, split in chosen.items() if split == "train"} == {"a", "b", "c"}


def test_a_label_that_stands_beside_rarer_ones_only_is_always_trained_on() -> None:
    found = entries(["a", "a", "c", "c", "d", "d", "b", "b", "b"])
    copies = [["0000.png", "0006.png"], ["0002.png", "0007.png"], ["0004.png", "0008.png"]]
    for seed in range(40):
        chosen = split_records(found, duplicates=copies, val=0.5, test=0, seed=seed)
        assert "train" in {chosen[f"000{place}.png"] for place in (6, 7, 8)}


def test_a_label_that_stands_beside_rarer_ones_only_is_validated_where_that_costs_no_label_its_training() -> None:
    found = entries(["a"] * 3 + ["c"] * 3 + ["d"] * 3 + ["e"] * 3 + ["b"] * 4)
    copies = [[f"{3 * place:04}.png", f"{12 + place:04}.png"] for place in range(4)]
    for seed in range(40):
        chosen = split_records(found, duplicates=copies, val=0.25, test=0, seed=seed)
        assert {chosen[f"00{place}.png"] for place in (12, 13, 14, 15)} == {"train", "val"}


def test_numbers_are_split_by_quantile() -> None:
    found = [Record(name=f"{n:03}", numbers={"n": float(n * n)}) for n in range(200)]
    chosen = split_records(found, duplicates=[], val=0.2, test=0, seed=0)
    held = sorted(int(key) for key, split in chosen.items() if split == "val")
    per_decile = Counter(place // 20 for place in held)
    assert per_decile == dict.fromkeys(range(10), 4)


def test_groups_and_copies_join_into_one_cluster() -> None:
    found = entries(["a"] * 5, groups=["x", "x", "y", "y", None])
    clusters = make_clusters(found, duplicates=[["0001.png", "0002.png"]])
    assert sorted(len(cluster.keys) for cluster in clusters) == [1, 4]
