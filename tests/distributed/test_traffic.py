"""The bytes that docs/distributed.md tells of: the formulas against what the ranks really sum, and by hand."""

from pathlib import Path

from l2t_fast.config import TrainConfig
from l2t_fast.distributed import Group
from l2t_fast.distributed.source_plan import Load, choose, plans
from l2t_fast.distributed.traffic import Sizes, main, step_bytes
from l2t_fast.transfer import Trainer
from tests.distributed.ranks import run_ranks
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
        sizes = Sizes.of(trainer.target, trainer.method.matching, trainer.method.meta, x[:1])
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
        normalisation = 2 * (t + 3) + (4 * t + 2 if t else 0)
        assert reductions == flat + normalisation * layers, t


LOAD = Load([100, 60], [10, 20], target_maps=5, image=3, projections=40, phi=8, batch=4, steps=2)


def test_plans_by_hand():
    images, maps, pairs = plans(LOAD, 2)
    assert images.sent == 2 * 0.5 * (4 * 40 + 8) and images.held == 160 + 2 * 30
    assert maps.sent == images.sent + 0.5 * 4 * 3 + 0.5 * 4 * 30 / 2 and maps.held == 100 + 4 * 20 + 2 * 30
    assert pairs.sent == 0.5 * 4 * 3 + 12 * 0.5 * 4 * 5 and pairs.held == 100 + 4 * 20 + 4 * 5
    assert all(plan.sent == 0 for plan in plans(LOAD, 1))


def test_the_choice_says_why():
    best, reason = choose(LOAD, 2)
    assert best.name == "pairs" and reason.startswith("pairs: it sends the least (a rank and step: images ")
    best, reason = choose(LOAD, 2, memory=230)
    assert best.name == "pairs"
    best, reason = choose(LOAD, 2, memory=10)
    assert best.name == "pairs" and "no plan's sources fit" in reason
    few = Load([100], [10], target_maps=500, image=3, projections=4, phi=8, batch=4, steps=2)
    assert choose(few, 2)[0].name == "images"
    best, reason = choose(few, 2, memory=130)
    assert "fit into" in reason


def test_the_page_holds_the_tables(capsys):
    main()
    tables = capsys.readouterr().out.strip()
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    for table in tables.split("\n\n"):
        assert table in page, "write it anew with python -m l2t_fast.distributed.traffic"
