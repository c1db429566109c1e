"""What `l2t-fast bench report` makes of rows: tables between markers, figures, and a page a browser shows."""

import contextlib
import dataclasses
import errno
import os

import pytest

from l2t_fast.bench.documents import EMPTY, fill
from l2t_fast.bench.groups import curves, newest
from l2t_fast.bench.page import render_page
from l2t_fast.bench.plots import draw
from l2t_fast.bench.rows import append_rows
from l2t_fast.bench.tables import tables
from l2t_fast.cli import main
from l2t_fast.errors import L2TFastError
from tests.bench.fake_rows import fake_row, fake_rows
from tests.report.test_page import CHROMIUM, Page, assert_fits_and_shows, assert_self_contained


def test_the_newest_run_counts_and_ratios_stay_within_it():
    old = [fake_row("cpu", median_ms=20.0), fake_row("eager", median_ms=30.0)]
    new = [dataclasses.replace(fake_row("cpu", median_ms=10.0), run="2020-01-02T00:00:00Z")]
    whole = [dataclasses.replace(row, run="2020-01-03T00:00:00Z", median_ms=row.median_ms / 2) for row in old]
    for rows in ([*old, *new, *whole], [*whole, *new, *old]):
        (group,) = newest(rows)
        assert group.ours().median_ms == 10.0 and group.ratio("eager", group.ours()) == 1.5


def test_a_run_without_the_baseline_takes_no_place_of_one_that_has_it():
    old = [fake_row("cpu", median_ms=20.0), fake_row("eager", median_ms=30.0)]
    new = [dataclasses.replace(fake_row("cpu", median_ms=10.0), run="2030-01-02T00:00:00Z")]
    (group,) = newest([*old, *new])
    assert group.ours().median_ms == 20.0 and group.ratio("eager", group.ours()) == 1.5
    (group,) = newest(new)
    assert group.ours().median_ms == 10.0


def test_other_threads_batches_and_features_are_other_groups():
    row = fake_row()
    changes = (
        {},
        {"threads": 1},
        {"batch": 2},
        {"dtype": "bfloat16"},
        {"layout": "channels_last"},
        {"mode": "forward"},
        {"capability": "AVX512"},
        {"pairs": 100},
    )
    assert len(newest(dataclasses.replace(row, **change) for change in changes)) == len(changes)


def test_exponents_and_where_memory_ran_out():
    found = {curve.provider: curve for curve in curves(newest(fake_rows()))}
    assert found["cpu"].exponent() == pytest.approx((1.0, 1.0))
    assert found["cpu"].exhausted_at is None
    assert found["eager"].sizes == (16, 32) and found["eager"].exhausted_at == 64
    assert found["eager"].exponent() is None  # two points fit any line


def test_curves_of_several_dtypes_and_batches_are_not_joined():
    shared = {"sweep": "pairs", "workload": "tiny"}
    rows = [
        fake_row(dtype=dtype, median_ms=ms, size=4, **shared) for dtype, ms in (("float32", 3.0), ("bfloat16", 2.0))
    ]
    rows += [fake_row(batch=batch, median_ms=batch, size=4, **shared) for batch in (4, 8)]
    rows += [fake_row(sweep="threads", workload="tiny", threads=threads, size=threads) for threads in (1, 2)]
    made = {curve.workload: curve.milliseconds for curve in curves(newest(rows))}
    assert made == {
        "tiny, float32, B=128": (3.0,),
        "tiny, bfloat16, B=128": (2.0,),
        "tiny, float32, B=4": (4.0,),
        "tiny, float32, B=8": (8.0,),
        "tiny": (10.0, 10.0),
    }
    (table,) = tables(newest(rows[:4]))["scaling"]
    assert [line[1] for line in table.cells] == [name for name in made if name != "tiny"]


def test_the_summary():
    (table,) = tables(newest(fake_rows()))["summary"]
    cells = [dict(zip(table.header, line, strict=True)) for line in table.cells]
    assert [line["float32"].split(": ")[1] for line in cells] == [
        "cifar, 15 pairs, B=128, step B=4",
        "imagenet, 16 pairs, B=128, step B=4",
    ]
    assert cells[0]["float32"].startswith("Some processor (2 cores), AVX2: ")
    assert cells[0]["loss and gradient"] == "5.00 x"
    assert cells[0]["the same, against `torch.compile`"] == "2.00 x"
    assert cells[0]["the same, against the published loop"] == "3.00 x"
    assert cells[0]["memory of loss and gradient"] == "4.0 x"
    for fact in ("Some processor (2 cores)", "PyTorch 2.14.1", "commit 0123456", "cold cache", "2020-01-01"):
        assert fact in table.conditions


def test_the_summary_has_a_line_a_machine_and_set_up():
    rows = fake_rows() + [dataclasses.replace(row, device="Another", threads=4) for row in fake_rows()]
    (table,) = tables(newest(rows))["summary"]
    assert [line[0].split(",")[0] for line in table.cells] == ["Some processor (2 cores)"] * 2 + ["Another"] * 2
    assert [line[1:] for line in table.cells[:2]] == [line[1:] for line in table.cells[2:]]
    assert table.conditions.count("commit 0123456") == 2 and "threads: 4" in table.conditions


def test_tables_say_what_has_no_figure():
    made = tables(newest(fake_rows()))
    assert set(made) == {"summary", "peaks", "loss", "step", "step-parts", "hypergradient", "scaling", "set-up"}
    assert all(len(same) == 1 for same in made.values())
    loss = made["loss"][0].markdown()
    assert "| unsupported |" in loss and loss.endswith("; cannot.*")
    assert "| 100 (90.0 to 110) | 40.0 (36.0 to 44.0) | 20.0 (18.0 to 22.0) | 5.00 x | 50% | 200, 50.0 |" in loss
    (unknown,) = tables(newest([*fake_rows(), fake_row("mine")]))["loss"]
    assert unknown.header[6] == "mine, ms"
    parts = made["step-parts"][0].markdown()
    assert "| source network | 100 (33%) |" in parts and "| the step by itself, without the clock | 300 |" in parts
    assert "| 1.00 (R² 1.000) |" in made["scaling"][0].markdown() and "at 64" in made["scaling"][0].markdown()
    assert "| product 2 x 2, float32 | 556 GFLOP/s |" in made["peaks"][0].markdown()


def test_without_any_figure_there_are_tables_and_pictures_all_the_same(tmp_path):
    shared = {"status": "out of memory", "median_ms": None}
    rows = [fake_row(mode=mode, **shared) for mode in ("second_order", "step", "hypergradient", "peak")]
    rows.append(fake_row(mode="step", part="rest", **shared))
    rows += [fake_row(mode=mode, sweep="pairs", size=16, **shared) for mode in ("forward", "second_order")]
    rows.append(fake_row(sweep="batch", size=16, status="wrong", median_ms=None, first_call_ms=5.0))
    groups = newest(rows)
    made = tables(groups)
    assert {name for name, same in made.items() if same} == {"loss", "step", "hypergradient", "scaling"}
    for name in ("loss", "step", "hypergradient", "scaling"):
        (table,) = made[name]
        assert "Some processor (2 cores)" in table.conditions and table.conditions.endswith("cold cache; 2020-01-01")
    plots = draw(groups, tmp_path)
    assert [plot.name for plot in plots] == ["bench_scaling_pairs"]
    assert "out of memory at 16" in plots[0].svg
    assert_self_contained(Page(render_page(groups, made, plots, [tmp_path / "rows.csv"])))


def test_machines_do_not_share_a_table():
    rows = fake_rows()
    others = [dataclasses.replace(row, device="Another") for row in rows]
    made = tables(newest([*rows, *others]))
    assert [len(same) for name, same in made.items() if name != "summary"] == [2] * 7


def test_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(
        "before\n<!-- bench:summary -->\nwas there\n<!-- /bench -->\nafter\n<!-- bench:loss -->\n<!-- /bench -->\n"
    )
    made = tables(newest(fake_rows()))
    assert fill(path, made) and not fill(path, made)
    text = path.read_text()
    assert text.startswith("before\n<!-- bench:summary -->\n| float32 |") and "was there" not in text
    assert "<!-- /bench -->\nafter\n<!-- bench:loss -->\n| workload |" in text
    fill(path, tables([]))
    assert path.read_text().count(EMPTY) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bench:nothing -->\n<!-- /bench -->", "asks for the table 'nothing', there are summary, peaks"),
        ("<!-- bench:loss -->\n", "without <!-- /bench --> after it"),
        ("<!-- bench:loss -->\n<!-- bench:step -->\n<!-- /bench -->", "without <!-- /bench --> after it"),
        ("was a marker\n<!-- /bench -->\n", "without <!-- bench:NAME --> before it"),
    ],
)
def test_wrong_markers(tmp_path, text, message):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(L2TFastError, match=message):
        fill(path, tables([]))
    assert path.read_text() == text


def test_figures_and_page(tmp_path):
    groups = newest(fake_rows())
    plots = draw(groups, tmp_path)
    names = {plot.name for plot in plots}
    assert {"bench_loss_time", "bench_step_time", "bench_step_parts", "bench_scaling_pairs"} <= names
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    scaling = next(plot.svg for plot in plots if plot.name == "bench_scaling_pairs")
    assert "plain PyTorch, out of memory at 64" in scaling and "l2t_fast, CPU, k = 1.00" in scaling
    page = Page(render_page(groups, tables(groups), plots, [tmp_path / "rows.csv"]))
    assert_self_contained(page)
    assert page.tags.count("svg") == len(plots) and "5.00 x" in page.text and "100 (90.0 to 110)" in page.text


def test_hostile_cells_are_only_ever_text(tmp_path):
    hostile = "<script>alert(1)</script>|**`"
    groups = newest([fake_row(workload=hostile, note=hostile, device=hostile), fake_row("eager", workload=hostile)])
    page = Page(render_page(groups, tables(groups), draw(groups, tmp_path), [tmp_path / hostile]))
    assert_self_contained(page)
    assert "<script>alert(1)</script>" in page.text


def test_the_command(tmp_path, capsys):
    rows, page, document = tmp_path / "rows.csv", tmp_path / "page.html", tmp_path / "doc.md"
    append_rows(rows, fake_rows())
    document.write_text("<!-- bench:step -->\n<!-- /bench -->\n")
    options = ["--rows", str(rows), "--documents", str(document), "--images", str(tmp_path / "images")]
    assert main(["bench", "report", *options, "--html", str(page)]) == 0
    assert "published loop" in document.read_text() and page.exists()
    assert (tmp_path / "images" / "bench_loss_time.png").exists()
    assert main(["bench", "report", "--rows", str(rows)]) == 0
    assert "## Whole training step" in capsys.readouterr().out
    assert main(["bench", "report", "--rows", str(tmp_path / "none.csv")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_all_files_are_written_where_nobody_reads_what_is_told(tmp_path, capsys):
    rows, page = tmp_path / "rows.csv", tmp_path / "page.html"
    documents = [tmp_path / name for name in ("first.md", "second.md")]
    append_rows(rows, fake_rows())
    for document in documents:
        document.write_text("<!-- bench:step -->\n<!-- /bench -->\n")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as output, contextlib.redirect_stdout(output):  # a line at a time
        options = ["--rows", str(rows), "--documents", *map(str, documents), "--html", str(page)]
        assert main(["bench", "report", *options]) == 130
    assert all("published loop" in document.read_text() for document in documents) and page.exists()
    assert capsys.readouterr().err == ""


def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path, monkeypatch, capsys):
    rows, page, document = tmp_path / "rows.csv", tmp_path / "page.html", tmp_path / "doc.md"
    append_rows(rows, [fake_row(), fake_row("eager")])
    page.write_text("old")
    document.write_text("<!-- bench:loss -->\n<!-- /bench -->\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    report = ["bench", "report", "--rows", str(rows)]
    for options, named in (
        (["--documents", str(document)], document),
        (["--images", str(tmp_path / "images")], tmp_path / "images" / "bench_loss_time.png"),
    ):
        assert main([*report, *options]) == 2
        assert capsys.readouterr().err == f"error: {named}: No space left on device\n"
    monkeypatch.setattr("l2t_fast.bench.plots.draw", lambda *_: [])
    assert main([*report, "--html", str(page)]) == 2
    assert capsys.readouterr().err == f"error: the page cannot be written to {page}: No space left on device\n"
    assert page.read_text() == "old" and document.read_text() == "<!-- bench:loss -->\n<!-- /bench -->\n"


def test_the_page_takes_no_place_of_its_rows(tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    append_rows(rows, fake_rows())
    before = rows.read_text()
    assert main(["bench", "report", "--rows", str(rows), "--html", f"{tmp_path}/../{tmp_path.name}/rows.csv"]) == 2
    assert "holds the rows that are to be read" in capsys.readouterr().err and rows.read_text() == before


def test_the_compare_command(tmp_path, capsys):
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    append_rows(before, [fake_row(median_ms=10.0)])
    append_rows(after, [fake_row(median_ms=13.0)])
    assert main(["bench", "compare", str(before), str(before)]) == 0
    assert main(["bench", "compare", str(before), str(after)]) == 1
    assert "REGRESSION  time" in capsys.readouterr().out
    assert main(["bench", "compare", str(before), str(after), "--threshold", "1.5"]) == 0


def test_compare_says_what_else_than_the_code_differs_and_what_is_missing(tmp_path, capsys):
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    append_rows(
        before, [fake_row(), fake_row("eager"), fake_row(workload="imagenet"), fake_row("torch", mode="peak", flop=1)]
    )
    append_rows(after, [fake_row("eager", torch="2.15.0", commit="fed-dirty")])
    assert main(["bench", "compare", str(before), str(after)]) == 0
    first, second, *_, missing, other, last = capsys.readouterr().out.splitlines()
    assert "PyTorch 2.14.1" in first and "commit 0123456;" in first and first.startswith("before: ")
    assert "PyTorch 2.15.0" in second and "commit fed-dirty;" in second and second.startswith("after:  ")
    assert other == "only measured before: imagenet forward_backward"
    assert missing.startswith("missing     status  cifar") and "l2t_fast, CPU: was measured before" in missing
    assert last == "0 of 1 figures are more than 1.15 times worse, or wrong now; not counted: 1 missing"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 4}, "threads is 2 before and 4 after"),
        ({"device": "Another"}, "device is Some processor (2 cores) before and Another after"),
        ({"mode": "second_order"}, "mode is forward_backward before and second_order after"),
        ({"mode": "step", "part": "rest"}, "there are no rows after"),
    ],
)
def test_why_two_files_have_nothing_in_common(tmp_path, capsys, changes, said):
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    peak = fake_row("torch", mode="peak", workload="copy", bytes=1e8)
    append_rows(before, [peak, fake_row()])
    append_rows(after, [peak, fake_row(**changes)])
    assert main(["bench", "compare", str(before), str(after)]) == 2
    assert capsys.readouterr().err == f"error: {before} and {after} have no figure in common: {said}\n"


def test_what_had_no_figure_before_cannot_be_compared(tmp_path, capsys):
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    append_rows(before, [fake_row(status="wrong", median_ms=None)])
    append_rows(after, [fake_row()])
    assert main(["bench", "compare", str(before), str(after)]) == 2
    assert "in common: what both measured had no figure before\n" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to render the page with")
def test_in_a_browser(tmp_path):
    groups = newest(fake_rows())
    page = tmp_path / "page.html"
    page.write_text(render_page(groups, tables(groups), draw(groups, tmp_path), [tmp_path / "rows.csv"]))
    assert_fits_and_shows(tmp_path, page, ("m0", "m1", "ink"))
