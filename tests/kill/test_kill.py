"""A few kills; `make kill` does all of them and a hundred at random moments."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_killed_run_continues_as_if_nothing_had_been():
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill", "--points", "4", "--moments", "1", "--seed", "9"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "5 passed, 0 failed" in done.stdout
