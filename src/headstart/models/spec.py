"""A model spec as text, and what it names. No torch here: the command line parses specs before anything heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from headstart.config.home import expand_home
from headstart.errors import ModelError
from headstart.wording import option

ACCEPTED = (
    "a model is one of: timm/NAME or timm/NAME.TAG, torchvision/NAME or torchvision/NAME.TAG, hf-hub:ORG/NAME, "
    "a folder with config.json and model.safetensors (or a run folder), starter"
)
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class TimmSpec:
    """A model of timm's registry, with or without the tag of its weights."""

    name: str

    def __str__(self) -> str:
        return f"timm/{self.name}"


@dataclass(frozen=True)
class TorchvisionSpec:
    """A classification model of torchvision, with or without the tag of its weights."""

    name: str

    def __str__(self) -> str:
        return f"torchvision/{self.name}"


@dataclass(frozen=True)
class HubSpec:
    """A timm model in a repository of the Hugging Face hub, ORG/NAME or ORG/NAME@REVISION."""

    repo: str

    def __str__(self) -> str:
        return f"hf-hub:{self.repo}"


@dataclass(frozen=True)
class FolderSpec:
    """A folder: timm's local-dir layout, a headstart bundle, or a run that holds one."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class StarterSpec:
    """The small pretrained backbone inside the package."""

    def __str__(self) -> str:
        return "starter"


ModelSpec = TimmSpec | TorchvisionSpec | HubSpec | FolderSpec | StarterSpec


def parse_spec(text: str) -> ModelSpec:
    """What ``text`` names; whether it exists is found out when it is opened.

    Raises: ModelError: the text has none of the accepted forms.
    """
    if text == "starter":
        return StarterSpec()
    if text.startswith("hf-hub:"):
        return HubSpec(
            _match_form(_REPO, text.removeprefix("hf-hub:"), text, "hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION")
        )
    if text.startswith("timm/"):
        return TimmSpec(_match_form(_NAME, text.removeprefix("timm/"), text, "timm/NAME or timm/NAME.TAG"))
    if text.startswith("torchvision/"):
        name = _match_form(_NAME, text.removeprefix("torchvision/"), text, "torchvision/NAME or torchvision/NAME.TAG")
        return TorchvisionSpec(name)
    return _folder(text)


def _match_form(pattern: re.Pattern[str], name: str, text: str, form: str) -> str:
    if not pattern.fullmatch(name):
        raise ModelError(f"model {text!r}: expected {form}; {ACCEPTED}")
    return name


def _folder(text: str) -> FolderSpec:
    path = expand_home(text)
    if text and path.is_dir():
        return FolderSpec(path)
    if path.is_file():
        raise ModelError(
            f"model {text!r} is a file; name the architecture as the model and give the file as its weights, e.g. "
            f"{option('model', 'timm/resnet50')} {option('weights', text)}"
        )
    if re.fullmatch(r"[A-Za-z0-9_.]+", text) and not text.startswith("."):
        raise ModelError(
            f"model {text!r} does not say where it comes from: write timm/{text} or torchvision/{text}; {ACCEPTED}"
        )
    if text.startswith(("/", ".", "~")) or text.endswith("/"):
        raise ModelError(f"model {text!r}: there is no such folder; {ACCEPTED}")
    if _REPO.fullmatch(text):
        raise ModelError(
            f"model {text!r}: there is no such folder; on the Hugging Face hub it would be hf-hub:{text}; {ACCEPTED}"
        )
    raise ModelError(f"model {text!r} has none of the accepted forms; {ACCEPTED}")
