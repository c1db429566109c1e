import numpy as np
import pytest
import torch

from l2t_fast.config import TrainConfig
from l2t_fast.transfer.methods.lwf import distillation_loss


def probabilities(logits):
    """softmax(logits / 2), row by row."""
    powers = np.exp(logits) ** 0.5
    return powers / powers.sum(axis=1, keepdims=True)


def test_loss_is_the_divergence_of_softened_probabilities(one_batch):
    trainer, batch, logits, features = one_batch(method="lwf", lwf_weight=0.3)
    (head,) = trainer.method.heads
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    pooled = features[-1].detach().numpy().mean(axis=(2, 3))
    p = probabilities(batch.source.logits[0].numpy())
    q = probabilities(pooled @ weight.T + bias)
    assert p.shape == (16, 5)  # the source has five classes, the target three
    wanted = 0.3 * np.mean(np.sum(p * np.log(p / q), axis=1))
    (loss,) = trainer.method.loss_terms(batch, logits, features).values()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


def test_agreement_costs_nothing_and_has_no_gradient():
    logits = torch.randn(4, 6, dtype=torch.float64)
    given = logits.clone().requires_grad_()
    loss = distillation_loss(logits, given + 3)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and given.grad.abs().max() < 1e-12


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    source, target = (5 * torch.randn(2, 8, 50)).bfloat16()
    loss = distillation_loss(source, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(source.double(), target.double()).float())


def test_terms_of_several_sources_are_summed(one_batch):
    trainer, batch, logits, features = one_batch(method="lwf")
    twice = batch.source._replace(logits=[*batch.source.logits, *batch.source.logits])
    once = trainer.method.loss_terms(batch, logits, features)["distillation loss"]
    trainer.method.heads.append(trainer.method.heads[0])
    batch = type(batch)(batch.x, batch.y, twice)
    assert trainer.method.loss_terms(batch, logits, features)["distillation loss"].item() == 2 * once.item()


def test_training_lowers_it_and_moves_the_head(one_batch, falls):
    trainer, batch, *_ = one_batch(method="lwf", lwf_weight=10.0)
    before = trainer.method.heads[0].weight.clone()
    falls(trainer, batch)
    assert not torch.equal(before, trainer.method.heads[0].weight)


def test_the_default_is_the_paper_s():
    assert TrainConfig().lwf_weight == 1
