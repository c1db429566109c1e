import numpy as np
import pytest
import torch
import torch.nn.functional as F

from l2t_fast.config import TrainConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.methods.at import attention_loss


def attention_map(feature):
    """The sum of squared channels over its Euclidean norm, an image at a time: (B, C, H, W) -> (B, H W)."""
    maps = (feature**2).sum(axis=1).reshape(len(feature), -1)
    return np.stack([map / np.sqrt((map**2).sum()) for map in maps])


def test_loss_is_the_distance_of_attention_maps_of_the_pairs(one_batch):
    trainer, batch, logits, features = one_batch(method="at", at_weight=20.0)
    assert trainer.pairs == [(0, 0), (1, 1), (2, 2)]
    wanted = 0.0
    for m, n in trainer.pairs:
        source, target = batch.source.features[m].numpy(), features[n].detach().numpy()
        assert source.shape[2:] == target.shape[2:] and source.shape[1] != target.shape[1]
        difference = attention_map(source) - attention_map(target)
        wanted += 20 * (difference**2).sum() / difference.size
    (loss,) = trainer.method.loss_terms(batch, logits, features).values()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("source_size", "target_size"), [((8, 6), (4, 3)), ((3, 3), (5, 7)), ((1, 1), (2, 2))])
def test_other_sizes_are_resized_before_they_are_normalised(source_size, target_size):
    source = torch.randn(2, 5, *source_size, dtype=torch.float64)
    target = torch.randn(2, 3, *target_size, dtype=torch.float64)
    resized = F.interpolate((source**2).sum(1, keepdim=True), target_size, mode="bilinear").sqrt()
    wanted = ((attention_map(resized.numpy()) - attention_map(target.numpy())) ** 2).mean()
    assert attention_loss(source, target).item() == pytest.approx(wanted, rel=1e-12)


def test_the_scale_of_a_map_does_not_matter_and_a_dead_map_has_a_gradient():
    source, target = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(attention_loss(source, target), attention_loss(7 * source, 0.2 * target))
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_loss(source, dead).backward()
    assert dead.grad.isfinite().all()


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    source, target = (300 * torch.rand(2, 3, 4, 4)).half(), torch.rand(2, 5, 4, 4).half()
    loss = attention_loss(source, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, attention_loss(source.double(), target.double()).float())


def test_training_lowers_it(one_batch, falls):
    trainer, batch, *_ = one_batch(method="at")
    falls(trainer, batch)


def test_names_the_pair_that_is_not_finite(one_batch):
    trainer, batch, *_ = one_batch(method="at")

    def too_large_to_square(module, inputs, output):
        logits, features = output
        return logits, [features[0], 1e160 * features[1], features[2]]

    trainer.target.register_forward_hook(too_large_to_square)
    with pytest.raises(L2TFastError, match="the attention loss of pair {}->{} is not".format(*trainer.pair_layers[1])):
        trainer.train_batch(batch.x, batch.y)


def test_the_default_is_the_paper_s():
    assert TrainConfig().at_weight == 1000
