import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from l2t_fast.config import CompareConfig, PretrainConfig, SourceConfig, TargetConfig
from l2t_fast.data import DataConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import TrainingProgress
from l2t_fast.transfer.compare import compare, parse_method
from l2t_fast.transfer.trainer import Trainer


@pytest.fixture
def make_compare(tmp_path):
    def make(**changes):
        fields = {
            "source": SourceConfig("resnet8"),
            "pretrain": PretrainConfig(DataConfig(dataset="digits", classes=[0, 1, 2]), epochs=1),
            "target": TargetConfig("vgg5bn"),
            "data": DataConfig(dataset="digits", classes=[5, 6], per_class=8, batch_size=8),
            "methods": ["scratch", "fm-single", "l2t-ww"],
            "seeds": [0, 1],
            "epochs": 1,
            "device": "cpu",
            "out": str(tmp_path / "compare"),
        }
        return CompareConfig(**fields | changes)

    return make


def progress():
    console = Console(record=True, width=200, quiet=False, force_terminal=False)
    return TrainingProgress(console, epoch_lines=False)


def results(out):
    with open(Path(out) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_all_methods_and_seeds_from_one_source(make_compare):
    config = make_compare()
    page = compare(config, progress())
    out = Path(config.out)
    assert page == out / "report.html" and page.stat().st_size > 1000
    assert list((out / "plots").glob("*.png"))
    names = {f"{method}-seed{seed}" for method in config.methods for seed in config.seeds}
    assert {path.name for path in (out / "runs").iterdir()} == names
    found = {(row["method"], row["seed"]): row for row in results(out)}
    assert set(found) == {(method, str(seed)) for method in config.methods for seed in config.seeds}
    for method, seed in found:
        result = json.loads((out / "runs" / f"{method}-seed{seed}" / "result.json").read_text())
        assert float(found[method, seed]["test_accuracy"]) == result["test_accuracy"]
        assert result["method"] == method
    single = json.loads((out / "runs" / "fm-single-seed0" / "result.json").read_text())
    assert len(single["pairs"]) == 1
    assert (out / "source" / "checkpoints" / "best.pt").exists()


def test_finished_runs_are_skipped_and_interrupted_ones_continue(make_compare, monkeypatch):
    config = make_compare(methods=["scratch", "fm"], epochs=2)
    epoch = Trainer._run_epoch

    def interrupted(trainer, *rest):
        if "fm-seed1" in str(trainer.folder.path) and trainer.epoch == 1:
            raise KeyboardInterrupt
        epoch(trainer, *rest)

    monkeypatch.setattr(Trainer, "_run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(config, progress())
    assert len(results(config.out)) == 3
    monkeypatch.undo()

    trained = []
    monkeypatch.setattr(
        Trainer, "_run_epoch", lambda t, *rest: (trained.append((t.folder.path.name, t.epoch)), epoch(t, *rest))
    )
    shown = progress()
    compare(config, shown)
    assert trained == [("fm-seed1", 1)]
    assert len(results(config.out)) == 4
    said = shown.console.export_text()
    for name in ("source resnet8", "scratch seed 0", "fm seed 0", "scratch seed 1"):
        assert f"{name}: done before, skipped" in said

    compare(make_compare(methods=["scratch", "fm", "l2t-w"], seeds=[0], epochs=2), progress())
    assert [row["method"] for row in results(config.out)] == ["scratch", "fm", "l2t-w"]


def test_another_configuration_in_the_same_folder_is_an_error(make_compare):
    compare(make_compare(methods=["scratch"], seeds=[0]), progress())
    with pytest.raises(L2TFastError, match=r"compare was made with epochs: 1, but now epochs is 2"):
        compare(make_compare(methods=["scratch"], seeds=[0], epochs=2), progress())


def test_the_test_images_are_the_same_for_every_seed(make_compare):
    """Seeds change which images are trained on, not which are tested."""
    from l2t_fast.data import load_data

    tested, trained = [], []
    for seed in (0, 1):
        data = load_data(DataConfig(dataset="digits", classes=[5, 6], per_class=8, seed=seed))
        tested.append([x.sum().item() for x, _ in data.test])
        trained.append(sorted(image.sum().item() for x, _ in data.train for image in x))
    assert tested[0] == tested[1]
    assert trained[0] != trained[1]


def test_method_entries():
    assert parse_method("fm") == ("fm", None)
    assert parse_method("fm-one-to-one") == ("fm", "one-to-one")
    assert parse_method("l2t-w-single") == ("l2t-w", "single")
    assert parse_method("l2t-ww-all-to-all") == ("l2t-ww", "all-to-all")
    for wrong in ("fmm", "fm-double", "-single"):
        with pytest.raises(L2TFastError, match=f"there is no method '{wrong}'"):
            parse_method(wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": []}, "methods is empty"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "each must stand there once"),
        ({"seeds": [0, -2]}, "seeds is -2, it must be at least 0"),
        ({"methods": ["sratch"]}, "did you mean scratch"),
    ],
)
def test_wrong_lists(make_compare, changes, said):
    config = make_compare(**changes)
    with pytest.raises(L2TFastError, match=said):
        compare(config, progress())
    assert not Path(config.out).exists()
