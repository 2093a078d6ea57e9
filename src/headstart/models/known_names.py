"""Which models timm and torchvision have, read from their source files: an answer before they are imported."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from headstart.errors import ModelError
from headstart.models.spec import ModelSpec, TimmSpec, TorchvisionSpec

_REGISTERED = {
    "timm": re.compile(r"@register_model\s*\ndef (\w+)\("),
    "torchvision": re.compile(r"@register_model\([^)]*\)\s*\n(?:@[^\n]*\n)*def (\w+)\("),
}
_FEWEST = 50  # with less, the files are written otherwise, and nothing is said


def refuse_unknown(spec: ModelSpec) -> None:
    """Raises: ModelError: no model of timm or torchvision has this name, as far as their files tell."""
    library = {TimmSpec: "timm", TorchvisionSpec: "torchvision"}.get(type(spec))
    if library is None:
        return
    assert isinstance(spec, TimmSpec | TorchvisionSpec), spec
    bare = spec.name.partition(".")[0]
    text = _read_sources(library)
    names = _REGISTERED[library].findall(text)
    if len(names) < _FEWEST or bare in names or re.search(rf"[\"']{re.escape(bare)}[\"']", text):
        return  # the last: an old name, which timm still takes
    raise ModelError(explain_unknown(library, bare, names))


def explain_unknown(library: str, name: str, names: Collection[str]) -> str:
    """The sentence for a name that the library has not, with near ones."""
    what = "model" if library == "timm" else "classification model"
    return f"{library} has no {what} {name!r}; {list_near(name, names, f'{library}/')}"


def list_near(name: str, names: Collection[str], prefix: str) -> str:
    """Names that were probably meant, as a question, or where all are listed."""
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(prefix + found for found in near) + "?"
    return "the names are listed by: headstart models"


@cache
def _read_sources(library: str) -> str:
    """The text of the library's files of models; empty where they are not found."""
    found = find_spec(library)
    folder = Path(found.origin).parent / "models" if found is not None and found.origin else None
    files = sorted(folder.glob("*.py")) if folder is not None and folder.is_dir() else []
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
