"""The README.md of a bundle: a model card that the Hugging Face hub reads too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from headstart.tasks.kinds import find_kind
from headstart.tasks.task import name_outputs


def model_card(headstart_json: Mapping[str, Any], *, plan: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter: what the model is, how to load it, how good it is and where it ends.

    ``headstart_json`` is the bundle's own record, ``plan`` and ``result`` are the run's.
    """
    model, task = headstart_json["model"], headstart_json["task"]
    weights = plan.get("model", {}).get("weights") or {}
    licence, random = weights.get("licence"), weights.get("kind") == "none"
    parts = [
        "---\n"
        + yaml.safe_dump(_front(headstart_json, licence, random=random), sort_keys=False, allow_unicode=True)
        + "---",
        f"# {_plain(model['architecture'])}, fine-tuned",
        _what(headstart_json, plan),
        _names(task),
        "## Use it\n\n" + _use(headstart_json),
        "## Preprocessing\n\n" + _preprocessing(headstart_json["preprocess"]),
        "## Results\n\n" + _results(headstart_json, plan, result),
        "## Limits\n\n" + _limits(task, licence, random=random),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def loads_in_timm(model: Mapping[str, Any], head: Mapping[str, Any]) -> bool:
    """Whether plain timm builds this model again: timm's own layout with one linear layer as its head."""
    plain_head = head.get("kind") == "linear" and not head.get("dropout") and head.get("at", "auto") == "auto"
    return model.get("library") == "timm" and plain_head


def _front(bundle: Mapping[str, Any], licence: str | None, *, random: bool) -> dict[str, object]:
    model, kind = bundle["model"], find_kind(bundle["task"]["kind"])
    timm = loads_in_timm(model, bundle["head"])
    front: dict[str, object] = {"library_name": "timm" if timm else "headstart"}
    if not kind.gives_numbers:
        front["pipeline_tag"] = "image-classification"
    if not random and (base := base_model(str(model["spec"]))):
        front["base_model"] = base
    if licence:
        front |= _licence(licence)
    front["tags"] = ["headstart", "fine-tuned", str(model["library"]), *kind.hub_tags]
    return front


def base_model(spec: str) -> str | None:
    """The hub's name of the weights that a model spec starts from; None where they are not on the hub."""
    if spec.startswith("hf-hub:"):
        return spec.removeprefix("hf-hub:")
    if spec.startswith("timm/") and "." in spec:  # without a tag there is no one repository
        return spec
    return None


def _licence(licence: str) -> dict[str, object]:
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        return {"license": licence}
    return {"license": "other", "license_name": licence}


def _what(bundle: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    model, task = bundle["model"], bundle["task"]
    names = name_outputs(task)
    says = find_kind(task["kind"]).summary.format(n=len(names), s="" if len(names) == 1 else "s")
    weights = plan.get("model", {}).get("weights") or {}
    started = f"from `{_code(model['spec'])}`" if weights.get("kind") != "none" else "from random weights"
    if weights.get("sha256"):
        started += f" (weights with SHA-256 `{_code(weights['sha256'])}`)"
    images = plan.get("data", {}).get("train")
    trained = f" on {images:,} images" if isinstance(images, int) else ""
    return (
        f"This model {says}. It is a `{_code(model['architecture'])}` of {_plain(model['library'])}, trained {started}"
        f"{trained} with headstart{_describe_peft(plan)}."
    )


def _describe_peft(plan: Mapping[str, Any]) -> str:
    """A clause on what of the backbone was trained, where it was neither all nor nothing."""
    lora = plan.get("lora")
    if lora:
        count = len(lora["layers"])
        return f" through low-rank adapters (rank {lora['rank']}, {count} layers), merged into the weights here"
    rules = {re.sub("^but:", "except:", str(phase.get("freeze"))) for phase in plan.get("phases", ())}  # of 0.1: but:
    kinds = [word for rule, word in (("except:bias", "biases"), ("except:norm", "norms")) if rule in rules]
    only = rules <= {"backbone", "except:bias", "except:norm"}
    return f", of the backbone its {' and '.join(kinds)} alone" if kinds and only else ""


def _names(task: Mapping[str, Any]) -> str:
    """The outputs in order as JSON, in a code block, where no name can be markup."""
    names = list(name_outputs(task))
    text = json.dumps(names, ensure_ascii=False, indent=None if len(names) <= 20 else 0)
    word = find_kind(task["kind"]).nouns.capitalize()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{word}, in the order of the outputs:\n\n{fence}json\n{text}\n{fence}"


def _use(bundle: Mapping[str, Any]) -> str:
    lines = ["```sh\nheadstart predict FOLDER_OF_THIS_FILE IMAGE_OR_FOLDER\n```"]
    if loads_in_timm(bundle["model"], bundle["head"]):
        lines.append(
            "or in plain timm (preprocessing: `timm.data.resolve_model_data_config(model)`):\n\n```python\n"
            "import timm\n\nmodel = timm.create_model('local-dir:FOLDER_OF_THIS_FILE', pretrained=True).eval()\n```"
        )
    if find_kind(bundle["task"]["kind"]).gives_numbers:
        power = ", then 10 to that power" if bundle["task"].get("log") else ""
        lines.append(
            "The network's own outputs are standardised; `headstart predict` gives them in the original units. "
            f"By hand: `output * std + mean`{power}, with mean and std of `task` in `headstart.json`."
        )
    return "\n\n".join(lines)


def _preprocessing(facts: Mapping[str, Any]) -> str:
    size = f"{facts.get('height')} x {facts.get('width')} px"
    return (
        f"{size}, {facts.get('interpolation')} resampling, centre crop of {facts.get('crop_pct')}; pixels in 0..1, "
        f"mean {_numbers(facts.get('mean', ()))}, standard deviation {_numbers(facts.get('std', ()))}. "
        f"Source: {_plain(facts.get('source', 'unknown'))}."
    )


def _results(bundle: Mapping[str, Any], plan: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    parts = []
    found = bundle.get("metrics") or result.get("metrics") or {}
    for name, metrics, says in (
        ("test", result.get("test_metrics") or {}, "which chose nothing"),
        ("val", found, "which also chose the epoch"),
    ):
        images = plan.get("data", {}).get(name)
        count = f" ({images:,})" if isinstance(images, int) else ""
        rows = [f"| {_plain(key)} | {value:.6g} |" for key, value in metrics.items() if isinstance(value, int | float)]
        if rows or name == "val":
            head = f"On the {'test' if name == 'test' else 'validation'} images{count}, {says}"
            parts.append(f"{head}:\n\n| metric | value |\n|---|---:|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _limits(task: Mapping[str, Any], licence: str | None, *, random: bool) -> str:
    lines = [
        f"- {find_kind(task['kind']).limit}",
        "- The numbers above hold for images like those of the validation split: same cameras, places and ways of "
        "choosing. Measure on your own: `headstart evaluate`.",
    ]
    if licence:
        lines.append(
            f"- The weights that it started from are under {_plain(licence)}; the training images' terms apply too."
        )
    elif not random:
        lines.append("- The licence of the weights that it started from is not known; ask before you pass it on.")
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _code(text: object) -> str:
    return str(text).replace("`", "'").replace("\n", " ")


def _plain(text: object) -> str:
    """Text in which no character is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", str(text).replace("\n", " "))
