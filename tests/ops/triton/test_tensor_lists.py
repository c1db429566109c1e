"""What the host asks of all tensors at once: the native code and Python answer alike."""

import pytest
import torch

pytest.importorskip("triton")

from l2t_fast import _native
from l2t_fast.ops.triton import tensor_lists
from l2t_fast.ops.triton.arguments import Arguments

needs_native = pytest.mark.skipif(_native.extension is None, reason=f"no native code: {_native.why_unavailable()}")


@pytest.fixture(params=["python", pytest.param("native", marks=needs_native)])
def by(request, monkeypatch):
    monkeypatch.setattr(tensor_lists, "extension", _native.extension if request.param == "native" else None)


def tensors():
    return [torch.zeros(2, 3, 4, 5), None, torch.zeros(3)]


MAP = torch.zeros(2, 3, 4, 5)
OTHERS = {
    "one less": [MAP, None],
    "another place of None": [None, MAP, torch.zeros(3)],
    "a size": [torch.zeros(2, 3, 5, 4), None, torch.zeros(3)],
    "a dimension": [torch.zeros(2, 3, 4, 5), None, torch.zeros(3, 1)],
    "a stride": [MAP.contiguous(memory_format=torch.channels_last), None, torch.zeros(3)],
    "a stride of an expanded one": [torch.zeros(1, 3, 4, 5).expand(2, -1, -1, -1), None, torch.zeros(3)],
    "a type": [MAP.half(), None, torch.zeros(3)],
    "a type of the same width": [MAP.half(), None, torch.zeros(3, dtype=torch.bfloat16)],
    "an alignment": [MAP, None, torch.zeros(4)[1:]],
    "a layout": [MAP.to_sparse(), None, torch.zeros(3)],
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_a_plan_depends_on_can_be_told_apart(by, case):
    assert tensor_lists.facts(tensors()) != tensor_lists.facts(OTHERS[case])


def test_a_plan_does_not_depend_on_addresses(by):
    given, others = tensors(), [torch.zeros(2, 3, 4, 5), None, torch.zeros(8)[4:7]]
    assert tensor_lists.facts(given) == tensor_lists.facts(others)
    assert hash(tensor_lists.facts(given)) == hash(tensor_lists.facts(others))


def test_addresses(by):
    given = [torch.zeros(3), None, torch.zeros(4)[1:], torch.zeros(0)]
    wanted = [0 if tensor is None else tensor.data_ptr() for tensor in given]
    assert tensor_lists.addresses(given).tolist() == wanted
    assert tensor_lists.addresses([]).tolist() == []


MAPS = {
    "contiguous": MAP,
    "channels_last": MAP.contiguous(memory_format=torch.channels_last),
    "expanded": torch.zeros(1, 3, 4, 5).expand(2, -1, -1, -1),
    "every other pixel": torch.zeros(2, 3, 8, 10)[:, :, ::2, ::2],
    "one channel": torch.zeros(2, 1, 4, 5).contiguous(memory_format=torch.channels_last),
    "one pixel": torch.zeros(2, 3, 1, 1),
    "no sample": torch.zeros(0, 3, 4, 5),
    "float16": MAP.half(),
}


@pytest.mark.parametrize("case", MAPS)
def test_results_are_laid_out_as_python_says(by, case):
    weights = [torch.zeros(4, 3).t(), torch.zeros(3, 4, 1, 1).contiguous(memory_format=torch.channels_last)]
    problem = [MAP], [MAPS[case], MAP], weights, [torch.zeros(4).half(), None], torch.zeros(2, 7), [0, 0, 0, 1]
    arguments = Arguments(*problem, [True, False, True, True, True, False, True])
    results = tensor_lists.empty_results(arguments)
    assert [result is not None for result in results] == arguments.needs
    wanted = tensor_lists._empty_results(arguments)
    for result, like in zip(results, wanted, strict=True):
        if like is not None:
            assert result.dtype == like.dtype and result.shape == like.shape and result.stride() == like.stride()
    held = [result.data_ptr() for result in results if result is not None and result.numel()]
    assert len(set(held)) == len(held)


@pytest.mark.parametrize(
    "needs, sentence",
    [([True] * 3, "got 3 needs; 4 are needed"), ([True] * 4, "need 2 asks for the gradient of a bias that is None")],
)
def test_needs_that_do_not_fit(by, needs, sentence):
    problem = [MAP], [MAP], [torch.zeros(3, 3)], [None], torch.zeros(2, 3), [0, 0]
    with pytest.raises(ValueError, match=sentence):
        tensor_lists.empty_results(Arguments(*problem, needs))


@needs_native
@pytest.mark.parametrize("ask", ["facts", "addresses"])
def test_the_native_code_takes_lists_of_tensors_alone(ask):
    with pytest.raises(TypeError, match="a tensor or None is needed, not int"):
        getattr(_native.extension, ask)([torch.zeros(3), 3])
    with pytest.raises(TypeError, match="a list of tensors or None is needed"):
        getattr(_native.extension, ask)(iter([torch.zeros(3)]))


@needs_native
def test_a_lazy_copy_stays_one():
    copy = torch._lazy_clone(MAP)
    tensor_lists.facts([copy])
    tensor_lists.addresses([copy])
    assert torch._C._is_cow_tensor(copy)
