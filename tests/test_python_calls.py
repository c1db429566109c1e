"""The short ways from Python's objects to the operators: which arguments they take, and that errors come through."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from l2t_fast import _native, feature_matching_loss
from l2t_fast.ops import native

extension = _native.extension
pytestmark = pytest.mark.skipif(extension is None, reason=f"no native extension: {_native.why_unavailable()}")


class List(list):
    pass


class Subclass(torch.Tensor):
    pass


def given():
    return {
        "sources": [torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)],
        "targets": [torch.randn(2, 4, 2, 2)],
        "projections": [(nn.Parameter(torch.randn(3, 4)), None), [torch.randn(5, 4, 1, 1), torch.randn(5)]],
        "pairs": ((0, 0), [1, 0]),
        "channel_weights": [torch.rand(2, 3), torch.rand(2, 5)],
        "pair_weights": (torch.rand(2, 1), torch.rand(1, 1)),
    }


def test_usual_arguments_are_taken():
    arguments = given()
    weights, biases = extension.checked(*arguments.values())
    assert weights == tuple(weight for weight, _ in arguments["projections"])
    assert biases == (None, arguments["projections"][1][1])
    for without in ("channel_weights", "pair_weights"):
        assert extension.checked(**given() | {without: None}) is not None


UNUSUAL = {
    "a list of another type": ("sources", List),
    "no list": ("targets", iter),
    "a subclass of tensors": ("targets", lambda targets: [targets[0].as_subclass(Subclass)]),
    "None among maps": ("sources", lambda sources: [*sources, None]),
    "no pairs": ("pairs", lambda pairs: []),
    "a pair too many": ("pairs", lambda pairs: [*pairs, (0, 0)]),
    "three in a pair": ("pairs", lambda pairs: [(0, 0), (1, 0, 0)]),
    "a pair that is a number": ("pairs", lambda pairs: [(0, 0), 1]),
    "an index that is a bool": ("pairs", lambda pairs: [(0, 0), (True, 0)]),
    "an index out of range": ("pairs", lambda pairs: [(0, 0), (2, 0)]),
    "an index below zero": ("pairs", lambda pairs: [(0, 0), (-1, 0)]),
    "an index of more than 64 bits": ("pairs", lambda pairs: [(0, 0), (2**70, 0)]),
    "a projection that is a tensor": ("projections", lambda projections: [torch.randn(2, 3, 4), projections[1]]),
    "no weight": ("projections", lambda projections: [(None, None), projections[1]]),
    "a bias that is a number": ("projections", lambda projections: [(projections[0][0], 0.0), projections[1]]),
    "a weight that does not fit": ("projections", lambda projections: projections[::-1]),
    "channel weights for one pair": ("channel_weights", lambda weights: weights[:1]),
    "no channel weight for two pairs": ("channel_weights", lambda weights: []),
    "None among pair weights": ("pair_weights", lambda weights: [weights[0], None]),
    "another dtype": ("pair_weights", lambda weights: [weights[0], weights[1].double()]),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_all_others_are_left_to_the_checks_one_by_one(case):
    name, changed = UNUSUAL[case]
    arguments = given()
    arguments[name] = changed(arguments[name])
    assert extension.checked(*arguments.values()) is None


def problem():
    arguments = given()
    weights, biases = zip(*arguments["projections"], strict=True)
    return [arguments["sources"], arguments["targets"], weights, biases, torch.rand(2, 8), arguments["pairs"]]


def test_the_loss_is_the_operator_s():
    arguments = problem()
    assert torch.equal(extension.matching_loss(*arguments), native.matching_loss(*arguments))
    assert extension.matching_loss(*arguments).requires_grad
    with torch.no_grad():
        assert not extension.matching_loss(*arguments).requires_grad


def test_errors_are_those_of_the_operators():
    for place, wrong in ((4, torch.rand(2, 7)), (4, torch.rand(2, 8, dtype=torch.bfloat16)), (5, [(0, 0), (1, 1)])):
        arguments = problem()
        arguments[place] = wrong
        with pytest.raises((ValueError, TypeError)) as wanted:
            native.matching_loss(*arguments)
        with pytest.raises(wanted.type) as found:
            extension.matching_loss(*arguments)
        assert str(found.value) == str(wanted.value)
    arguments = problem()
    arguments[0] = iter(arguments[0])
    with pytest.raises(TypeError, match="lists of tensors"):
        extension.matching_loss(*arguments)
    with pytest.raises(ValueError, match="channel weights have shape"):
        extension.coefficients([torch.rand(2, 4)], None, [3], [1.0], 2, False)


def test_a_python_error_below_the_operators_comes_through():
    class Fails(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise KeyError(str(func))

    arguments = given()
    with Fails(), pytest.raises(KeyError, match=r"aten\.cat"):
        feature_matching_loss(*arguments.values(), backend="cpu")
    arguments = problem()
    with Fails(), pytest.raises(KeyError, match=r"l2t_fast\.matching"):
        extension.matching_loss(*arguments)
