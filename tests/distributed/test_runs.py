"""Whole runs on several ranks: what is written, resuming on the same and on another number, NaN on one rank."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from l2t_fast.config import SourceConfig, TrainConfig
from l2t_fast.data import DataBundle, DataConfig, load_data
from l2t_fast.distributed import ALONE, Group
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import Trainer, TrainingProgress, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from tests.distributed.ranks import run_ranks
from tests.transfer.conftest import make_config, quiet, source_checkpoint  # noqa: F401  fixtures
from tests.transfer.test_trainer import Interrupting, assert_same_state, without_time


def silent() -> TrainingProgress:
    return TrainingProgress(Console(quiet=True), epoch_lines=False)


def runs_of_a_rank(group: Group, straight: TrainConfig, broken: TrainConfig) -> list:
    """A run in one go, and one that stops in its third epoch and is resumed."""
    results = [run(straight, progress=silent(), group=group)]
    try:
        run(broken, progress=Interrupting(silent(), epoch=3), group=group)
    except KeyboardInterrupt:
        group.wait()
    if group.leads:
        shutil.copytree(broken.out, broken.out + "-copy")
    results.append(run(broken, resume=True, progress=silent(), group=group))
    return results


@pytest.fixture
def configurations(make_config, tmp_path) -> tuple[TrainConfig, TrainConfig]:  # noqa: F811
    """The same run in two folders; the last batch of the 18 images has one for each of two ranks."""
    data = {"augment": "crop", "classes": [5, 6], "per_class": 9}
    changes = {"method": "l2t-ww", "lookahead_steps": 1, "epochs": 4, "data": data}
    return tuple(make_config(**changes, out=str(tmp_path / name)) for name in ("straight", "broken"))


def metrics(config: TrainConfig) -> dict[str, list[float]]:
    found = without_time(Path(config.out) / "metrics.csv")
    return {name: [float(row[name]) for row in found] for name in found[0]}


def test_runs_resume_and_equal_one_process(configurations, tmp_path, quiet):  # noqa: F811
    straight, broken = configurations
    found = run_ranks(2, tmp_path / "ranks", runs_of_a_rank, straight, broken)
    # Bit for bit on the same number of ranks, and all ranks tell the same.
    for result in [r for rank in found for r in rank]:
        assert {**result, "seconds": 0} == {**found[0][0], "seconds": 0}
    for name in ("last.pt", "best.pt"):
        assert_same_state(*(load_checkpoint(Path(c.out) / "checkpoints" / name) for c in configurations))
    for name in ("metrics.csv", "pair_weights.csv"):
        assert without_time(Path(straight.out) / name) == without_time(Path(broken.out) / name)
    assert "2 ranks; starts after epoch 2" in (Path(broken.out) / "log.txt").read_text()

    # One process alone, from the start and from the checkpoint of two ranks.
    alone = TrainConfig(**{**vars(straight), "out": str(tmp_path / "alone")})
    resumed = TrainConfig(**{**vars(broken), "out": broken.out + "-copy"})
    run(alone, progress=quiet)
    run(resumed, resume=True, progress=quiet)
    for config in (alone, resumed):
        for name, values in metrics(config).items():
            assert values == pytest.approx(metrics(straight)[name], rel=2e-3, abs=1e-6), name
    weights = without_time(Path(alone.out) / "pair_weights.csv")
    for row, wanted in zip(without_time(Path(straight.out) / "pair_weights.csv"), weights, strict=True):
        assert float(row["mean"]) == pytest.approx(float(wanted["mean"]), rel=1e-3)


def one_epoch(group: Group, config: TrainConfig) -> str:
    """Begin or continue a run, which stops in the second epoch from there."""
    try:
        run(config, resume=True, progress=Interrupting(silent(), epoch=2), group=group)
    except KeyboardInterrupt:
        group.wait()
        return "stopped"
    return "finished"


def test_a_run_goes_on_on_more_ranks(configurations, tmp_path, quiet):  # noqa: F811
    """An epoch each on one process, on two, on four."""
    straight, moved = (dataclasses.replace(config, epochs=3) for config in configurations)
    run(straight, progress=quiet)
    assert one_epoch(ALONE, moved) == "stopped"
    assert run_ranks(2, tmp_path / "two", one_epoch, moved) == ["stopped"] * 2
    assert run_ranks(4, tmp_path / "four", one_epoch, moved) == ["finished"] * 4
    log = (Path(moved.out) / "log.txt").read_text()
    assert "2 ranks; starts after epoch 1" in log and "4 ranks; starts after epoch 2" in log
    for name, values in metrics(moved).items():
        assert values == pytest.approx(metrics(straight)[name], rel=2e-3, abs=1e-6), name
    last, wanted = (load_checkpoint(Path(c.out) / "checkpoints" / "last.pt") for c in (moved, straight))
    assert last["step"] == wanted["step"] and last["model"].keys() == wanted["model"].keys()
    for name, value in wanted["model"].items():
        torch.testing.assert_close(last["model"][name], value, rtol=2e-3, atol=2e-3)


def spoiled_rank(group: Group, config: TrainConfig) -> dict:
    """Rank 1 has an image of NaN; what each rank says, and whether its parameters are as before."""
    trainer = Trainer(config, silent(), group=group)
    before = [p.clone() for p in trainer.target.parameters()]
    x, y = next(iter(trainer.data.train))
    if group.rank == 1:
        x[0, 0, 0, 0] = torch.nan
    trainer.target.eval()  # with joint statistics, the NaN would be on both ranks at once
    try:
        trainer.train_batch(x, y)
    except L2TFastError as error:
        same = all(torch.equal(a, b) for a, b in zip(before, trainer.target.parameters(), strict=True))
        return {"said": f"{type(error).__name__}: {error}", "same": same}
    return {}


def test_nan_on_one_rank_stops_both(make_config, tmp_path):  # noqa: F811
    found = run_ranks(2, tmp_path / "ranks", spoiled_rank, make_config(method="fm"))
    assert found[0]["said"] == "PeerError: the loss of another rank is not finite"
    assert found[1]["said"].startswith("L2TFastError: in epoch 1, step 1, the images are not finite")
    assert found[0]["same"] and found[1]["same"]


def other_weights(group: Group, config: TrainConfig) -> str:
    trainer = Trainer(config, silent(), group=group)
    if group.rank == 1:
        with torch.no_grad():
            trainer.target.classifier.weight[0, 0] += 1e-3
    try:
        trainer.fit()
    except L2TFastError as error:
        return str(error)
    return ""


def test_ranks_that_do_not_agree(make_config, tmp_path):  # noqa: F811
    found = run_ranks(2, tmp_path / "ranks", other_weights, make_config(method="scratch"))
    assert found[0] == found[1]
    assert found[0].startswith("after epoch 0, the ranks do not hold the same target classifier")


def started_otherwise(group: Group, config: TrainConfig, changes: dict[str, dict]) -> dict[str, str]:
    """What each rank says where rank 1 is started with one more option than rank 0."""
    found = {}
    for name, change in changes.items():
        own = {**change, "data": dataclasses.replace(config.data, **change.get("data", {}))} if group.rank else {}
        resume = own.pop("resume", False)
        config_here = dataclasses.replace(config, **{"out": f"{config.out}-{name}", **own})
        try:
            run(config_here, resume=resume, progress=silent(), group=group)
            found[name] = ""
        except L2TFastError as error:
            found[name] = str(error)
    return found


def test_ranks_that_are_started_with_other_options(make_config, tmp_path):  # noqa: F811
    changes = {
        "beta": {"beta": 7.0},
        "batch": {"data": {"batch_size": 15}},
        "resume": {"resume": True},
        "source": {"source": SourceConfig("resnet8")},
        "machine": {"threads": 2, "data": {"workers": 1}},
    }
    config = make_config(method="fm", out=str(tmp_path / "run"), epochs=1)
    first, second = run_ranks(2, tmp_path / "ranks", started_otherwise, config, changes)
    assert first == second
    assert first["beta"] == "beta is 0.5 on rank 0, but 7.0 on rank 1: start all ranks with the same options"
    size = config.data.batch_size
    assert first["batch"].startswith(f"data.batch_size is {size} on rank 0, but 15 on rank 1")
    assert first["resume"].startswith("resume is False on rank 0, but True on rank 1")
    assert first["source"].startswith(f"source.checkpoint is {config.source.checkpoint} on rank 0, but None on rank 1")
    assert first["machine"] == ""  # each machine has its own
    assert not any((tmp_path / f"run-{name}").exists() for name in changes if name != "machine")


def other_images(group: Group, config: TrainConfig) -> str:
    def load(options: DataConfig) -> DataBundle:
        return load_data(dataclasses.replace(options, per_class=options.per_class - group.rank))

    try:
        Trainer(config, silent(), group=group, load=load)
    except L2TFastError as error:
        return str(error)
    return ""


def test_ranks_that_read_other_images(make_config, tmp_path):  # noqa: F811
    found = run_ranks(2, tmp_path / "ranks", other_images, make_config(method="scratch"))
    assert found[0] == found[1]
    assert found[0].startswith("the ranks do not read the same training images: data.data_dir")
