"""The trainer on several ranks against the trainer alone, with the package's own networks and methods."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from rich.console import Console

from l2t_fast.config import SourceConfig, TrainConfig
from l2t_fast.distributed import ALONE, Group
from l2t_fast.transfer import Trainer, TrainingProgress
from tests.distributed.ranks import run_ranks
from tests.transfer.conftest import make_config, quiet, source_checkpoint  # noqa: F401  fixtures

#: Of the joined batches of two steps; the second does not divide, and leaves a rank of four without an image.
BATCHES = [16, 3]

#: What the runs differ in; the steps go with T look-ahead steps.
STEPS = {
    "l2t-ww": {"method": "l2t-ww", "lookahead_steps": 2, "nesterov": True},
    "residual": {"method": "l2t-w", "lookahead_steps": 3, "target": "resnet8"},
    "fm": {"method": "fm", "weight_decay": 0.05},
    "lwf_at": {"method": "lwf-at"},
}


def silent() -> TrainingProgress:
    return TrainingProgress(Console(quiet=True), epoch_lines=False)


def steps_of_a_rank(group: Group, configs: dict[str, TrainConfig]) -> dict:
    """By run and dtype, all that two steps of the trainer left behind and returned."""
    found = {}
    for (name, config), dtype in itertools.product(configs.items(), (torch.float64, torch.float32)):
        trainer = Trainer(config, silent(), group=group)
        for module in filter(None, (trainer.source, trainer.target, trainer.method)):
            module.to(dtype)
        phi = list(getattr(trainer.method, "meta", torch.nn.Module()).parameters())
        joined = next(whole_batches(trainer))
        results, hypergradients = [], []
        for size in BATCHES:
            mine = np.array_split(np.arange(size), group.size)[group.rank]
            x, y = (t[torch.from_numpy(mine)] for t in joined)
            values = torch.stack([t.double() for t in trainer.train_batch(x.to(dtype), y)])
            group.sum_([values])
            results.append(values)
            hypergradients.append([p.grad for p in phi])
        momentum = [s["momentum_buffer"] for s in trainer.step.optimizer.state_dict()["state"].values()]
        found[f"{name} {dtype}"] = {
            **{f"target {k}": v for k, v in trainer.target.state_dict().items()},
            **{f"method {k}": v for k, v in trainer.method.state_dict().items()},
            **{f"momentum {i}": m for i, m in enumerate(momentum)},
            **{f"hypergradient {i}": g for i, g in enumerate(hypergradients[0])},
            **{f"second hypergradient {i}": g for i, g in enumerate(hypergradients[1])},
            "results": torch.stack(results),
            "pair weights": torch.tensor(trainer.method.pair_weights() or [0.0]),
        }
    return found


def whole_batches(trainer: Trainer):
    """The training batches as one process sees them."""
    trainer.data.take_part(0, 1)
    return iter(trainer.data.train)


def configurations(make_config, names: Sequence[str]) -> dict[str, TrainConfig]:  # noqa: F811
    configs = {}
    for name in names:
        changes = STEPS[name]
        config = make_config(**{k: v for k, v in changes.items() if k != "target"})
        config.target.model = changes.get("target", config.target.model)
        configs[name] = config
    return configs


def difference(found: dict, wanted: dict, kind: str) -> float:
    """The largest difference of tensors of one kind, over the largest value of that kind; 0 without such tensors."""
    keys = [key for key in wanted if key.startswith(kind)]
    largest = max((wanted[key].double().abs().max().item() for key in keys), default=0.0)
    return (
        max((found[key].double() - wanted[key].double()).abs().max().item() for key in keys) / largest
        if largest
        else 0.0
    )


#: What is compared in float64 and float32, and in float64 alone: Adam's first step divides the hypergradient by its own
#: size, and with it its rounding errors.
BOTH = ("target", "method matching", "momentum", "hypergradient", "results", "pair weights")
DOUBLE = ("method meta", "second hypergradient")


@pytest.mark.parametrize(("ranks", "names"), [(2, [*STEPS]), (4, ["l2t-ww"])])
def test_steps_are_those_of_one_process(tmp_path, make_config, ranks, names):  # noqa: F811
    configs = configurations(make_config, names)
    alone = steps_of_a_rank(ALONE, configs)
    together = run_ranks(ranks, tmp_path / "ranks", steps_of_a_rank, configs)
    for name in alone:
        for key in alone[name]:
            assert all(torch.equal(together[0][name][key], rank[name][key]) for rank in together[1:]), (name, key)
    for name in configs:
        double, single = f"{name} {torch.float64}", f"{name} {torch.float32}"
        truth = alone[double]
        for kind in (*BOTH, *DOUBLE):
            assert difference(together[0][double], truth, kind) < (1e-12 if kind in BOTH else 1e-9), (name, kind)
        for kind in BOTH:  # parameters to 1e-6, and nothing further from the truth than one process by much
            own = difference(alone[single], truth, kind)
            assert difference(together[0][single], truth, kind) < max(4 * own, 1e-6), (name, kind)
        assert difference(together[0][single], alone[single], "target") < 1e-6, name
        assert difference(together[0][single], alone[single], "method matching") < 1e-6, name


def two_images(group: Group, configs: Sequence[TrainConfig]) -> list[dict]:
    """What a step on a joined batch of two images leaves of the target, run by run."""
    found = []
    for config in configs:
        trainer = Trainer(config, silent(), group=group)
        for module in (trainer.source, trainer.target, trainer.method):
            module.to(torch.float64)
        x, y = (t[group.rank :: group.size][: 2 // group.size] for t in next(whole_batches(trainer)))
        trainer.train_batch(x.double(), y, 2)
        found.append(trainer.target.state_dict())
    return found


def test_pieces_that_no_rank_has_an_image_for_are_left_out(tmp_path, make_config):  # noqa: F811
    sources = {name: make_config().source for name in "ab"}
    plans = [{"sources": sources, "source": SourceConfig(), "source_plan": plan} for plan in ("images", "pairs")]
    # Two ranks with an image each have one piece, of both images: what one process has that makes no pieces.
    images, _ = two_images(ALONE, [make_config(method="l2t-w", **plan) for plan in plans])
    pieces = [make_config(method="l2t-w", accumulation=3, **plan) for plan in plans]
    for first, second in zip(*run_ranks(2, tmp_path / "ranks", two_images, pieces), strict=True):
        assert int(first["features.1.num_batches_tracked"]) == 1
        for name in images:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], images[name], rtol=1e-9, atol=1e-11, msg=name)
