"""The reference pages that the package itself tells: its public Python names, and what each command's --help prints."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import typing

import headstart
from headstart.cli.main import VERBS

WIDTH = "100"  # columns of a command's help
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):\s*$")
ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:, [\w.]+)*)(?: \([^)]*\))?:")


def python_page() -> str:
    """Every public name: its signature and docstring."""
    parts = ["# Python\n\nAll public names of `headstart`, from their docstrings. `import headstart as hs`.\n"]
    return "\n".join([*parts, *map(describe_name, headstart.__all__)])


def commands_page() -> str:
    """What every command's --help prints."""
    parts = ["# Commands\n\n```text\n" + show_help([]) + "```\n"]
    parts += [f"## {verb}\n\n```text\n{show_help([verb])}```\n" for verb in VERBS]
    return "\n".join(parts)


def show_help(words: list[str]) -> str:
    """``headstart [words] --help``, as it is printed."""
    command = [sys.executable, "-m", "headstart", *words, "--help"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": WIDTH})
    return "".join(f"{line.rstrip()}\n" for line in printed.stdout.strip("\n").splitlines())


def describe_name(name: str) -> str:
    """A section of the page: heading, signature, docstring."""
    value = getattr(headstart, name)
    if kinds := typing.get_args(value):
        return f"## {name}\n\nAny of {', '.join(f'`{kind.__name__}`' for kind in kinds)}: a union of types.\n"
    forms = typing.get_overloads(value) if inspect.isfunction(value) else []
    signatures = "\n".join(write_signature(name, form) for form in forms or [value])
    return f"## {name}\n\n```python\n{signatures}\n```\n\n{to_markdown(inspect.getdoc(value) or '')}\n"


def write_signature(name: str, value: object) -> str:
    """The call, one argument to a line where it is long; an address in a default is left out."""
    word = "class " if inspect.isclass(value) else ""
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except ValueError:  # an exception's, which is C code's
        return f"{word}{name}"
    parameters = [
        re.sub(r"<(?:[\w.]+\.)?(\w+) object at 0x\w+>", r"\1()", text) for text in _list_parameters(signature)
    ]
    ends = f" -> {_unquote(signature.return_annotation)}" if not word else ""
    flat = f"{word}{name}({', '.join(parameters)}){ends}"
    if len(flat) <= 100:
        return flat
    return f"{word}{name}(\n" + "".join(f"    {text},\n" for text in parameters) + f"){ends}"


def to_markdown(text: str) -> str:
    """A docstring as Markdown: its sections as lists, its examples as code."""
    lines = list[str]()
    section = ""
    for paragraph in re.split(r"\n\s*\n", text.replace("``", "`")):
        first, _, rest = paragraph.partition("\n")
        if found := SECTION.match(first):
            section = found[1]
            lines += [f"**{section}**", ""]
            paragraph = rest
        elif not paragraph.startswith(" "):
            section = ""
        if paragraph.lstrip().startswith(">>>"):
            lines += ["```pycon", inspect.cleandoc("\n" + paragraph.replace("  # doctest: +SKIP", "")), "```", ""]
        elif section in ("Returns", "Yields"):
            lines += [inspect.cleandoc("\n" + paragraph), ""]
        elif section and section not in ("Example", "Examples"):
            lines += [*_list_entries(paragraph), ""]
        else:
            lines += [re.sub(r"(^|  )Raises: ", r"\1**Raises** ", paragraph), ""]
    return "\n".join(lines)


def _list_entries(block: str) -> list[str]:
    """``name: text`` and its deeper lines, each as an item."""
    entries = list[str]()
    for line in inspect.cleandoc("\n" + block).splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        else:
            if found := ENTRY.match(line):
                line = ", ".join(f"`{name}`" for name in found[1].split(", ")) + line[found.end(1) :]
            entries.append(f"- {line}")
    return entries


def _list_parameters(signature: inspect.Signature) -> list[str]:
    texts = list[str]()
    star = False
    for item in signature.parameters.values():
        star |= item.kind is item.VAR_POSITIONAL
        if item.kind is item.KEYWORD_ONLY and not star:
            texts.append("*")
            star = True
        text = str(item.replace(annotation=item.empty, default=item.empty))
        text += "" if item.annotation is item.empty else f": {_unquote(item.annotation)}"
        default = "..." if repr(item.default) in ("<factory>", "Ellipsis") else repr(item.default)
        texts.append(text if item.default is item.empty else f"{text} = {default}")
    return texts


def _unquote(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
