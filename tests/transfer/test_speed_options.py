"""Options for speed leave what a step computes within stated bounds."""

import pytest
import torch

from l2t_fast.transfer import Trainer


def step(make_config, quiet, **changes):
    """The hypergradient of the second step, flat, and the trainer."""
    trainer = Trainer(make_config(method="l2t-ww", **changes), quiet)
    torch.manual_seed(3)
    for parameter in trainer.method.meta.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.1)
    x, y = next(iter(trainer.data.train))
    for _ in range(2):
        trainer.train_batch(trainer._placed(x), y)
    return torch.cat([p.grad.flatten() for p in trainer.method.meta.parameters()]), trainer


@pytest.mark.parametrize("change", [{"keep_graphs": True}, {"channels_last": True}])
def test_only_rounding_differs(make_config, quiet, change):
    wanted, _ = step(make_config, quiet)
    found, _ = step(make_config, quiet, **change)
    assert (found - wanted).norm() <= 1e-3 * wanted.norm()


def test_channels_last_is_the_layout_of_the_maps(make_config, quiet):
    _, trainer = step(make_config, quiet, channels_last=True)
    x, _ = next(iter(trainer.data.train))
    for network in (trainer.source, trainer.target):
        for map in network(trainer._placed(x))[1]:
            assert map.is_contiguous(memory_format=torch.channels_last)
