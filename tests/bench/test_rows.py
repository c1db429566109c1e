"""Rows: appended, never changed; read back as they were; mistakes in a file told in one sentence."""

import dataclasses
import resource
from pathlib import Path

import pytest

from l2t_fast.bench.compare import compare, not_measured_again, other_work, rows_of
from l2t_fast.bench.rows import COLUMNS, OUT_OF_MEMORY, WRONG, append_rows, check_output, read_rows
from l2t_fast.errors import L2TFastError
from tests.bench.fake_rows import fake_row


def test_rows_come_back(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    rows = [
        fake_row(median_ms=1.25, note='commas, "quotes"\nand lines', error=1e-7),
        fake_row(status=OUT_OF_MEMORY, median_ms=None, sweep="pairs", size=16),
    ]
    append_rows(path, rows[:1])
    before = path.read_text()
    append_rows(path, rows[1:])
    assert path.read_text().startswith(before)
    assert read_rows(path) == rows


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, [fake_row()])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(L2TFastError, match=r"rows cannot be written to .*: File too large"):
            append_rows(path, [fake_row(), fake_row()])
        new = tmp_path / "new.csv"
        with pytest.raises(L2TFastError, match=r"rows cannot be written to .*: File too large"):
            append_rows(new, [fake_row() for _ in range(50)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_rows(path) == [fake_row()]
    assert not new.exists()


@pytest.mark.parametrize("note", [None, 'a "quote"\nand \u00b2 lines\n'])
def test_a_file_that_ends_inside_a_row_is_neither_believed_nor_added_to(tmp_path, note):
    path = tmp_path / "rows.csv"
    append_rows(path, [fake_row()])
    first = path.stat().st_size
    append_rows(path, [fake_row(note=note)])
    text = path.read_bytes()
    for size in range(first + 1, len(text)):
        path.write_bytes(text[:size])
        for use in (read_rows, check_output, lambda path: append_rows(path, [fake_row()])):
            with pytest.raises(
                L2TFastError, match=r"(ends inside line [345]: remove that|line 3: no whole row begins there)"
            ):
                use(path)
        assert path.read_bytes() == text[:size]
    path.write_bytes(text[: text.index(b"\n")])  # a header, which a first row would be joined to
    with pytest.raises(L2TFastError, match="ends inside line 1: remove"):
        append_rows(path, [fake_row()])


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "rows.csv"
    text = ",".join((*COLUMNS[1:], "extra")) + "\n1,2,3\n"
    path.write_text(text)
    message = f"lacks {COLUMNS[0]} and has extra.*name another file"
    with pytest.raises(L2TFastError, match=message):
        append_rows(path, [fake_row()])
    with pytest.raises(L2TFastError, match=message):
        read_rows(path)
    assert path.read_text() == text


def test_an_empty_file_can_be_added_to_and_holds_no_rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.touch()
    with pytest.raises(L2TFastError, match=r"rows\.csv is empty, so it holds no rows"):
        read_rows(path)
    append_rows(path, [fake_row()])
    assert read_rows(path) == [fake_row()]


def test_a_cell_that_is_no_number(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, [fake_row(median_ms=12.5), fake_row(median_ms=13.5)])
    path.write_text(path.read_text().replace("13.5", "fast"))
    with pytest.raises(L2TFastError, match=r"line 3: median_ms is 'fast', a number is due"):
        read_rows(path)
    with pytest.raises(L2TFastError, match="No such file"):
        read_rows(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("status", "okay", "status is 'okay', one of ok, wrong, out of memory, unsupported is due there"),
        ("status", "", "status is '', one of ok"),
        ("median_ms", "", "median_ms is '', a number is due there"),
        ("p20_ms", "", "p20_ms is '', a number is due there"),
        ("threads", "", "threads is '', a number is due there"),
        ("size", "", "size is '', a number is due there"),
        ("size", "0", "size is '0', a number above 0 is due there"),
        ("median_ms", "nan", "median_ms is 'nan', a number above 0 is due there"),
        ("p80_ms", "inf", "p80_ms is 'inf', a number above 0 is due there"),
        ("p20_ms", "-1", "p20_ms is '-1', a number above 0 is due there"),
        ("peak_mib", "-5", "peak_mib is '-5', a number of 0 or more is due there"),
        ("floor_ms", "nan", "floor_ms is 'nan', a number of 0 or more is due there"),
        ("mode", "step", "mode is 'step', one of forward, forward_backward, second_order is due there in a sweep"),
        ("mode", "", "mode is '', it must be there"),
        ("run", "", "run is '', it must be there"),
        ("note", "a,b", f"{len(COLUMNS) + 1} cells are there, {len(COLUMNS)} are due"),
    ],
)
def test_a_row_that_no_run_writes(tmp_path, column, cell, message):
    path = tmp_path / "rows.csv"
    append_rows(path, [fake_row(), fake_row(sweep="pairs", size=16)])
    *before, last = path.read_text().splitlines()
    cells = last.split(",")
    cells[COLUMNS.index(column)] = cell
    path.write_text("\n".join([*before, ",".join(cells), ""]))
    with pytest.raises(L2TFastError, match=f"line 3: {message}"):
        read_rows(path)


def test_the_recorded_rows_can_be_read():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "rows.csv"
    assert {"peak", "step", "forward_backward"} <= {row.mode for row in read_rows(path)}


def test_a_peak_without_a_rate(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, [fake_row(mode="peak")])
    with pytest.raises(L2TFastError, match="line 2: flop is '', a number is due there"):
        read_rows(path)


def test_lines_are_those_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, [fake_row(note="two\nlines"), fake_row(part="rest", median_ms=0.0, p20_ms=None, p80_ms=None)])
    assert len(read_rows(path)) == 2
    with path.open("a") as file:
        file.write("\n1,2\n")
    with pytest.raises(L2TFastError, match="line 6: 2 cells are there"):
        read_rows(path)


def test_regressions_by_ratio():
    before = [fake_row("cpu", median_ms=10, p20_ms=9), fake_row("eager", median_ms=50, p20_ms=49)]
    worse, same = compare(before, [fake_row("cpu", median_ms=12, p20_ms=11.8), fake_row("eager", median_ms=51)], 1.15)
    assert (worse.row.provider, worse.what, worse.regressed) == ("cpu", "time", True)
    assert worse.ratio == pytest.approx(1.2)
    assert (same.row.provider, same.regressed) == ("eager", False)


def test_a_slower_median_with_quick_calls_as_before_is_noise():
    (change,) = compare([fake_row(median_ms=10, p20_ms=9)], [fake_row(median_ms=12, p20_ms=8.9)], 1.15)
    assert not change.regressed


def test_memory_and_status_regress_too():
    before = [fake_row(median_ms=10, p20_ms=10, peak_mib=100.0)]
    after = [fake_row(median_ms=10, p20_ms=10, peak_mib=130.0)]
    memory, time = compare(before, after, 1.15)
    assert (memory.what, memory.regressed, time.what, time.regressed) == ("memory", True, "time", False)
    (change,) = compare(before, [fake_row(median_ms=None, status=WRONG)], 1.15)
    assert change.what == "status" and change.regressed


def test_what_was_only_measured_before_is_named():
    before = [fake_row(), fake_row("eager"), fake_row(mode="step", provider="naive"), fake_row(mode="step")]
    assert other_work(before, [fake_row()]) == [f"{before[2].workload} step"]
    assert [row.provider for row in not_measured_again(before, [fake_row()])] == ["eager"]


def test_only_equal_conditions_are_compared():
    row = fake_row(median_ms=10)
    for other in ({"threads": 4}, {"device": "another"}, {"batch": 2}, {"flags": "warm cache"}, {"provider": "cuda"}):
        assert compare([row], [dataclasses.replace(row, **other)], 1.15) == []


def test_changes_to_a_commit_are_not_the_commit(tmp_path):
    """Measured before a change and after it, which is not committed yet."""
    path = tmp_path / "rows.csv"
    commits = {"abc1234": 1.0, "abc1234-dirty": 2.0, "abc9999": 3.0, None: 4.0, "abc12345": 5.0}
    append_rows(path, [fake_row(commit=commit, median_ms=median) for commit, median in commits.items()])
    for asked, medians in {
        "abc1234": [1.0, 5.0],  # git has written one more character where seven were of two commits
        "abc1": [1.0, 5.0],
        "abc12345f0e1d2c3b4a5968778695a4b3c2d1e0f": [1.0, 5.0],  # as `git rev-parse` writes it
        "abc1234-dirty": [2.0],
        "abc9": [3.0],
    }.items():
        assert [row.median_ms for row in rows_of(f"{path}@{asked}")] == medians
    with pytest.raises(L2TFastError, match="holds rows of several commits abc: abc1234, abc9999, abc12345, name one"):
        rows_of(f"{path}@abc")
    with pytest.raises(L2TFastError, match="no row of commit abc9-dirty, it has abc1234, abc1234-dirty, abc9999, none"):
        rows_of(f"{path}@abc9-dirty")


def test_rows_of_one_commit(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, [fake_row(commit="abc1234", median_ms=1.0), fake_row(commit="def5678", median_ms=2.0)])
    assert [row.median_ms for row in rows_of(f"{path}@def")] == [2.0]
    assert len(rows_of(str(path))) == 2
    with pytest.raises(L2TFastError, match="no row of commit 999, it has abc1234, def5678"):
        rows_of(f"{path}@999")


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path):
    path = tmp_path / "runs@home" / "rows.csv"
    path.parent.mkdir()
    append_rows(path, [fake_row(commit="abc1234"), fake_row(commit="def5678", median_ms=2.0)])
    assert [row.median_ms for row in rows_of(f"{path}@def")] == [2.0]
    assert len(rows_of(str(path))) == 2
