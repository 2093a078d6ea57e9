"""Heads: found where they are, replaced alone, refused when not clear."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from headstart.errors import ModelError
from headstart.surgery.head import HeadSwap, find_head, head_parameters, replace_head

TIMM = {  # tiny members of families of different build: (path, image size)
    "test_resnet": ("fc", 64),
    "test_vit": ("head", 160),
    "test_efficientnet": ("classifier", 64),
    "test_convnext": ("head.fc", 64),
    "test_byobnet": ("head.fc", 64),
    "test_nfnet": ("head.fc", 64),
    "test_mambaout": ("head.fc", 64),
    "mobilenetv3_small_050": ("classifier", 64),
    "densenet121": ("classifier", 64),
    "dpn48b": ("classifier", 64),
    "levit_128s": ("head.linear", 224),
    "efficientvit_b0": ("head.classifier.4", 64),
    "regnetx_002": ("head.fc", 64),
    "deit_tiny_distilled_patch16_224": ("head", 224),
}
TORCHVISION = {
    "resnet18": ("fc", 64),
    "mobilenet_v2": ("classifier.1", 64),
    "mobilenet_v3_small": ("classifier.3", 64),
    "efficientnet_b0": ("classifier.1", 64),
    "densenet121": ("classifier", 64),
    "squeezenet1_1": ("classifier.1", 64),
    "shufflenet_v2_x0_5": ("fc", 64),
    "mnasnet0_5": ("classifier.1", 64),
    "regnet_y_400mf": ("fc", 64),
    "convnext_tiny": ("classifier.2", 64),
    "swin_t": ("head", 64),
    "googlenet": ("fc", 64),
}


def build(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, pretrained=False)
    options = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **options)


def outside(module: nn.Module, paths: tuple[str, ...]) -> dict[str, Tensor]:
    inside = tuple(path + "." for path in paths)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(inside)}


def first_output(result: object) -> Tensor:
    while isinstance(result, tuple):
        result = result[0]
    assert isinstance(result, Tensor)
    return result


CASES = [("timm", name) for name in TIMM] + [("torchvision", name) for name in TORCHVISION]


@pytest.mark.parametrize(("library", "name"), CASES)
def test_a_new_head_stands_where_the_old_one_was_and_nothing_else_changes(library: str, name: str):
    path, size = (TIMM if library == "timm" else TORCHVISION)[name]
    module = build(library, name)
    images = torch.randn(2, 3, size, size)
    paths = find_head(module).paths
    objects = outside(module, paths)
    copies = {key: tensor.clone() for key, tensor in objects.items()}
    was = 1000
    for outputs, hidden, dropout in [(5, (), 0.0), (4, (6, 7), 0.2), (1, (), 0.3)]:
        swap = replace_head(module, outputs=outputs, hidden=hidden, dropout=dropout)
        assert (swap.path, swap.was, swap.now) == (path, was, outputs)
        now = outside(module, paths)
        assert now.keys() == objects.keys()
        assert all(now[key] is objects[key] and torch.equal(now[key], copies[key]) for key in objects)
        was = outputs
    module.eval()
    scores = first_output(module(images))
    assert scores.shape == (2, 1)
    scores.sum().backward()
    gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
    assert all(gradients[f"{path}.{kind}"].abs().sum() > 0 for kind in ("weight", "bias"))
    assert f"{path}.weight" in head_parameters(module)


def test_a_plain_head_has_the_names_of_the_pretrained_one_and_timm_is_told():
    module = build("timm", "test_convnext")
    names = list(module.state_dict())
    for dropout in (0.0, 0.5):
        replace_head(module, outputs=7, dropout=dropout)
        assert list(module.state_dict()) == names
    assert module.num_classes == 7
    assert module.get_classifier().out_features == 7


def test_dropout_works_on_the_heads_input_in_training_only():
    module = build("timm", "test_resnet").eval()
    replace_head(module, outputs=3, dropout=0.5)
    features = torch.ones(4, module.fc.in_features)
    assert torch.equal(module.fc(features), module.fc(features))
    assert not module.fc.training
    module.train()
    assert not torch.equal(module.fc(features), module.fc(features))


def test_every_equal_head_is_replaced_auxiliary_ones_of_training_too():
    module = build("timm", "deit_tiny_distilled_patch16_224")
    assert replace_head(module, outputs=3) == HeadSwap(path="head", was=1000, now=3, others=("head_dist",))
    module = build("torchvision", "googlenet")
    swap = replace_head(module, outputs=3)
    assert swap.path == "fc"
    assert set(swap.others) == {"aux1.fc2", "aux2.fc2"}
    result = module.train()(torch.randn(2, 3, 64, 64))
    assert [output.shape for output in result] == [(2, 3)] * 3


def test_an_activation_that_would_clip_the_scores_is_removed():
    module = build("torchvision", "squeezenet1_1")
    swap = replace_head(module, outputs=3)
    assert swap.removed == ("classifier.2",)
    assert isinstance(module.classifier[2], nn.Identity)
    with torch.no_grad():
        module.classifier[1].bias.fill_(-5.0)
    assert (module.eval()(torch.randn(1, 3, 64, 64)) < 0).all()


def test_an_mlp_head_and_a_head_with_dropout_are_found_again_in_a_copy():
    for hidden in ((8,), ()):
        module = build("torchvision", "mobilenet_v3_small")
        replace_head(module, outputs=3, hidden=hidden, dropout=0.5)
        twin = copy.deepcopy(module)
        assert find_head(twin) == find_head(module)
        assert find_head(twin).outputs == 3
        assert head_parameters(twin) == head_parameters(module)
        assert all(name.startswith("classifier.3.") for name in head_parameters(twin))


def test_the_same_seed_gives_the_same_head():
    heads = []
    for _ in range(2):
        module = build("timm", "test_vit")
        torch.manual_seed(5)
        replace_head(module, outputs=3, hidden=(4,))
        heads.append(torch.cat([parameter.flatten() for parameter in module.head.parameters()]))
    assert torch.equal(*heads)
    assert module.head[-1].weight.std() < 0.03
    assert (module.head[-1].bias == 0).all()


def test_a_head_that_was_removed_can_be_put_in():
    module = timm.create_model("test_efficientnet", pretrained=False, num_classes=0)
    swap = replace_head(module, outputs=6)
    assert swap == HeadSwap(path="classifier", was=0, now=6)
    assert module.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 6)
    module = torchvision.models.resnet18(weights=None)
    module.fc = nn.Identity()
    assert replace_head(module, outputs=4, at="fc").was == 0
    assert module.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4)


def test_at_names_a_whole_stack_to_replace():
    module = build("torchvision", "mobilenet_v3_small")
    swap = replace_head(module, outputs=4, at="classifier")
    assert swap.path == "classifier"
    assert module.classifier.in_features == 576
    assert module.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4)
    assert find_head(module).paths == ("classifier",)


class Small(nn.Module):
    """Convolution, pooling, and then what the test says."""

    def __init__(self, after: Callable[[Small, Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.one = nn.Linear(8, 10)
        self.two = nn.Linear(8, 4)
        self.softmax = nn.Softmax(dim=1)
        self.norm = nn.BatchNorm1d(10)
        self.after = after

    def forward(self, images: Tensor) -> object:
        return self.after(self, self.conv(images).mean((2, 3)))


REFUSED: list[tuple[Callable[[Small, Tensor], object], list[str]]] = [
    (lambda m, x: (m.one(x), m.two(x)), ["different numbers of outputs", "one (8 -> 10)", "two (8 -> 4)", "head.at"]),
    (lambda m, x: m.norm(m.one(x)), ["norm (BatchNorm1d)", "one (8 -> 10)", "--head.at"]),
    (lambda m, x: m.softmax(m.one(x)), ["softmax (Softmax)", "loss applies softmax", "twice"]),
    (lambda m, x: torch.softmax(m.one(x), 1), ["softmax()", "twice"]),
    (lambda m, x: torch.sigmoid(m.one(x)), ["sigmoid()", "twice"]),
    (lambda m, x: torch.relu(m.one(x)), ["relu()", "clips"]),
    (lambda m, x: x @ m.two.weight.t(), ["head is not clear", "two.weight", "self.head = torch.nn.Linear("]),
]


@pytest.mark.parametrize(("after", "words"), REFUSED)
def test_a_head_that_is_not_clear_is_refused_with_its_candidates(after: Callable, words: list[str]):
    with pytest.raises(ModelError) as caught:
        replace_head(Small(after), outputs=3)
    assert all(word in str(caught.value) for word in words), caught.value


def test_at_that_is_wrong_is_refused_with_what_is_near():
    module = build("torchvision", "mobilenet_v3_small")
    before = dict(module.named_modules())
    for at, words in {
        "clasifier.3": ["no module 'clasifier.3'", "classifier.3"],
        "features.0": ["Conv2dNormActivation", "linear layer"],
        "classifier.0": ["classifier.3 executes after classifier.0"],
    }.items():
        with pytest.raises(ModelError) as caught:
            replace_head(module, outputs=3, at=at)
        assert all(word in str(caught.value) for word in words), caught.value
    assert dict(module.named_modules()) == before


@pytest.mark.parametrize("name", ["qwen3_vit_88m_enc", "mobilenetv5_300m_enc"])
def test_an_encoder_without_a_classifier_is_refused_with_the_name_of_its_sibling_that_has_one(name: str):
    with torch.device("meta"):
        module = timm.create_model(name, pretrained=False)
    with pytest.raises(ModelError, match=f"timm/{name} is an encoder .* take timm/{name.removesuffix('_enc')},"):
        replace_head(module, outputs=3)


def test_numbers_out_of_range_are_refused():
    module = build("timm", "test_resnet")
    for options, word in [
        ({"outputs": 0}, "at least 1"),
        ({"outputs": 2, "hidden": (0,)}, "head.hidden"),
        ({"outputs": 2, "dropout": 1.0}, "head.dropout"),
        ({"outputs": 2, "hidden": (4,), "activation": "swish"}, "silu"),
    ]:
        with pytest.raises(ModelError, match=word):
            replace_head(module, **options)


def test_a_model_without_scores_per_image_is_refused_and_left_as_it_was():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1))
    old = module[1]
    with pytest.raises(ModelError, match="for one image"):
        replace_head(module, outputs=2)
    assert module[1] is old
