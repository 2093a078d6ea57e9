"""torchmetrics without what its import loads, and the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys

from headstart.tasks.functional_metrics import functional

# one process: the functions alone, then all of torchmetrics, in a random case for both
BOTH = """
import json, sys
import torch
from headstart.tasks.functional_metrics import functional
alone = functional("classification"), functional("regression")
heavy = sorted({"scipy", "transformers", "torchmetrics"} & set(sys.modules))
import torchmetrics
whole = torchmetrics.functional.classification, torchmetrics.functional.regression
torch.manual_seed(0)
scores, truth = torch.rand(40, 5).softmax(1), torch.randint(5, (40,))
found = [
    [
        float(kind.multiclass_accuracy(scores, truth, num_classes=5, average="micro")),
        float(kind.multiclass_f1_score(scores, truth, num_classes=5, average="macro")),
        float(kind.binary_average_precision(scores[:, 0], truth.eq(0).long())),
        float(kind.binary_f1_score(scores[:, 0], truth.eq(0).long())),
        float(numbers.mean_absolute_error(scores[:, 0], scores[:, 1])),
        float(numbers.mean_squared_error(scores[:, 0], scores[:, 1], squared=False)),
    ]
    for kind, numbers in (alone, whole)
]
same = alone[0].multiclass_accuracy is whole[0].multiclass_accuracy
print(json.dumps([heavy, found, same, hasattr(torchmetrics, "AUROC")]))
"""


def test_neither_scipy_nor_transformers_is_imported_and_all_of_torchmetrics_can_be_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", BOTH], capture_output=True, text=True, check=True)
    heavy, (alone, whole), same, complete = json.loads(done.stdout)
    assert heavy == []
    assert alone == whole
    assert complete
    assert not same


def test_what_is_imported_already_is_used() -> None:
    import torchmetrics

    functional.__globals__["_functional"].cache_clear()
    try:
        assert functional("regression") is torchmetrics.functional.regression
    finally:
        functional.__globals__["_functional"].cache_clear()


def test_a_version_that_needs_more_of_itself_is_imported_whole() -> None:
    code = (
        "import sys; from headstart.tasks.functional_metrics import functional; functional.__globals__['_GIVEN'] = {};"
        "found = functional('regression'); print(found.__name__, 'torchmetrics.image' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torchmetrics.functional.regression", "True"]
