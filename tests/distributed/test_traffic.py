"""The bytes that docs/distributed.md tells of: the formulas against what the ranks really sum, and by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import distributed_costs, distributed_traffic
from benchmarks.distributed_costs import LINK, RATE, Work, costs, passes
from benchmarks.distributed_traffic import Sizes, step_bytes
from l2t_fast.config import TrainConfig
from l2t_fast.distributed import Group
from l2t_fast.distributed.source_plan import Load, choose, plans
from l2t_fast.transfer import Trainer
from tests.distributed.ranks import run_ranks
from tests.distributed.test_source_sharing import configurations as sharing_configurations
from tests.distributed.test_source_sharing import three_sources  # noqa: F401  a fixture
from tests.distributed.test_trainer import silent
from tests.transfer.conftest import make_config, source_checkpoint  # noqa: F401  fixtures


def bytes_of_a_rank(group: Group, configs: list[TrainConfig]) -> list[list[int]]:
    """Per configuration [bytes, reductions, formula's bytes] of one step."""
    found = []
    for config in configs:
        trainer = Trainer(config, silent(), group=group)
        x, y = next(iter(trainer.data.train))
        before = group.reduced_bytes, group.reductions
        trainer.train_batch(x, y, 16)
        sizes = Sizes.of(trainer.target, trainer.method.matching, trainer.method.meta)
        wanted = sum(step_bytes(sizes, config.lookahead_steps).values())
        found.append([group.reduced_bytes - before[0], group.reductions - before[1], wanted])
    return found


def test_a_step_moves_what_the_formula_says(tmp_path, make_config):  # noqa: F811
    steps = [0, 1, 3]
    configs = [make_config(method="l2t-ww", lookahead_steps=t) for t in steps]
    found = run_ranks(2, tmp_path / "ranks", bytes_of_a_rank, configs)
    assert found[0] == found[1]
    layers = 4  # of batch normalisation in VGG-5
    for t, (moved, reductions, formula) in zip(steps, found[0], strict=True):
        assert moved == formula, t
        # One for the real step, each look-ahead step, its end, each Hessian-vector product and phi.
        flat = 1 + (t + 1) + 1 + t + 1
        normalisation = 2 * (t + 3) + (4 * t if t else 0)  # the last step's passes are not run again
        assert reductions == flat + normalisation * layers, t


def sent_by_a_rank(group: Group, configs: list[TrainConfig]) -> list[dict]:
    """Per configuration what a second step sent beside what all plans sum alike, and what the planner counted."""
    found = []
    for config in configs:
        trainer = Trainer(config, silent(), group=group)
        x, y = next(iter(trainer.data.train))
        trainer.train_batch(x, y, 16)  # the first step tells the other ranks the maps' forms
        before = group.reduced_bytes, group.exchanged_bytes
        trainer.train_batch(x, y, 16)
        learned = getattr(trainer.method, "meta", torch.nn.Module())
        sizes = Sizes.of(trainer.target, trainer.method.matching, learned)
        steps = config.lookahead_steps if config.method != "fm" else 0
        shared = dataclasses.replace(sizes, projections=0, phi=0)
        common = sum(step_bytes(shared, steps, keep_graphs=config.keep_graphs).values())
        if config.method == "fm":  # no look-ahead: the real step alone
            channels = sum(sizes.batch_norm)
            common = 4 * (sizes.target + 1) + 8 * (2 * channels + len(sizes.batch_norm)) + 8 * channels
        others = (group.size - 1) / group.size
        reduced = group.reduced_bytes - before[0] - common
        found.append(
            {
                "sent": round(2 * others * reduced) + group.exchanged_bytes - before[1],
                "counted": trainer.placement.plan.sent,
                "plan": trainer.placement.plan.name,
            }
        )
    return found


def test_a_step_sends_what_the_planner_counts(tmp_path, make_config, three_sources):  # noqa: F811
    wanted = [
        {"method": "l2t-ww", "source_plan": "images", "lookahead_steps": 1},
        {"method": "l2t-ww", "source_plan": "maps", "lookahead_steps": 1},
        {"method": "l2t-ww", "source_plan": "pairs", "lookahead_steps": 3},
        {"method": "l2t-ww", "source_plan": "pairs", "lookahead_steps": 2, "keep_graphs": True},
        {"method": "fm", "source_plan": "pairs"},
        {"method": "fm"},
    ]
    configs = [*sharing_configurations(make_config, three_sources, dict(enumerate(wanted))).values()]
    ranks = run_ranks(2, tmp_path / "ranks", sent_by_a_rank, configs)
    for changes, *found in zip(wanted, *ranks, strict=True):
        assert sum(f["sent"] for f in found) / 2 == found[0]["counted"], changes
        assert {f["plan"] for f in found} == {changes.get("source_plan", "images")}


LOAD = Load([100, 60], [10, 20], target_maps=5, image=3, projections=40, phi=8, batch=4, steps=2)


def test_plans_by_hand():
    images, maps, pairs = plans(LOAD, 2)
    assert LOAD.owners(2, "maps") == [1, 0] and LOAD.crossings == 12
    assert images.sent == 2 * 0.5 * (4 * 40 + 8) and images.held == 160 + 2 * 30
    assert maps.sent == images.sent + 0.5 * 4 * 3 + 0.5 * 4 * 30 / 2
    assert maps.held == 60 + 4 * 20 + 2 * 30 == 100 + 4 * 10 + 2 * 30
    assert pairs.sent == 0.5 * 4 * 3 + 12 * 0.5 * 4 * 5 and pairs.held == 60 + 4 * 20 + 4 * 4 * 5
    assert [plan.uneven for plan in plans(LOAD, 2)] == [1, 4 / 3, 4 / 3]
    assert all(plan.sent == 0 for plan in plans(LOAD, 1))
    assert dataclasses.replace(LOAD, keep_graphs=True).crossings == 10
    assert [dataclasses.replace(LOAD, steps=t).crossings for t in (0, 1, 3)] == [2, 6, 18]


def test_owners():
    load = dataclasses.replace(LOAD, source_weights=[1] * 5, source_maps=[4, 1, 1, 1, 1])
    assert load.owners(2, "maps") == [0, 1, 1, 1, 1]
    assert load.owners(4, "maps") == [0, 1, 2, 3, 1]
    # Rank 0 has a pair, and ranks without one share the sources that have none.
    with_pairs = dataclasses.replace(load, source_pairs=[0, 0, 2, 0, 0])
    assert with_pairs.owners(2, "pairs")[2] == 0


def test_the_choice_says_why():
    best, reason = choose(LOAD, 2)
    assert best.name == "pairs" and reason.startswith("pairs: it sends the least (a rank and step: images ")
    assert choose(LOAD, 2, possible=("images", "maps"))[0].name == "images"
    assert choose(LOAD, 2, memory=220)[0].name == "pairs"
    best, reason = choose(LOAD, 2, memory=210)
    assert best.name == "maps"
    assert "it sends the least of those that remain: images and pairs would not fit into 0 MB (" in reason
    best, reason = choose(LOAD, 2, memory=10)
    assert best.name == "maps" and "no plan's sources fit" in reason
    best, reason = choose(LOAD, 8)
    assert best.name == "images" and "maps and pairs would leave ranks without a source waiting" in reason
    assert choose(LOAD, 8, memory=180)[0].name == "maps", "where nothing else fits, ranks wait"
    few = Load([100], [10], target_maps=500, image=3, projections=4, phi=8, batch=4, steps=2)
    assert choose(few, 2, memory=1)[1].startswith("images: there is one source (")


def test_flops_of_a_small_case_by_hand():
    """3 channels of the source, 5 of the target, T = 1: three gradients of 3 products, and 3 for the weights."""
    source, target = nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(2, 5, 1, bias=False)

    class Network(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return x.mean((1, 2, 3)), [self.layer(x)]

    work = Work.of(Network(source), Network(target), torch.zeros(1, 2, 4, 6))
    assert (work.source, work.target, work.product) == (2 * 6 * 24, 2 * 10 * 24, 2 * 15 * 24)
    # docs/design.md: T = 2 is 33 passes of the target.
    assert passes(2) == (33, 24, 25) and passes(1)[2] == 3 * 3 + 3
    load = Load([1] * 4, [8] * 4, target_maps=5, image=3, projections=40, phi=8, batch=6, steps=1)
    images, maps, pairs = costs(load, work, Sizes(0, 0, 0, ()), 3)
    target_flops = passes(1)[0] * work.target * 2
    assert images.flops == 8 * work.source + target_flops + 8 * 12 * work.product
    assert maps.flops == 12 * work.source + target_flops + 8 * 12 * work.product  # a rank has 2 of the 4 sources
    assert pairs.flops == 12 * work.source + target_flops + 12 * 12 * work.product
    assert images.send == (images.plan.sent + images.common) / LINK
    assert images.hidden == min(images.send, passes(1)[1] * work.target * 2 / RATE)


@pytest.mark.parametrize("main", [distributed_traffic.main, distributed_costs.main])
def test_the_page_holds_the_tables(capsys, main):
    main()
    tables = capsys.readouterr().out.strip()
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    for table in tables.split("\n\n"):
        assert table in page, "write it anew with python -m benchmarks.distributed_traffic, or distributed_costs"
