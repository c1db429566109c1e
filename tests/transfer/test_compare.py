import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from l2t_fast.config import CompareConfig, PretrainConfig, SourceConfig, TargetConfig, TrainConfig, write_config
from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError
from l2t_fast.files import held
from l2t_fast.parsing import read_config
from l2t_fast.transfer import TrainingProgress
from l2t_fast.transfer.compare import compare
from l2t_fast.transfer.run_folder import read_rows
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


@pytest.fixture
def no_page(monkeypatch):
    """Drawing takes longer than these runs do."""
    monkeypatch.setattr("l2t_fast.transfer.compare.build_report", lambda out: out / "report.html")


def progress():
    console = Console(record=True, width=200, quiet=False, force_terminal=False)
    return TrainingProgress(console, epoch_lines=False)


def results(out):
    with open(Path(out) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_all_methods_and_seeds_from_one_source(make_compare):
    config = make_compare()
    page, failures = compare(config, progress())
    out = Path(config.out)
    assert not failures
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


def test_a_source_that_was_removed_is_made_again_for_runs_that_need_it_alone(make_compare, monkeypatch, no_page):
    config = make_compare(methods=["l2t-ww"], seeds=[0])
    compare(config, progress())
    source = Path(config.out) / "source"
    shutil.rmtree(source)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "fit", lambda trainer: pytest.fail("a source or a run began"))
        assert not compare(config, progress()).failures
    config.methods = ["l2t-ww", "scratch"]
    assert not compare(config, progress()).failures and not source.exists()
    config.methods = ["l2t-ww", "scratch", "fm"]
    assert not compare(config, progress()).failures and source.exists()


def test_finished_runs_are_skipped_and_interrupted_ones_continue(make_compare, monkeypatch, no_page):
    config = make_compare(methods=["scratch", "fm"], epochs=2)
    epoch = Trainer._run_epoch

    def interrupted(trainer, *rest):
        if "fm-seed1" in str(trainer.folder.path) and trainer.reached.epoch == 1:
            raise KeyboardInterrupt
        epoch(trainer, *rest)

    monkeypatch.setattr(Trainer, "_run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(config, progress())
    assert len(results(config.out)) == 3
    monkeypatch.undo()

    trained = []
    monkeypatch.setattr(
        Trainer, "_run_epoch", lambda t, *rest: (trained.append((t.folder.path.name, t.reached.epoch)), epoch(t, *rest))
    )
    shown = progress()
    compare(config, shown)
    assert trained == [("fm-seed1", 1)]
    assert len(results(config.out)) == 4
    said = shown.console.export_text()
    for name in ("source resnet8", "scratch seed 0", "fm seed 0", "scratch seed 1"):
        assert f"{name}: done before, skipped" in said

    compare(make_compare(methods=["scratch", "fm", "l2t-w"], seeds=[0], epochs=2), progress())
    rows = [(row["seed"], row["method"]) for row in results(config.out)]
    assert rows == [("0", "scratch"), ("0", "fm"), ("0", "l2t-w"), ("1", "scratch"), ("1", "fm")]


def test_numbers_of_images_are_swept_with_the_same_images_for_all_methods(make_compare, monkeypatch, no_page):
    images: dict[tuple[int, int], list[set[bytes]]] = {}
    fit = Trainer.fit

    def noted(trainer):
        if trainer.config.source.checkpoint:  # not the source's own run
            key = trainer.config.data.per_class, trainer.config.seed
            pixels = {image.numpy().tobytes() for image in trainer.data.train.dataset.images}
            images.setdefault(key, []).append(pixels)
        return fit(trainer)

    monkeypatch.setattr(Trainer, "fit", noted)
    config = make_compare(methods=["scratch", "fm"], per_class=[8, 4], seeds=[0, 1])
    outcome = compare(config, progress())
    assert not outcome.failures
    rows = [(row["seed"], row["per_class"], row["method"], row["state"]) for row in results(config.out)]
    order = [(s, n, m) for s in "01" for n in "48" for m in ("scratch", "fm")]
    assert rows == [(*key, "finished") for key in order]
    assert {path.name for path in (Path(config.out) / "runs").iterdir()} == {f"{m}-n{n}-seed{s}" for s, n, m in order}
    for seed in (0, 1):
        for number in (4, 8):
            first, second = images[number, seed]
            assert first == second
        assert len(images[8, seed][0]) == 16 and images[4, seed][0] < images[8, seed][0]
    assert images[8, 0][0] != images[8, 1][0]

    # More numbers may follow; the runs that are there are kept.
    shown = progress()
    compare(make_compare(methods=["scratch", "fm"], per_class=[4, 8, 6], seeds=[0]), shown)
    rows = [(row["seed"], row["per_class"]) for row in results(config.out)]
    assert rows == [("0", n) for n in "446688"] + [("1", n) for n in "4488"]
    assert shown.console.export_text().count("done before, skipped") == 5  # with the source
    with pytest.raises(L2TFastError, match=r"compare was made with per_class: \[4, 8, 6\], but now per_class is None"):
        compare(make_compare(methods=["scratch", "fm"], seeds=[0]), progress())


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(make_compare, monkeypatch):
    config = make_compare(methods=["scratch", "fm"], seeds=[0, 1])
    train_batch = Trainer.train_batch

    def nan(trainer, x, y, *rest):
        if trainer.folder.path.name == "scratch-seed0":
            x = x * float("nan")
        if trainer.folder.path.name == "fm-seed1":
            raise RuntimeError("a defect\nin two lines")
        return train_batch(trainer, x, y, *rest)

    monkeypatch.setattr(Trainer, "train_batch", nan)
    page, failures = compare(config, progress())
    assert set(failures) == {"scratch-seed0", "fm-seed1"}
    assert failures["scratch-seed0"].startswith("in epoch 1, step 1, the images are not finite")
    assert failures["fm-seed1"] == "RuntimeError: a defect in two lines"
    out = Path(config.out)
    assert [row["state"] for row in results(out)] == ["failed", "finished", "finished", "failed"]
    assert results(out)[3]["problem"] == failures["fm-seed1"] and results(out)[3]["test_accuracy"] == ""
    assert "Traceback" in (out / "runs" / "fm-seed1" / "log.txt").read_text()
    text = page.read_text()
    assert "2 of 4 runs have no result" in text and "the images are not finite" in text

    monkeypatch.undo()
    page, failures = compare(config, progress())
    assert not failures and not list(out.glob("runs/*/failure.json"))
    assert "not finite" not in page.read_text()


def test_a_page_that_cannot_be_drawn_meanwhile_stops_no_run(make_compare, monkeypatch):
    drawn = []

    def draw(out):
        drawn.append(out)
        if len(drawn) == 1:
            raise RuntimeError("no font")
        return out / "report.html"

    monkeypatch.setattr("l2t_fast.transfer.compare.build_report", draw)
    shown = progress()
    config = make_compare(methods=["scratch"])
    outcome = compare(config, shown)
    assert not outcome.failures and len(results(config.out)) == 2
    assert "no page of the runs so far: RuntimeError: no font" in shown.console.export_text()


def test_a_run_that_could_not_even_begin_is_tried_again(make_compare, monkeypatch, no_page):
    config = make_compare(methods=["scratch"], seeds=[0])

    def fails(trainer):
        raise MemoryError

    monkeypatch.setattr(Trainer, "fit", fails)
    assert "too little memory" in compare(config, progress()).failures["scratch-seed0"]
    run = Path(config.out) / "runs" / "scratch-seed0"
    assert sorted(path.name for path in run.iterdir()) == ["failure.json", "log.txt"]
    monkeypatch.undo()
    assert not compare(config, progress()).failures and not (run / "failure.json").exists()


def test_a_run_that_another_process_makes_gets_no_failure(make_compare, no_page):
    """`l2t-fast train --resume` with the folder of a run of the comparison."""
    config = make_compare(methods=["scratch"], seeds=[0, 1])
    run = Path(config.out) / "runs" / "scratch-seed0"
    with held(run):
        assert list(compare(config, progress()).failures) == ["scratch-seed0"]
    assert not list(run.iterdir())
    assert [(row["state"], "in use" in row["problem"]) for row in results(config.out)] == [
        ("failed", True),
        ("finished", False),
    ]
    assert not compare(config, progress()).failures


def test_a_mistake_is_told_before_the_first_run(make_compare, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda trainer: pytest.fail("a run began"))
    source = SourceConfig("resnet8", "/nowhere.pt")
    config = make_compare(methods=["scratch", "fm"], source=source)
    with pytest.raises(L2TFastError, match=r"there is no checkpoint file /nowhere\.pt"):
        compare(config, progress())
    config = make_compare(methods=["scratch"], per_class=[4, 8, 500])
    with pytest.raises(L2TFastError, match="fewer than per_class = 500"):
        compare(config, progress())
    assert not Path(config.out).exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": TargetConfig("nope")}, "there is no network 'nope'"),
        ({"pairs": "abc"}, "'abc' is neither single"),
        ({"pairs": ["9:0"]}, "the source has maps 0 to 2"),
        ({"per_class": [4, 100000]}, "fewer than per_class = 100000"),
        ({"methods": ["scratch", "fm", "fine-tune"]}, "fine-tune needs a source of the target's architecture"),
    ],
)
def test_a_mistake_is_told_before_the_source_is_trained(make_compare, monkeypatch, changes, said):
    monkeypatch.setattr(Trainer, "fit", lambda trainer: pytest.fail("a source or a run began"))
    config = make_compare(**changes)
    if "pairs" in changes:
        config.methods = ["scratch", "l2t-ww"]
    with pytest.raises(L2TFastError, match=said):
        compare(config, progress())
    assert not Path(config.out).exists()
    with held(Path(config.out)), pytest.raises(L2TFastError, match="compare is in use by another process"):
        compare(make_compare(), progress())


def test_a_folder_that_cannot_be_written_is_told_before_the_source_is_trained(make_compare, monkeypatch):
    """Though its folder of the source can."""
    config = make_compare()
    (Path(config.out) / "source").mkdir(parents=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != Path(config.out) and access(path, mode))
    monkeypatch.setattr(Trainer, "fit", lambda trainer: pytest.fail("the source was trained"))
    with pytest.raises(L2TFastError, match=f"the folder {config.out} cannot be written: Permission denied"):
        compare(config)


def test_methods_at_one_number_and_seed_share_the_images_and_get_the_same_result(make_compare, monkeypatch, no_page):
    loads = []

    def counted(config):
        loads.append((config.per_class, config.seed))
        return load_data(config)

    monkeypatch.setattr("l2t_fast.transfer.compare.load_data", counted)
    config = make_compare(methods=["scratch", "fm", "l2t-w"], per_class=[4, 8], seeds=[0], epochs=2)
    config.data.augment = "crop"
    assert not compare(config, progress()).failures
    assert loads == [(8, 0), (4, 0), (8, 0)]  # the first to check the set-up
    folder = Path(config.out) / "runs" / "l2t-w-n8-seed0"
    alone = read_config(folder / "config.yaml", TrainConfig)
    alone.out = str(folder.parent / "alone")
    Trainer(alone, progress()).fit()
    shared, own = (read_rows(path / "metrics.csv") for path in (folder, Path(alone.out)))
    assert [row["train_loss"] for row in shared] == [row["train_loss"] for row in own]


def test_methods_are_added_to_a_comparison_and_its_rows_stay(make_compare, no_page):
    """The first methods need no source, which the folder has later."""
    scratch = make_compare(methods=["scratch"], seeds=[0])
    compare(scratch, progress())
    _, failures = compare(make_compare(methods=["scratch", "fm"], seeds=[0]), progress())
    assert not failures
    compare(scratch, progress())
    assert [(row["method"], row["state"]) for row in results(scratch.out)] == [
        ("scratch", "finished"),
        ("fm", "finished"),
    ]


def test_a_finished_run_with_other_settings_is_never_called_failed(make_compare, no_page):
    config = make_compare(methods=["scratch"], seeds=[0])
    compare(config, progress())
    saved = Path(config.out) / "runs" / "scratch-seed0" / "config.yaml"
    saved.write_text(saved.read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(L2TFastError, match="scratch-seed0 was made with lr: "):
        compare(config, progress())
    assert results(config.out)[0]["state"] == "finished"


def test_another_configuration_in_the_same_folder_is_an_error(make_compare, no_page):
    compare(make_compare(methods=["scratch"], seeds=[0]), progress())
    with pytest.raises(L2TFastError, match=r"compare was made with epochs: 1, but now epochs is 2"):
        compare(make_compare(methods=["scratch"], seeds=[0], epochs=2), progress())


def test_one_process_at_a_time_is_in_a_comparison(make_compare, no_page, monkeypatch):
    config = make_compare(methods=["scratch"], seeds=[0])
    taken = "compare is in use by another process: wait for it, or name another folder with --out"
    with held(Path(config.out)), pytest.raises(L2TFastError, match=taken):
        compare(config, progress())
    assert not list(Path(config.out).iterdir())
    fit = Trainer.fit

    def look(trainer):
        with pytest.raises(L2TFastError, match=taken), held(Path(config.out)):
            pass
        return fit(trainer)

    monkeypatch.setattr(Trainer, "fit", look)
    assert not compare(config, progress()).failures


def test_a_comparison_that_another_process_began_meanwhile_is_left_alone(make_compare, no_page, monkeypatch):
    config = make_compare(methods=["scratch"], seeds=[0])

    def begin(*_):
        Path(config.out).mkdir()
        write_config(make_compare(methods=["scratch"], epochs=2), Path(config.out) / "config.yaml")

    monkeypatch.setattr("l2t_fast.transfer.compare._check_setups", begin)
    with pytest.raises(L2TFastError, match="compare was made with epochs: 2, but now epochs is 1"):
        compare(config, progress())


def test_a_comparison_is_continued_where_it_was_moved_to(make_compare, no_page, tmp_path):
    compare(make_compare(methods=["fm-single"], seeds=[0]), progress())
    (tmp_path / "compare").rename(tmp_path / "moved")
    config = make_compare(methods=["fm-single"], seeds=[0, 1], out=str(tmp_path / "moved"))
    assert not compare(config, progress()).failures
    assert [row["state"] for row in results(config.out)] == ["finished", "finished"]


def test_the_test_images_are_the_same_for_every_seed(make_compare):
    """Seeds change which images are trained on, not which are tested."""
    tested, trained = [], []
    for seed in (0, 1):
        data = load_data(DataConfig(dataset="digits", classes=[5, 6], per_class=8, seed=seed))
        tested.append([x.sum().item() for x, _ in data.test])
        trained.append(sorted(image.sum().item() for x, _ in data.train for image in x))
    assert tested[0] == tested[1]
    assert trained[0] != trained[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": []}, "methods is empty"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "each must stand there once"),
        ({"seeds": [0, -2]}, "seeds is -2, it must be at least 0"),
        ({"per_class": []}, "per_class is empty"),
        ({"per_class": [4, 0]}, "per_class has 0, every number must be at least 1"),
        ({"methods": ["sratch"]}, "did you mean scratch"),
    ],
)
def test_wrong_lists(make_compare, changes, said):
    config = make_compare(**changes)
    with pytest.raises(L2TFastError, match=said):
        compare(config, progress())
    assert not Path(config.out).exists()
