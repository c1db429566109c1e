"""Five hundred drawn problems on every backend that runs here; `make fuzz` draws ten thousand others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2t_fast.ops import reference
from tests.fuzz.cases import FEATURE_LAYOUTS, Case, Map, Pair, draw_case
from tests.fuzz.check import Wrong, available_backends, check, serves
from tests.fuzz.shrink import shrink, snippet

ROOT = Path(__file__).resolve().parents[2]
CASES, GROUPS = 500, 4
# Its interpreter takes too long for them; tests/ops/triton/test_drawn.py has smaller ones.
LEFT_OUT = ("triton",) if os.environ.get("TRITON_INTERPRET") == "1" else ()


# By backend, so that each can be left out: Triton compiles nearly every case anew, which takes minutes.
@pytest.mark.parametrize("backend", [name for name in available_backends() if name not in LEFT_OUT])
@pytest.mark.parametrize("group", range(GROUPS))
def test_drawn_problems(group, backend):
    """In groups, so that several processes share them."""
    for seed in range(group, CASES, GROUPS):
        case = draw_case(seed)
        if serves(backend, case):
            try:
                check(case, backend)
            except Exception as error:
                raise AssertionError(f"{error}\n\n{snippet(case, backend)}") from error


def test_what_is_drawn():
    """Every kind of thing the loss takes comes up in the cases of the suite."""
    cases = [draw_case(seed) for seed in range(CASES)]
    assert {case.batch for case in cases} == {0, 1, 2, 3, 4, 5}
    for side in ("sources", "targets"):
        maps = [m for case in cases for m in getattr(case, side)]
        assert {m.dtype for m in maps} == {"float32", "bfloat16", "float16", "float64"}
        assert {m.layout for m in maps} == set(FEATURE_LAYOUTS)
        assert any(m.height == m.width == 1 for m in maps) and any(m.height != m.width for m in maps)
    assert any(len({(p.source, p.target) for p in case.pairs}) < len(case.pairs) for case in cases)
    assert {(case.channel_weights is None, case.pair_weights) for case in cases} == {
        (none, some) for none in (True, False) for some in (True, False)
    }
    assert any(isinstance(case.beta, tuple) for case in cases)
    assert any(len(case.dtypes) == 3 for case in cases)
    assert any(case.one_storage for case in cases) and any(case.inference for case in cases)
    assert max(m.height * m.width for case in cases for m in case.targets) > 1000


@pytest.fixture
def wrong_for_one_row(monkeypatch):
    """A reference backend that is wrong by a thousandth where the target has one row."""
    right = reference.matching_loss

    def wrong(sources, targets, weights, biases, alpha, pairs):
        factor = 1.001 if any(targets[n].shape[2] == 1 for _, n in pairs) else 1.0
        return right(sources, targets, weights, biases, alpha * factor, pairs)

    monkeypatch.setattr(reference, "matching_loss", wrong)


def fails(case: Case) -> bool:
    try:
        check(case, "reference")
    except Wrong:
        return True
    return False


def test_a_wrong_backend_is_found_and_the_case_made_small(wrong_for_one_row):
    found = next(case for case in map(draw_case, range(100)) if fails(case))
    small = shrink(found, fails)
    assert len(small.pairs) == len(small.sources) == len(small.targets) == 1
    assert small.targets[0].height == 1 and small.targets[0].width == 1
    assert small.dtypes == {"float32"} and small.threads == 1


def test_a_snippet_runs():
    case = Case(
        seed=3,
        batch=2,
        sources=(Map(3, 2, 2), Map(1, 1, 1, dtype="bfloat16")),
        targets=(Map(2, 4, 5, layout="sliced"),),
        pairs=(Pair(1, 0), Pair(0, 0, bias=None)),
        beta=(1.0, 0.25),
    )
    program = snippet(case, "reference")
    assert "layout='sliced'" in program and "frozen" not in program
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
