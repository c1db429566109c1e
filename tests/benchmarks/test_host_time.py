"""The host's time is measured without a GPU, by functions of the package that it puts others in the place of."""

import csv
import subprocess
import sys

import pytest

from l2t_fast import _native


@pytest.mark.skipif(_native.extension is None, reason="there is no native extension")
def test_it_runs(tmp_path):
    pytest.importorskip("triton")
    output = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "benchmarks.host_time", "--workloads", "tiny", "--calls", "1", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with output.open(newline="") as file:
        assert [row["backend"] for row in csv.DictReader(file)] == ["cuda"] * 3 + ["triton"] * 3
