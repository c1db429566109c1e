import pytest


def test_it_is_the_sum_of_both(one_batch):
    weights = {"lwf_weight": 0.4, "at_weight": 30.0}
    trainer, batch, logits, features = one_batch(method="lwf-at", **weights)
    both = trainer.method.loss_terms(batch, logits, features)
    for name in ("lwf", "at"):
        alone, *rest = one_batch(method=name, **weights)
        if name == "lwf":
            alone.method.heads.load_state_dict(trainer.method.lwf.heads.state_dict())
        for term, value in alone.method.loss_terms(*rest).items():
            assert both.pop(term).item() == pytest.approx(value.item(), rel=1e-12)
    assert not both
    assert [p.shape for p in trainer.method.trained_parameters()] == [(5, 128), (5,)]


def test_training_lowers_both(one_batch, falls):
    trainer, batch, *_ = one_batch(method="lwf-at", lwf_weight=10.0)
    falls(trainer, batch)
