"""The step in CUDA graphs, without a GPU: a stand-in that replays what was captured must leave the same bits."""

import pytest
import torch
import torch.nn.functional as F

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import Trainer, run, step, step_graph, trainer
from l2t_fast.transfer.checkpoint import load_checkpoint
from tests.transfer.graph_stand_in import NoHost, StandIn, capturable_adam
from tests.transfer.test_trainer import Interrupting, assert_same_state, without_time


@pytest.fixture
def stand_in(monkeypatch):
    """A trainer on the CPU may be asked for a graph, and makes a stand-in after one step."""
    monkeypatch.setattr(trainer, "check_cuda_graph", lambda *_: None)
    monkeypatch.setattr(step, "CudaRecorder", StandIn)
    monkeypatch.setattr(step_graph, "WARM_UP", 1)
    capturable_adam(monkeypatch)


class Ordinary:
    """In place of the graphs: the ordinary halves of a step. PyTorch rounds otherwise where a dispatch mode watches."""

    def __init__(self, halves, recorder, x, y):
        self.halves = halves

    def first(self, x, y):
        with NoHost():
            self.batch, numbers = self.halves.gradients(x, y, check=False)
        return numbers

    def second(self):
        with NoHost():
            self.halves.update(self.batch)


def config_of(make_config, out, **changes):
    """Two epochs of 8, 8 and 2 images: one step to warm up, then three in graphs, and two smaller ones without."""
    data = {"per_class": 6, "batch_size": 8}
    changes = {"method": "l2t-ww", "epochs": 2, "pairs": "one-to-one"} | changes
    return make_config(cuda_graph=True, out=str(out), data=data, **changes)


def assert_same_run(ours, plain):
    """Two run folders hold the same, but for times."""
    for name in ("metrics.csv", "pair_weights.csv"):
        if (plain / name).exists():
            assert without_time(ours / name) == without_time(plain / name)
    assert_same_state(*(load_checkpoint(path / "checkpoints" / "last.pt") for path in (ours, plain)))


CASES = {
    "exact, all pairs, nesterov": {"pairs": "all-to-all", "nesterov": True},
    "exact, bfloat16, channels_last": {"precision": "bfloat16", "channels_last": True},
    "l2t-w, graphs kept, in pieces, no momentum": {
        "method": "l2t-w",
        "keep_graphs": True,
        "accumulation": 2,
        "momentum": 0.0,
        "lookahead_steps": 1,
    },
    "finite difference, plain loss": {"hypergradient": "finite_difference", "backend": "reference"},
    "double backward": {"hypergradient": "double_backward", "lookahead_steps": 1},
    "lwf-at": {"method": "lwf-at"},
    "fm": {"method": "fm"},
    "scratch": {"method": "scratch"},
}


@pytest.mark.parametrize("case", CASES)
def test_graphs_leave_the_bits_of_the_ordinary_step(make_config, quiet, stand_in, monkeypatch, tmp_path, case):
    changes = CASES[case]
    ours = Trainer(config_of(make_config, tmp_path / "ours", **changes), quiet)
    ours.fit()
    assert (ours.step._graph._recorder.captures, ours.step._graph._recorder.replays) == (2, 2 * 3)
    monkeypatch.setattr(step_graph, "_Captured", Ordinary)
    Trainer(config_of(make_config, tmp_path / "plain", **changes), quiet).fit()
    assert_same_run(tmp_path / "ours", tmp_path / "plain")


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_dropout_is_drawn_anew_and_again_where_it_must_be_the_same(make_config, quiet, stand_in, tmp_path, method):
    numbers = []
    for graph in (True, False):
        made = Trainer(config_of(make_config, tmp_path / "run", hypergradient=method), quiet)
        made.target.features[4].register_forward_pre_hook(lambda _, inputs: F.dropout(inputs[0], 0.3))
        if not graph:
            made.step._graph = None
        x, y = next(iter(made.data.train))
        torch.manual_seed(5)
        steps = [torch.stack(made.train_batch(x, y)) for _ in range(4)]
        numbers.append(torch.cat([*steps, *(p.grad.flatten() for p in made.method.meta.parameters()), torch.rand(3)]))
    assert (numbers[0] - numbers[1]).abs().max() <= 1e-5 * numbers[1].abs().max()
    assert torch.equal(numbers[0][-3:], numbers[1][-3:])


def test_resumed_it_ends_with_the_bits_of_a_run_without_graphs(make_config, quiet, stand_in, tmp_path):
    changes = {"hypergradient": "finite_difference", "epochs": 3, "lookahead_steps": 1}
    plain = Trainer(config_of(make_config, tmp_path / "plain", **changes), quiet)
    plain.step._graph = None
    plain.fit()
    config = config_of(make_config, tmp_path / "ours", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=Interrupting(quiet, epoch=2))
    run(config, progress=quiet, resume=True)
    assert_same_run(tmp_path / "ours", tmp_path / "plain")


def test_a_loss_that_is_not_finite_changes_no_parameter(make_config, quiet, stand_in, tmp_path):
    made = Trainer(config_of(make_config, tmp_path / "run"), quiet)
    x, y = next(iter(made.data.train))
    for _ in range(2):
        made.train_batch(x, y)
    assert made.step._graph._recorder.replays == 2
    before = [p.clone() for module in (made.target, made.method) for p in module.parameters()]
    with pytest.raises(L2TFastError, match="in epoch 1, step 3, the images are not finite"):
        made.train_batch(x.where(x < x.max(), torch.inf), y)
    after = [p for module in (made.target, made.method) for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_step_that_cannot_be_captured_is_told_in_a_sentence(make_config, quiet, stand_in, tmp_path):
    made = Trainer(config_of(make_config, tmp_path / "run", method="fm"), quiet)
    made.target.register_forward_hook(lambda _, inputs, output: (output[0] * output[0].max().item(), output[1]))
    x, y = next(iter(made.data.train))
    made.train_batch(x, y)
    with pytest.raises(L2TFastError, match=r"the step cannot be captured \(aten._local_scalar_dense.default needs"):
        made.train_batch(x, y)


def test_memory_that_runs_out_in_a_capture_is_that(make_config, quiet, stand_in, tmp_path, monkeypatch):
    """Whatever ending the broken capture says: the trainer then looks for the batch that fits."""

    def capture(self, function):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(StandIn, "capture", capture)
    made = Trainer(config_of(make_config, tmp_path / "run", method="fm"), quiet)
    with pytest.raises(
        L2TFastError, match=r"too little memory for a step on 8 images \(a step on 4 was tried and fits\)"
    ):
        made.fit()


def test_the_gradients_left_behind_are_those_of_the_step(make_config, quiet, stand_in, tmp_path):
    """Also after a step without the graph, which puts other tensors there."""
    found = []
    for graph in (True, False):
        made = Trainer(config_of(make_config, tmp_path / "run"), quiet)
        if not graph:
            made.step._graph = None
        x, y = next(iter(made.data.train))
        for images in (8, 8, 2, 8):
            made.train_batch(x[:images], y[:images])
        assert all(p.grad is None for p in made.target.parameters()), "their memory is the look-ahead's"
        found.append(torch.cat([p.grad.flatten() for p in made.method.meta.parameters()]))
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[1].abs().max()


def test_only_rounding_tells_its_step_from_the_one_without_the_option(make_config, quiet, stand_in, tmp_path):
    """Its learning rate is a tensor, its SGD the fused one, its Adam the capturable one."""
    found = []
    for graph in (True, False):
        config = config_of(make_config, tmp_path / "run")
        config.cuda_graph = graph
        made = Trainer(config, quiet)
        x, y = next(iter(made.data.train))
        for lr in (0.05, 0.05, 0.02, 0.01):
            step_graph.set_lr(made.step.optimizer, lr)
            made.train_batch(x, y)
        parameters = [*made.target.parameters(), *made.method.parameters()]
        found.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[1].abs().max()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "the run is on a CPU, not on a GPU"),
        ({"device": "cuda", "compile": True}, "so is compile"),
        ({"device": "cuda", "precision": "float16"}, "precision is float16, whose loss scale the host looks after"),
        ({"device": "cuda", "ranks": 2}, "2 ranks train together"),
    ],
)
def test_where_there_can_be_no_graph(make_config, changes, sentence):
    ranks = changes.pop("ranks", 1)
    config = make_config(cuda_graph=True, **changes)
    with pytest.raises(L2TFastError, match=f"cuda_graph is true, but {sentence}"):
        step_graph.check_cuda_graph(config, torch.device(config.device), ranks)


def test_a_trainer_on_a_cpu_refuses(make_config, quiet):
    with pytest.raises(L2TFastError, match="cuda_graph is true, but the run is on a CPU"):
        Trainer(make_config(cuda_graph=True), quiet)
