"""Sequences of public calls against a plain loop; ``python -m tests.fuzz_api`` draws more."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_api


@pytest.mark.skipif(not fuzz_api.AVERAGES, reason="train_step does not make what its rules need")
def test_any_sequence_of_calls_gives_the_weights_of_a_plain_loop() -> None:
    examples, steps = (
        int(os.environ.get(f"FUZZ_API_{name}", usual)) for name, usual in (("EXAMPLES", 20), ("STEPS", 20))
    )
    fuzz_api.run(examples=examples, steps=steps)
