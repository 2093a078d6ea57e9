"""The one prefix of a file's names under which they are a model's: ``module.``, ``model._orig_mod.``, ``backbone.``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from headstart.errors import ModelError, name_some
from headstart.models.checkpoints import CHOICES, is_averaged
from headstart.wording import option

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # at any place of a name
_DEEPEST = 6  # parts of a prefix
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
_T = TypeVar("_T")


@dataclass(frozen=True)
class Names:
    """A file's tensors by a model's names; ``beside``: the names that are not below the prefix."""

    tensors: Mapping[str, Tensor]
    beside: tuple[str, ...]
    notes: tuple[str, ...]


def fit_names(
    tensors: Mapping[str, Tensor],
    *,
    expected: Collection[str],
    fit: Callable[[Mapping[str, Tensor]], _T],
    wanted: str,
    where: str,
) -> tuple[Names, _T]:
    """The tensors under the one prefix that makes their names the model's, and what ``fit`` gives for them.

    Args:
        ``expected``: The names of the model's tensors.
        ``fit``: Raises a ModelError for tensors that are not the model's.
        ``wanted``: auto (an average where one stands beside the raw weights), averaged, raw, or a part of the prefix.

    Raises: ModelError: no prefix does it, or several do and it is not known which is meant.
    """
    plain = _without_wrappers(tensors)
    prefixes = _allow(_find_prefixes(plain, frozenset(expected)), plain, wanted, where=where)
    fits: dict[str, _T] = {}
    failures: list[ModelError] = []
    for prefix in prefixes:
        try:
            fits[prefix] = fit(_below(plain, prefix))
        except ModelError as error:
            failures.append(error)
        if "" in fits and not any(is_averaged(other) for other in prefixes):
            break
    if not fits:
        raise failures[0]
    prefix = _choose(list(fits), wanted, where=where)
    found = _below(plain, prefix)
    beside = tuple(name for name in plain if not name.startswith(prefix) and name != _COUNTER)
    others = [other for other in fits if is_averaged(other) != is_averaged(prefix)]
    return Names(found, beside, tuple(_explain(tensors, plain, prefix, others))), fits[prefix]


def _find_prefixes(tensors: Mapping[str, Tensor], expected: frozenset[str]) -> list[str]:
    """The empty prefix, and each that at least half as many names have as the model has, the most alike first."""
    counts: Counter[str] = Counter()
    alike: Counter[str] = Counter()
    for name in tensors:
        places = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        for place in places[: _DEEPEST + 1]:
            counts[name[:place]] += 1
            alike[name[:place]] += name[place:] in expected
    enough = [prefix for prefix, count in counts.items() if 2 * count >= len(expected) and prefix]
    return sorted(["", *enough], key=lambda prefix: (-alike[prefix], len(prefix)))


def _allow(prefixes: list[str], tensors: Mapping[str, Tensor], wanted: str, *, where: str) -> list[str]:
    """The prefixes that ``wanted`` allows.  Raises: ModelError: it allows none."""
    is_average = _COUNTER in tensors
    if wanted == "auto" or (wanted == "averaged" and is_average):
        return prefixes
    if wanted == "raw":
        allowed = [] if is_average else [prefix for prefix in prefixes if not is_averaged(prefix)]
    elif wanted == "averaged":
        allowed = [prefix for prefix in prefixes if is_averaged(prefix)]
    else:
        allowed = [prefix for prefix in prefixes if f".{wanted}." in f".{prefix}"]
    if allowed:
        return allowed
    what = f"no {wanted} weights are in it" if wanted in CHOICES else f"there is no {wanted!r} in it"
    first = name_some(list(dict.fromkeys(name.partition(".")[0] for name in tensors)))
    raise ModelError(
        f"weights {where}: {what}; its names begin with {first}; leave {option('model.weights_part')} out, or name a "
        "key of the file or a prefix of its names"
    )


def _choose(fits: list[str], wanted: str, *, where: str) -> str:
    """The prefix that is meant.  Raises: ModelError: it may be one of several."""
    if wanted == "auto":
        fits = [prefix for prefix in fits if is_averaged(prefix)] or fits
    if "" in fits or len(fits) == 1:
        return "" if "" in fits else fits[0]
    names = sorted(prefix.removesuffix(".") for prefix in fits)
    raise ModelError(
        f"weights {where}: the model's names are in it {len(names)} times, below {name_some(names)}; say which are "
        f"meant, e.g. {option('model.weights_part', names[0])}"
    )


def _without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without what torch's wrappers put into them; as they are where two would be one."""
    plain = {}
    for name, value in tensors.items():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        plain[name] = value
    return plain if len(plain) == len(tensors) else dict(tensors)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _explain(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Tensor], prefix: str, others: list[str]
) -> Iterator[str]:
    """What was done with the names, for the plan."""
    pairs = [(whole, short) for whole, short in zip(tensors, plain, strict=True) if short.startswith(prefix)]
    whole, short = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    stripped = whole[: -len(short.removeprefix(prefix))] if whole.endswith(short.removeprefix(prefix)) else prefix
    if stripped:
        of = "every name" if len(pairs) == len(tensors) else f"{len(pairs)} of {len(tensors)} names"
        yield f"the prefix {stripped!r} stripped from {of}"
    elif whole != short:
        inside = ", ".join(repr(wrapper) for wrapper in _WRAPPERS if any(wrapper in name for name in tensors))
        yield f"{inside} taken out of the names"
    if is_averaged(prefix):
        yield "the averaged weights" + (f" (the raw ones: {option('model.weights_part', 'raw')})" if others else "")
    elif _COUNTER in plain:
        yield f"they are an average ({_COUNTER})"
    elif others:
        yield f"the raw weights (the averaged ones: {option('model.weights_part', 'averaged')})"
