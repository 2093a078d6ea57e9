"""The weights are the ones named: wrong files from every place are refused with the reason, right ones load and count.

Places: a file, a folder in timm's layout, the hub (a server on loopback) by a published hash and without a right one,
torchvision's and timm's caches of URLs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, save

from headstart.errors import ModelError
from headstart.models.sources import open_model

sys.path.insert(0, str(Path(__file__).parent))
from test_fetch import Server, caches, hub, path_of  # noqa: F401 - fixtures

TINY, CONFIG = "timm/test_resnet", {"architecture": "test_resnet", "num_classes": 1000}
State = dict[str, torch.Tensor]


def state_of(name: str = "test_resnet", **options: object) -> State:
    torch.manual_seed(3)
    model = timm.create_model(name, **options)
    return {key: value.contiguous() for key, value in model.state_dict().items()}


WHOLE = save(state_of())


def changed(change: Callable[[State], State]) -> bytes:
    return save({name: value.contiguous() for name, value in change(load(WHOLE)).items()})


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


WRONG: dict[str, tuple[bytes, str]] = {  # what is wrong, and the words of the refusal where no hash is known
    "cut in half": (WHOLE[: len(WHOLE) // 2], "not a whole safetensors file"),
    "a byte short": (WHOLE[:-1], "not a whole safetensors file"),
    "a byte more": (WHOLE + b"x", "not a whole safetensors file"),
    "of another model": (save(state_of("test_vit")), "do not fit the model"),
    "of a smaller model": (save(state_of(channels=[16, 16, 16, 16])), "have another shape"),
    "empty": (b"", "the file is empty"),
    "zero bytes": (bytes(len(WHOLE)), "bytes are zero"),
    "a web page": (b"<!DOCTYPE html><html>404</html>", "web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a tensor gone": (changed(lambda s: without(s, "layer1.0.conv1.weight")), "layer1.0.conv1.weight"),
    "a tensor bent": (changed(lambda s: s | {"conv1.0.weight": torch.zeros(4, 3, 3, 3)}), "another shape: conv1.0.weight"),  # noqa: E501
    "names of no prefix": (changed(lambda s: {f"{n}.data": v for n, v in s.items()}), "outside the head are missing"),
    "half of the names prefixed": (
        changed(lambda s: {(f"module.{n}" if i % 2 else n): v for i, (n, v) in enumerate(s.items())}),
        "outside the head are missing",
    ),
    "not finite": (changed(lambda s: s | {"fc.bias": torch.full((1000,), float("nan"))}), "fc.bias holds NaN"),
}  # fmt: skip


def refused(spec: str, words: str, **options: str) -> None:
    with pytest.raises(ModelError) as raised:
        open_model(spec, **options)
    assert words in str(raised.value)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_refused_with_the_reason(wrong: str, tmp_path: Path) -> None:
    data, words = WRONG[wrong]
    (tmp_path / "w.safetensors").write_bytes(data)
    refused(TINY, words, weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_folder_with_wrong_weights_is_refused_with_the_reason(wrong: str, tmp_path: Path) -> None:
    data, words = WRONG[wrong]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(data)
    refused(str(tmp_path), words)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_hub_that_sends_another_file_than_it_publishes_is_refused(wrong: str, hub: Server) -> None:  # noqa: F811
    import hashlib

    hub.files[path_of()] = WRONG[wrong][0]
    hub.published[path_of()] = hashlib.sha256(WHOLE).hexdigest()
    with pytest.raises(ModelError, match=r"hash|downloading|empty"):
        open_model(f"{TINY}.r160_in1k")


@pytest.mark.parametrize(
    "wrong", ["of another model", "a tensor gone", "names of no prefix", "not finite", "a web page"]
)
def test_a_repository_that_holds_a_wrong_file_is_refused_with_the_reason(wrong: str, hub: Server) -> None:  # noqa: F811
    data, words = WRONG[wrong]
    hub.files[path_of()] = data
    refused(f"{TINY}.r160_in1k", words)


@pytest.mark.parametrize("wrong", ["cut in half", "empty", "zero bytes", "a web page", "of another model"])
@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("torchvision/squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
        ("timm/gcvit_xxtiny.in1k", "gcvit_xxtiny_224_nvidia-d1d86009.pth"),
    ],
)
def test_a_cached_file_that_is_not_of_the_hash_in_its_name_is_refused(
    wrong: str, spec: str, name: str, tmp_path: Path
) -> None:
    cached = tmp_path / "torch" / "hub" / "checkpoints" / name  # TORCH_HOME is the fixture's
    cached.parent.mkdir(parents=True)
    cached.write_bytes(WRONG[wrong][0])
    refused(spec, f"published is {name.rpartition('-')[2][:8]}")


def test_a_cached_config_that_was_changed_is_refused(hub: Server, tmp_path: Path) -> None:  # noqa: F811
    hub.files["/a/b/resolve/main/config.json"] = json.dumps(CONFIG).encode()
    hub.files["/a/b/resolve/main/model.safetensors"] = WHOLE
    assert open_model("hf-hub:a/b").coverage.loaded
    (cached,) = (tmp_path / "hf").glob("hub/models--a--b/snapshots/*/config.json")
    cached.resolve().write_text(json.dumps(CONFIG | {"num_classes": 7}))
    refused("hf-hub:a/b", "hash")


RIGHT: dict[str, tuple[bytes, str]] = {  # what is odd and right, and what is said of it
    "half precision": (changed(lambda s: {n: v.half() if v.is_floating_point() else v for n, v in s.items()}), "92 of 92"),  # noqa: E501
    "tensors more": (changed(lambda s: s | {"ema.decay": torch.zeros(1)}), "1 of the file not used: ema.decay"),
    "all names with module.": (changed(lambda s: {f"module.{n}": v for n, v in s.items()}), "prefix 'module.' stripped"),  # noqa: E501
    "no head": (changed(lambda s: without(s, "fc.weight", "fc.bias")), "head new"),
    "no counters": (
        changed(lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")}), "77 of 77 tensors"),
}  # fmt: skip


@pytest.mark.parametrize("odd", RIGHT)
def test_an_odd_file_that_is_right_loads_and_says_how(odd: str, tmp_path: Path) -> None:
    data, words = RIGHT[odd]
    (tmp_path / "w.safetensors").write_bytes(data)
    opened = open_model(TINY, weights=str(tmp_path / "w.safetensors"))
    assert words in str(opened.coverage)
    body = opened.module.state_dict()["conv1.0.weight"]
    assert torch.equal(
        body, load(WHOLE)["conv1.0.weight"].half().float() if odd == "half precision" else load(WHOLE)["conv1.0.weight"]
    )


def test_there_are_at_least_forty_refusals() -> None:
    assert 3 * len(WRONG) + 5 + 10 + 1 >= 40
