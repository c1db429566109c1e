"""A NaN stops the run with one sentence that names where it came up, and the last good checkpoint stays."""

from pathlib import Path

import pytest
import torch

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import Trainer, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from l2t_fast.transfer.finite import first_non_finite_parameter
from l2t_fast.transfer.step import Step


@pytest.fixture
def trainer(make_config, quiet):
    return Trainer(make_config(method="l2t-ww"), quiet)


def spoil_map(network, index, value):
    def hook(module, inputs, output):
        logits, features = output
        features = [f * value if i == index else f for i, f in enumerate(features)]
        return logits, features

    network.register_forward_hook(hook)


def assert_stops(trainer, said):
    before = {name: value.clone() for name, value in trainer.target.state_dict().items()}
    with pytest.raises(L2TFastError, match=said):
        trainer.fit()
    for name, value in trainer.target.named_parameters():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_a_source_map(trainer, value):
    spoil_map(trainer.source.networks[0], 1, value)
    name = trainer.source.feature_names[1]
    assert_stops(trainer, f"in epoch 1, step 1, feature map {name} of the source is not finite: .*nothing was saved")


def test_names_a_target_map(trainer):
    spoil_map(trainer.target, 2, float("nan"))
    assert_stops(trainer, f"feature map {trainer.target.feature_names[2]} of the target is not finite")


def test_names_the_images(trainer):
    images = iter(trainer.data.train)
    x, y = next(images)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(L2TFastError, match="the images are not finite"):
        trainer.train_batch(x, y)


def test_names_the_logits(trainer):
    trainer.target.register_forward_hook(lambda module, inputs, output: (output[0] * float("nan"), output[1]))
    assert_stops(trainer, "the target's logits are not finite")


@pytest.mark.parametrize("spoiled", ["projection", "pair weight"])
def test_names_a_pair(trainer, spoiled):
    part = trainer.method.matching if spoiled == "projection" else trainer.method.meta.loss_weight_network
    with torch.no_grad():
        part[4].bias.fill_(float("nan"))
    source, target = trainer.pair_layers[4]
    assert (source, target) == (trainer.source.feature_names[1], trainer.target.feature_names[1])
    assert_stops(trainer, f"the matching loss of pair {source}->{target} is not finite")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_the_layer_whose_weight_is_spoiled(trainer, value):
    """A middle one: the feature map that comes after it is the first that shows it."""
    layer = [name for name, module in trainer.target.named_modules() if isinstance(module, torch.nn.Conv2d)][1]
    with torch.no_grad():
        trainer.target.get_submodule(layer).weight[0, 0, 0, 0] = value
    with pytest.raises(L2TFastError, match=rf"from layer {layer} \(Conv2d\) on, where its weight is NaN or infinite"):
        trainer.fit()


def test_names_the_layer_that_overflows(make_config, quiet):
    trainer = Trainer(make_config(method="scratch"), quiet)
    with torch.no_grad():
        trainer.target.classifier.weight.fill_(1e38)
    with pytest.raises(
        L2TFastError, match=r"the target's logits are not finite, from layer classifier \(Linear\) on: "
    ):
        trainer.fit()


def test_the_last_good_checkpoint_stays(make_config, quiet, monkeypatch):
    config = make_config(method="l2t-ww", epochs=4)
    step = Trainer.train_batch

    def blow_up(trainer, *batch):
        found = step(trainer, *batch)
        if trainer.reached.epoch == 2:  # the weights go wrong in the third epoch's step
            with torch.no_grad():
                next(trainer.target.parameters()).mul_(float("nan"))
        return found

    monkeypatch.setattr(Trainer, "train_batch", blow_up)
    said = r"in epoch 3, step 8, feature map .* the checkpoint of epoch 2 in .* is intact; a lower lr .* may help"
    with pytest.raises(L2TFastError, match=rf"{said}, from the start in another folder \(--out\)$"):
        run(config, progress=quiet)
    last = load_checkpoint(Path(config.out) / "checkpoints" / "last.pt")
    assert last["epoch"] == 2
    assert all(value.isfinite().all() for value in last["model"].values())
    assert "stopped in epoch 3: L2TFastError" in (Path(config.out) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda step: next(step.target.parameters()), "target features.0.weight turned NaN or infinite"),
        (lambda step: next(step.method.meta.parameters()), "method meta.weight_network.0.weight turned NaN"),
    ],
)
def test_an_epoch_that_ends_spoiled_is_not_saved(make_config, quiet, monkeypatch, part, said):
    config = make_config(method="l2t-ww", epochs=4)
    evaluate = Step.evaluate
    passes = []

    def spoil_before(step, batches):
        passes.append(step)
        if len(passes) == 2:  # the end of the second epoch
            with torch.no_grad():
                part(step).view(-1)[0] = float("inf")
        return evaluate(step, batches)

    monkeypatch.setattr(Step, "evaluate", spoil_before)
    with pytest.raises(L2TFastError, match=f"after epoch 2, {said}"):
        run(config, progress=quiet)
    assert load_checkpoint(Path(config.out) / "checkpoints" / "last.pt")["epoch"] == 1


def test_a_learning_rate_far_too_high_stops_with_a_hint(make_config, quiet):
    config = make_config(method="fm", lr=1e30, epochs=3)
    with pytest.raises(L2TFastError, match=r"was saved; a lower lr \(now 1e\+30\) or beta \(now 0.5\) may help$"):
        run(config, progress=quiet)
    config.lr = 1e-3  # in the same folder
    assert run(config, progress=quiet)["epochs"] == 3


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("scratch", r"lr \(now 1e\+30\)"),
        ("l2t-w", r"lr \(.*\) or meta_lr \(now 0.01\) or beta \(.*\)"),
        ("lwf-at", r"lr \(.*\) or lwf_weight \(now 1.0\) or at_weight \(now 1000.0\)"),
    ],
)
def test_the_hint_names_the_keys_of_the_method(make_config, quiet, method, keys):
    with pytest.raises(L2TFastError, match=rf"a lower {keys} may help$"):
        run(make_config(method=method, lr=1e30), progress=quiet)


def test_parameters_without_floats_are_skipped():
    module = torch.nn.BatchNorm1d(2)
    assert first_non_finite_parameter({"a": module}) is None
    module.running_var[1] = float("nan")
    assert first_non_finite_parameter({"a": module}) == "a running_var"
    assert first_non_finite_parameter({"a": torch.nn.ReLU()}) is None
