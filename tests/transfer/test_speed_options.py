"""Options for speed leave what a step computes within stated bounds."""

import pytest
import torch

from l2t_fast.bench.memory import peak
from l2t_fast.bench.timing import Run
from l2t_fast.bilevel import hypergradient
from l2t_fast.transfer import Trainer


def step(make_config, quiet, **changes):
    """The hypergradient of the second step, flat, and the trainer."""
    trainer = Trainer(make_config(method="l2t-ww", **changes), quiet)
    torch.manual_seed(3)
    for parameter in trainer.method.meta.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.1)
    x, y = next(iter(trainer.data.train))
    for _ in range(2):
        trainer.train_batch(trainer.step.placed(x), y)
    return torch.cat([p.grad.flatten() for p in trainer.method.meta.parameters()]), trainer


@pytest.mark.parametrize("option", ["keep_graphs", "channels_last", "compile"])
def test_only_rounding_differs(make_config, quiet, option):
    wanted, _ = step(make_config, quiet)
    found, _ = step(make_config, quiet, **{option: True})
    assert (found - wanted).norm() <= 1e-3 * wanted.norm()


def test_channels_last_is_the_layout_of_the_maps(make_config, quiet):
    _, trainer = step(make_config, quiet, channels_last=True)
    x, _ = next(iter(trainer.data.train))
    for network in (trainer.source, trainer.target):
        for map in network(trainer.step.placed(x))[1]:
            assert map.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_low_precision_moves_the_losses_by_its_rounding_only(make_config, quiet, precision, bound):
    losses = []
    for change in ({}, {"precision": precision}):
        trainer = Trainer(make_config(method="l2t-ww", **change), quiet)
        x, y = next(iter(trainer.data.train))
        losses.append(torch.stack(trainer.train_batch(x, y)[:2]))
    assert ((losses[1] - losses[0]).abs() <= bound * losses[0].abs()).all()
    assert not torch.equal(*losses)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_hypergradient_is_that_of_float32_where_the_target_stands(make_config, quiet, precision):
    trainer = Trainer(make_config(method="l2t-ww", precision=precision), quiet)
    method = trainer.method
    x, y = next(iter(trainer.data.train))
    trainer.train_batch(x, y)
    before = [p.clone() for p in method.meta.parameters()]
    trainer.train_batch(x, y)
    found = [p.grad.clone() for p in method.meta.parameters()]
    with torch.no_grad():
        for parameter, value in zip(method.meta.parameters(), before, strict=True):
            parameter.copy_(value)
    with trainer.step.autocast():
        features = trainer.source(x).features
    assert {f.dtype for f in features} == {getattr(torch, precision)}
    wanted = hypergradient(trainer.target, method.matching, method.meta, trainer.step.optimizer, features, x, y)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


def test_a_step_whose_float16_gradients_overflow_is_left_out(make_config, quiet):
    trainer = Trainer(make_config(method="scratch", precision="float16"), quiet)
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = [p.clone() for p in trainer.target.parameters()]
    x, y = next(iter(trainer.data.train))
    trainer.train_batch(x, y)
    assert all(torch.equal(p, b) for p, b in zip(trainer.target.parameters(), before, strict=True))
    assert trainer.step.scaler.get_scale() < 2.0**120


def test_the_loss_scale_is_resumed(make_config, quiet):
    config = make_config(method="fm", precision="float16")
    trainer = Trainer(config, quiet)
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.fit()
    again = Trainer(config, quiet, resume=True)
    again.state.restore(config.epochs)
    assert again.step.scaler.get_scale() == 8.0


@pytest.mark.parametrize("method", ["l2t-ww", "lwf-at", "fm"])
def test_a_batch_in_pieces_gives_the_same_step(make_config, quiet, method):
    trainers = [Trainer(make_config(method=method, accumulation=n), quiet) for n in (1, 3)]
    x, y = next(iter(trainers[0].data.train))
    numbers = []
    for trainer in trainers:
        trainer.target.eval()  # in training mode, batch normalisation sees the pieces
        for _ in range(2):
            numbers.append(torch.stack(trainer.train_batch(x, y)))
    assert (numbers[3] - numbers[1]).abs().max() <= 1e-4 * numbers[1].abs().max()
    # Adam's steps are as long for a gradient that is all rounding as for any other: phi is judged by its gradient.
    phi = [[p for name, p in t.method.named_parameters() if name.startswith("meta.")] for t in trainers]
    if method == "l2t-ww":
        whole, pieces = (torch.cat([p.grad.flatten() for p in parameters]) for parameters in phi)
        assert (pieces - whole).norm() <= 1e-5 * whole.norm() and whole.norm() > 0
    for module in ("target", "method"):
        wanted, found = (getattr(trainer, module).state_dict() for trainer in trainers)
        for name, value in wanted.items():
            if not name.startswith("meta."):
                assert (found[name] - value).abs().max() <= 1e-4 * max(1e-3, value.abs().max()), name


def test_pieces_need_less_memory_than_the_batch(make_config, quiet):
    x, y = torch.rand(256, 1, 8, 8), torch.arange(256) % 3
    peaks = []
    for pieces in (1, 4):
        trainer = Trainer(make_config(method="l2t-ww", accumulation=pieces), quiet)
        trainer.train_batch(x, y)
        peaks.append(peak(Run(lambda t=trainer: t.train_batch(x, y)), x.device).allocator)
    assert peaks[1] < 0.7 * peaks[0]
