"""Which model is trained, opened with its weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from headstart.config.schema import Config
from headstart.config.sizes import read_size
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.models.preprocess import Preprocess
from headstart.models.sizes import refuse_size
from headstart.models.sources import OpenedModel, open_model
from headstart.planning.began import about_weights, began_with, name_weights_by_digest
from headstart.planning.draft import Draft
from headstart.planning.own_module import copy_own
from headstart.surgery.generators import seed_generators
from headstart.surgery.module_copy import InPlace
from headstart.wording import option

CPU_MODEL = "timm/mobilenetv3_large_100.ra_in1k"
GPU_MODEL = "timm/convnext_tiny.in12k_ft_in1k"


def choose_model(draft: Draft) -> Draft:
    """The draft with the model opened, and with what the run begins with.

    Raises: ConfigError, ModelError: there is no such model, or its weights cannot be had.
    """
    opened, chosen = _open(draft)
    if draft.own_module is None and (draft.config.model.image_size != "auto" or draft.config.model.options):
        refuse_size(opened)
    shape = opened.preprocess
    began = began_with(opened, own=draft.own_module is not None, loss=draft.own_loss, transforms=draft.own.transforms)
    draft = draft.record("began", began)
    draft = draft.decide(
        chosen,
        Decision("weights", opened.weights.where, about_weights(opened)),
        Decision("image size", _format_size(shape), shape.source),
    )
    return replace(draft, opened=opened)


def _format_size(shape: Preprocess) -> str:
    named = "" if shape.height == shape.width else " (height x width)"
    return f"{shape.height} x {shape.width}{named}"


def name_model(config: Config, device: torch.device) -> tuple[str, Decision]:
    """The model's name: what was asked for, or by device a light or a stronger one."""
    if config.model.name != "auto":
        return config.model.name, Decision("model", config.model.name, "as asked")
    if device.type == "cpu":
        why = f"auto: light enough for a CPU (75.8 % ImageNet top-1); {option('model')} names another"
        return CPU_MODEL, Decision("model", CPU_MODEL, why)
    why = f"auto: an accelerator carries a stronger one (84.2 % ImageNet top-1); {option('model')} names another"
    return GPU_MODEL, Decision("model", GPU_MODEL, why)


def _open(draft: Draft) -> tuple[OpenedModel, Decision]:
    model, module = draft.config.model, draft.own_module
    size = read_size(model.image_size)
    given = None if model.preprocess == "auto" else model.preprocess
    seed_generators(draft.config.seed)  # random weights are a function of the seed
    if module is not None:
        if not isinstance(module, nn.Module | InPlace):
            raise ConfigError(f"model: {module!r} is no module; give an instance of nn.Module, e.g. model=Net()")
        opened = name_weights_by_digest(open_model(copy_own(module), image_size=size, preprocess=given))
        _refuse_two_models(draft.config, opened)
        return opened, Decision("model", opened.spec, "the module as given")
    name, decision = name_model(draft.config, draft.device)
    opened = open_model(
        name, weights=model.weights, weights_part=model.weights_part, image_size=size, preprocess=given,
        options=model.options,
    )  # fmt: skip
    return opened, decision


def _refuse_two_models(config: Config, opened: OpenedModel) -> None:
    """Raises: ConfigError: the section ``model`` names another model, or what only a named one has a use for."""
    model = config.model
    if model.weights not in ("pretrained", "none"):
        raise ConfigError(
            f"model.weights: a module was given, and {model.weights} is not loaded into it; load it first, e.g. "
            f"model=hs.open_model(module, weights={model.weights!r}).module, and leave model.weights out"
        )
    if model.name not in ("auto", opened.spec):
        raise ConfigError(
            f"model.name: {model.name} is named, and a module was given ({opened.spec}): which one is trained is not "
            f"clear; to train the module leave model.name out, to train {model.name} leave model=... out of the call"
        )
    if model.options:
        raise ConfigError(
            f"model.options: a module was given ({opened.spec}), which is made already, so that {model.options} would "
            "change nothing; make it with them, and leave model.options out"
        )
