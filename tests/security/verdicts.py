"""What is wrong with the result of one command on one artefact; the tests and the benchmark read results by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Result = Mapping[str, Any]
LONGEST = 3000  # characters of a refusal


def executed(result: Result) -> bool:
    """Code of the artefact ran, or somebody was contacted."""
    return bool(result["executed"] or result["marks"])


def wrote_outside(result: Result) -> bool:
    """A file outside the artefact's own folder was made, changed or removed."""
    return bool(result["outside"] or result["changed"])


def wrong_code(result: Result) -> bool:
    """Not refused, or with another exit code than the user's mistakes and storage have."""
    return result["hung"] or result["code"] not in result["codes"]


def not_one_clear_message(result: Result) -> bool:
    """A traceback, nothing, a flood, or the advice to load unsafely."""
    said = result["err"]
    if any(word in said for word in ("Traceback", "bug in headstart", "ESCAPED", "weights_only", "\x1b")):
        return True
    return result["code"] != 0 and not (
        0 < len(said) < LONGEST and "headstart: " in said + "headstart: " * ("rror" in said)
    )


def untold(result: Result) -> bool:
    """The words that the message must have are missing."""
    return bool(result["told"]) and not re.search(result["told"], result["err"] + result["out"])


LAWS: dict[str, Callable[[Result], bool]] = {
    "executed": executed, "wrote outside": wrote_outside, "wrong exit code": wrong_code,
    "no clear message": not_one_clear_message, "not named": untold,
}  # fmt: skip
