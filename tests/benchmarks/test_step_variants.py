"""The table of the step's variants: differences are paired by seed."""

import pytest

from benchmarks.step_variants import VARIANTS, table
from l2t_fast.config import TransferOptions


def test_differences_are_seed_by_seed():
    found = {"exact": [0.5, 0.7], "bfloat16": [0.6, 0.8]}
    rows = [
        {"variant": variant, "seed": seed, "test_accuracy": accuracy, "validation_accuracy": 0.9}
        for variant, accuracies in found.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    *_, exact, bfloat16 = table(rows).splitlines()
    assert exact == "| exact | 2 | 60.0% | 14.1% |  | 90.0% |"
    assert bfloat16 == "| bfloat16 | 2 | 70.0% | 14.1% | +10.0% (+10.0% to +10.0%) | 90.0% |"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_configuration(variant):
    TransferOptions(**VARIANTS[variant]).check()
