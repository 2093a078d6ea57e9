"""Which images are held out: stratified, a function of the seed and the keys, nothing shared between the sides."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headstart.data.randomness import derive_seed
from headstart.data.sources.source import Record, Split


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Images that must stay on one side (one, unless duplicated or grouped)."""

    keys: tuple[str, ...]
    labels: frozenset[str]
    number: float  # mean of the first target; 0 where there is none


def split_records(
    records: Sequence[Record], *, duplicates: Sequence[Sequence[str]], val: float, test: float, seed: int
) -> dict[str, Split]:
    """Split of each key: shares ``val`` and ``test`` of the images of every class, the rest training.

    Every class of two images or more gets one in validation where duplicates and groups allow it, and every class
    keeps one in training. For numbers the strata are quantiles of the first one, for tags the rarest tag.
    """
    clusters = make_clusters(records, duplicates=duplicates)
    strata = _strata(clusters)
    chosen: dict[str, Split] = {key: "train" for cluster in clusters for key in cluster.keys}
    held = _hold_out(clusters, strata, share=val, seed=derive_seed("val", seed))
    chosen.update({key: "val" for cluster in held for key in cluster.keys})
    if test > 0:
        taken = {cluster.keys for cluster in held}
        rest = [cluster for cluster in clusters if cluster.keys not in taken]
        tested = _hold_out(rest, strata, share=test / (1 - val), seed=derive_seed("test", seed))
        chosen.update({key: "test" for cluster in tested for key in cluster.keys})
    return chosen


def make_clusters(records: Sequence[Record], *, duplicates: Sequence[Sequence[str]]) -> list[Cluster]:
    """Images joined by one content or picture, or an equal group, in the order of their first keys."""
    together: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.group is not None:
            together[record.group].append(record.name)
    by_name = {record.name: record for record in sorted(records, key=lambda record: record.name)}
    known = [[key for key in keys if key in by_name] for keys in (*together.values(), *duplicates)]
    joined = join_names([*known, *([name] for name in by_name)])
    return [_cluster([by_name[name] for name in names]) for names in joined]


def join_names(groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Groups of which any two shared a name made one, each sorted, in the order of their first names."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in groups:
        for name in names:
            parent[find(name)] = find(names[0])
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(parent):
        members[find(name)].append(name)
    return [tuple(names) for names in members.values()]


def _cluster(records: Sequence[Record]) -> Cluster:
    numbers = [next(iter(record.numbers.values())) for record in records if record.numbers]
    return Cluster(
        keys=tuple(record.name for record in records),
        labels=frozenset(label for record in records for label in record.labels),
        number=math.fsum(numbers) / len(numbers) if numbers else 0.0,
    )


def _strata(clusters: Sequence[Cluster]) -> dict[tuple[str, ...], str]:
    """Stratum of each cluster, by its keys: its rarest label, or the quantile of its number."""
    counts = Counter(label for cluster in clusters for label in cluster.labels)
    if counts:
        return {
            cluster.keys: min(cluster.labels, key=lambda label: (counts[label], label), default="")
            for cluster in clusters
        }
    bins = max(1, min(10, len(clusters) // 10))
    ranked = sorted(clusters, key=lambda cluster: (cluster.number, cluster.keys))
    return {cluster.keys: str(place * bins // len(ranked)) for place, cluster in enumerate(ranked)}


def _hold_out(
    clusters: Sequence[Cluster], strata: Mapping[tuple[str, ...], str], *, share: float, seed: int
) -> list[Cluster]:
    by_stratum: dict[str, list[Cluster]] = defaultdict(list)
    for cluster in clusters:
        by_stratum[strata[cluster.keys]].append(cluster)
    held: list[Cluster] = []
    for stratum in sorted(by_stratum):
        shuffled = sorted(by_stratum[stratum], key=lambda cluster: derive_seed(seed, *cluster.keys[:1]))
        held += _take(shuffled, share=share)
    return _mend(clusters, held)


def _take(shuffled: Sequence[Cluster], *, share: float) -> list[Cluster]:
    """The first clusters that fit into the share; at least one, and never all."""
    if len(shuffled) < 2:
        return []
    wanted = max(1, round(share * sum(len(cluster.keys) for cluster in shuffled)))
    taken: list[Cluster] = []
    for cluster in shuffled:
        if len(taken) < len(shuffled) - 1 and len(cluster.keys) <= wanted:
            taken.append(cluster)
            wanted -= len(cluster.keys)
    return taken or [min(shuffled, key=lambda cluster: len(cluster.keys))]


def _mend(clusters: Sequence[Cluster], held: Sequence[Cluster]) -> list[Cluster]:
    """Give back what training needs of each label; then give validation the labels that it still lacks."""
    mended = {cluster.keys: cluster for cluster in held}
    everywhere = Counter(label for cluster in clusters for label in cluster.labels)
    inside = Counter(label for cluster in held for label in cluster.labels)
    for cluster in held:
        if any(inside[label] == everywhere[label] for label in cluster.labels):
            del mended[cluster.keys]
            inside.subtract(cluster.labels)
    for label in sorted(everywhere):
        if inside[label] > 0:
            continue
        movable = [
            cluster
            for cluster in clusters
            if label in cluster.labels and all(inside[each] + 1 < everywhere[each] for each in cluster.labels)
        ]
        if movable:
            smallest = min(movable, key=lambda cluster: (len(cluster.keys), cluster.keys))
            mended[smallest.keys] = smallest
            inside.update(smallest.labels)
    return [mended[keys] for keys in sorted(mended)]
