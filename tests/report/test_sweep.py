import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest

from l2t_fast.report import build_report, results_table
from l2t_fast.report.folder import read_comparison
from l2t_fast.report.plots_sweep import _apart, accuracy_against_images
from l2t_fast.report.style import method_styles
from l2t_fast.report.sweep import judge_sweep, rank_levels, sweep_rows
from tests.report.fake_runs import fake_comparison, fake_run, run_config
from tests.report.test_page import Page, assert_self_contained, render_text

APART = {"scratch": [0.50, 0.51, 0.52], "fm": [0.60, 0.61, 0.62], "l2t-ww": [0.70, 0.71, 0.72]}


@pytest.fixture
def swept(tmp_path):
    return fake_comparison(tmp_path, accuracies=APART, per_class=(50, 100, 1000), epochs=2)


def test_runs_are_told_apart_by_their_number_of_images(swept):
    comparison = read_comparison(swept)
    assert comparison.levels == [50, 100, 1000]
    assert len(comparison.at(100).runs) == 9 and {run.per_class for run in comparison.at(100).runs} == {100}
    assert rank_levels(comparison)[1000][0].test.mean == pytest.approx(0.81)


def test_the_number_comes_from_the_name_where_nothing_else_is_left(swept):
    folder = swept / "runs" / "fm-n50-seed0"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "failure.json").write_text(json.dumps({"problem": "the disk is full"}))
    run = next(run for run in read_comparison(swept).runs if run.name == folder.name)
    assert (run.method, run.per_class, run.seed, run.failure) == ("fm", 50, 0, "the disk is full")


def test_page_of_a_sweep(swept):
    (swept / "runs" / "fm-n100-seed1" / "result.json").unlink()
    problem = "in epoch 2, step 3, the matching loss is not finite <b>"
    (swept / "runs" / "fm-n100-seed1" / "failure.json").write_text(json.dumps({"problem": problem}))
    page = Page(build_report(swept).read_text(encoding="utf-8"))
    assert_self_contained(page)
    assert "L2T-ww has the highest mean test accuracy at every one of the 3 numbers N" in page.text
    assert "it is clearly ahead at N = 50, 1000." in page.text
    assert "N = 50: L2T-ww is clearly ahead: 71.0 %" in page.text
    assert f"1 of 27 runs has no result and is left out of the table: fm-n100-seed1 (failed: {problem})" in page.text
    assert "Training images50, 100, 1000 a class" in page.text
    assert (swept / "plots" / "accuracy_against_images.png").exists()
    assert (swept / "plots" / "n100" / "pair_weights_l2t-ww.png").exists()
    ids = Counter(value for name, value in page.attributes if name == "id")
    values = [value for _, value in page.attributes]
    used = {address for value in values for address in re.findall(r"^#(.+)$|url\(#([^)]+)\)", value)}
    assert used and all(ids[first or second] == 1 for first, second in used)
    assert ids["n50-results"] == ids["n100-results"] == ids["n50-results-table"] == 1
    assert not (swept / "plots" / "results.png").exists()


def test_table_of_a_sweep(swept):
    text = render_text(results_table(swept))
    lines = [line for line in text.splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["50"] * 3 + ["100"] * 3 + ["1000"] * 3
    assert "L2T-ww" in lines[0] and "71.0" in lines[0] and "1.0" in lines[0] and "68.5 to 73.5" in lines[0]


def test_table_in_a_terminal_of_80_columns_shows_the_methods(swept):
    text = render_text(results_table(swept), width=80)
    assert text.count("L2T-ww") == text.count(" 1000 ") == 3 and "68.5 to 73.5" in text


def test_who_is_ahead_differs_between_numbers(tmp_path):
    fake_comparison(tmp_path / "a", ("scratch", "fm"), (0, 1), 2, per_class=(5, 10, 20))
    better = {5: ("fm", 0.9), 10: ("fm", 0.9), 20: ("scratch", 0.9)}
    for folder in (tmp_path / "a" / "runs").iterdir():
        result = json.loads((folder / "result.json").read_text())
        number = int(folder.name.split("-n")[1].split("-")[0])
        best, value = better[number]
        accuracy = (value if folder.name.startswith(best) else 0.5) + 0.01 * result["seed"]
        (folder / "result.json").write_text(json.dumps(result | {"test_accuracy": accuracy}))
    levels = rank_levels(read_comparison(tmp_path / "a"))
    verdict = judge_sweep(levels)
    assert verdict.headline == (
        "FM has the highest mean test accuracy at 2 of the 3 numbers N of training images a class (N = 5, 10); "
        "it is clearly ahead at N = 5, 10. The highest elsewhere: Scratch at N = 20."
    )
    rows = sweep_rows(levels)
    assert [row.label for row in rows] == ["FM", "Scratch"]
    assert [row.best for row in rows] == [[True, True, False], [False, False, True]]


@pytest.mark.parametrize(
    ("fm", "said"),
    [
        ([0.5, 0.5], "No method alone has the highest mean test accuracy at any of the 2 numbers N of training images"),
        (
            [0.6, 0.5],
            "FM has the highest mean test accuracy at 1 of the 2 numbers N of training images a class (N = 5)",
        ),
    ],
)
def test_equal_means_put_no_method_first(tmp_path, fm, said):
    fake_comparison(tmp_path, ("scratch", "fm"), (0,), 2, per_class=(5, 10))
    for folder in (tmp_path / "runs").iterdir():
        accuracy = fm["n10" in folder.name] if folder.name.startswith("fm") else 0.5
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"test_accuracy": accuracy}))
    headline = judge_sweep(rank_levels(read_comparison(tmp_path))).headline
    assert headline.startswith(said)
    assert ("The highest elsewhere: several methods at N = 10." in headline) == (fm[0] > fm[1])


def test_where_all_other_methods_failed_there_is_none_to_compare_with(swept):
    for folder in (swept / "runs").iterdir():
        if not folder.name.startswith("scratch"):
            (folder / "result.json").unlink()
    said = "Scratch reaches 51.0 % at N = 50, 56.0 % at N = 100, 61.0 % at N = 1000; "
    said += "there is no other method with a result yet to compare it with."
    headline = judge_sweep(rank_levels(read_comparison(swept))).headline
    assert headline.replace("\N{NO-BREAK SPACE}", " ") == said


def test_one_method_or_no_result(tmp_path):
    fake_comparison(tmp_path, ("fm",), (0,), 2, accuracies={"fm": [0.5]}, per_class=(5, 10))
    levels = rank_levels(read_comparison(tmp_path))
    said = "FM reaches 50.0 % at N = 5, 55.0 % at N = 10; there is no other method to compare it with."
    assert judge_sweep(levels).headline.replace("\N{NO-BREAK SPACE}", " ") == said
    for folder in (tmp_path / "runs").iterdir():
        (folder / "result.json").unlink()
    levels = rank_levels(read_comparison(tmp_path))
    assert "No run has a test accuracy yet" in judge_sweep(levels).headline
    assert accuracy_against_images(levels, tmp_path, "") is None


def test_all_images_come_last_and_stay_out_of_the_figure(tmp_path):
    fake_comparison(tmp_path, ("fm",), (0, 1), 2, per_class=(5, 10))
    fake_run(tmp_path / "runs" / "fm-all-seed0", "fm", config=run_config("fm", per_class=None))
    comparison = read_comparison(tmp_path)
    assert comparison.levels == [5, 10, None]
    assert "N (logarithmic)" in accuracy_against_images(rank_levels(comparison), tmp_path / "plots", "").svg
    assert "all images" in build_report(tmp_path).read_text()


def test_figure_names_every_method_once(tmp_path):
    methods = ("scratch", "lwf", "at", "lwf-at", "fm-single", "fm-one-to-one", "l2t-w", "l2t-ww-single", "l2t-ww")
    accuracies = {method: [0.5 + 0.001 * i] for i, method in enumerate(methods)}
    fake_comparison(tmp_path, methods, (0,), 1, accuracies=accuracies, per_class=(50, 1000))
    plot = accuracy_against_images(rank_levels(read_comparison(tmp_path)), tmp_path / "plots", "Conditions: x.")
    for label in ("LwF+AT", "FM (single)", "FM (one-to-one)", "L2T-ww (single)"):
        assert plot.svg.count(f">{label} ") == 1
    assert plot.across and "Bar:" not in plot.caption and plot.caption.endswith("Conditions: x.")
    for seeds, said in ((2, "Bar: one standard deviation over seeds"), (3, "Bar: 95 % Student t interval")):
        folder = fake_comparison(tmp_path / f"{seeds} seeds", ("fm",), tuple(range(seeds)), 1, per_class=(50, 1000))
        levels = rank_levels(read_comparison(folder))
        assert said in accuracy_against_images(levels, tmp_path / "plots", "").caption
    # One run less, of six, does not change what the bars are.
    (folder / "runs" / "fm-n50-seed1" / "result.json").unlink()
    assert said in accuracy_against_images(rank_levels(read_comparison(folder)), tmp_path / "plots", "").caption
    styles = method_styles(sorted(methods))
    assert len({(style.color, style.marker, str(style.dashes)) for style in styles.values()}) == len(methods)
    assert np.isfinite([float(x) for x in plot.svg.split('viewBox="')[1].split('"')[0].split()]).all()


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ([50, 100, 250, 500, 1000], {50, 100, 250, 500, 1000}),
        ([50, 100, 1000, 1100], {50, 100, 1100}),
        ([1, 900, 1000], {1, 1000}),
    ],
)
def test_numbers_below_the_axis_do_not_touch(numbers, named):
    assert _apart(numbers) == named
