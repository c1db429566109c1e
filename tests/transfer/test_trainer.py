import csv
import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from l2t_fast.bilevel import hypergradient
from l2t_fast.config import TargetConfig
from l2t_fast.data import load_data
from l2t_fast.errors import L2TFastError
from l2t_fast.files import held
from l2t_fast.models import build_model
from l2t_fast.transfer import METHODS, Trainer, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from l2t_fast.transfer.run_folder import METRICS, RunFolder
from l2t_fast.transfer.run_state import Reached, RunState
from l2t_fast.transfer.same_options import decisive_options, other_option
from l2t_fast.transfer.trainer import cosine_lr


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_time(path: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(path)]


def assert_same_state(a, b):
    """Every tensor and number in two nested states is the same, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key != "seconds":
                assert_same_state(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def of_method(method: str) -> dict[str, object]:
    """The method, and a target that suits it: fine-tuning needs the source's architecture."""
    return {"method": method} | ({"target": TargetConfig("resnet8")} if method == "fine-tune" else {})


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_its_folder(make_config, quiet, method):
    config = make_config(**of_method(method), seed=3)
    result = run(config, progress=quiet)
    out = Path(config.out)

    metrics = rows(out / "metrics.csv")
    assert tuple(metrics[0]) == METRICS
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    assert [float(row["lr"]) for row in metrics] == pytest.approx([0.05, 0.025])
    for row in metrics:
        parts = float(row["train_cross_entropy"]) + float(row["train_matching"])
        assert float(row["train_loss"]) == pytest.approx(parts, rel=1e-6)
        assert (float(row["train_matching"]) > 0) == (method not in ("scratch", "fine-tune"))
        assert 0 <= float(row["validation_accuracy"]) <= 1

    assert json.loads((out / "result.json").read_text()) == result
    assert result["method"] == method and result["seed"] == 3 and result["epochs"] == 2
    pairs_of = {None: 0, "single": 1, "one-to-one": 3, "all-to-all": 9}
    assert len(result["pairs"]) == pairs_of[METHODS[method].default_pairs]
    best = max(metrics, key=lambda row: (float(row["validation_accuracy"]), -float(row["validation_loss"])))
    assert result["best_epoch"] == int(best["epoch"])
    assert result["validation_accuracy"] == pytest.approx(float(best["validation_accuracy"]), rel=1e-6)

    assert (out / "pair_weights.csv").exists() == (method == "l2t-ww")
    if method == "l2t-ww":
        weights = rows(out / "pair_weights.csv")
        assert [f"{row['source_layer']}->{row['target_layer']}" for row in weights] == 3 * result["pairs"]
        assert [row["epoch"] for row in weights] == ["0"] * 9 + ["1"] * 9 + ["2"] * 9
        assert all(0 <= float(row["mean"]) <= 6 and float(row["std"]) >= 0 for row in weights)
    assert (out / "channel_weights.npz").exists() == (method in ("l2t-w", "l2t-ww"))
    if method in ("l2t-w", "l2t-ww"):
        with np.load(out / "channel_weights.npz") as arrays:
            assert list(arrays) == result["pairs"]
            assert [float(w.sum()) for w in arrays.values()] == pytest.approx([1.0] * 9, abs=1e-5)
            assert [len(w) for w in arrays.values()] == [16] * 3 + [32] * 3 + [64] * 3

    assert list((out / "tensorboard").glob("events.*"))
    environment = json.loads((out / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ and environment["device"] == "cpu"
    log = (out / "log.txt").read_text()
    assert "digits: 3 classes, 1x8x8; 36 training images (12 a class), " in log and "finished" in log


def test_lambda_begins_even_where_that_is_asked_for(make_config, quiet):
    config = make_config(method="l2t-ww", epochs=1, lambda_start="even", meta_lr=1e-2)
    run(config, progress=quiet)
    weights = rows(Path(config.out) / "pair_weights.csv")
    assert [(float(row["mean"]), float(row["std"])) for row in weights if row["epoch"] == "0"] == [(1.0, 0.0)] * 9
    assert all(float(row["mean"]) != 1.0 and float(row["std"]) > 0 for row in weights if row["epoch"] == "1")


def test_pairs_that_cannot_learn_are_named(make_config, quiet):
    config = make_config(method="l2t-ww", epochs=1)
    trainer = Trainer(config, quiet)
    for p, layer in enumerate(trainer.method.meta.loss_weight_network):
        torch.nn.init.constant_(layer.bias, -100.0 if p in (4, 7) else 2.0)
    trainer.fit()
    told = [line for line in (Path(config.out) / "log.txt").read_text().splitlines() if "begins at 0" in line]
    names = ", ".join("->".join(trainer.pair_layers[p]) for p in (4, 7))
    assert len(told) == 1 and f"lambda of {names} begins at 0 for the whole first batch" in told[0]


def test_the_test_accuracy_is_that_of_the_best_model(make_config, quiet):
    config = make_config(method="fm", epochs=4)
    result = run(config, progress=quiet)
    best = load_checkpoint(Path(config.out) / "checkpoints" / "best.pt")
    assert best["epoch"] == result["best_epoch"] and best["num_classes"] == 3

    data = load_data(config.data)
    network = build_model("vgg5bn", 3, in_channels=1)
    network.load_state_dict(best["model"])
    network.eval()
    with torch.no_grad():
        right = [(network(x)[0].argmax(1) == y) for x, y in data.test]
    assert result["test_accuracy"] == torch.cat(right).double().mean().item()


def test_it_learns(make_config, quiet):
    data = {"classes": [0, 1], "per_class": None, "batch_size": 32}
    result = run(make_config(method="scratch", data=data, epochs=6), progress=quiet)
    assert result["test_accuracy"] > 0.95


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("method", ["l2t-w", "l2t-ww"])
def test_one_batch_follows_the_paper(make_config, quiet, method, nesterov):
    """A real step on cross-entropy + beta L_wfm, then Adam on phi with the hypergradient taken after that step."""
    changes = {"method": method, "beta": 0.7, "lookahead_steps": 1, "nesterov": nesterov, "momentum": 0.8}
    rates = {"lr": 0.04, "weight_decay": 0.01, "meta_lr": 0.02, "meta_weight_decay": 0.03}
    trainer = Trainer(make_config(**changes, **rates), quiet)
    twin = Trainer(make_config(**changes, **rates), quiet)
    for module in (trainer.source, trainer.target, trainer.method, twin.source, twin.target, twin.method):
        module.double()  # Adam divides by the gradient's size, which blows rounding up
    twin.target.load_state_dict(trainer.target.state_dict())
    twin.method.load_state_dict(trainer.method.state_dict())
    learning = [*twin.target.parameters(), *twin.method.matching.parameters()]
    sgd = torch.optim.SGD(learning, lr=0.04, momentum=0.8, weight_decay=0.01, nesterov=nesterov)
    adam = torch.optim.Adam(twin.method.meta.parameters(), lr=0.02, weight_decay=0.03)
    x, y = next(iter(trainer.data.train))
    x = x.double()

    trainer.train_batch(x, y)
    trainer.train_batch(x, y)  # the second step has momentum

    lambdas = []
    for _ in range(2):
        with torch.no_grad():
            _, source_features = twin.source.networks[0](x)
            channel_weights, pair_weights = twin.method.meta(source_features)
        lambdas.append(torch.cat(pair_weights or [x.new_zeros(len(x), 1)], dim=1))
        logits, features = twin.target(x)
        loss = F.cross_entropy(logits, y)
        for p, (m, n) in enumerate(twin.pairs):
            projected = F.conv2d(features[n], twin.method.matching[p].weight, twin.method.matching[p].bias)
            resized = F.interpolate(source_features[m], projected.shape[2:], mode="bilinear", align_corners=False)
            distance = (channel_weights[p][:, :, None, None] * (projected - resized) ** 2).sum(1).mean((1, 2))
            loss = loss + 0.7 * ((1 if pair_weights is None else pair_weights[p].flatten()) * distance).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        gradients = hypergradient(
            twin.target,
            twin.method.matching,
            twin.method.meta,
            sgd,
            source_features,
            x,
            y,
            steps=1,
            beta=0.7,
            method="double_backward",
        )
        for parameter, gradient in zip(twin.method.meta.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()

    for name, value in trainer.target.state_dict().items():
        torch.testing.assert_close(value, twin.target.state_dict()[name], rtol=1e-9, atol=1e-10, msg=name)
    for name, value in trainer.method.state_dict().items():
        torch.testing.assert_close(value, twin.method.state_dict()[name], rtol=1e-7, atol=1e-8, msg=name)
    moved = [p for p in trainer.method.meta.parameters() if p.abs().sum() > 0]
    assert moved
    if method == "l2t-ww":  # what the epoch's row of pair_weights.csv says: of all images, each as its step had it
        seen = torch.cat(lambdas)
        recorded = torch.tensor(trainer.method.pair_weights(), dtype=torch.float64)
        torch.testing.assert_close(recorded, torch.stack([seen.mean(0), seen.std(0, correction=0)], dim=1))


def test_of_equal_validation_accuracies_the_lower_loss_is_better():
    reached = Reached()
    for accuracy, loss, better in ((0.5, 1.0, True), (0.5, 1.0, False), (0.5, 1.1, False), (0.5, 0.9, True)):
        row = {"epoch": 1, "validation_accuracy": accuracy, "validation_loss": loss}
        assert reached.improves(row) == better
        if better:
            reached.best = row
    assert reached.improves({"validation_accuracy": 0.6, "validation_loss": 5.0})
    assert not reached.improves({"validation_accuracy": 0.4, "validation_loss": 0.1})


def test_look_ahead_steps_leave_no_trace_in_batch_norm(make_config, quiet):
    config = make_config(method="l2t-ww")
    run(config, progress=quiet)
    last = load_checkpoint(Path(config.out) / "checkpoints" / "last.pt")
    counts = {int(value) for name, value in last["model"].items() if name.endswith("num_batches_tracked")}
    assert counts == {last["step"]}


def test_the_source_runs_once_a_batch_and_never_changes(make_config, quiet):
    trainer = Trainer(make_config(method="l2t-ww", epochs=1), quiet)
    before = {name: value.clone() for name, value in trainer.source.state_dict().items()}
    modes = []
    trainer.source.networks[0].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    validation = len(trainer.data.validation)
    trainer.fit()
    assert len(modes) == len(trainer.data.train) + validation  # the latter for the mean channel weights
    assert not any(modes)
    assert_same_state(dict(trainer.source.state_dict()), before)


def test_scratch_needs_no_source(make_config, quiet):
    config = make_config(method="scratch", epochs=1)
    config.source.checkpoint = "/nowhere/at/all.pt"
    assert run(config, progress=quiet)["pairs"] == []


def test_one_seed_gives_every_method_the_same_start(make_config, quiet):
    starts = [Trainer(make_config(method=name), quiet).target.state_dict() for name in ("scratch", "l2t-ww")]
    assert_same_state(dict(starts[0]), dict(starts[1]))


@pytest.mark.parametrize("method", ["fm", "l2t-ww"])
def test_two_runs_are_the_same_bits(make_config, quiet, tmp_path, method):
    last = []
    for name in ("a", "b"):
        run(make_config(method=method, out=str(tmp_path / name), data={"augment": "crop"}), progress=quiet)
        torch.rand(3)  # what else draws random numbers does not matter
        last.append(load_checkpoint(tmp_path / name / "checkpoints" / "last.pt"))
    assert_same_state(*last)
    assert without_time(tmp_path / "a" / "metrics.csv") == without_time(tmp_path / "b" / "metrics.csv")
    run(make_config(method=method, out=str(tmp_path / "c"), seed=1), progress=quiet)
    other = load_checkpoint(tmp_path / "c" / "checkpoints" / "last.pt")
    assert not torch.equal(other["model"]["features.0.weight"], last[0]["model"]["features.0.weight"])


class Interrupting:
    """Passes everything on to another progress, and presses Ctrl-C in an epoch's second batch."""

    def __init__(self, inner, epoch):
        self.inner, self.left = inner, epoch - 1

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def epoch(self, *arguments):
        self.left -= 1
        self.inner.epoch(*arguments)

    def batch(self, done, total):
        if self.left == 0 and done == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["scratch", "fine-tune", "lwf", "at", "lwf-at", "fm", "l2t-ww"])
def test_resume_is_bit_for_bit(make_config, quiet, tmp_path, method):
    changes = {**of_method(method), "epochs": 4, "data": {"augment": "crop"}}
    straight = run(make_config(**changes, out=str(tmp_path / "straight")), progress=quiet)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(**changes, out=str(tmp_path / "broken")), progress=Interrupting(quiet, epoch=3))
    assert load_checkpoint(tmp_path / "broken" / "checkpoints" / "last.pt")["epoch"] == 2
    assert "stopped in epoch 3: interrupted" in (tmp_path / "broken" / "log.txt").read_text()
    torch.rand(5)
    resumed = run(make_config(**changes, out=str(tmp_path / "broken")), resume=True, progress=quiet)

    assert {**resumed, "seconds": 0} == {**straight, "seconds": 0}
    for name in ("last.pt", "best.pt"):
        folders = [tmp_path / folder / "checkpoints" / name for folder in ("straight", "broken")]
        assert_same_state(*[load_checkpoint(path) for path in folders])
    for name in ("metrics.csv", "pair_weights.csv"):
        if (tmp_path / "straight" / name).exists():
            assert without_time(tmp_path / "straight" / name) == without_time(tmp_path / "broken" / name)


def test_where_there_are_no_momenta_none_are_asked_for(make_config, quiet):
    config = make_config(method="l2t-ww", epochs=3, momentum=0.0, lookahead_steps=0)
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=Interrupting(quiet, epoch=2))
    assert not load_checkpoint(Path(config.out) / "checkpoints" / "last.pt")["optimizer"]["state"].get(0)
    assert run(config, resume=True, progress=quiet)["epochs"] == 3


def test_resume_takes_what_is_the_same_run(make_config, quiet, tmp_path):
    """In another place, with other numbers of the machine's, and with whole numbers for fractions."""
    config = make_config(method="fm", beta=2, epochs=2)
    first = run(config, progress=quiet)
    moved = Path(config.out).rename(tmp_path / "moved")
    (moved / "result.json").unlink()
    again = make_config(method="fm", beta=2.0, epochs=2, out=str(moved), data={"cache": True, "workers": 0})
    assert {**run(again, resume=True, progress=quiet), "seconds": 0} == {**first, "seconds": 0}

    saved, own = load_checkpoint(moved / "checkpoints" / "last.pt")["options"], decisive_options(again)
    assert not {"out", "source.checkpoint", "threads", "data.cache"} & saved.keys()
    assert other_option(None, own) is None  # a checkpoint from before they were kept
    del saved["nesterov"]  # from before there was such a key: it has its default
    assert other_option(saved, own) is None
    assert other_option(saved, own | {"nesterov": True}) == "it is of a run with nesterov: False, here it is True"


def test_resume_forgets_rows_that_no_checkpoint_holds(make_config, quiet, monkeypatch, tmp_path):
    """Killed between the row of an epoch and its checkpoint, the epoch is trained again and stands there once."""
    config = make_config(method="l2t-ww", epochs=3)
    saved = RunState.state

    def killed(state, reached):
        if reached.epoch == 2:
            raise KeyboardInterrupt
        return saved(state, reached)

    monkeypatch.setattr(RunState, "state", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=quiet)
    assert len(rows(Path(config.out) / "metrics.csv")) == 2
    with open(Path(config.out) / "metrics.csv", "a") as file:
        file.write("3,1")  # half a line, as a kill leaves it
    monkeypatch.undo()
    run(config, resume=True, progress=quiet)
    assert [row["epoch"] for row in rows(Path(config.out) / "metrics.csv")] == ["1", "2", "3"]
    epochs = [row["epoch"] for row in rows(Path(config.out) / "pair_weights.csv")]
    assert epochs == ["0"] * 9 + ["1"] * 9 + ["2"] * 9 + ["3"] * 9


def test_killed_between_the_state_and_the_best_model_the_best_is_written_again(make_config, quiet, monkeypatch):
    """And nothing is trained again for it, which on another number of ranks might give other bits."""
    config = make_config(method="fm", epochs=1)

    def killed(trainer, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunState, "save_best", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=quiet)
    monkeypatch.undo()
    assert not (Path(config.out) / "checkpoints" / "best.pt").exists()
    monkeypatch.setattr(Trainer, "train_batch", killed)
    run(config, resume=True, progress=quiet)
    last, best = (load_checkpoint(Path(config.out) / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    assert_same_state(best["model"], last["model"])
    assert best["epoch"] == 1


@pytest.mark.parametrize("second", [1, -100], ids=["clock", "clock that is set back"])
def test_epochs_trained_twice_stand_once_in_tensorboard(make_config, quiet, monkeypatch, second):
    """Each resumed run opens an event file; what it purges is what no checkpoint held."""
    config = make_config(method="scratch", epochs=2, seed=3)
    clock = itertools.count(1_000_000_000, second)
    monkeypatch.setattr("l2t_fast.transfer.event_file.time.time", lambda: next(clock))  # files have dates
    with monkeypatch.context() as patched:
        patched.setattr(RunState, "save", lambda *_, improves: os.kill(os.getpid(), signal.SIGINT))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(config, resume=True, progress=quiet)
    run(config, resume=True, progress=quiet)
    events = EventAccumulator(str(Path(config.out) / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train_loss")]
    assert losses == pytest.approx(
        [float(row["train_loss"]) for row in rows(Path(config.out) / "metrics.csv")], rel=1e-6
    )


def test_resume_of_a_finished_run_changes_nothing(make_config, quiet):
    config = make_config(method="scratch")
    first = run(config, progress=quiet)
    assert run(config, resume=True, progress=quiet) == first


def test_a_run_is_never_overwritten(make_config, quiet):
    config = make_config(method="scratch", epochs=1)
    run(config, progress=quiet)
    with pytest.raises(L2TFastError, match="already holds a run: continue it with --resume"):
        run(config, progress=quiet)


@pytest.mark.parametrize("resume", [False, True])
def test_a_best_model_without_a_state_is_never_removed(make_config, quiet, resume):
    """last.pt is written before it, so no interruption leaves it alone."""
    config = make_config(method="scratch")
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=Interrupting(quiet, epoch=2))
    (Path(config.out) / "checkpoints" / "last.pt").unlink()
    before = {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}
    with pytest.raises(L2TFastError, match=r"holds a best\.pt but no last\.pt to continue from: put last\.pt back"):
        run(config, resume=resume, progress=quiet)
    assert before == {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}


def test_a_folder_in_which_another_process_trains_is_left_alone(make_config, quiet):
    config = make_config(method="scratch")
    taken = "run is in use by another process: wait for it, or name another folder with --out"
    with held(Path(config.out)), pytest.raises(L2TFastError, match=taken):
        run(config, progress=quiet)
    assert not list(Path(config.out).iterdir())
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=Interrupting(quiet, epoch=2))
    before = {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}
    with held(Path(config.out)), pytest.raises(L2TFastError, match=taken):
        run(config, resume=True, progress=quiet)
    assert before == {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}
    assert run(config, resume=True, progress=quiet)["epochs"] == 2


def test_a_run_holds_its_folder_to_its_end(make_config, quiet, monkeypatch):
    config = make_config(method="scratch", epochs=1)
    taken = []

    def look(folder, *given):
        with pytest.raises(L2TFastError, match="in use"), held(folder.path):
            pass
        taken.append(given)

    monkeypatch.setattr(RunFolder, "log", look)
    run(config, progress=quiet)
    assert len(taken) == 2  # as it starts, and after all is written
    with held(Path(config.out)):
        pass


def test_a_run_of_an_earlier_version_can_be_continued(make_config, quiet):
    """Its configuration lacks the keys that came later."""
    config = make_config(method="fm", epochs=1)
    result = run(config, progress=quiet)
    path = Path(config.out) / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    del saved["keep_graphs"], saved["source"]["unit_rms"]
    path.write_text(yaml.safe_dump(saved))
    assert run(config, resume=True, progress=quiet) == result
    config.source.unit_rms = True
    with pytest.raises(L2TFastError, match=r"made with source\.unit_rms: False, but now source\.unit_rms is True"):
        run(config, resume=True, progress=quiet)


def test_resume_with_another_configuration(make_config, quiet):
    run(make_config(method="scratch", epochs=1), progress=quiet)
    with pytest.raises(L2TFastError, match=r"was made with data.per_class: 12, but now data.per_class is 13"):
        run(make_config(method="scratch", epochs=1, data={"per_class": 13}), resume=True, progress=quiet)


def test_resume_with_another_path_to_the_same_images(make_config, quiet, tmp_path, monkeypatch):
    for number, name in enumerate(("a", "b")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (40 * i, 80 * number, 0)).save(tmp_path / "images" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    images = {"dataset": "imagefolder", "data_dir": "images", "classes": None, "per_class": None}
    config = make_config(method="scratch", epochs=1, data=images)
    result = run(config, progress=quiet)
    config.data.data_dir = str(tmp_path / "images")
    assert run(config, resume=True, progress=quiet) == result
    shutil.copytree(tmp_path / "images", tmp_path / "others")
    config.data.data_dir = "others"
    with pytest.raises(L2TFastError, match=r"was made with data\.data_dir: images, but now data\.data_dir is others"):
        run(config, resume=True, progress=quiet)


def test_resume_from_a_damaged_checkpoint(make_config, quiet):
    config = make_config(method="scratch")
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=Interrupting(quiet, epoch=2))
    last = Path(config.out) / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(L2TFastError, match="cut short"):
        run(config, resume=True, progress=quiet)


def test_pretrains_a_source_where_none_is_given(make_config, quiet):
    config = make_config(method="fm", epochs=1)
    config.source.checkpoint = None
    with pytest.raises(L2TFastError, match=r"source.checkpoint is not set.*pretrain.epochs"):
        run(config, progress=quiet)
    config.pretrain.epochs = 1
    config.pretrain.data.classes = [0, 1, 2, 3]
    run(config, progress=quiet)
    path = Path(config.out) / "source" / "checkpoints" / "best.pt"
    source = load_checkpoint(path)
    assert source.pop("num_classes") == 4
    torch.save(source, path)  # a file that does not say it
    (Path(config.out) / "result.json").unlink()
    assert run(config, resume=True, progress=quiet)["epochs"] == 1
    torch.save({"model": 3}, path)
    (Path(config.out) / "result.json").unlink()
    with pytest.raises(L2TFastError, match=r"best\.pt holds no weights"):
        run(config, resume=True, progress=quiet)


def test_a_mistake_below_pretrain_is_not_taken_for_one_of_the_target_s(make_config, quiet):
    config = make_config(method="fm")
    config.source.checkpoint = None
    config.pretrain.epochs = 1
    config.pretrain.data.classes = [0, 77]
    with pytest.raises(
        L2TFastError, match=r"^pretraining the source, whose keys stand below pretrain: classes names 77"
    ):
        run(config, progress=quiet)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (3, 2)])
def test_batch_normalisation_of_a_single_pixel_is_told_with_the_keys(make_config, quiet, batch_size, accumulation):
    config = make_config(method="scratch", accumulation=accumulation)
    config.target = TargetConfig("resnet8")
    config.data.batch_size, config.data.image_size = batch_size, 1
    keys = rf"data\.batch_size \(now {batch_size}\) to at least twice accumulation \(now {accumulation}\)"
    with pytest.raises(L2TFastError, match=f"^in epoch 1, step 1, batch normalisation .*: set {keys}"):
        run(config, progress=quiet)


def test_a_run_that_pretrained_its_source_is_continued_where_it_was_moved_to(make_config, quiet, tmp_path, monkeypatch):
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    monkeypatch.chdir(tmp_path / "before")
    config = make_config(method="fm", out="run")
    config.source.checkpoint = None
    config.pretrain.epochs = 1
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=Interrupting(quiet, epoch=3))  # the second of its own
    monkeypatch.chdir(tmp_path)
    os.rename("before/run", "after/run")
    config.out = "after/run"
    assert run(config, resume=True, progress=quiet)["epochs"] == 2
    config.source.checkpoint = str(shutil.copy("after/run/source/checkpoints/best.pt", "other.pt"))
    config.source.num_classes = 10
    with pytest.raises(L2TFastError, match=r"run was made with source\.checkpoint: run/source/checkpoints/best\.pt"):
        run(config, resume=True, progress=quiet)


def test_cosine_schedule():
    assert [cosine_lr(0.1, epoch, 4) for epoch in range(4)] == pytest.approx(
        [0.1, 0.1 * (0.5 + math.sqrt(2) / 4), 0.05, 0.1 * (0.5 - math.sqrt(2) / 4)]
    )


def test_a_folder_of_somebody_s_own_files_is_left_alone(make_config, quiet, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "log.txt").write_text("notes")
    with pytest.raises(L2TFastError, match=r"holds no run, but a log\.txt that one would replace: name another folder"):
        run(make_config(method="scratch", out=str(tmp_path / "mine")), progress=quiet)
    assert [(path.name, path.read_text()) for path in (tmp_path / "mine").iterdir()] == [("log.txt", "notes")]
