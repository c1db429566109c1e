"""Sources and pairs shared out over ranks: steps, checkpoints and what is said are those of one process with all."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from l2t_fast.config import SourceConfig, TrainConfig
from l2t_fast.distributed import ALONE, Group
from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model
from l2t_fast.transfer import Trainer, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from tests.distributed.ranks import run_ranks
from tests.distributed.test_trainer import BOTH, DOUBLE, difference, silent, whole_batches
from tests.transfer.conftest import make_config, quiet, source_checkpoint  # noqa: F401  fixtures
from tests.transfer.test_trainer import Interrupting, assert_same_state, without_time

#: Of the joined batches of two steps; the second leaves a rank of four without an image.
BATCHES = [10, 3]

#: What the runs differ in, by number of ranks. Three sources on two ranks lie 2 to 1, on four one rank has none.
STEPS = {
    2: {
        "pairs": {"method": "l2t-ww", "source_plan": "pairs", "nesterov": True, "keep_graphs": True},
        "maps": {"method": "l2t-ww", "source_plan": "maps", "lookahead_steps": 1},
        "fm": {"method": "fm", "source_plan": "pairs", "weight_decay": 0.05},
        "logits": {"method": "lwf-at", "source_plan": "maps", "channels_last": True, "at_weight": 10.0},
        "pieces": {"method": "l2t-w", "source_plan": "pairs", "accumulation": 2},
    },
    4: {
        "pairs": {"method": "l2t-ww", "source_plan": "pairs", "pairs": "0:0,2:1,5:2,4:0"},
        "maps": {"method": "fm", "source_plan": "maps"},
    },
}

#: Those that run in float32 too.
IN_FLOAT32 = {2: ("pairs", "maps"), 4: ()}


@pytest.fixture
def three_sources(tmp_path) -> dict[str, SourceConfig]:
    """ResNet-8 with other weights, numbers of classes and sizes of images each; one with scaled maps."""
    found = {}
    for i, name in enumerate("abc"):
        torch.manual_seed(i)
        torch.save({"model": build_model("resnet8", 5 + i, in_channels=1).state_dict()}, tmp_path / f"{name}.pt")
        size = 12 if name == "b" else None
        found[name] = SourceConfig(
            "resnet8", str(tmp_path / f"{name}.pt"), num_classes=5 + i, image_size=size, unit_rms=name == "c"
        )
    return found


def configurations(make_config, sources, changes: dict[str, dict]) -> dict[str, TrainConfig]:  # noqa: F811
    return {name: make_config(source=SourceConfig(), sources=sources, **own) for name, own in changes.items()}


def steps_of_a_rank(group: Group, configs: dict[str, TrainConfig], in_float32: Sequence[str]) -> dict:
    """By run and dtype, the whole state that two steps left on rank 0, and this rank's hypergradients."""
    found = {}
    for name, dtype in [(name, torch.float64) for name in configs] + [(name, torch.float32) for name in in_float32]:
        config = configs[name]
        trainer = Trainer(config, silent(), group=group)
        for module in filter(None, (trainer.source, trainer.target, trainer.method)):
            module.to(dtype)
        if config.accumulation > 1:  # batch normalisation takes what runs at a time, which is not the same
            trainer.target.eval()
        phi = dict(getattr(trainer.method, "meta", torch.nn.Module()).named_parameters())
        joined = next(whole_batches(trainer))
        results, hypergradients, first = [], {}, {}
        for step, size in enumerate(BATCHES):
            mine = np.array_split(np.arange(size), group.size)[group.rank]
            x, y = (t[torch.from_numpy(mine)] for t in joined)
            counted = size if step else None
            values = torch.stack([t.double() for t in trainer.train_batch(x.to(dtype), y, counted)])
            group.sum_([values])
            results.append(values)
            kind = "second hypergradient" if step else "hypergradient"
            hypergradients |= {f"{kind} {k}": p.grad.clone() for k, p in phi.items() if p.grad is not None}
            if not step:
                state = trainer.state.state(trainer.reached)
                parameters = {f"target {k}": v for k, v in state["model"].items()}
                parameters |= {f"method {k}": v for k, v in state["method"].items() if k.startswith("matching")}
                first = {f"first {k}": v.clone() for k, v in parameters.items()}
        state = trainer.state.state(trainer.reached)
        momentum = {i: entry["momentum_buffer"] for i, entry in state["optimizer"]["state"].items()}
        adam = state["method_optimizers"].get("meta", {"state": {}})["state"]
        whole = {
            **first,
            **{f"target {k}": v for k, v in state["model"].items()},
            **{f"method {k}": v for k, v in state["method"].items()},
            **{f"momentum {i}": m for i, m in momentum.items()},
            **{f"method meta, Adam {i} {k}": v for i, entry in adam.items() for k, v in entry.items()},
            "results": torch.stack(results),
            "pair weights": torch.tensor(trainer.method.pair_weights() or [0.0]),
        }
        layers = [own.is_meta for own in trainer.method.state_dict().values()]
        networks = [next(part.parameters()).is_meta for part in trainer.source.parts]
        found[f"{name} {dtype}"] = {
            "whole": whole if group.leads else {},
            "own": hypergradients,
            "elsewhere": {"layers": sum(layers), "sources": sum(networks)},
        }
    return found


@pytest.mark.parametrize("ranks", STEPS)
def test_steps_are_those_of_one_process(tmp_path, make_config, three_sources, ranks):  # noqa: F811
    configs = configurations(make_config, three_sources, STEPS[ranks])
    alone = steps_of_a_rank(ALONE, configs, IN_FLOAT32[ranks])
    together = run_ranks(ranks, tmp_path / "ranks", steps_of_a_rank, configs, IN_FLOAT32[ranks])
    for name, config in configs.items():
        truth = {**alone[f"{name} {torch.float64}"]["whole"], **alone[f"{name} {torch.float64}"]["own"]}
        for dtype in (torch.float64, torch.float32)[: 1 + (name in IN_FLOAT32[ranks])]:
            key = f"{name} {dtype}"
            ours = dict(together[0][key]["whole"])
            for rank in together:
                ours |= rank[key]["own"]
            assert ours.keys() == truth.keys(), name
            single = {**alone[key]["whole"], **alone[key]["own"]}
            for kind in BOTH if dtype == torch.float32 else (*BOTH, *DOUBLE):
                if dtype == torch.float64:
                    assert difference(ours, truth, kind) < (1e-12 if kind in BOTH else 1e-9), (name, kind)
                else:
                    own = difference(single, truth, kind)
                    assert difference(ours, truth, kind) < max(4 * own, 1e-6), (name, kind)
            # One step; at the second one, what Adam makes of rounding errors has come into the weights.
            for kind in ("first target", "first method matching"):
                assert difference(ours, single, kind) < (1e-12 if dtype == torch.float64 else 1e-6), (name, kind)
            elsewhere = [rank[key]["elsewhere"] for rank in together]
            assert sum(e["sources"] for e in elsewhere) == 3 * (ranks - 1), "each source has one rank"
            layers = sum(e["layers"] for e in elsewhere)
            tensors = sum(k.startswith("method m") and "Adam" not in k for k in truth)
            assert layers == ((ranks - 1) * tensors if config.source_plan == "pairs" else 0), name


def interrupted(config: TrainConfig, group: Group) -> None:
    """Train `config` until its second epoch."""
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=Interrupting(silent(), epoch=2), group=group)
    group.wait()


def runs_of_a_rank(group: Group, straight: TrainConfig, broken: TrainConfig, others: list[TrainConfig]) -> list[dict]:
    """A run in one go, the same interrupted and resumed, and runs that go on from copies of its folder."""
    results = [run(straight, progress=silent(), group=group)]
    interrupted(broken, group)
    if group.leads:
        for config in others:
            shutil.copytree(broken.out, config.out)
    group.wait()
    results.append(run(broken, resume=True, progress=silent(), group=group))
    return results + [run(c, resume=True, progress=silent(), group=group) for c in others if c.source_plan != "auto"]


def test_runs_resume_on_any_number_of_ranks_and_under_any_plan(
    make_config,  # noqa: F811
    three_sources,
    tmp_path,
    quiet,  # noqa: F811
):
    sources = {name: three_sources[name] for name in "ab"}
    data = {"augment": "crop", "classes": [5, 6], "per_class": 9}
    base = {"method": "l2t-ww", "lookahead_steps": 1, "epochs": 3, "data": data, "source": SourceConfig()}

    def config(name: str, plan: str) -> TrainConfig:
        return make_config(**base, sources=sources, source_plan=plan, out=str(tmp_path / name))

    straight, broken, maps, alone = (
        config(*of) for of in (("straight", "pairs"), ("broken", "pairs"), ("maps", "maps"), ("alone", "auto"))
    )
    found = run_ranks(2, tmp_path / "ranks", runs_of_a_rank, straight, broken, [maps, alone])
    for rank in found:  # bit for bit on the same number of ranks, and all ranks tell the same
        for result in rank[:2]:
            assert {**result, "seconds": 0} == {**found[0][0], "seconds": 0}
    for name in ("last.pt", "best.pt"):
        states = [load_checkpoint(Path(c.out) / "checkpoints" / name) for c in (straight, broken)]
        assert_same_state(*states)
        assert not any(t.is_meta for t in states[0]["method"].values())
    log = (Path(straight.out) / "log.txt").read_text()
    assert "where the sources run: pairs: the configuration says so (a rank and step: " in log

    # From the checkpoint of two ranks with pairs of their own, one process goes on; and from its, two such ranks.
    run(alone, resume=True, progress=quiet)
    whole, back = config("whole", "pairs"), config("back", "pairs")
    run(whole, progress=quiet)
    interrupted(back, ALONE)
    run_ranks(2, tmp_path / "ranks again", resumed_rank, back)
    arrays = np.load(Path(straight.out) / "channel_weights.npz")
    for other in (maps, alone, whole, back):
        for file in ("metrics.csv", "pair_weights.csv"):
            rows, wanted = without_time(Path(other.out) / file), without_time(Path(straight.out) / file)
            assert len(rows) == len(wanted)
            for row, truth in zip(rows, wanted, strict=True):
                for key, value in truth.items():
                    if key not in ("source_layer", "target_layer"):
                        assert float(row[key]) == pytest.approx(float(value), rel=2e-3, abs=1e-5), (other.out, key)
        theirs = np.load(Path(other.out) / "channel_weights.npz")
        assert theirs.files == arrays.files
        for name in arrays.files:
            np.testing.assert_allclose(theirs[name], arrays[name], rtol=1e-3, atol=1e-6)


def resumed_rank(group: Group, config: TrainConfig) -> dict:
    return run(config, resume=True, progress=silent(), group=group)


def other_weights(group: Group, configs: list[list[TrainConfig]]) -> list[str]:
    said = []
    for of_ranks in configs:
        try:
            Trainer(of_ranks[group.rank], silent(), group=group)
            said.append("")
        except L2TFastError as error:
            said.append(str(error))
    return said


def test_another_source_file_on_one_machine_is_seen(tmp_path, make_config, three_sources):  # noqa: F811
    """Of the same form, which no loss would show, and of another, by which ranks would reckon other owners."""
    configs = []
    for plan in ("maps", "pairs"):
        for classes in (5, 9):
            file = tmp_path / f"other{classes}.pt"
            torch.save(build_model("resnet8", classes, in_channels=1).state_dict(), file)
            files = three_sources["a"].checkpoint, str(file)
            of_ranks = [{**three_sources, "a": SourceConfig("resnet8", own)} for own in files]
            changes = {"method": "l2t-ww", "source": SourceConfig(), "source_plan": plan}
            configs.append([make_config(**changes, sources=sources) for sources in of_ranks])
    first, second = run_ranks(2, tmp_path / "ranks", other_weights, configs)
    assert first == second
    said = "the ranks do not read the same weights of sources.a: sources.a.checkpoint must be the same file on"
    assert all(text.startswith(said) for text in first)


def said_by_a_rank(group: Group, configs: list[TrainConfig]) -> list[str]:
    """What the ranks say of NaN in an image of rank 1, a projection of rank 0, a source of rank 1; of plans."""
    found = []
    kinds = ("image", "projection", "source", "overflow", "choice", "choice")
    for config, spoiled in zip(configs, kinds, strict=True):
        trainer = Trainer(config, silent(), group=group)
        if spoiled == "choice":
            found.append(trainer.placement.reason)
            continue
        x, y = next(iter(trainer.data.train))
        before = [p.clone() for p in trainer.target.parameters()]
        trainer.target.eval()
        with torch.no_grad():
            if spoiled == "image" and group.rank == 1:
                x[0, 0, 0, 0] = torch.nan
            if spoiled == "projection" and group.rank == 0:
                trainer.method.own_matching[1].weight[0, 0] = torch.nan
            if spoiled == "source" and group.rank == 1:
                next(trainer.placement.sharing.own.parameters()).fill_(torch.nan)
        if spoiled == "overflow":
            trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)  # nothing else overflows
        if spoiled == "overflow" and group.rank == 0:
            trainer.method.own_matching[1].weight.register_hook(lambda gradient: gradient * torch.inf)
        try:
            scale = trainer.step.scaler.get_scale()
            trainer.train_batch(x, y, 16)
            found.append(str(trainer.step.scaler.get_scale() / scale))
        except L2TFastError as error:
            found.append(f"{type(error).__name__}: {error}")
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.target.parameters(), strict=True))
    return found


def test_the_rank_that_knows_says_it(tmp_path, make_config, three_sources):  # noqa: F811
    same = {"method": "l2t-ww", "source_plan": "pairs"}
    half = {"method": "fm", "source_plan": "pairs", "precision": "float16"}
    changes = [
        same,
        same,
        same,
        half,
        {"method": "at", "source_plan": "pairs"},
        {"method": "fm", "source_memory": 1e-6},
    ]
    configs = [*configurations(make_config, three_sources, dict(enumerate(changes))).values()]
    found = run_ranks(2, tmp_path / "ranks", said_by_a_rank, configs)
    other = "PeerError: the loss of another rank is not finite"
    assert found[0][0] == other and "step 1, the images are not finite" in found[1][0]
    name = "the matching loss of pair b/layer1.0->features.6 is not finite"
    assert name in found[0][1] and found[1][1] == other
    assert found[0][2] == other and "feature map a/layer1.0 of the source is not finite" in found[1][2]
    assert [rank[3] for rank in found] == ["0.5", "0.5"], "a gradient of one rank overflows, and all leave out the step"
    assert found[0][4] == found[1][4] and found[0][4].startswith("images: it sends the least")
    assert found[0][4].endswith("; pairs cannot be shared out by at")
    assert "no plan's sources fit into 0 MB, and it holds the least" in found[0][5]
