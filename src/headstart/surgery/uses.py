"""What a forward pass does with layers: how often it calls each, and whether other code uses their tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headstart.surgery.trace import run_for_shapes


@dataclass(frozen=True, kw_only=True)
class Uses:
    """``calls``: how often each layer was called; ``elsewhere``: layers whose tensors other code computes with. What is
    made of a layer's tensors alone, to be written back into them (a weight that is normalised in place), does not
    count.
    """

    calls: Mapping[str, int]
    elsewhere: frozenset[str]


def find_uses(
    module: nn.Module,
    parts: Mapping[str, nn.Module],
    *,
    tensors: Callable[[nn.Module], Iterable[Tensor]],
    others: Mapping[str, Tensor] = MappingProxyType({}),
) -> Uses:
    """The uses of modules, by path, in one forward pass; ``tensors`` gives those of a module that are looked for,
    ``others`` are such that belong to none.

    Raises: ModelError: the model does not run.
    """
    seen = _Seen()
    seen.others = {id(value): name for name, value in others.items()}
    with _hooks(module, parts, tensors, seen), seen:
        run_for_shapes(module, names=())
    return Uses(calls=seen.calls, elsewhere=frozenset(seen.elsewhere))


class _Seen(TorchFunctionMode):
    """Notes which of the tensors are used by other code than the layer's own forward, together with other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[int, str] = {}
        self.others: dict[int, str] = {}
        self.running: list[str] = []
        self.calls: Counter[str] = Counter()
        self.elsewhere: set[str] = set()
        self.watching = False  # only while the module runs
        self.outputs: dict[
            int, tuple[str, Tensor]
        ] = {}  # of a layer's tensors alone: its path; and the tensor, kept alive

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.watching and any(True for _ in _tensors(result)):  # a weight's shape or dtype may be asked for
            self._note([*_tensors((args, kwargs))], [*_tensors(result)])
        return result

    def _note(self, given: list[Tensor], results: list[Tensor]) -> None:
        paths = [self._path(value) for value in given]
        used = {path for path in paths if path is not None} - set(self.running)
        if len(used) == 1 and None not in paths:
            (path,) = used
            self.outputs |= {id(value): (path, value) for value in results if id(value) not in self.paths}
        else:
            self.elsewhere |= used

    def _path(self, value: Tensor) -> str | None:
        return self.outputs[id(value)][0] if id(value) in self.outputs else self.paths.get(id(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, tuple | list):
        yield from chain.from_iterable(map(_tensors, value))


@contextmanager
def _hooks(
    module: nn.Module,
    parts: Mapping[str, nn.Module],
    tensors: Callable[[nn.Module], Iterable[Tensor]],
    seen: _Seen,
) -> Iterator[None]:
    def start(_module: nn.Module, _inputs: Any) -> None:
        """The tensors are others in a run for shapes: they are looked up when it starts."""
        found = {id(value): path for path, part in parts.items() for value in tensors(part)}
        seen.paths = {**seen.others, **found}
        seen.running, seen.calls, seen.elsewhere, seen.outputs = [], Counter(), set(), {}
        seen.watching = True

    def stop(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        seen.watching = False

    def enter(path: str) -> Any:
        return lambda _module, _inputs: seen.running.append(path)

    def leave(path: str) -> Any:
        def on_leave(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
            seen.running.remove(path)
            seen.calls[path] += 1

        return on_leave

    handles = [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    handles += [part.register_forward_pre_hook(enter(path), prepend=True) for path, part in parts.items()]
    handles += [part.register_forward_hook(leave(path)) for path, part in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
