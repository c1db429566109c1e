import math

import pytest

from l2t_fast.report.folder import Comparison, Run
from l2t_fast.report.verdict import judge, rank_methods


def verdict(tmp_path, **accuracies):
    runs = [
        Run(f"{method}-seed{seed}", method, seed, finished=value is not None, test_accuracy=value or math.nan)
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return judge(rank_methods(Comparison(tmp_path, runs)))


def test_clearly_ahead_needs_intervals_apart(tmp_path):
    said = verdict(tmp_path, scratch=[0.70, 0.71, 0.72], fm=[0.80, 0.81, 0.821])
    assert said.headline.replace("\N{NO-BREAK SPACE}", " ") == (
        "FM is clearly ahead: 81.0 % mean test accuracy, 10.0 points above Scratch (71.0 %), "
        "and its 95 % interval overlaps no other."
    )
    assert "+10.0 points" in said.details[0]


def test_overlap_means_no_winner_and_says_who_is_behind(tmp_path):
    said = verdict(
        tmp_path, **{"scratch": [0.50, 0.51, 0.52], "fm": [0.80, 0.82, 0.84], "l2t-ww": [0.81, 0.8301, 0.8499]}
    )
    assert said.headline.startswith("No method is clearly ahead: L2T-ww has the highest mean test accuracy")
    assert "1.0 points above FM" in said.headline
    assert said.headline.endswith("but the 95 % interval of L2T-ww overlaps that of FM.")
    assert said.details[0] == "L2T-ww is clearly above Scratch: those intervals do not overlap."
    assert "L2T-ww minus FM is +1.0 points" in said.details[1] and "excludes zero" in said.details[1]


def test_what_transfer_gains_over_scratch_is_told_seed_by_seed(tmp_path):
    """Seeds are 20 points apart, and yet the gain is the same with each of them, nearly."""
    said = verdict(tmp_path, **{"scratch": [0.50, 0.60, 0.70], "fm": [0.58, 0.67, 0.79], "l2t-ww": [0.60, 0.70, 0.81]})
    assert said.headline.endswith("overlaps those of FM and Scratch.")
    assert [line.split(" points")[0] for line in said.details] == [
        "Seed by seed, L2T-ww minus FM is +2.3",
        "Seed by seed, L2T-ww minus Scratch is +10.3",
    ]
    assert said.details[1].endswith("which excludes zero.")


def test_differences_that_are_all_the_same_have_no_interval(tmp_path):
    said = verdict(tmp_path, scratch=[0.50, 0.60], fm=[0.51, 0.61])
    assert said.details == ["FM minus Scratch is +1.0 points with each of 2 seeds, so their spread is not known."]


def test_the_widest_interval_counts_not_only_the_second_best(tmp_path):
    said = verdict(tmp_path, a=[0.900, 0.901, 0.902], b=[0.800, 0.801, 0.802], c=[0.30, 0.70, 0.95])
    assert said.headline.startswith("No method is clearly ahead")
    assert said.headline.endswith("overlaps that of c.")


def test_scratch_may_win(tmp_path):
    assert verdict(tmp_path, scratch=[0.9, 0.91], fm=[0.1, 0.11]).headline.startswith("Scratch is clearly ahead")


def test_equal_means(tmp_path):
    said = verdict(tmp_path, scratch=[0.8, 0.9], fm=[0.9, 0.8])
    assert "practically the same mean test accuracy" in said.headline
    assert said.headline.startswith("No method is clearly ahead")


def test_one_seed_is_never_a_winner(tmp_path):
    everyone = verdict(tmp_path, scratch=[0.2], fm=[0.9])
    assert everyone.headline.startswith("No method is clearly ahead: FM has the highest")
    assert "every method ran with one seed" in everyone.headline
    other = verdict(tmp_path, scratch=[0.2], fm=[0.9, 0.91])
    assert other.headline.endswith("Scratch ran with one seed and has no interval.")


@pytest.mark.parametrize(
    ("accuracies", "part"),
    [
        ({"fm": [None, None]}, "nothing to compare"),
        ({"fm": [0.8, 0.9]}, "it is the only method here"),
        ({"fm": [0.8], "scratch": [None]}, "no other method has a result yet"),
        ({"fm": [0.8]}, "one seed, so without an interval"),
    ],
)
def test_too_little_to_compare(tmp_path, accuracies, part):
    assert part in verdict(tmp_path, **accuracies).headline
