"""A share of the drawn problems of tests/fuzz, small enough for Triton's interpreter."""

import os

import pytest

from tests.fuzz.cases import draw_case
from tests.fuzz.check import check
from tests.fuzz.shrink import snippet

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU, tests/fuzz has five hundred for it")
def test_drawn_problems(triton_backend):
    dtypes = [str(dtype).removeprefix("torch.") for dtype in triton_backend.dtypes]
    for seed in range(8):
        case = draw_case(seed, dtypes, small=True)
        try:
            check(case, "triton")
        except Exception as error:
            raise AssertionError(f"{error}\n\n{snippet(case, 'triton')}") from error
