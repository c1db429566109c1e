"""How the model of a GPU puts a launch's blocks on processors."""

import pytest

from benchmarks.gpu_waiting import time_of_processors

WAITS = (100, 40)  # cycles, instructions: a tenth of what four schedulers issue meanwhile
ISSUES = (100, 400)


@pytest.mark.parametrize(
    ("blocks", "processors", "resident", "cycles"),
    [
        ([WAITS] * 4, 2, 2, 100),
        ([WAITS] * 3, 1, 2, 200),  # the third begins when the first two have ended
        ([WAITS] * 3, 3, 1, 100),
        ([ISSUES] * 2, 2, 2, 100),
        ([ISSUES] * 2, 1, 2, 200),
        ([ISSUES, WAITS], 1, 2, 110),
        ([(300, 40), WAITS, WAITS, WAITS], 1, 2, 300),
        ([(10, 400)], 1, 1, 100),  # never less than its instructions
        ([], 4, 2, 0),
    ],
)
def test_blocks_of_a_processor_share_what_it_can_issue(blocks, processors, resident, cycles):
    assert time_of_processors(blocks, processors, resident) == pytest.approx(cycles)
