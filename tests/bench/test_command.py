"""`l2t-fast bench run` as a user types it."""

import pytest

from l2t_fast.bench.rows import read_rows
from l2t_fast.cli import INTERRUPTED, main
from tests.bench.fake_rows import fake_row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "step"], "unknown option --mode, did you mean --modes?"),
        (["--modes", "backward"], "--modes: there is no 'backward' here, choose from forward, forward_backward,"),
        (["--workloads", "mnist"], "--workloads: there is no 'mnist' here, choose from cifar, imagenet"),
        (
            ["--modes", "step", "forward", "--workloads", "cifra"],
            "--workloads: there is no 'cifra' here, choose from cifar, imagenet, multi_source_128,",
        ),
        (["--modes", "step", "--workloads", "single"], "--workloads: there is no 'single' here, choose from cifar,"),
        (["--modes", "forward", "--providers", "naive"], "--providers: there is no 'naive' here, choose from eager,"),
        (
            ["--modes", "forward", "--dtypes", "int8"],
            "--dtypes: there is no 'int8' here, choose from float32, bfloat16",
        ),
        (["--repeats", "0"], "--repeats is 0, it must be 1 or more"),
        (["--modes", "step", "--dtypes", "float32", "bfloat16"], "--dtypes are those of the matching loss, a step is"),
        (["--modes", "hypergradient", "--layouts", "channels_last"], "a step is measured with NCHW: name one of forw"),
        (["--modes", "forward", "--parts"], "--parts are those of a step: name step in --modes"),
        (["--workloads", "tiny", "--sweep", "pairs"], "--sweep pairs needs the values to measure at: name them with -"),
        (["--sweep", "pairs", "--sizes", "16"], "--sweep takes one workload, not cifar, imagenet: name one with --wo"),
        (
            ["--modes", "step", "--workloads", "tiny", "--sweep", "batch", "--sizes", "1"],
            "--sweep is one of the matching loss: name one of forward, forward_backward, second_order in --modes",
        ),
        (
            ["--modes", "forward", "--workloads", "tiny", "--sweep", "depth", "--sizes", "1"],
            "--sweep: there is no 'depth' here, choose from pairs, batch, resolution, threads",
        ),
        (
            ["--modes", "forward", "--workloads", "tiny", "--sweep", "pairs", "--sizes", "3"],
            "tiny has 4 pairs a source network, so 3 pairs are not possible",
        ),
        (["--workloads", "tiny", "--sweep", "batch", "--sizes", "4", "-3"], "--sizes holds -3, each must be 1 or more"),
        (
            ["--workloads", "tiny", "--sweep", "threads", "--sizes", "9999"],
            "--sizes holds 9999, it must be 1024 or less",
        ),
        (["--threads", "9999"], "--threads is 9999, it must be 1024 or less"),
        (
            ["--modes", "forward", "--check", "--batch", "99999999999"],
            "too little memory for the workload itself, lower --batch",
        ),
        (["--shapes", "none.yaml"], "--shapes none.yaml cannot be read: No such file or directory"),
        (
            ["--modes", "step", "forward", "--workloads", "single", "--providers", "naive"],
            "nothing was measured: --modes, --workloads and --providers have nothing in common",
        ),
        (["--shapes", "none.yaml", "--modes", "step"], "--shapes are those of the matching loss: name one of forward"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "run", *options, "--output", "rows.csv"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "rows.csv").exists()


def test_a_file_of_others_is_refused_before_the_first_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("l2t_fast.bench.cli._measured", lambda *_: pytest.fail("measured"))
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    assert main(["bench", "run", "--output", str(other)]) == 2
    assert "holds other columns than this version writes" in capsys.readouterr().err
    assert main(["bench", "run", "--output", str(other / "rows.csv")]) == 2
    assert "rows cannot be written to" in capsys.readouterr().err


def test_shapes_of_a_users_own(tmp_path, capsys):
    shapes, rows = tmp_path / "mine.yaml", tmp_path / "rows.csv"
    shapes.write_text("batch: 3\nsources: [[8, 4, 4]]\ntargets: [[4, 6, 5]]\n")
    run = ["bench", "run", "--shapes", str(shapes), "--modes", "forward", "forward_backward", "--threads", "1"]
    run += ["--providers", "eager", "cpu", "--device", "cpu", "--output", str(rows)]
    assert main([*run, "--check"]) == 0
    assert not rows.exists()
    assert main([*run, "--repeats", "2"]) == 0
    found = {(row.mode, row.provider): row for row in read_rows(rows)}
    assert len(read_rows(rows)) == 3 + 4  # peaks, and two providers in two modes
    eager = found["forward_backward", "eager"]
    assert (eager.workload, eager.batch, eager.threads, eager.repeats) == ("mine", 3, 1, 2)
    assert eager.roofline_share > 0 and eager.first_call_ms > 0
    assert "rows appended to" in capsys.readouterr().out


def test_a_wrong_result_is_an_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr("l2t_fast.bench.loss_suite.TOLERANCES", {"float32": 0.0})
    run = ["bench", "run", "--workloads", "tiny", "--modes", "forward_backward", "--providers", "eager", "--check"]
    assert main([*run, "--device", "cpu"]) == 1  # on a GPU another tolerance is asked for, TF32's


def test_ctrl_c_tells_where_finished_rows_are(tmp_path, monkeypatch, capsys):
    def measured(*_):
        yield [fake_row(peak_mib=1.0)]
        raise KeyboardInterrupt

    monkeypatch.setattr("l2t_fast.bench.cli._measured", measured)
    rows = tmp_path / "rows.csv"
    assert main(["bench", "run", "--output", str(rows)]) == INTERRUPTED
    assert capsys.readouterr().err.strip() == f"interrupted: the rows of what was finished are in {rows}"
    assert read_rows(rows) == [fake_row(peak_mib=1.0)]
