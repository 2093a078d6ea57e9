"""Every change of a file, in one place at a time, that its tests should notice (see ``benchmarks.mutation``).

Comparisons, arithmetic, and/or/not, conditions, numbers, True and False, strings that are not messages, returned
values, and whole statements: calls whose value is not used, raise, break, continue.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
OPPOSITE = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # a swap of these negates the comparison already


NOTE = "__note__"


@dataclass(frozen=True)
class Mutant:
    """A changed module, and where it differs: the function or class, and the lines of the statement."""

    make: Callable[[], ast.Module]
    line: int
    function: str
    was: str
    now: str
    lines: range
    runs_at_import: bool

    def key(self, path: str, number: int) -> str:
        """A name that stays when lines move."""
        again = f" #{number}" if number else ""
        return f"{path} {self.function or '<module>'}: {self.was} -> {self.now}{again}"


def mutants(source: str) -> Iterator[Mutant]:
    """Every change of the module, one at a time."""
    tree = ast.parse(source)
    for path, statement, function, at_import in list(_places(tree)):
        node = _at(tree, path)
        for change in _changes(node, path, tree):
            was, now = _shown(node), _shown(change(copy.deepcopy(node)))
            if was == now:  # an operator is shown by what it stands in
                holder = copy.deepcopy(_at(tree, path[:-1]))
                was = _shown(holder)
                _put(holder, path[-1:], change(_at(holder, path[-1:])))
                now = _shown(holder)
            line = getattr(node, "lineno", statement.lineno)
            yield Mutant(partial(_change, tree, path, change), line, function, was, now, _header(statement), at_import)


def _change(tree: ast.Module, path: Path_, change: Callable[[Any], ast.AST]) -> ast.Module:
    changed = copy.deepcopy(tree)
    _put(changed, path, change(_at(changed, path)))
    return ast.fix_missing_locations(changed)


def _shown(node: Any) -> str:
    text = ast.unparse(node) if isinstance(node, ast.AST) else repr(node)
    first = text.strip().splitlines()[0] if text.strip() else type(node).__name__
    return first[:100]


Path_ = tuple[tuple[str, int | None], ...]


def _places(tree: ast.Module) -> Iterator[tuple[Path_, ast.stmt, str, bool]]:
    """Every node that is code: the way to it, the statement, the function or class, and whether it runs at import."""

    def walk(
        node: ast.AST, path: Path_, statement: ast.stmt | None, names: tuple[str, ...], at_import: bool
    ) -> Iterator[Any]:
        if isinstance(node, ast.JoinedStr) or _is_docstring(node) or _is_typing(node):
            return
        if isinstance(node, ast.stmt):
            statement = node
        if statement is not None:
            yield path, statement, ".".join(names), at_import
        if isinstance(node, ast.Raise):
            return  # a message
        inner = (*names, node.name) if isinstance(node, ast.FunctionDef | ast.ClassDef) else names
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases", "msg", "type", "format_spec"):
                continue
            outside = isinstance(node, ast.FunctionDef) and name == "args"
            later = isinstance(node, ast.FunctionDef) and not outside
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST):
                    where = names if outside else inner
                    yield from walk(child, (*path, (name, place)), statement, where, at_import and not later)

    yield from walk(tree, (), None, (), True)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_typing(node: ast.AST) -> bool:
    """Imports, ``if TYPE_CHECKING`` and names of types."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("TypeVar", "cast", "NewType"):
        return True
    alias = isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp)
    return alias and all(word[:1].isupper() for word in ast.unparse(node.targets[0]).split("."))  # type: ignore[attr-defined]


def _at(tree: ast.AST, path: Path_) -> Any:
    node: Any = tree
    for name, place in path:
        node = getattr(node, name) if place is None else getattr(node, name)[place]
    return node


def _put(tree: ast.AST, path: Path_, new: ast.AST) -> None:
    (name, place), holder = path[-1], _at(tree, path[:-1])
    if place is None:
        setattr(holder, name, new)
    else:
        getattr(holder, name)[place] = new


def _changes(node: Any, path: Path_, tree: ast.AST) -> Iterator[Callable[[Any], ast.AST]]:
    """What is done to a copy of the node: gives another one in its place."""
    if type(node) in SWAPS:
        yield lambda _: SWAPS[type(node)]()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield lambda same: same.operand
    if path and path[-1][0] in ("test", "ifs") and not isinstance(node, ast.UnaryOp) and not _negates(node):
        holder = _at(tree, path[:-1])
        if not isinstance(holder, ast.Assert):
            yield lambda same: ast.UnaryOp(ast.Not(), same)
    if isinstance(node, ast.Constant):
        yield from _constants(node)
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) not in ("None", "False"):
        yield lambda _: ast.Return(ast.Constant(None))
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield lambda _: ast.Pass()
    if isinstance(node, ast.Break | ast.Continue):
        yield lambda _: ast.Continue() if isinstance(node, ast.Break) else ast.Break()


def _negates(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], OPPOSITE)


def _constants(node: ast.Constant) -> Iterator[Callable[[Any], ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield lambda _: ast.Constant(not value)
    elif isinstance(value, int | float):
        yield lambda _: ast.Constant(value + 1)
    elif isinstance(value, str) and len(value) < 30:
        yield lambda _: ast.Constant(f"{value}?")


def _header(statement: ast.stmt) -> range:
    """The lines of a statement without those of the statements in it."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return range(statement.lineno, max(statement.lineno, last) + 1)


def add_notes(tree: ast.Module) -> ast.Module:
    """Have ``NOTE`` called with the line of each statement of a function before it runs."""
    blocks: dict[int, list[ast.stmt]] = {}
    for function in ast.walk(tree):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            bodies = (getattr(node, name, None) for name in ("body", "orelse", "finalbody"))
            blocks |= {id(body): body for body in bodies if isinstance(body, list)}
    for body in blocks.values():
        body[:] = [
            new
            for statement in body
            for new in ([statement] if _is_docstring(statement) else [_note(statement), statement])
        ]
    return ast.fix_missing_locations(tree)


def _note(statement: ast.stmt) -> ast.Expr:
    call = ast.Call(ast.Name(NOTE, ast.Load()), [ast.Constant(statement.lineno)], [])
    return ast.copy_location(ast.Expr(call), statement)
