"""Opening models: what is loaded, what is refused, and what is known of the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save, save_file
from torch import nn

from headstart.config.schema import ImageFormat
from headstart.errors import ModelError, StorageError
from headstart.models import weights
from headstart.models.factory import Architecture, sketch, state_filter
from headstart.models.preprocess import Preprocess
from headstart.models.sources import open_model
from headstart.storage.durable import write_folder
from headstart.surgery.head import replace_head

TINY = "timm/test_resnet"  # 0.5 M parameters, made by timm for tests


def saved(module: nn.Module, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    return path


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def equal_shapes(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and x.shape == y.shape for (a, x), (b, y) in pairs)


def local_dir(folder: Path, module: nn.Module, **extra: object) -> Path:
    """timm's local-dir layout."""
    folder.mkdir(parents=True)
    cfg = {"input_size": [3, 48, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "nearest"}
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": cfg | {"license": "mit"}} | extra
    (folder / "config.json").write_text(json.dumps(config))
    saved(module, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_resnet")


def test_a_random_model_is_a_function_of_torchs_seed() -> None:
    torch.manual_seed(3)
    first = open_model(TINY, weights="none", options={"drop_path_rate": 0.1})
    torch.manual_seed(3)
    assert equal(first.module, open_model(TINY, weights="none", options={"drop_path_rate": 0.1}).module)
    assert (first.weights.kind, first.coverage.loaded) == ("none", 0)
    assert str(first.coverage).endswith("all random")


def test_a_weights_file_is_loaded_whole_with_its_assumed_preprocessing_named(tiny: nn.Module, tmp_path: Path) -> None:
    opened = open_model(TINY, weights=str(saved(tiny, tmp_path / "w.safetensors")))
    assert equal(opened.module, tiny)
    assert (opened.library, opened.architecture, opened.num_outputs) == ("timm", "test_resnet", 1000)
    assert opened.preprocess.source == "assumed from test_resnet.r160_in1k, the default tag"
    assert (opened.preprocess.height, opened.preprocess.width) == (160, 160)
    assert opened.weights.kind == "file"


def test_a_file_with_another_number_of_classes_opens_with_that_number(tmp_path: Path) -> None:
    for spec, seven in (
        (TINY, timm.create_model("test_resnet", num_classes=7)),
        ("torchvision/squeezenet1_1", torchvision.models.squeezenet1_1(num_classes=7)),
    ):
        opened = open_model(spec, weights=str(saved(seven, tmp_path / "w.safetensors")))
        assert opened.num_outputs == 7
        assert equal(opened.module, seven)


def test_a_file_without_a_head_is_counted_with_the_head_new(tmp_path: Path) -> None:
    body = timm.create_model("test_resnet", num_classes=0)
    opened = open_model(TINY, weights=str(saved(body, tmp_path / "w.safetensors")))
    assert opened.coverage.missing == ("fc.weight", "fc.bias")
    assert str(opened.coverage) == f"{opened.coverage.total - 2} of {opened.coverage.total} tensors loaded, head new"
    assert all(torch.equal(opened.module.state_dict()[name], value) for name, value in body.state_dict().items())


def test_weights_of_another_architecture_are_refused_with_names_and_counts(tiny: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\d+ tensors outside the head are missing: .* and \d+ more"):
        open_model("timm/test_vit", weights=str(saved(tiny, tmp_path / "w.safetensors")))


def test_timms_own_conversion_fits_positions_to_another_size(tmp_path: Path) -> None:
    vit = timm.create_model("test_vit")
    file = saved(vit, tmp_path / "w.safetensors")
    opened = open_model("timm/test_vit", weights=str(file), image_size=96)
    assert opened.options == {"img_size": 96}
    assert (opened.preprocess.height, opened.preprocess.width) == (96, 96)
    assert "pos_embed" in str(opened.coverage)
    reference = timm.create_model("test_vit", img_size=96, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    assert equal(opened.module, reference)


def test_torchvision_positions_are_fitted_to_another_size() -> None:
    grid = Architecture(library="torchvision", name="vit_b_32", options={"image_size": 64})
    plan = sketch(grid, outputs=10)
    flat = torch.full((1, 1 + 7 * 7, 768), 0.25)
    fitted = state_filter(grid, outputs=10, module=plan)({"encoder.pos_embedding": flat})["encoder.pos_embedding"]
    assert fitted.shape == plan.state_dict()["encoder.pos_embedding"].shape == (1, 1 + 2 * 2, 768)
    torch.testing.assert_close(fitted, torch.full((1, 5, 768), 0.25))


def test_the_first_layer_is_adapted_to_other_channels_as_timm_does_it(tiny: nn.Module, tmp_path: Path) -> None:
    file = saved(tiny, tmp_path / "w.safetensors")
    for channels in (1, 4):
        opened = open_model(TINY, weights=str(file), options={"in_chans": channels})
        reference = timm.create_model(
            "test_resnet", in_chans=channels, pretrained=True, pretrained_cfg_overlay={"file": str(file)}
        )
        assert equal(opened.module, reference)
        assert opened.preprocess.channels == channels
        assert "conv1.0.weight" in str(opened.coverage)


def test_names_that_torchvision_has_changed_are_translated(tmp_path: Path) -> None:
    net = torchvision.models.densenet121(num_classes=3)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in net.state_dict().items()
    }
    torch.save(old, tmp_path / "w.pth")
    assert set(old) != set(net.state_dict())
    assert equal(open_model("torchvision/densenet121", weights=str(tmp_path / "w.pth")).module, net)


def test_auxiliary_classifiers_are_left_out_and_counted(tmp_path: Path) -> None:
    with torch.device("meta"):
        net = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    torch.save({name: torch.zeros(value.shape) for name, value in net.state_dict().items()}, tmp_path / "w.pth")
    opened = open_model("torchvision/googlenet", weights=str(tmp_path / "w.pth"))
    assert opened.options == {"transform_input": True}
    assert opened.coverage.unexpected and all(name.startswith("aux") for name in opened.coverage.unexpected)
    assert isinstance(opened.module.train()(torch.zeros(2, 3, 224, 224)), torch.Tensor)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("timm/mobilenetv2_035", {"pad_type": "same", "bn_eps": 0.001, "drop_path_rate": 0.1}),
        ("timm/test_vit", {"img_size": 96, "drop_path_rate": 0.1}),
        (TINY, {"in_chans": 1, "drop_rate": 0.2}),
        ("torchvision/squeezenet1_1", {"dropout": 0.1}),
    ],
)
def test_options_that_an_architecture_takes_are_passed_on(spec: str, options: dict[str, object]) -> None:
    assert open_model(spec, weights="none", options=options).options == options


def test_an_option_changes_the_model() -> None:
    same = open_model("timm/mobilenetv2_035", weights="none", options={"pad_type": "same"}).module
    assert any("Same" in type(part).__name__ for part in same.modules())
    dropped = open_model("torchvision/squeezenet1_1", weights="none", options={"dropout": 0.125}).module
    assert any(isinstance(part, nn.Dropout) and part.p == 0.125 for part in dropped.modules())


@pytest.mark.parametrize(
    ("spec", "options", "told"),
    [
        ("timm/mobilenetv2_035", {"pad_typ": "same"}, "did you mean pad_type"),
        (TINY, {"img_size": 64}, "takes no such option"),
        ("timm/test_vit", {"drop_path_rat": 0.1}, "did you mean drop_path_rate"),
        ("torchvision/resnet18", {"in_chans": 0}, "0 is not a number of channels"),
        ("torchvision/resnet18", {"zero_init": True}, "did you mean zero_init_residual"),
        (TINY, {"num_classes": 3}, "the head's size comes from the data"),
        (TINY, {"checkpoint_path": "/tmp/x.pth"}, "say --weights FILE"),
        ("timm/test_vit", {"img_size": "large"}, "cannot be built with img_size='large'"),
        (TINY, {"in_chans": "three"}, "is not a number of channels"),
    ],
)
def test_options_that_it_does_not_take_are_refused(spec: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError) as caught:
        open_model(spec, weights="none", options=options)
    assert told in str(caught.value)


def test_an_option_that_timm_swallows_without_a_word_is_refused() -> None:
    options: dict[str, object] = {"norm_layer": "groupnorm"}  # only larger variants have layers that would use it
    assert equal_shapes(timm.create_model("fastvit_t8", **options), timm.create_model("fastvit_t8"))
    with pytest.raises(ModelError, match="norm_layer: it has no effect on timm/fastvit_t8"):
        open_model("timm/fastvit_t8", weights="none", options=options)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("timm/resnet51", "did you mean timm/resnet5"),
        ("timm/resnet50.a7_in1k", r"no weights tagged 'a7_in1k'; did you mean .*its tags: a1_in1k"),
        ("torchvision/resnet51", "did you mean torchvision/resnet50"),
        ("torchvision/resnet50.V9", "it has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision/fcn_resnet50", "no classification model"),
    ],
)
def test_unknown_names_get_near_ones(spec: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        open_model(spec)


def test_torchvision_preprocessing_is_that_of_the_tag() -> None:
    one = open_model("torchvision/resnet50.IMAGENET1K_V1", weights="none").preprocess
    two = open_model("torchvision/resnet50", weights="none").preprocess
    assert (one.crop_pct, two.crop_pct) == (224 / 256, 224 / 232)
    assert one.source == "assumed from resnet50.IMAGENET1K_V1, the named weights"
    assert two.source == "assumed from resnet50.IMAGENET1K_V2, the default weights"


def test_preprocessing_given_by_hand_takes_the_place_of_the_weights_own() -> None:
    given = ImageFormat(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="nearest", crop_pct=1.0)
    found = open_model(TINY, weights="none", preprocess=given, image_size=32).preprocess
    assert (found.mean, found.std, found.interpolation, found.crop_pct) == ((0.5,) * 3, (0.25,) * 3, "nearest", 1.0)
    assert (found.height, found.width) == (32, 32)
    assert Preprocess.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(ModelError, match="1 means, but the model takes 3 channels"):
        open_model(TINY, weights="none", preprocess=ImageFormat(mean=(0.5,), std=(0.5,)))


def test_more_than_the_memory_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "available_bytes", lambda: 10**9)
    with pytest.raises(ModelError, match=r"eva_giant_patch14_560 needs 4\.\d GB of memory, 1\.0 GB are free"):
        open_model("timm/eva_giant_patch14_560", weights="none")


def test_a_folder_in_timms_layout_is_opened_with_what_its_config_says(tiny: nn.Module, tmp_path: Path) -> None:
    opened = open_model(str(local_dir(tmp_path / "m", tiny)))
    assert equal(opened.module, tiny)
    found = opened.preprocess
    assert (found.height, found.width, found.mean, found.interpolation) == (48, 64, (0.1, 0.2, 0.3), "nearest")
    assert (opened.weights.kind, opened.weights.licence, opened.bundle) == ("pretrained", "mit", None)
    assert opened.weights.sha256 is not None


def test_a_folders_model_args_are_the_architectures_options(tmp_path: Path) -> None:
    grey = timm.create_model("test_resnet", in_chans=1, num_classes=5)
    opened = open_model(str(local_dir(tmp_path / "m", grey, model_args={"in_chans": 1}, num_classes=5)))
    assert equal(opened.module, grey)
    assert (opened.options, opened.num_outputs, opened.preprocess.channels) == ({"in_chans": 1}, 5, 1)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"model_args": {"checkpoint_path": "x.pth"}}, "not an architecture option"),
        ({"architecture": "os.system"}, "is not one of timm's"),
        ({"num_classes": -3}, "not a number of classes"),
        ({"pretrained_cfg": {"mean": "abc"}}, "preprocessing"),
        ({"pretrained_cfg": {"input_size": [3, 0, 10**9]}}, "accepted are 8 to 4096"),
    ],
)
def test_a_folders_bad_config_is_refused(extra: dict[str, object], told: str, tiny: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=told):
        open_model(str(local_dir(tmp_path / "m", tiny, **extra)))


def test_a_folder_without_config_or_weights_is_told_what_it_lacks(tiny: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json: .* a model folder holds"):
        open_model(str(tmp_path / "empty"))
    folder = local_dir(tmp_path / "m", tiny)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        open_model(str(folder))
    assert open_model(str(folder), weights="none").coverage.loaded == 0


def bundle(path: Path, module: nn.Module, *, library: str, architecture: str, head: dict[str, object]) -> None:
    """A bundle as a run writes it."""
    facts = {
        "format": 1,
        "task": {"kind": "classify", "classes": ["a", "b", "c"]},
        "model": {"spec": "x", "library": library, "architecture": architecture, "options": {}, "num_outputs": 1000},
        "head": {"path": "fc", "at": "auto", "now": 3} | head,
        "preprocess": {"height": 40, "width": 40, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
        | {"crop_pct": 1.0, "crop_mode": "squash", "source": "by hand"},
    }
    config = {"architecture": architecture, "num_classes": 3, "pretrained_cfg": {"input_size": [3, 40, 40]}}
    write_folder(
        path,
        {
            "model.safetensors": save({name: value.contiguous() for name, value in module.state_dict().items()}),
            "config.json": json.dumps(config).encode(),
            "headstart.json": json.dumps(facts).encode(),
        },
    )


MLP: dict[str, object] = {"kind": "mlp", "hidden": [8, 6], "activation": "gelu", "dropout": 0.3}


@pytest.mark.parametrize("head", [{"kind": "linear", "hidden": [], "activation": "relu", "dropout": 0.0}, MLP])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_bundle_is_rebuilt_with_its_head(library: str, head: dict[str, object], tmp_path: Path) -> None:
    architecture = "test_resnet" if library == "timm" else "squeezenet1_1"
    module = open_model(f"{library}/{architecture}", weights="none").module
    hidden = tuple(head["hidden"])  # type: ignore[call-overload]
    replace_head(
        module, outputs=3, hidden=hidden, activation=str(head["activation"]), dropout=float(str(head["dropout"]))
    )
    bundle(tmp_path / "run" / "model", module, library=library, architecture=architecture, head=head)
    for path in (tmp_path / "run" / "model", tmp_path / "run"):
        opened = open_model(str(path))
        assert equal(opened.module, module)
        assert opened.bundle is not None and opened.bundle["task"] == {"kind": "classify", "classes": ["a", "b", "c"]}
        assert (opened.num_outputs, opened.preprocess.source, opened.preprocess.height) == (1000, "by hand", 40)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(opened.module.eval()(images), module.eval()(images))


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    module = timm.create_model("test_resnet")
    replace_head(module, outputs=3)
    bundle(tmp_path / "model", module, library="timm", architecture="test_resnet", head={"kind": "linear"})
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError):
        open_model(str(tmp_path / "model"))


def test_a_module_of_ones_own_is_taken_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    opened = open_model(net, image_size=28)
    assert opened.module is net
    assert (opened.library, opened.spec, opened.num_outputs) == ("own", "own:Sequential", None)
    assert (opened.preprocess.channels, opened.preprocess.height) == (1, 28)
    assert "because the module says nothing" in opened.preprocess.source
    with pytest.raises(ModelError, match="already made"):
        open_model(net, options={"in_chans": 1})


def test_a_timm_module_keeps_what_timm_says_of_it() -> None:
    module = timm.create_model("test_vit", img_size=96, num_classes=4)
    opened = open_model(module)
    assert (opened.library, opened.architecture, opened.options) == ("timm", "test_vit", {"img_size": 96})
    assert opened.num_outputs == 4
    assert opened.preprocess.mean == tuple(module.pretrained_cfg["mean"])
    module.head = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 4))
    assert open_model(module).library == "own"


def test_the_weights_at_hand_open_with_every_tensor_counted(shared: Path) -> None:
    folder = shared / "weights"
    body = open_model(str(folder / "mobilenetv2_035.keras_in1k"))
    assert str(body.coverage) == "312 of 314 tensors loaded, head new"
    assert body.options == {"pad_type": "same", "bn_eps": 0.001}
    whole = open_model(str(folder / "mobilenetv2_100.tf_in1k"))
    assert str(whole.coverage) == "314 of 314 tensors loaded"
    assert whole.preprocess.mean == (0.5, 0.5, 0.5)
    squeeze = open_model(
        "torchvision/squeezenet1_0", weights=str(folder / "torchvision" / "squeezenet1_0.in1k.safetensors")
    )
    assert str(squeeze.coverage) == "52 of 52 tensors loaded"


def test_a_folder_gives_what_timm_gives_for_it(shared: Path) -> None:
    folder = shared / "weights" / "mobilenetv2_100.tf_in1k"
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(open_model(str(folder)).module.eval()(images), reference(images))
