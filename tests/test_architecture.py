"""The house rules, proved: import order, no cycles, sizes, annotations, docstrings, and what may stand where."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "headstart"
LAYERS = [  # a row imports from the rows above it only
    {"wording"},
    {"errors", "events", "private_names"},
    {"isolation", "config", "storage", "distributed", "lazy_imports", "allocator"},
    {"machine", "timing", "tasks", "surgery", "trackers"},
    {"models", "optim"},
    {"data"},
    {"training", "reports"},
    {"planning", "runs"},
    {"prediction"},
    {"predictor", "app"},
    {"demo", "inference", "exports", "serve"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
HEAVY = {"torch", "timm", "torchvision"}
LIGHT = (  # answer in a blink
    "wording.py",
    "errors.py",
    "events.py",
    "__init__.py",
    "config/",
    "cli/",
    "models/spec.py",
    "storage/disk",
    "storage/durable.py",
    "storage/record_file.py",
)
KINDS = {"classify", "multilabel", "regress"}
KINDS_AT = ("config/schema.py",)  # the option's own values
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "base", "core", "common", "misc"}
BROAD_EXCEPT_AT = (
    "cli/main.py",
    "data/decoding/decode.py",
    "data/decoding/eight_bits.py",
    "data/decoding/interruptible.py",
    "surgery/head_uses.py",  # a ``__setattr__`` of the user's own
    "surgery/module_copy.py",  # a ``__deepcopy__`` of the user's own
    "serve/batcher.py",  # whatever a model raises, the service goes on with the next batch
    "exports/graph.py",  # an exporter runs the model's own code, and raises dozens of kinds
    "tasks/own_ratings.py",
    "trackers/tracking.py",  # a tracker's library and its network raise anything
)
PICKLE_AT = ("models/weights.py", "exports/torch_program.py")  # the latter reads what it wrote a moment before
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "runpy", "code"}
CODE_MODULES = ("torch.distributed.checkpoint", "torch.hub", "torch.jit", "torch.package", "torch.export")
LOADERS = {  # of code, or of files that may hold some
    "torch.load", "th.load", "jit.load", "dcp.load", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "os.system", "os.popen", "os.startfile", "pty.spawn",
    "pandas.read_pickle", "pd.read_pickle", "timm.models.load_checkpoint", "timm.models.load_state_dict",
}  # fmt: skip
LOADER_ENDS = (".load_state_dict_from_url", ".get_state_dict", ".read_pickle", ".load_checkpoint", ".load_learner")
FINE = {
    *("torch.hub.get_dir", "torch.jit.ScriptModule"),  # the cache's place; a class, to refuse its objects
    *("torch.export.export", "torch.export.Dim", "torch.export.ExportedProgram"),  # a program is made, none is read
}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
OPENERS = {"allow_pickle", "shell", "trust_remote_code"}
PARTICIPLES = {  # beside those in -ed; "put", "read", "set", "cut", "run", "split" are verbs as well
    "asleep", "begun", "bound", "built", "chosen", "done", "drawn", "found", "given", "gone", "heard", "held", "hidden",
    "judged", "kept", "known", "laid", "led", "left", "lost", "made", "meant", "met", "paid", "said", "seen", "sent",
    "shown", "sold", "spent", "stood", "taken", "taught", "thought", "told", "torn", "understood", "woken", "won",
    "worn", "written",
}  # fmt: skip
NO_PARTICIPLES = {"embed", "feed", "need", "seed", "shed", "speed"}
ASKS = {"can", "has", "is", "was"}  # what answers yes or no: is_finished
BLOCKS = ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match | ast.AsyncFor | ast.AsyncWith
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of the package: its path within it, text and tree."""

    at: str
    text: str
    tree: ast.Module
    package: str

    @property
    def home(self) -> str:
        return self.at.partition("/")[0].removesuffix(".py")

    @property
    def module(self) -> str:
        return ".".join([self.package, *self.at.removesuffix(".py").removesuffix("/__init__").split("/")])


def sources(package: Path) -> list[Source]:
    return [
        Source(at=path.relative_to(package).as_posix(), text=text, tree=ast.parse(text), package=package.name)
        for path in sorted(package.rglob("*.py"))
        for text in [path.read_text(encoding="utf-8")]
    ]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def functions(tree: ast.Module) -> Iterator[tuple[Function, bool]]:
    """Every function, and whether it is public: reachable by names without a leading underscore."""

    def walk(node: ast.AST, public: bool) -> Iterator[tuple[Function, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield child, public and not child.name.startswith("_")
                yield from walk(child, False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, public and not child.name.startswith("_"))
            else:
                yield from walk(child, public)

    yield from walk(tree, True)


def import_order(source: Source) -> Iterator[str]:
    home = LEVEL.get(source.home)
    if home is None and source.home != "__init__":
        yield f"{source.at}:1 {source.home} has no row in the table of layers"
    for node in ast.walk(source.tree):
        for target in imported(node):
            first, _, rest = target.partition(".")
            other = rest.partition(".")[0]
            if target.startswith("."):
                yield f"{source.at}:{node.lineno} a relative import"
            elif home is not None and points_up(first, other, source):
                yield f"{source.at}:{node.lineno} {source.home} imports {other}"


def points_up(first: str, other: str, source: Source) -> bool:
    ours = first == source.package and other != source.home
    return ours and LEVEL.get(other, len(LAYERS)) >= LEVEL[source.home]


def light_top(source: Source) -> Iterator[str]:
    if not source.at.startswith(LIGHT):
        return
    for node in source.tree.body:
        for target in imported(node):
            if target.partition(".")[0] in HEAVY:
                yield f"{source.at}:{node.lineno} imports {target} at the top"


PARAMETERS = {
    ("app.py", "train"): 9,
    ("app.py", "repeat"): 9,
    ("app.py", "finish"): 8,
    ("app.py", "plan"): 7,
    ("predictor.py", "evaluate"): 9,
    ("predictor.py", "predict"): 7,
    ("data/images.py", "open_images"): 7,
}
"""model, loss, data, transform and metrics are the caller's own things, each instead of an option or beside them;
evaluate has the options of a module beside those of a run.
"""


def sizes(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > 500:
        yield f"{source.at}:1 {lines} lines; 500 at most"
    for function, _ in functions(source.tree):
        length = (function.end_lineno or 0) - function.lineno + 1 - docstring_lines(function)
        named = [a for a in all_arguments(function) if a.arg not in ("self", "cls")]
        if length > 60:
            yield f"{source.at}:{function.lineno} {function.name} has {length} lines; 60 at most"
        most = PARAMETERS.get((source.at, function.name), 6)
        if len(named) > most:
            yield f"{source.at}:{function.lineno} {function.name} has {len(named)} parameters; {most} at most"
        if (depth := nesting(function.body)) > 3:
            yield f"{source.at}:{function.lineno} {function.name} nests {depth} deep; 3 at most"


def docstring_lines(function: Function) -> int:
    """Lines beyond the first: what a reader is told does not make a function long."""
    first = function.body[0]
    return (first.end_lineno or 0) - first.lineno if ast.get_docstring(function) is not None else 0


def nesting(body: list[ast.stmt]) -> int:
    deepest = 0
    for statement in body:
        if isinstance(statement, BLOCKS):
            deepest = max(deepest, 1 + max(map(nesting, blocks_of(statement)), default=0))
            if isinstance(statement, ast.If):  # elif is no deeper than its if
                first = statement.orelse[0] if statement.orelse else None
                chained = isinstance(first, ast.If) and first.col_offset == statement.col_offset
                deepest = max(deepest, nesting(statement.orelse) + (0 if chained or first is None else 1))
    return deepest


def blocks_of(node: ast.stmt) -> list[list[ast.stmt]]:
    found = [getattr(node, "body", [])]
    if not isinstance(node, ast.If):
        found += [getattr(node, "orelse", []), getattr(node, "finalbody", [])]
    found += [part.body for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]]
    return found


def all_arguments(function: Function) -> list[ast.arg]:
    a = function.args
    return [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]


def signatures(source: Source) -> Iterator[str]:
    for function, public in functions(source.tree):
        where = f"{source.at}:{function.lineno} {function.name}"
        bare = [a.arg for a in all_arguments(function) if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or (function.returns is None):
            yield f"{where} lacks annotations: {', '.join(bare) or 'return'}"
        if public and function.args.kwarg:
            yield f"{where} takes **{function.args.kwarg.arg}"


def docstrings(source: Source) -> Iterator[str]:
    if ast.get_docstring(source.tree) is None:
        yield f"{source.at}:1 the module has no docstring"
    for function, public in functions(source.tree):
        stub = ast.unparse(function.body[-1]) == "..."  # a protocol's
        if public and not stub and ast.get_docstring(function) is None:
            yield f"{source.at}:{function.lineno} {function.name} has no docstring"
    for node in ast.walk(source.tree):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) else None
        if text and text.startswith(FRAGMENTS):
            yield f"{source.at}:{getattr(node, 'lineno', 1)} a fragment, not what one gets: {text[:40]!r}"


def broad_except(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and source.at not in BROAD_EXCEPT_AT:
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
            if caught & {"Exception", "BaseException"}:
                yield f"{source.at}:{node.lineno} a broad except"


def pickles(source: Source) -> Iterator[str]:
    """What can run code that a file brings along: in one reviewed file, nowhere else."""
    if source.at in PICKLE_AT:
        return
    harmless = {node.value for node in ast.walk(source.tree) if isinstance(node, ast.Attribute) and named(node) in FINE}
    for node in ast.walk(source.tree):
        where = f"{source.at}:{node.lineno}" if hasattr(node, "lineno") else source.at
        for target in imported(node):
            code = target.startswith(CODE_MODULES) and target not in FINE
            if target.partition(".")[0] in PICKLES or code or target in LOADERS:
                yield f"{where} imports a pickle library or a loader of programs ({target})"
        if isinstance(node, ast.Attribute) and node not in harmless and named(node) not in FINE:
            full = named(node)
            if full in LOADERS or full.endswith(LOADER_ENDS) or full.startswith(CODE_MODULES):
                yield f"{where} {full}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EVALUATORS:
            yield f"{where} {node.func.id}("
        if isinstance(node, ast.keyword) and node.arg in OPENERS and ast.unparse(node.value) != "False":
            yield f"{where} {node.arg}"


def named(node: ast.Attribute) -> str:
    return ast.unparse(node)


def kinds_of_task(source: Source) -> Iterator[str]:
    """Names of kinds of task: what differs between them belongs to ``tasks/``, the user's option to the schema."""
    if source.home == "tasks" or source.at in KINDS_AT:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and node.value in KINDS:
            yield f"{source.at}:{node.lineno} tells kinds of task apart by {node.value!r}"


def names(source: Source) -> Iterator[str]:
    if set(source.at.removesuffix(".py").split("/")) & FORBIDDEN_NAMES:
        yield f"{source.at}:1 a name that says nothing"


def unfinished(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if any(f"# {word}" in line for word in ("TODO", "FIXME", "XXX", "HACK")):
            yield f"{source.at}:{number} unfinished work"


FRAGMENTS = ("Of ", "Those ", "See ", "By ", "For each ", "In the ", "That ", "As ``")


RULES: list[Callable[[Source], Iterator[str]]] = [
    import_order, light_top, sizes, signatures, docstrings, broad_except, pickles, kinds_of_task, names, unfinished,
]  # fmt: skip


def is_participle(word: str) -> bool:
    return word in PARTICIPLES or (word.endswith("ed") and word not in NO_PARTICIPLES)


def participles(source: Source) -> Iterator[tuple[str, bool]]:
    """Each function that a participle names, and whether it begins with it; a property may, and so may ``is_known``."""
    for function, _ in functions(source.tree):
        words = function.name.strip("_").split("_")
        is_property = any("property" in ast.dump(decorator) for decorator in function.decorator_list)
        if not is_property and words[0] not in ASKS and (is_participle(words[0]) or is_participle(words[-1])):
            yield f"{source.at}:{function.lineno} {function.name}", is_participle(words[0])


def cycles(files: list[Source]) -> list[str]:
    """Modules that import one another in a ring, imports inside functions included."""
    modules = {source.module for source in files}
    graph = {}
    for source in files:
        targets = [target for node in ast.walk(source.tree) for target in imported(node)]
        nearest = [target if target in modules else target.rpartition(".")[0] for target in targets]
        graph[source.module] = {target for target in nearest if target in modules and target != source.module}
    found = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph[module]):
                visit(target, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Source], Iterator[str]]) -> None:
    assert [line for source in sources(PACKAGE) for line in rule(source)] == []


@pytest.mark.parametrize("folder", [PACKAGE, ROOT / "benchmarks"], ids=lambda folder: folder.name)
def test_no_modules_import_one_another_in_a_ring(folder: Path) -> None:
    assert len(sources(folder)) > 30
    assert cycles(sources(folder)) == []


def test_benchmarks_build_on_tests_and_tests_not_on_benchmarks() -> None:
    """What a quick test and a long benchmark share stands in tests/reliability; the package knows neither.

    The one file that tests the benchmarks' pages imports what makes them.
    """
    found = [
        f"{folder}/{source.at}: {target}"
        for folder, forbidden in (("tests", ("benchmarks",)), ("src/headstart", ("benchmarks", "tests")))
        for source in sources(ROOT / folder)
        for node in ast.walk(source.tree)
        for target in imported(node)
        if target.partition(".")[0] in forbidden and source.at != "test_benchmark_pages.py"
    ]
    assert found == []


def test_functions_are_named_by_verbs() -> None:
    files = sources(PACKAGE)
    found = [row for source in files for row in participles(source)]
    count = sum(1 for source in files for _ in functions(source.tree))
    assert [line for line, is_first in found if is_first] == [], (
        "begin with what the function does: pad_rows, not padded"
    )
    assert len(found) <= 0.04 * count, f"{len(found)} of {count} functions end with a participle: {found}"


def test_a_participle_is_seen(tmp_path: Path) -> None:
    bodies = (
        "def padded(): ...",
        "def is_padded(): ...",
        "def load_covered(): ...",
        "def pad_rows(): ...",
        "def _kept(): ...",
    )
    prop = "class A:\n    @property\n    def written(self): ...\n    def seed(self): ...\n"
    (tmp_path / "a.py").write_text("\n".join(bodies) + "\n" + prop)
    (source,) = sources(tmp_path)
    expected = [("a.py:1 padded", True), ("a.py:3 load_covered", False), ("a.py:5 _kept", True)]
    assert list(participles(source)) == expected


def test_ratio_of_test_lines_is_reported(record_property: Callable[[str, object], None]) -> None:
    count = {
        folder: sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py"))
        for folder in ("src", "tests")
    }
    assert count["src"] > 0
    record_property("test_lines_per_source_line", round(count["tests"] / count["src"], 2))
    print(f"test lines per source line: {count['tests'] / count['src']:.2f}")


DEEP = """def deep(x: int) -> int:
    '''D.'''
    if x:
        for _ in (1,):
            with x:
                while x:
                    pass
    return x
"""
MANY = """def f(*, a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> None:
    '''F.'''
"""
CHAIN = """def f(x: int) -> None:
    if x == 1:
        pass
    elif x == 2:
        pass
    elif x == 3:
        pass
    else:
        if x:
            pass
"""
SIDEWAYS = """def f() -> None:
    '''F.'''
    import ft.training.step
"""
LONG = "def long() -> None:\n    '''L.'''\n" + "    pass\n" * 70
BAD = {  # rule: (file, text, what it finds)
    "import_order": ("models/head.py", '"""M."""\nfrom ft.data.split import y\n', "models imports data"),
    "import_order sideways": ("reports/x.py", '"""M."""\n' + SIDEWAYS, "reports imports training"),
    "import_order unknown": ("extra.py", '"""M."""\n', "extra has no row"),
    "import_order relative": ("data/y.py", '"""M."""\nfrom . import x\n', "a relative import"),
    "light_top": ("config/io.py", '"""M."""\nimport torch.nn\n', "imports torch.nn at the top"),
    "sizes": ("training/long.py", '"""M."""\n' + LONG, "long has 72 lines"),
    "sizes file": ("training/file.py", '"""M."""\n' + "x = 1\n" * 500, "501 lines"),
    "sizes nesting": ("training/deep.py", '"""M."""\n' + DEEP, "deep nests 4 deep"),
    "sizes parameters": ("training/many.py", '"""M."""\n' + MANY, "7 parameters"),
    "signatures": ("training/bare.py", '"""M."""\ndef f(a) -> None:\n    """F."""\n', "lacks annotations: a"),
    "signatures kwargs": ("training/kw.py", '"""M."""\ndef f(**options: int) -> None:\n    """F."""\n', "takes **options"),  # noqa: E501
    "docstrings": ("training/doc.py", '"""M."""\nclass A:\n    """A."""\n    def f(self) -> None: pass\n', "f has no docstring"),  # noqa: E501
    "docstrings fragment": ("training/of.py", '"""M."""\ndef _f() -> None:\n    """Of a step."""\n', "a fragment"),
    "broad_except": ("runs/e.py", '"""M."""\ntry:\n    pass\nexcept (ValueError, Exception):\n    pass\n', "a broad except"),  # noqa: E501
    "pickles": ("runs/p.py", '"""M."""\nimport torch\nx = torch.load("f")\n', "torch.load"),
    "pickles import": ("runs/q.py", '"""M."""\nfrom pickle import loads\n', "imports a pickle library"),
    "pickles checkpoint": ("runs/q.py", '"""M."""\nimport torch.distributed.checkpoint as dcp\n', "loader of programs"),
    "pickles of a module": ("runs/q.py", '"""M."""\nfrom torch import hub\n', "torch.hub"),
    "pickles name": ("runs/q.py", '"""M."""\nfrom torch import load\n', "torch.load"),
    "pickles jit": ("runs/q.py", '"""M."""\nx = torch.jit.load("f")\n', "torch.jit.load"),
    "pickles hub": ("models/q.py", '"""M."""\nx = torch.hub.load_state_dict_from_url("u")\n', "torch.hub.load_state"),
    "pickles torchvision": ("models/q.py", '"""M."""\nx = weights.get_state_dict()\n', "get_state_dict"),
    "pickles yaml": ("config/q.py", '"""M."""\nx = yaml.load(text, yaml.SafeLoader)\n', "yaml.load"),
    "pickles loader": ("config/q.py", '"""M."""\nx = yaml.parse(text, Loader=yaml.FullLoader)\n', "yaml.FullLoader"),
    "pickles numpy": ("data/q.py", '"""M."""\nx = np.load("f", allow_pickle=True)\n', "allow_pickle"),
    "pickles eval": ("config/q.py", '"""M."""\nx = eval("1")\n', "eval("),
    "pickles exec": ("config/q.py", '"""M."""\nexec("1")\n', "exec("),
    "pickles system": ("runs/q.py", '"""M."""\nos.system("ls")\n', "os.system"),
    "pickles shell": ("runs/q.py", '"""M."""\nsubprocess.run("ls", shell=True)\n', "shell"),
    "kinds_of_task": ("training/k.py", '"""M."""\nx = task == "regress"\n', "apart by 'regress'"),
    "names": ("data/utils.py", '"""M."""\n', "a name that says nothing"),
    "unfinished": ("data/t.py", '"""M."""\n# TODO later\n', "unfinished work"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_planted_breach_is_found_by_its_rule_and_no_other(case: str, tmp_path: Path) -> None:
    at, text, expected = BAD[case]
    path = tmp_path / "ft" / at
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = {rule.__name__: list(rule(source)) for rule in RULES for source in sources(tmp_path / "ft")}
    assert [name for name, lines in found.items() if lines] == [case.partition(" ")[0]]
    assert expected in found[case.partition(" ")[0]][0]


def test_a_ring_of_imports_is_found(tmp_path: Path) -> None:
    package = tmp_path / "ft"
    package.mkdir()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (package / f"{name}.py").write_text(f"from ft.{other} import x\n")
    assert cycles(sources(package)) == ["ft.a -> ft.b -> ft.c -> ft.a"]


def test_elif_is_no_deeper_than_its_if() -> None:
    function = ast.parse(CHAIN).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert nesting(function.body) == 2


def test_a_long_docstring_does_not_make_a_function_long(tmp_path: Path) -> None:
    package = tmp_path / "ft"
    package.mkdir()
    body = "    pass\n" * 57
    (package / "told.py").write_text(f'def told() -> None:\n    """T.\n{chr(10) * 40}    """\n{body}')
    (source,) = sources(package)
    assert list(sizes(source)) == []
    (package / "told.py").write_text(source.text + "    pass\n" * 3)
    assert list(sizes(*sources(package))) == ["told.py:1 told has 62 lines; 60 at most"]
