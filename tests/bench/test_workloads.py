"""Workloads: the sizes the paper's set-ups have, sizes along an axis, and a user's own from a file."""

import json

import pytest
import torch

from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bench.workloads import WORKLOADS, read_shapes, resized
from l2t_fast.errors import L2TFastError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_pairs_and_batches():
    pairs = {name: len(workload.pairs) for name, workload in WORKLOADS.items()}
    assert pairs["cifar"] == 15 and pairs["imagenet"] == 16
    assert pairs["multi_source_128"] == 128 and pairs["multi_source_1024"] == 1024
    assert max(height for _, height, _ in WORKLOADS["high_resolution"].targets) == 112
    assert WORKLOADS["imagenet"].case(CPU).batch == 16 and WORKLOADS["imagenet"].case(GPU).batch == 64


@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_maps_are_those_of_the_networks(name):
    setup = STEP_SETUPS[name]
    training = setup.build(CPU, batch=1)
    with torch.no_grad():
        maps = [training.source(training.x).features, training.target.eval()(training.x)[1]]
    sizes = [tuple(tuple(m.shape[1:]) for m in side) for side in maps]
    assert [WORKLOADS[name].sources, WORKLOADS[name].targets] == sizes
    assert list(WORKLOADS[name].pairs) == list(training.method.matching.pairs)


def test_tensors_have_the_dtype_and_layout():
    tensors = WORKLOADS["tiny"].case(CPU, dtype="bfloat16", layout="channels_last").tensors(CPU)
    for feature in [*tensors.source_features, *tensors.target_features]:
        assert feature.dtype == torch.bfloat16 and feature.is_contiguous(memory_format=torch.channels_last)
    assert {t.dtype for projection in tensors.projections for t in projection} == {torch.float32}
    assert not any(t.requires_grad for t in tensors.source_features) and all(t.requires_grad for t in tensors.inputs())


def test_resized():
    more = resized(WORKLOADS["imagenet"], "pairs", 48)
    assert len(more.sources) == 12 and len(set(more.pairs)) == 48 and max(m for m, _ in more.pairs) == 11
    smaller = resized(WORKLOADS["imagenet"], "resolution", 14)
    assert smaller.targets == ((64, 14, 14), (128, 7, 7), (256, 4, 4), (512, 2, 2))
    with pytest.raises(L2TFastError, match="use multiples of 16"):
        resized(WORKLOADS["imagenet"], "pairs", 24)


def test_shapes_of_a_users_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("sources: [[8, 4, 4]]\ntargets: [[4, 8, 6], [2, 2, 2]]\n")
    (workload,) = read_shapes(path)
    assert (workload.name, workload.cpu_batch, workload.gpu_batch) == ("mine", 16, 16)
    assert workload.pairs == ((0, 0), (0, 1))
    path = tmp_path / "two.json"
    entry = {"sources": [[8, 4, 4]], "targets": [[4, 8, 6], [2, 2, 2]]}
    path.write_text(json.dumps([entry | {"batch": 2, "name": "a", "pairs": [[0, 1]]}, entry]))
    first, second = read_shapes(path)
    assert (first.name, first.cpu_batch, first.pairs) == ("a", 2, ((0, 1),)) and second.name == "two_1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold the keys sources and targets, not None"),
        ("[]", "is empty, it needs sources and targets"),
        ("{", "is not YAML of plain values"),
        ("source: [[1, 2, 3]]", "unknown key 'source', known are name, batch, sources"),
        ("sources: [[1, 2, 3]]", "targets must be a list of .channels, height, width., not None"),
        ("sources: [[1, 2]]\ntargets: [[1, 2, 3]]", r"sources: \[1, 2\] is no map, write \[channels, height, width\]"),
        ("sources: [[1, 2, 0]]\ntargets: [[1, 2, 3]]", r"\[1, 2, 0\] is no map"),
        ("sources: [[1, 2, 3]]\ntargets: [[1, 2, 3]]\nbatch: 0", "batch is 0, it must be an integer of 1 or more"),
        ("sources: [[1, 2, 3]]\ntargets: [[1, 2, 3]]\npairs: [0]", "pairs holds 0, write"),
        ("sources: [[1, 2, 3]]\ntargets: [[1, 2, 3]]\npairs: [[0, 1]]", r"\[0, 1\] is out of range for 1 source and 1"),
        ("sources: [[1, 2, 3]]\ntargets: [[1, 2, 3]]\nname: cifar", "the name 'cifar' is taken"),
    ],
)
def test_mistakes_in_shapes_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(L2TFastError, match=message) as caught:
        read_shapes(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_shapes_file(tmp_path):
    with pytest.raises(L2TFastError, match="No such file"):
        read_shapes(tmp_path / "mine.yaml")
