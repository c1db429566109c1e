"""Rows of the small benchmarks: whole, whoever else adds to the file and however full the disk is."""

import resource
import threading

import pytest

from benchmarks.csv_rows import append
from l2t_fast.errors import L2TFastError
from l2t_fast.files import locked_end, write_all


def test_who_adds_at_the_same_time_waits_and_writes_no_second_header(tmp_path):
    path = tmp_path / "rows.csv"
    other = threading.Thread(target=append, args=([{"a": 2}], path))
    with locked_end(path) as file:
        other.start()
        other.join(0.3)
        assert other.is_alive()
        write_all("a\n1\n", file)
    other.join(60)
    assert path.read_text() == "a\n1\n2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [("a,b\n1,2\n", r"rows\.csv holds other columns"), ("a\n1", r"rows\.csv ends inside a line")],
)
def test_a_file_of_other_rows_is_left_as_it_is(content, message, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(L2TFastError, match=message):
        append([{"a": 2}], path)
    assert path.read_text() == content


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path):
    path = tmp_path / "rows.csv"
    append([{"a": 1, "b": "x"}], path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(L2TFastError, match=r"rows cannot be written to .*rows\.csv: File too large"):
            append([{"a": 2, "b": "x" * 100}], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append([{"a": 3, "b": "y"}], path)
    assert path.read_text() == "a,b\n1,x\n3,y\n"
