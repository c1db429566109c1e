import itertools
import json

import matplotlib
import numpy as np
import pytest

from l2t_fast.report import plots_accuracy, plots_weights
from l2t_fast.report.figure import drawing, save_plot, short, spread_apart
from l2t_fast.report.folder import read_comparison, read_run
from l2t_fast.report.plots_weights import effective_share
from l2t_fast.report.style import DARK, LIGHT, method_label, method_styles
from l2t_fast.report.verdict import rank_methods
from tests.report.fake_runs import fake_comparison, fake_run, write_csv


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_read_on_their_background(theme):
    for name, color in theme.items():
        if name not in ("paper", "grid"):
            low, high = sorted([luminance(color), luminance(theme["paper"])])
            assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_both_themes_have_the_same_variables_and_each_light_colour_is_unique():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_methods_keep_their_style_and_no_two_share_one():
    styles = method_styles(["scratch", "mine", "l2t-ww", "fm-single", "yours"])
    assert styles["l2t-ww"] == method_styles(["l2t-ww"])["l2t-ww"]
    assert len({style.color for style in styles.values()}) == 5
    assert method_label("fm-single") == "FM (single)" and method_label("<b>") == "<b>"


def test_a_dozen_methods_differ_by_colour_or_dashes_whatever_their_order():
    methods = ["scratch", "fine-tune", "lwf", "at", "lwf-at", "fm-single", "fm-one-to-one", "fm", "l2t-w-single"]
    methods += ["l2t-ww", "l2t-ww-single", "l2t-ww-one-to-one", "mine", "yours", "theirs"]
    styles = method_styles(methods)
    assert list(styles) == methods and styles == method_styles(methods[::-1])
    assert len({(style.color, str(style.dashes), style.marker) for style in styles.values()}) == len(methods)
    for style in set(styles.values()):
        same_color = [other for other in styles.values() if other.color == style.color]
        assert len({str(other.dashes) for other in same_color}) == len(same_color)
    assert styles["fm-single"].color == styles["fm"].color == method_styles(["fm"])["fm"].color
    assert [method_label(name, narrow=True) for name in ("fm-one-to-one", "lwf-at")] == ["FM (1-to-1)", "LwF+AT"]


def test_the_curves_of_many_methods_have_a_label_and_a_sample_of_the_line_each(tmp_path):
    methods = tuple(f"method{i}" for i in range(12))
    comparison = read_comparison(fake_comparison(tmp_path, methods=methods, seeds=(0, 1), epochs=3))
    plot = plots_accuracy.accuracy_curves(comparison, tmp_path / "plots", "")
    assert all(f">{name} " in plot.svg for name in methods)
    assert "Band" not in plot.caption


@pytest.mark.parametrize("positions", [[0.5, 0.5, 0.5], [0.0, 1.0], [0.99, 0.98, 0.97, 0.1], [1.0]])
def test_labels_are_spread_within_bounds_and_keep_their_order(positions):
    placed = spread_apart(positions, 0.1, 0.0, 1.0)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    for (p, a), (q, b) in itertools.combinations(zip(positions, placed, strict=True), 2):
        assert abs(a - b) >= 0.1 - 1e-9
        assert p == q or (p < q) == (a < b)


def test_short_names():
    assert short("stage1") == "stage1"
    assert len(short("features.denseblock4.denselayer16.conv2")) <= 22
    assert short("a\nb") == "a b"


def test_effective_share_of_channels():
    assert effective_share(np.full(8, 1 / 8)) == pytest.approx(1)
    assert effective_share(np.eye(8)[0]) == pytest.approx(1 / 8)
    assert effective_share(np.array([0.5, 0.5, 0, 0])) == pytest.approx(0.5)


def test_svg_uses_theme_variables_and_no_outside_address(tmp_path):
    with drawing(3, 2) as figure:
        figure.subplots().set_title('<b>$x$ & "y"</b>')
        plot = save_plot(figure, tmp_path, "name", 'a "title" <b>', "caption")
    assert (tmp_path / "name.png").read_bytes().startswith(b"\x89PNG")
    assert plot.svg.startswith("<svg") and "var(--ink)" in plot.svg and LIGHT["ink"] not in plot.svg
    assert "<b>" not in plot.svg and "&lt;b&gt;$x$ &amp;" in plot.svg
    assert "<metadata" not in plot.svg and "DOCTYPE" not in plot.svg


def test_svg_is_the_same_from_run_to_run(tmp_path):
    run = read_run(fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww"))
    first, second = (plots_weights.pair_weight_heat_map("l2t-ww", [run], tmp_path / "plots", "") for _ in range(2))
    assert first == second


def test_somebodys_own_settings_are_for_their_figures(tmp_path):
    run = read_run(fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww"))
    wanted = plots_weights.pair_weight_heat_map("l2t-ww", [run], tmp_path / "plots", "")
    with matplotlib.rc_context({"text.usetex": True, "savefig.bbox": "tight", "axes.linewidth": 7}):
        found = plots_weights.pair_weight_heat_map("l2t-ww", [run], tmp_path / "plots", "")
        assert matplotlib.rcParams["text.usetex"]
    assert found == wanted


def test_heat_map_shows_the_mean_over_seeds_and_hatches_missing_pairs(tmp_path):
    pairs = [("a", "x"), ("b", "x"), ("b", "y")]
    runs = []
    for seed, values in enumerate([(1.0, 2.0, 0.5), (1.5, 3.0, 0.5)]):
        folder = fake_run(tmp_path / f"l2t-ww-seed{seed}", "l2t-ww", seed, epochs=1, pairs=pairs)
        rows = [[1, *pair, value, 0] for pair, value in zip(pairs, values, strict=True)]
        write_csv(folder / "pair_weights.csv", ["epoch", "source_layer", "target_layer", "mean", "std"], rows)
        runs.append(read_run(folder))
    plot = plots_weights.pair_weight_heat_map("l2t-ww", runs, tmp_path / "plots", "Conditions: none.")
    for text in (">1.25<", ">2.50<", ">0.50<", ">±0.35<"):
        assert text in plot.svg
    assert "<pattern" in plot.svg and "Hatched" in plot.caption and "mean over 2 seeds" in plot.caption
    assert plot.caption.endswith("Conditions: none.")
    assert "between 0 (the pair is not used) and 6, and starts around 1. Darker" in plot.caption
    # Of the weights of a method that somebody has added, that is not known.
    own = plots_weights.pair_weight_heat_map("mine", runs, tmp_path / "plots", "")
    assert "mine" in own.caption and "one standard deviation. Darker" in own.caption and "and 6" not in own.caption


def test_nan_lambda_is_shown_as_no_number(tmp_path):
    folder = fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww", epochs=1)
    rows = [[1, "a", "x", "nan", 0], [1, "b", "x", 1.0, 0]]
    write_csv(folder / "pair_weights.csv", ["epoch", "source_layer", "target_layer", "mean", "std"], rows)
    run = read_run(folder)
    assert "no number" in plots_weights.pair_weight_heat_map("l2t-ww", [run], tmp_path / "plots", "").svg
    assert plots_weights.pair_weight_curves("l2t-ww", [run], tmp_path / "plots", "") is not None


def test_channel_weights_that_stayed_uniform_are_called_so(tmp_path):
    folder = fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww", epochs=2)
    np.savez(folder / "channel_weights.npz", **{"a->x": np.full(16, 1 / 16), "b->x": np.full(8, 1 / 8)})
    plot = plots_weights.channel_weight_curves("l2t-ww", [read_run(folder)], tmp_path / "plots", "")
    assert "practically uniform" in plot.caption and "100.0 to 100.0 %" in plot.caption
    spread = plots_weights.channel_weight_curves(
        "l2t-ww", [read_run(fake_run(tmp_path / "l2t-ww-seed1", "l2t-ww", 1))], tmp_path / "plots", ""
    )
    assert "practically uniform" not in spread.caption


def test_methods_that_learn_nothing_have_no_weight_figures(tmp_path):
    runs = [read_run(fake_run(tmp_path / "fm-seed0"))]
    for draw in (
        plots_weights.pair_weight_heat_map,
        plots_weights.pair_weight_curves,
        plots_weights.channel_weight_curves,
    ):
        assert draw("fm", runs, tmp_path / "plots", "") is None


def test_unfinished_runs_stay_out_of_the_curve_of_finished_ones(tmp_path):
    fake_comparison(tmp_path, methods=("fm",), seeds=(0, 1), epochs=6)
    fake_run(tmp_path / "runs" / "fm-seed2", "fm", 2, 6, finished=False)
    comparison = read_comparison(tmp_path)
    runs, partial = plots_accuracy._runs_with_curve(comparison.runs_of("fm"))
    assert [run.seed for run in runs] == [0, 1] and partial
    epochs, mean, spread = plots_accuracy._mean_curve(runs)
    both = np.stack([run.metrics["validation_accuracy"] for run in runs])
    assert epochs.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(mean, both.mean(0))
    np.testing.assert_allclose(spread, both.std(0, ddof=1))
    plot = plots_accuracy.accuracy_results(rank_methods(comparison), tmp_path / "plots", "")
    assert "FM (n=2)" in plot.svg


def test_layers_keep_their_order_where_pairs_are_missing():
    pairs = [("a", "1"), ("a", "2"), ("a", "4"), ("b", "0"), ("b", "1"), ("b", "3"), ("b", "4"), ("b", "5")]
    assert plots_weights._layers(pairs) == (["a", "b"], ["0", "1", "2", "3", "4", "5"])


@pytest.mark.parametrize(("moved", "said"), [(0.01, True), (1.0, False)])
def test_lambda_that_stayed_at_its_random_start_is_called_so(tmp_path, moved, said):
    folder = fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww", epochs=2)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"best_epoch": 2}))
    rows = [[e, "a", t, start + moved * (e - 1), 0] for e in (1, 2) for t, start in (("x", 0.8), ("y", 1.2))]
    write_csv(folder / "pair_weights.csv", ["epoch", "source_layer", "target_layer", "mean", "std"], rows)
    caption = plots_weights.pair_weight_heat_map("l2t-ww", [read_run(folder)], tmp_path / "plots", "").caption
    assert f"changed by {moved:.2f} in the mean and {moved:.2f} at most" in caption
    assert "differed by 0.28 (standard deviation)" in caption
    assert ("mostly from random initial weights" in caption) == said


def test_many_layers_get_a_figure_that_scrolls_instead_of_shrinking(tmp_path):
    layers = [f"features.denseblock{i}.denselayer16.conv{i}" for i in range(9)]
    run = read_run(fake_run(tmp_path / "r", "l2t-ww", epochs=2, source_layers=layers[:2], target_layers=layers))
    many = plots_weights.pair_weight_heat_map("l2t-ww", [run], tmp_path / "plots", "")
    assert "min-width" in many.svg.split(">")[0]
    few = plots_weights.pair_weight_heat_map(
        "l2t-ww", [read_run(fake_run(tmp_path / "f", "l2t-ww", epochs=2))], tmp_path / "plots", ""
    )
    assert "min-width" not in few.svg.split(">")[0]
