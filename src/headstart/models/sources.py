"""From a model spec to a module with its weights, its preprocessing, and a count of what was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import timm
from torch import Tensor, nn

from headstart.config.home import expand_home
from headstart.config.schema import ImageFormat
from headstart.config.sizes import format_size, read_size
from headstart.errors import ModelError
from headstart.isolation import own_arithmetic
from headstart.models.factory import (
    Architecture,
    build,
    check_options,
    head_tensors,
    sketch,
    state_filter,
    takes_option,
)
from headstart.models.folder import (
    CONFIG,
    MOST_OUTPUTS,
    WEIGHTS,
    Bundle,
    model_folder,
    parse_json,
    read_architecture,
    read_bundle,
)
from headstart.models.hugging_face import count_labels, is_transformers, read_transformers_format
from headstart.models.opened import OpenedModel, WeightsSource
from headstart.models.origins import Origin, find_origin, torchvision_names
from headstart.models.prefixes import Names, fit_names
from headstart.models.preprocess import Preprocess, adjust_preprocess, from_pretrained_cfg, imagenet_preprocess
from headstart.models.sizes import Size, set_image_size, size_option
from headstart.models.spec import FolderSpec, parse_spec
from headstart.models.weights import (
    Coverage,
    TensorFile,
    cover,
    list_names,
    load_by_coverage,
    read_safetensors,
    read_weights,
    refuse_format,
    refuse_memory,
)
from headstart.surgery.head import head_parameters, replace_head
from headstart.surgery.outputs import declare_scores
from headstart.surgery.own_state import read_saved_tensors
from headstart.surgery.whole_module import refuse_lazy, refuse_repeating, refuse_wrapped
from headstart.wording import option

__all__ = ["Coverage", "OpenedModel", "WeightsSource", "open_model"]


@dataclass(frozen=True)
class _Chosen:
    """The weights that were asked for: pretrained, none or a file; and which part of the file."""

    weights: str
    weights_part: str


def open_model(
    spec: str | nn.Module,
    *,
    weights: str = "pretrained",
    weights_part: str = "auto",
    image_size: int | str | tuple[int, int] | None = None,
    preprocess: ImageFormat | None = None,
    options: Mapping[str, object] | None = None,
) -> OpenedModel:
    """Return the model that ``spec`` names, or facts about a module as it is.

    Args:
        ``spec``: A name such as ``timm/resnet50.a1_in1k``, ``torchvision/resnet50`` or ``hf-hub:timm/...``, a folder, a
            run, or a module of your own.
        ``weights``: Which weights are loaded: pretrained, none (random ones, drawn from torch's global generator: seed
            it), or the path of a local file, such as a training script's checkpoint.
        ``weights_part``: Which of a file's weights are meant: auto (an average where there is one), averaged, raw, or
            a key of the file or a prefix of its names.
        ``image_size``: Pixels per side, or (height, width); None takes the size that the weights were evaluated at.
        ``preprocess``: The mean, standard deviation and framing of the images where the weights do not tell them.
        ``options``: Options of the architecture, as its library names them.

    Returns:
        The ``module`` on the CPU in float32 with its head as it was, its ``preprocess``, ``num_outputs``, ``weights``
        and the ``coverage`` of the weights that were loaded.

    Raises:
        ModelError: The name or an option is unknown, or the weights do not fit, cannot be had, or do not match their
            hash.

    Example:
        >>> import headstart as hs
        >>> opened = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]})
        >>> opened.library, opened.num_outputs, opened.preprocess.height
        ('timm', 1000, 224)
    """
    options, size = dict(options or {}), read_size(image_size)
    if weights not in ("pretrained", "none"):
        refuse_format(expand_home(weights))
    elif weights_part != "auto":
        raise ModelError(
            f"model.weights_part: {weights_part} is of weights from a file, and model.weights is {weights}; leave it "
            f"out, or name the file, e.g. {option('weights', 'last.pth')}"
        )
    chosen = _Chosen(weights, weights_part)
    with own_arithmetic():
        if isinstance(spec, nn.Module):
            refuse_wrapped(spec)
            refuse_lazy(spec)
            refuse_repeating(spec)
            return _open_own(spec, chosen, image_size=size, preprocess=preprocess, options=options)
        return _open_named(spec, chosen, image_size=size, preprocess=preprocess, options=options)


def _open_named(
    spec: str, chosen: _Chosen, *, image_size: Size | None, preprocess: ImageFormat | None, options: dict[str, object]
) -> OpenedModel:
    weights = chosen.weights
    parsed = parse_spec(spec)
    if isinstance(parsed, FolderSpec):
        parsed = FolderSpec(model_folder(parsed.path))
        bundle = read_bundle(parsed.path)
        if bundle is not None:
            if options:
                raise ModelError(
                    f"model.options: {parsed.path} is a headstart bundle, whose architecture is fixed; drop them"
                )
            opened = _open_bundle(bundle, chosen, image_size=image_size)
            return replace(
                opened, preprocess=adjust_preprocess(opened.preprocess, image_size=image_size, given=preprocess)
            )
    origin = find_origin(parsed, weights=weights, options=options)
    check_options(origin.architecture, outputs=origin.outputs, given=options)
    origin = set_image_size(origin, image_size=image_size, options=options)
    if weights == "pretrained" and origin.pretrained is None:
        raise ModelError(
            f"{origin.spec} has no pretrained weights; choose another model, {option('weights', 'none')} or "
            f"{option('weights', fill='FILE')}"
        )
    opened = _open_origin(origin, chosen)
    return replace(opened, preprocess=adjust_preprocess(opened.preprocess, image_size=image_size, given=preprocess))


def _open_origin(origin: Origin, chosen: _Chosen) -> OpenedModel:
    refuse_memory(_bytes(sketch(origin.architecture, outputs=origin.outputs)), what=f"{origin.spec}")
    file, source = _read(origin, chosen)
    if file is None:
        outputs, module = origin.outputs, build(origin.architecture, outputs=origin.outputs)
        coverage = Coverage(loaded=0, total=len(module.state_dict()))
    else:
        names, (outputs, found, coverage) = _fit_file(origin, file, where=source.where)
        module = build(origin.architecture, outputs=outputs)
        load_by_coverage(module, found, coverage)
        coverage = _tell_names(coverage, names, file, *_explain_adapted(names.tensors, found))
    return OpenedModel(
        module=module,
        spec=origin.spec,
        library=origin.architecture.library,
        architecture=origin.architecture.name,
        options=dict(origin.architecture.options),
        num_outputs=outputs,
        preprocess=origin.preprocess,
        coverage=coverage,
        weights=source,
    )


def _read(origin: Origin, chosen: _Chosen) -> tuple[TensorFile | None, WeightsSource]:
    weights = chosen.weights
    if weights == "none":
        return None, WeightsSource("none", "random", None, None)
    if weights == "pretrained":
        assert origin.pretrained is not None, origin.spec
        file = origin.pretrained.read()
        return file, WeightsSource("pretrained", origin.pretrained.where, file.sha256, origin.pretrained.licence)
    file = read_weights(expand_home(weights), weights_part=chosen.weights_part)
    return file, WeightsSource("file", str(expand_home(weights)), file.sha256, None)


def _fit_file(
    origin: Origin, file: TensorFile, *, where: str
) -> tuple[Names, tuple[int, Mapping[str, Tensor], Coverage]]:
    """The file's tensors under the prefix that is right, and what ``_fit_tensors`` gives for them."""
    plan = sketch(origin.architecture, outputs=origin.outputs)
    return fit_names(
        file.tensors,
        expected=plan.state_dict(),
        fit=lambda tensors: _fit_tensors(origin, tensors, plan=plan, where=where),
        wanted=file.wanted,
        where=where,
    )


def _tell_names(coverage: Coverage, names: Names, file: TensorFile, *notes: str) -> Coverage:
    """The coverage with what was done to the file's names, and with the names that are not below its prefix."""
    unexpected = (*coverage.unexpected, *names.beside)
    return replace(coverage, unexpected=unexpected, notes=(*file.notes, *names.notes, *notes))


def _fit_tensors(
    origin: Origin, tensors: Mapping[str, Tensor], *, plan: nn.Module, where: str
) -> tuple[int, Mapping[str, Tensor], Coverage]:
    """The number of classes that the tensors have, the tensors under the model's names, and how they cover it.

    ``plan``: the model on meta.
    """
    architecture, outputs = origin.architecture, origin.outputs
    found = state_filter(architecture, outputs=outputs, module=plan)(tensors)
    expected = plan.state_dict()
    if any(name in found and found[name].shape != value.shape for name, value in expected.items()):
        heads = head_tensors(architecture, outputs=outputs)
        rows = {len(found[name]) for name in heads if name in found and found[name].ndim}
        if len(rows) == 1 and rows != {outputs}:
            outputs = rows.pop()
            plan = sketch(architecture, outputs=outputs)
            found = state_filter(architecture, outputs=outputs, module=plan)(tensors)
    coverage = cover(plan.state_dict(), found, heads=lambda: head_tensors(architecture, outputs=outputs), where=where)
    return outputs, found, coverage


def _explain_adapted(published: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = [name for name in found if name in published and published[name].shape != found[name].shape]
    return (f"{len(names)} fitted to the model's input: {list_names(names, 3)}",) if names else ()


def _bytes(module: nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in module.parameters())


def _open_bundle(bundle: Bundle, chosen: _Chosen, *, image_size: Size | None) -> OpenedModel:
    where, facts = str(bundle.path / "headstart.json"), bundle.facts
    try:
        architecture = _bundle_architecture(bundle, where=where)
        outputs, head = int(facts["model"]["num_outputs"]), facts["head"]
        recipe: dict[str, Any] = {
            "outputs": int(head["now"]),
            "hidden": tuple(int(size) for size in head.get("hidden") or ()),
            "activation": str(head.get("activation") or "relu"),
            "dropout": float(head.get("dropout") or 0.0),
            "at": str(head.get("at") or "auto"),
        }
        scores = head.get("scores", "auto")
        if not isinstance(scores, str | int):
            raise ValueError(f"head.scores is {scores}")
        preprocess = Preprocess.from_dict(facts["preprocess"])
        if not 0 < outputs <= MOST_OUTPUTS:
            raise ValueError(f"num_outputs is {outputs}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{where}: {type(error).__name__} {error}; not a bundle that this headstart wrote") from error
    trained = (preprocess.height, preprocess.width)
    if image_size not in (None, trained) and takes_option(architecture, size_option(architecture)):
        raise ModelError(
            f"model.image_size: {bundle.path} was trained at {format_size(trained)} px and takes no other size"
        )
    check_options(architecture, outputs=outputs)
    origin = Origin(
        spec=str(bundle.path), architecture=architecture, outputs=outputs, preprocess=preprocess, pretrained=None
    )
    if chosen.weights != "pretrained":
        return _open_origin(origin, chosen)
    file = read_safetensors(bundle.files[WEIGHTS], where=f"of {bundle.path}")
    _refuse_head((recipe["outputs"], *recipe["hidden"]), file, where=where)
    opened = _open_origin(origin, _Chosen("none", "auto"))
    declare_scores(opened.module, scores)
    replace_head(opened.module, **recipe)
    coverage = cover(opened.module.state_dict(), file.tensors, heads=frozenset, where=f"of {bundle.path}")
    if coverage.unexpected:
        raise ModelError(f"weights of {bundle.path}: tensors that the model has not: {list_names(coverage.unexpected)}")
    load_by_coverage(opened.module, file.tensors, coverage)
    source = WeightsSource("pretrained", str(bundle.path), file.sha256, None)
    return replace(opened, coverage=coverage, weights=source, bundle=facts)


def _refuse_head(sizes: tuple[int, ...], file: TensorFile, *, where: str) -> None:
    """Raises: ModelError: the weights have no head of these sizes, found out before it is allocated."""
    there = {len(value) for value in file.tensors.values() if value.ndim}
    strange = [size for size in sizes if size not in there]
    if strange:
        raise ModelError(f"{where}: a head of size {strange[0]:,}, and no tensor of the weights has that many rows")
    widest = max((value.shape[1] for value in file.tensors.values() if value.ndim > 1), default=1)
    refuse_memory(4 * sum(sizes) * widest, what=f"the head of {where}")


def _bundle_architecture(bundle: Bundle, *, where: str) -> Architecture:
    model = bundle.facts["model"]
    library, name = model["library"], str(model["architecture"])
    options = {str(key): tuple(value) if isinstance(value, list) else value for key, value in model["options"].items()}
    if library == "timm" and timm.is_model(name):
        config = parse_json(bundle.files[CONFIG], where=bundle.path / CONFIG)
        described, _ = read_architecture(config, where=str(bundle.path / CONFIG))
        return Architecture(library="timm", name=name, options=options, cfg=described.cfg)
    if library == "torchvision" and name in torchvision_names():
        return Architecture(library="torchvision", name=name, options=options)
    raise ModelError(
        f"{where}: the architecture {name!r} of {library!r} cannot be rebuilt; make the module in Python and "
        "give it to open_model with weights=the bundle's model.safetensors"
    )


def _open_own(
    module: nn.Module,
    chosen: _Chosen,
    *,
    image_size: Size | None,
    preprocess: ImageFormat | None,
    options: Mapping[str, object],
) -> OpenedModel:
    if options:
        raise ModelError("model.options: the module is already made; give the options to its constructor")
    architecture = _recognize_architecture(module)
    total = len(read_saved_tensors(module))
    coverage = Coverage(loaded=total, total=total, notes=("the module as given",))
    source = WeightsSource("pretrained", "the module as given", None, None)
    if chosen.weights not in ("pretrained", "none"):
        coverage, source = _fill_own(module, chosen)
    name = architecture.name if architecture else type(module).__name__
    outputs = getattr(module, "num_classes", None)
    outputs = outputs if isinstance(outputs, int) else count_labels(module)
    return OpenedModel(
        module=module,
        spec=f"timm/{name}" if architecture else f"own:{name}",
        library="timm" if architecture else "own",
        architecture=name,
        options=dict(architecture.options) if architecture else {},
        num_outputs=outputs,
        preprocess=adjust_preprocess(_own_preprocess(module), image_size=image_size, given=preprocess),
        coverage=coverage,
        weights=source,
    )


def _fill_own(module: nn.Module, chosen: _Chosen) -> tuple[Coverage, WeightsSource]:
    """Load a file's weights into a module of the user's."""
    where = chosen.weights
    file = read_weights(expand_home(where), weights_part=chosen.weights_part)
    expected = read_saved_tensors(module)
    names, coverage = fit_names(
        file.tensors,
        expected=expected,
        fit=lambda tensors: cover(expected, tensors, heads=lambda: head_parameters(module), where=where),
        wanted=file.wanted,
        where=where,
    )
    load_by_coverage(module, names.tensors, coverage)
    return _tell_names(coverage, names, file), WeightsSource("file", where, file.sha256, None)


def _recognize_architecture(module: nn.Module) -> Architecture | None:
    """timm's own description of a module that it made, if the module still is what timm would make of it."""
    cfg, outputs = getattr(module, "pretrained_cfg", None), getattr(module, "num_classes", None)
    name = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    if not isinstance(name, str) or not timm.is_model(name) or not isinstance(outputs, int):
        return None
    options = {key: value for key, value in getattr(module, "_model_args", {}).items() if key != "num_classes"}
    architecture = Architecture(library="timm", name=name, options=options, cfg=dict(cast("Mapping[str, Any]", cfg)))
    shapes = {key: value.shape for key, value in read_saved_tensors(module).items()}
    try:
        again = sketch(architecture, outputs=outputs)
    except ModelError:
        return None
    return architecture if shapes == {key: value.shape for key, value in again.state_dict().items()} else None


def _own_preprocess(module: nn.Module) -> Preprocess:
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    channels = next((part.in_channels for part in convolutions), 3)
    cfg = getattr(module, "pretrained_cfg", None)
    if isinstance(cfg, Mapping):
        return from_pretrained_cfg(cfg, channels=channels, source="the module's pretrained_cfg")
    if is_transformers(module):
        return read_transformers_format(module, channels=channels)
    source = "assumed: ImageNet's usual mean and std at 224 px, because the module says nothing"
    return imagenet_preprocess(channels=channels, source=source)
