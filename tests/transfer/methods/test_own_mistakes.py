"""Mistakes in a method of one's own that would be wrong without a word, or come out late: each is told."""

import types

import pytest
import torch
from torch import nn

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import METHODS, Method, Trainer, run
from l2t_fast.transfer.checkpoint import load_optimizer


class Own(Method):
    name = "own"
    default_pairs = None

    def __init__(self, setup):
        super().__init__(setup)
        self.layer = nn.Linear(5, 2)
        self.optimizer = torch.optim.AdamW(self.layer.parameters())
        self.epoch = 0

    def optimizers(self):
        return {"own": self.optimizer}

    def start_epoch(self):
        self.epoch += 1

    def after_step(self, target, optimizer, batch):
        self.optimizer.zero_grad()
        self.layer(batch.source.logits[0]).square().mean().backward()
        self.optimizer.step()


def own(monkeypatch, **changes):
    monkeypatch.setitem(METHODS, "own", type("Changed", (Own,), changes))


def test_the_method_itself_is_right(make_config, quiet, monkeypatch):
    own(monkeypatch)
    run(make_config(method="own"), progress=quiet)


def test_an_optimizer_with_the_name_of_the_targets(make_config, quiet, monkeypatch):
    """Its momenta would stand in checkpoints in the place of the target's, which a resumed run would miss."""
    own(monkeypatch, optimizers=lambda self: {"optimizer": self.optimizer})
    with pytest.raises(L2TFastError, match="optimizer of the method own is called 'optimizer', as the target's is"):
        Trainer(make_config(method="own"), quiet)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ("late", "own holds no momenta, though steps were made"),
        ("Adafactor", "own.state.0"),
    ],
)
def test_an_optimizer_that_no_checkpoint_continues(make_config, quiet, monkeypatch, optimizer, told):
    changes = {}
    if optimizer == "late":
        changes["after_step"] = lambda self, *args: self.epoch > 1 and Own.after_step(self, *args)
    else:

        def init(self, setup):
            Own.__init__(self, setup)
            self.optimizer = getattr(torch.optim, optimizer)(self.layer.parameters())

        changes["__init__"] = init
    own(monkeypatch, **changes)
    with pytest.warns(UserWarning, match=rf"because of the optimizer 'own' of the method own \({told}.*every epoch"):
        run(make_config(method="own"), progress=quiet)


def test_optimizers_for_matrices_and_for_several_types(make_config, quiet, monkeypatch, recwarn):
    """Whose momenta have forms that one parameter does not tell."""

    def init(self, setup):
        Own.__init__(self, setup)
        self.layer.bias.requires_grad_(False)
        self.more = nn.Linear(5, 2, dtype=torch.float64)
        self.optimizer = torch.optim.Muon([self.layer.weight])
        self.other = torch.optim.Adam([self.layer.bias, *self.more.parameters()])

    def after_step(self, target, optimizer, batch):
        Own.after_step(self, target, optimizer, batch)
        self.other.zero_grad()
        (self.more(batch.source.logits[0].double()).square().mean() + self.layer.bias.sum()).backward()
        self.other.step()

    own(
        monkeypatch,
        __init__=init,
        after_step=after_step,
        optimizers=lambda self: {"own": self.optimizer, "other": self.other},
    )
    trainer = Trainer(make_config(method="own"), quiet)
    trainer.fit()
    assert not [w for w in recwarn if "cannot be continued" in str(w.message)]
    for name, optimizer in trainer.method.optimizers().items():
        saved = optimizer.state_dict()
        load_optimizer(optimizer, saved, name)
        torch.testing.assert_close(optimizer.state_dict()["state"], saved["state"], rtol=0, atol=0)


def test_parameters_that_nothing_trains(make_config, quiet, monkeypatch):
    own(monkeypatch, optimizers=lambda self: {})
    with pytest.raises(L2TFastError, match=r"nothing trains the parameter layer.weight and 1 more of the method own"):
        Trainer(make_config(method="own"), quiet)
    frozen = {"optimizers": lambda self: {}, "after_step": Method.after_step}
    own(monkeypatch, **frozen, __init__=lambda self, setup: (Own.__init__(self, setup), self.requires_grad_(False))[0])
    Trainer(make_config(method="own"), quiet)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda f: None, "not a NoneType"),
        (lambda f: f.mean(), "not a Tensor"),
        (lambda f: {"x": f.mean((1, 2, 3))}, r"and its 'x' is of shape \(16,\)"),
        (lambda f: {"x": f.mean().reshape(1)}, r"and its 'x' is of shape \(1,\)"),
        (lambda f: {"x": None}, "and its 'x' is a NoneType"),
    ],
)
def test_loss_terms_that_are_no_scalars_by_name(make_config, quiet, monkeypatch, returned, told):
    own(monkeypatch, loss_terms=lambda self, batch, logits, features: returned(features[0]))
    trainer = Trainer(make_config(method="own"), quiet)
    x, y = next(iter(trainer.data.train))
    with pytest.raises(L2TFastError, match=f"loss_terms of the method own must return scalars by name.*, {told}"):
        trainer.train_batch(x, y)


def test_gradients_that_ranks_have_not_joined(make_config, quiet, monkeypatch):
    own(monkeypatch)
    trainer = Trainer(make_config(method="own"), quiet)
    trainer.group = types.SimpleNamespace(disagreement=lambda state: "method layer.weight")
    with pytest.raises(L2TFastError, match=r"the same method layer\.weight: .*, and after_step must join gradients by"):
        trainer._check_agreement()
    trainer.group = types.SimpleNamespace(disagreement=lambda state: "target layer.weight")
    with pytest.raises(L2TFastError, match=r"and run the same versions$"):
        trainer._check_agreement()
