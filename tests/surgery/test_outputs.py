"""Outputs are what they seem: one tensor, known heads, or what the user says; whatever else is asked back."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import DataError, Error, ModelError
from headstart.surgery.head import model_scores
from headstart.surgery.outputs import declare_scores, scores_of

Named = namedtuple("Named", ["scores", "embedding"])


@dataclasses.dataclass
class Record:
    logits: Tensor
    embedding: Tensor


class Net(nn.Module):
    """Gives scores and an embedding of ``size`` numbers in the form of ``made``, in training alone or always."""

    def __init__(
        self,
        made: Callable[[Tensor, Tensor], object],
        *,
        size: int = 16,
        always: bool = False,
        branches: bool = False,
    ) -> None:
        super().__init__()
        self.branches = branches
        self.conv, self.fc, self.proj = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 10), nn.Linear(8, size)
        self.made, self.always = made, always

    def forward(self, x: Tensor) -> Any:
        if self.branches and x.sum() > 1e9:  # torch.fx cannot trace it
            x = x / 2
        features = torch.relu(self.conv(x)).mean((2, 3))
        if self.training or self.always:
            return self.made(self.fc(features), self.proj(features))
        return self.fc(features)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], object], str]] = {
    "a tuple": (lambda a, b: (a, b), "0"),
    "the other way round": (lambda a, b: (b, a), "1"),
    "a list": (lambda a, b: [a, b], "0"),
    "a dictionary": (lambda a, b: {"logits": a, "embedding": b}, "logits"),
    "out and aux": (lambda a, b: {"out": a, "aux": b}, "out"),
    "a named tuple": (Named, "scores"),
    "a dataclass": (Record, "logits"),
}


@pytest.fixture
def run_of(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    def train(model: nn.Module, name: str = "run", **head: Any) -> Any:
        own = {"name": "auto", "options": {}, "image_size": 32}
        given = settings(model=own, recipe="full", epochs=1, out=str(tmp_path / name), head=head)
        return hs.train(hs.load_config(given), model=model)

    return train


@pytest.mark.parametrize("size", [16, 10], ids=["another size", "the head's size"])
@pytest.mark.parametrize("form", FORMS)
def test_an_output_of_training_alone_is_asked_back_and_the_answer_is_followed(
    form: str, size: int, run_of: Callable[..., Any]
) -> None:
    made, answer = FORMS[form]
    with pytest.raises(Error, match=r"--head\.scores") as caught:
        run_of(Net(made, size=size), "refused")
    assert isinstance(caught.value, DataError | ModelError)
    net = Net(made, size=size)
    before = net.proj.weight.detach().clone()
    run = run_of(net, scores=answer)
    assert torch.equal(run.model.proj.weight, before)
    assert run.model.fc.out_features == 3
    assert run.metrics["nll"] < 1.2


@pytest.mark.parametrize("branches", [False, True], ids=["fx", "hooks"])
@pytest.mark.parametrize("form", FORMS)
def test_an_output_that_is_always_there_is_asked_back_and_evaluation_and_the_bundle_follow(
    form: str, branches: bool, run_of: Callable[..., Any]
) -> None:
    made, answer = FORMS[form]
    with pytest.raises(Error, match=r"--head\.scores"):
        run_of(Net(made, always=True, branches=branches), "refused")
    run = run_of(Net(made, always=True, branches=branches), scores=answer)
    opened = hs.open_run(run.path, model=Net(made, always=True, branches=branches))
    images = torch.rand(4, 3, 32, 32)
    outputs = model_scores(opened.model, opened.model(images))
    assert [(share, tuple(value.shape)) for share, value in outputs] == [(1.0, (4, 3))]
    assert torch.equal(outputs[0][1], model_scores(run.model, run.model.to(images)(images))[0][1])


def test_equal_outputs_are_equal_heads_where_the_user_says_all(run_of: Callable[..., Any]) -> None:
    net = Net(lambda a, b: (a, b), size=10)
    run = run_of(net, scores="all")
    assert (run.model.fc.out_features, run.model.proj.out_features) == (3, 3)


def test_a_name_that_no_output_has_is_refused_with_those_there_are(run_of: Callable[..., Any]) -> None:
    with pytest.raises(
        ModelError, match=r"2 outputs: logits .*, embedding .* none is 'scores'; .*--head.scores logits"
    ):
        run_of(Net(FORMS["a dictionary"][0]), scores="scores")


def test_what_is_declared_on_a_module_holds_in_ones_own_loop_and_in_copies(noise: Callable[..., Any]) -> None:
    net = Net(FORMS["a dictionary"][0])
    hs.replace_head(net, outputs=3)
    state = hs.TrainState(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(DataError, match=r'hs.declare_scores\(model, "logits"\)'):
        hs.train_step(state, noise(6), rules=hs.StepRules())
    hs.declare_scores(net, "logits")
    hs.train_step(state, noise(6), rules=hs.StepRules())
    assert net.proj.weight.grad is None


def test_heads_that_timm_declares_train_alike_without_a_word() -> None:
    net = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, img_size=32, depth=1).train()
    net.set_distilled_training()
    outputs = net(torch.zeros(2, 3, 32, 32))
    assert [share for share, _ in model_scores(net, outputs)] == [0.5, 0.5]


def test_two_heads_whose_mean_is_the_output_are_known() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Any:
            x = x.flatten(1)[:, :12]
            both = self.one(x), self.two(x)
            return both if self.training else (both[0] + both[1]) / 2

    net = Twins()
    hs.replace_head(net, outputs=3)
    assert [share for share, _ in model_scores(net, net(torch.zeros(2, 3, 8, 8)))] == [0.5, 0.5]


@pytest.mark.parametrize(
    "outputs",
    [
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(2, 3), torch.zeros(2, 3)),
        Named(torch.zeros(2, 3), torch.zeros(2, 3)),
        [torch.zeros(2, 3), torch.zeros(2, 3)],
        {"out": torch.zeros(2, 3), "aux": torch.zeros(2, 3)},
    ],
)
def test_tensors_that_nobody_declared_get_no_loss(outputs: object) -> None:
    with pytest.raises(DataError, match=r"--head\.scores"):
        scores_of(outputs)


def test_forgetting_what_was_declared_asks_again() -> None:
    net = Net(FORMS["a tuple"][0])
    declare_scores(net, 1)
    assert model_scores(net, net(torch.zeros(1, 3, 16, 16)))[0][1].shape == (1, 16)
    declare_scores(net, "auto")
    with pytest.raises(DataError, match="which one is the scores"):
        model_scores(net, net(torch.zeros(1, 3, 16, 16)))


class Unused(Net):
    """Executes the projection after the head and gives it in training alone; torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Any:
        features = torch.relu(self.conv(x if x.sum() < 1e9 else x / 2)).mean((2, 3))
        scores, embedding = self.fc(features), self.proj(features)
        return (scores, embedding) if self.training else scores


def test_the_last_layer_that_is_executed_is_no_head_where_another_makes_the_scores(run_of: Callable[..., Any]) -> None:
    assert hs.find_head(Unused(FORMS["a tuple"][0])).paths == ("fc",)
    run = run_of(Unused(FORMS["a tuple"][0]), scores=0)
    assert (run.model.fc.out_features, run.model.proj.out_features) == (3, 16)


@pytest.mark.parametrize(
    "after", [torch.relu, lambda x: x.softmax(1), torch.sigmoid], ids=["relu", "softmax", "sigmoid"]
)
def test_functions_after_the_head_are_seen_without_a_graph_too(after: Callable[[Tensor], Tensor]) -> None:
    class After(Net):
        def forward(self, x: Tensor) -> Any:
            return after(super().forward(x))

    for branches in (False, True):
        with pytest.raises(ModelError, match=r"softmax or sigmoid itself|clips its scores"):
            hs.find_head(After(FORMS["a tuple"][0], branches=branches).eval())
