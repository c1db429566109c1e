import json
import math

import numpy as np
import pytest

from l2t_fast.errors import L2TFastError
from l2t_fast.report.folder import read_comparison, read_run
from tests.report.fake_runs import METRICS, fake_comparison, fake_run, run_config, write_csv


def test_reads_a_whole_comparison(tmp_path):
    comparison = read_comparison(fake_comparison(tmp_path))
    assert comparison.methods == ["scratch", "fm", "l2t-ww"]
    assert [(run.method, run.seed) for run in comparison.runs_of("fm")] == [("fm", 0), ("fm", 1), ("fm", 2)]
    run = comparison.runs_of("l2t-ww")[0]
    assert run.has_test_accuracy and run.epochs_recorded == 20 and run.planned_epochs == 20 and not run.problems
    assert run.pair_weights["stage1", "pool3"].keys() == set(range(1, 21))
    assert run.channel_weights["stage2", "pool1"].shape == (32,)
    assert comparison.source is not None and comparison.source.test_accuracy == 0.985


def test_lambda_is_taken_at_the_best_epoch(tmp_path):
    run = read_run(fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww"))
    chosen = run.pair_weights_at_best()
    assert chosen["stage1", "pool1"] == run.pair_weights["stage1", "pool1"][run.best_epoch]
    run.best_epoch = None
    assert run.pair_weights_at_best()["stage1", "pool1"] == run.pair_weights["stage1", "pool1"][20]


def test_a_single_run_is_a_comparison_of_one(tmp_path):
    comparison = read_comparison(fake_run(tmp_path / "fm-seed3", "fm", 3))
    assert [(run.method, run.seed) for run in comparison.runs] == [("fm", 3)]


def test_half_a_line_and_a_repeated_epoch_in_the_metrics(tmp_path):
    folder = fake_run(tmp_path / "fm-seed0", epochs=3)
    row = [2, 20, 0.1, 1.0, 0.9, 0.1, 0.5, 1.0, 0.123, 1.5]
    with (folder / "metrics.csv").open("a") as file:
        file.write(",".join(map(str, row)) + "\n3,30,0.1,0.")
    run = read_run(folder)
    assert run.metrics["epoch"].tolist() == [1, 2, 3]
    assert run.metrics["validation_accuracy"][1] == 0.123


def test_an_unfinished_run_keeps_the_end_of_its_log(tmp_path):
    run = read_run(fake_run(tmp_path / "fm-seed0", finished=False))
    assert not run.finished and run.epochs_recorded == 10 and run.last_log_lines[-1] == "epoch 20 done"


def test_nan_result_is_no_result(tmp_path):
    run = read_run(fake_run(tmp_path / "fm-seed0", test_accuracy=math.nan))
    assert run.finished and not run.has_test_accuracy
    assert any("no finite test accuracy" in problem for problem in run.problems)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("result.json", b"{", "result.json is not valid JSON"),
        ("config.yaml", b"a: [1", "config.yaml is not valid YAML"),
        ("channel_weights.npz", b"PK\x03\x04 cut off", "channel_weights.npz could not be read"),
        ("metrics.csv", b"\xff\xfe\x00binary", "metrics.csv is missing or empty"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, problem):
    folder = fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww")
    (folder / name).write_bytes(content)
    run = read_run(folder)
    assert (run.method, run.seed) == ("l2t-ww", 0)
    assert any(problem in said for said in run.problems)


def test_pickled_channel_weights_are_not_loaded(tmp_path):
    folder = fake_run(tmp_path / "l2t-w-seed0", "l2t-w")
    np.savez(folder / "channel_weights.npz", **{"a->b": np.array([object()], dtype=object)})
    run = read_run(folder)
    assert run.channel_weights == {} and any("channel_weights.npz" in problem for problem in run.problems)


def test_json_of_the_wrong_kind_counts_as_missing(tmp_path):
    folder = fake_run(tmp_path / "fm-seed0")
    (folder / "result.json").write_text(json.dumps([1, 2]))
    assert not read_run(folder).finished


def test_rows_of_the_table_stand_in_for_deleted_runs(tmp_path):
    header = ["method", "per_class", "seed", "validation_accuracy", "test_accuracy", "best_epoch", "seconds"]
    rows = [["fm", 10, 0, 0.8, 0.7, 3, 9.5], ["scratch", 10, 1, 0.6, 0.5, 2, 8]]
    write_csv(tmp_path / "results.csv", header, rows)
    fake_run(tmp_path / "runs" / "fm-seed0", "fm", 0)
    comparison = read_comparison(tmp_path)
    assert [run.name for run in comparison.runs] == ["fm-seed0", "scratch-n10-seed1"]
    assert comparison.runs[0].test_accuracy != 0.7
    assert comparison.runs[1].test_accuracy == 0.5


def test_folders_without_a_run(tmp_path):
    with pytest.raises(L2TFastError, match="not a folder"):
        read_comparison(tmp_path / "absent")
    with pytest.raises(L2TFastError, match="neither runs/"):
        read_comparison(tmp_path)


def test_fake_runs_have_the_trainers_columns(tmp_path):
    folder = fake_run(tmp_path / "fm-seed0", config=run_config("fm"))
    assert (folder / "metrics.csv").read_text().splitlines()[0].split(",") == METRICS
