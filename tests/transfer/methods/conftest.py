import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from l2t_fast.transfer import Batch, Trainer


@pytest.fixture
def one_batch(make_config, quiet) -> Callable[..., tuple[Trainer, Batch, Tensor, list[Tensor]]]:
    """A trainer in float64, its first batch, and the target's logits and features for it."""

    def make(**changes):
        trainer = Trainer(make_config(**changes), quiet)
        for module in filter(None, (trainer.source, trainer.target, trainer.method)):
            module.double()
        x, y = next(iter(trainer.data.train))
        source = trainer.source(x.double()) if trainer.method.runs_source else None
        logits, features = trainer.target(x.double())
        return trainer, Batch(x.double(), y, source), logits, features

    return make


@pytest.fixture
def falls() -> Callable[[Trainer, Batch], None]:
    """Asserts that each of a method's terms falls over a few steps on one batch, on a copy of the networks."""

    def terms(trainer, batch):
        target = copy.deepcopy(trainer.target).eval()
        logits, features = target(batch.x)
        return {name: term.item() for name, term in trainer.method.loss_terms(batch, logits, features).items()}

    def check(trainer, batch):
        before = terms(trainer, batch)
        for _ in range(30):
            trainer.train_batch(batch.x, batch.y)
        after = terms(trainer, batch)
        assert before.keys() == after.keys()
        for name in before:
            assert after[name] < 0.7 * before[name], name

    torch.manual_seed(0)
    return check
