"""The figure of docs/results.md: which recorded rows it takes, and what it makes of them."""

import csv

from benchmarks import limited_data_figure as figure

BASE = {
    **{"batch_size": "32", "lr": "0.02", "meta_lr": "0.0001", "lambda_start": "random"},
    **{"beta": "0.5", "lwf_weight": "1.0", "at_weight": "1000.0"},
    **{"updates": "800", "seed": "0"},
    **{"method": "scratch", "pairs": "0", "per_class": "50", "test_accuracy": "0.4", "validation_accuracy": "0.5"},
}


def row(**columns):
    return BASE | {name: str(value) for name, value in columns.items()}


def test_takes_results_at_the_paper_weight_of_full_length_only():
    assert figure.is_drawn(row())
    others = {"beta": 2.0, "updates": 160, "seed": 7, "lr": 0.005, "batch_size": 128, "meta_lr": 1e-3}
    weights = {"lwf_weight": 4.0, "at_weight": 250.0, "lambda_start": "even"}
    for name, value in (others | weights).items():
        assert not figure.is_drawn(row(**{name: value})), name


def test_means_over_shared_seeds_of_methods_with_two_numbers_of_images():
    fm = {"method": "fm", "pairs": 15}
    rows = [
        *(row(test_accuracy=accuracy, seed=seed) for seed, accuracy in enumerate((0.4, 0.5, 0.6))),
        row(per_class=100, test_accuracy=0.7),
        *(row(**fm, per_class=number, test_accuracy=0.55) for number in (50, 100)),
        row(**fm, test_accuracy=0.45, seed=1),
        row(**fm, per_class=100, test_accuracy=0.1, seed=1),
        row(method="fm", pairs=3),
    ]
    levels = figure.results(rows)
    assert list(levels) == [50, 100]
    found = {(level, r.label): (r.test.n, round(r.test.mean, 6)) for level, results in levels.items() for r in results}
    assert found == {
        (50, "Scratch"): (2, 0.45),
        (100, "Scratch"): (1, 0.7),
        (50, "FM (all-to-all)"): (2, 0.5),
        (100, "FM (all-to-all)"): (1, 0.55),
    }
    assert [result.label for result in levels[50]] == ["FM (all-to-all)", "Scratch"]


def test_draws_it_from_a_file_of_rows(tmp_path, capsys):
    rows = [row(), row(per_class=100, test_accuracy=0.5)]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(BASE))
        writer.writeheader()
        writer.writerows(rows)
    figure.main(["--rows", str(tmp_path / "rows.csv"), "--images", str(tmp_path)])
    assert (tmp_path / "accuracy_against_images.png").stat().st_size > 10_000
    assert "N = 100, Scratch: 50.00 % (1 seed)" in capsys.readouterr().out
