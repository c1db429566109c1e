"""A source that is made on the spot: mistakes about the run are told before it is trained, and nothing else changes."""

import gc
import shutil
import weakref
from pathlib import Path

import pytest

from l2t_fast.config import PretrainConfig, SourceConfig, TargetConfig
from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError
from l2t_fast.files import held
from l2t_fast.models import read_checkpoint
from l2t_fast.transfer import Trainer, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from l2t_fast.transfer.run import Pretraining
from tests.transfer.test_trainer import Interrupting, assert_same_state, without_time


@pytest.fixture
def on_the_spot(make_config):
    """A run that makes its own source, of four other digits."""

    def make(**changes):
        data = DataConfig(classes=[0, 1, 2, 3], per_class=8, batch_size=16)
        fields = {"source": SourceConfig("resnet8"), "pretrain": PretrainConfig(data, epochs=2)}
        return make_config(**fields | {"method": "l2t-ww", "lookahead_steps": 1} | changes)

    return make


@pytest.fixture
def nothing_is_trained(monkeypatch):
    monkeypatch.setattr(Trainer, "train_batch", lambda *_: pytest.fail("a step was made"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": TargetConfig("nope")}, "there is no network 'nope'"),
        ({"target": TargetConfig("vgg5bn", ["nope"])}, "vgg5bn has no layer 'nope'"),
        ({"target": TargetConfig("torchvision:vgg11")}, "torchvision:vgg11 cannot take images of 8x8 pixels"),
        ({"pairs": "abc"}, "'abc' is neither single"),
        ({"pairs": ["layer9:0"]}, "the source has no feature map 'layer9'"),
        ({"pairs": ["0:3"]}, "asks for target map 3, the target has maps 0 to 2"),
        ({"pairs": ["3:0"]}, "asks for source map 3, the source has maps 0 to 2"),
        ({"pairs": ["0:0", "0:0"]}, "stands there twice"),
        ({"data": {"per_class": 100000}}, "fewer than per_class = 100000"),
        ({"data": {"classes": [5, 77]}}, "classes names 77"),
        ({"data": {"validation_share": 0.999}}, "1 image to train on, fewer than per_class = 12"),
        ({"data": {"normalization": [[0.5] * 3, [1.0] * 3]}}, "normalization has 3 numbers a row"),
        ({"data": {"dataset": "imagefolder", "data_dir": "/nowhere"}}, "there is no folder /nowhere"),
        ({"method": "fine-tune"}, "fine-tune needs a source of the target's architecture"),
        ({"cuda_graph": True}, "cuda_graph is true, but the run is on a CPU"),
        ({"source": SourceConfig("nope")}, "below pretrain: there is no network 'nope'"),
        ({"source": SourceConfig("resnet8", layers=["nope"])}, "below pretrain: resnet8 has no layer 'nope'"),
        (
            {"source": SourceConfig("resnet8", normalization=[[0.5] * 3, [1.0] * 3])},
            r"source \(resnet8\) has a normalisation of 3 numbers a row",
        ),
        ({"pretrain": PretrainConfig(DataConfig(per_class=100000), epochs=1)}, "below pretrain: class '0'"),
    ],
)
def test_a_mistake_is_told_before_the_source_is_trained(on_the_spot, quiet, nothing_is_trained, changes, said):
    config = on_the_spot(**changes)
    with pytest.raises(L2TFastError, match=said):
        run(config, progress=quiet)
    assert not Path(config.out).exists()


def test_so_is_a_folder_that_the_run_cannot_have(on_the_spot, make_config, quiet, tmp_path, monkeypatch):
    run(make_config(method="scratch", epochs=1), progress=quiet)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "metrics.csv").write_text("somebody's")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Trainer, "train_batch", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(L2TFastError, match="run already holds a run: continue it with --resume"):
        run(on_the_spot(), progress=quiet)
    with pytest.raises(L2TFastError, match="run was made with epochs: 1, but now epochs is 2"):
        run(on_the_spot(), resume=True, progress=quiet)
    with pytest.raises(L2TFastError, match=r"own holds no run, but a metrics\.csv that one would replace"):
        run(on_the_spot(out=str(tmp_path / "own")), progress=quiet)
    with pytest.raises(L2TFastError, match=r"the folder .*file cannot be written: Not a directory"):
        run(on_the_spot(out=str(tmp_path / "file")), progress=quiet)
    taken = tmp_path / "taken"
    with held(taken), pytest.raises(L2TFastError, match="taken is in use by another process"):
        run(on_the_spot(out=str(taken)), progress=quiet)
    assert not any((tmp_path / name / "source").exists() for name in ("run", "own", "taken"))


@pytest.mark.parametrize("method", ["l2t-ww", "fine-tune"])
def test_the_run_is_that_of_the_same_source_from_a_file(on_the_spot, quiet, tmp_path, method):
    """Bit for bit: being set up with the untrained source leaves nothing behind."""
    target = TargetConfig("resnet8" if method == "fine-tune" else "vgg5bn")
    changes = {"method": method, "target": target, "data": {"augment": "crop"}}
    read = []

    def load(config):
        read.append(config)
        return load_data(config)

    made = on_the_spot(source=SourceConfig("resnet8", unit_rms=True), out=str(tmp_path / "made"), **changes)
    run(made, progress=quiet, load=load)
    assert len(read) == 1
    file = tmp_path / "made" / "source" / "checkpoints" / "best.pt"
    source = SourceConfig("resnet8", str(file), unit_rms=True)
    run(on_the_spot(source=source, out=str(tmp_path / "given"), **changes), progress=quiet)
    for name in ("last.pt", "best.pt"):
        states = [load_checkpoint(tmp_path / folder / "checkpoints" / name) for folder in ("made", "given")]
        options = [state.pop("options") for state in states]
        assert {key for key in options[0] if options[0][key] != options[1][key]} <= {"source.num_classes"}
        assert_same_state(*states)
    assert without_time(tmp_path / "made" / "metrics.csv") == without_time(tmp_path / "given" / "metrics.csv")


def test_a_source_that_was_interrupted_goes_on(on_the_spot, quiet, tmp_path):
    broken = on_the_spot(out=str(tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        run(broken, progress=Interrupting(quiet, epoch=2))
    assert (tmp_path / "broken" / "source" / "checkpoints" / "last.pt").exists()
    straight = on_the_spot(out=str(tmp_path / "straight"))
    results = [run(config, progress=quiet) for config in (straight, broken)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}
    assert run(straight, resume=True, progress=quiet) == results[0]


def test_a_finished_run_needs_its_source_no_more(on_the_spot, quiet, monkeypatch):
    config = on_the_spot()
    result = run(config, progress=quiet)
    shutil.rmtree(config.folder() / "source")
    monkeypatch.setattr(Trainer, "train_batch", lambda *_: pytest.fail("a step was made"))
    assert run(config, resume=True, progress=quiet) == result
    with pytest.raises(L2TFastError, match="run already holds a run"):
        run(config, progress=quiet)


def test_the_trainer_of_the_source_is_let_go(on_the_spot, quiet, tmp_path):
    pretraining = Pretraining(on_the_spot(), tmp_path / "source", quiet)
    trainer = weakref.ref(pretraining._trainer)
    pretraining.finish()
    gc.collect()
    assert trainer() is None


def test_a_damaged_source_of_a_run_s_own_may_be_removed(on_the_spot, quiet, tmp_path):
    Pretraining(on_the_spot(), tmp_path / "source", quiet).finish()
    (tmp_path / "source" / "checkpoints" / "best.pt").write_bytes(b"")
    with pytest.raises(L2TFastError, match=r"or remove \S+source to have the source pretrained again"):
        Pretraining(on_the_spot(), tmp_path / "source", quiet)


def test_the_untrained_weights_say_of_the_source_what_its_checkpoint_will(on_the_spot, quiet, tmp_path):
    pretraining = Pretraining(on_the_spot(), tmp_path / "source", quiet)
    before = pretraining.weights()
    expected = {name: value.shape for name, value in before.weights.items()}
    source = pretraining.finish()
    assert pretraining.finished and pretraining.weights() is None
    after = read_checkpoint(source.checkpoint)
    assert {name: value.shape for name, value in after.weights.items()} == expected
    for name in ("num_classes", "in_channels", "normalization"):
        assert getattr(after, name) == getattr(before, name)
    assert source.num_classes == after.num_classes == 4
    again = Pretraining(on_the_spot(), tmp_path / "source", quiet)
    assert again.finished and again.finish() == source
