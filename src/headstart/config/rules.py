"""Freeze rules as people type them (``until:layer3``) and as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge
from pydantic import Field

from headstart.errors import ConfigError

_ALL = ("all", "true", "yes", "body", "base", "encoder", "features", "everything", "all_but_head")
_LAYER = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\d|\.\w+)")  # layer2, blocks.3, features.denseblock4
WORDS = ("none", "backbone", "conv", "norm")
ACCEPTED = "none, backbone, conv, norm, except:bias, except:norm, except:lora, until:NAME, stages:N or names:GLOB,..."


@dataclass(frozen=True, kw_only=True)
class Until:
    """Freeze everything that executes up to and including this module or stage."""

    until: str


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Freeze the first N stages in execution order."""

    stages: Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class Names:
    """Freeze parameters and modules whose names match one of the globs."""

    names: Annotated[tuple[str, ...], Field(min_length=1)]


PeftKind = Literal["bias", "norm", "lora"]


@dataclass(frozen=True, kw_only=True)
class But:
    """Freeze everything but the head and the biases, the norms, or the LoRA adapters.

    Written ``except:KIND``; the field has the word's first form, which is in the digests of runs, and is read as well.
    """

    but: PeftKind


FreezeRule = Literal["none", "backbone", "conv", "norm"] | Until | Stages | Names | But
NormStatistics = Literal["batch", "frozen"]


def freeze_rule(value: object) -> FreezeRule:
    """A freeze rule from its text or its mapping form.

    Raises: ConfigError: it is no rule.
    """
    if isinstance(value, Until | Stages | Names | But):
        value = dict(vars(value))
    if isinstance(value, str):
        if value.lower() in WORDS:
            return value.lower()  # type: ignore[return-value]
        name, colon, rest = value.partition(":")
        value = {name.strip(): rest.strip()} if colon else value
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError(f"{_format_value(value)} is no freeze rule; give {ACCEPTED}{_hint(value)}")
    ((name, argument),) = value.items()
    if name == "until" and isinstance(argument, str) and argument:
        return Until(until=argument)
    if name == "stages" and _whole(argument):
        return Stages(stages=int(argument))
    if name == "names" and (globs := _globs(argument)):
        return Names(names=globs)
    if name in ("except", "but") and argument in get_args(PeftKind):
        return But(but=argument)
    raise ConfigError(f"{_format_value(value)} is no freeze rule; give {ACCEPTED}{_hint(value)}")


def freeze_text(rule: FreezeRule) -> str:
    """A freeze rule as ``freeze_rule`` reads it, e.g. ``until:layer3``."""
    match rule:
        case Until(until=name):
            return f"until:{name}"
        case Stages(stages=count):
            return f"stages:{count}"
        case Names(names=globs):
            return "names:" + ",".join(globs)
        case But(but=kind):
            return f"except:{kind}"
    return rule


def _hint(value: object) -> str:
    """What was probably meant: a number of stages, a layer, everything but the head."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if value is True or text.lower() in _ALL:
        return " (backbone freezes all but the head)"
    if value is False or text.lower() in ("false", "no", "nothing", "0"):
        return " (none freezes nothing)"
    if text.isascii() and text.isdigit():
        return f" (stages:{text} freezes the first {text} stages)"
    if _LAYER.fullmatch(text):
        return f" (until:{text} freezes all up to it, names:{text}.* it alone)"
    return ""


def _whole(argument: object) -> bool:
    if isinstance(argument, str):
        return argument.isascii() and argument.isdigit() and len(argument) < 9 and int(argument) > 0
    return isinstance(argument, int) and not isinstance(argument, bool) and argument > 0


def _globs(argument: object) -> tuple[str, ...]:
    if isinstance(argument, str):
        return tuple(part.strip() for part in argument.split(",") if part.strip())
    if isinstance(argument, list | tuple) and all(isinstance(part, str) and part for part in argument):
        return tuple(argument)
    return ()


def _format_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items())[:80] + "}"
    return repr(value)[:80]
