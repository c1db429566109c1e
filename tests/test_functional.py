"""feature_matching_loss: its values in every None case, its arguments' checks, and the choice of backend."""

import itertools

import numpy as np
import pytest
import torch

import l2t_fast
from l2t_fast import feature_matching_loss
from l2t_fast.ops import choose_backend
from tests import oracle

PAIRS = [(0, 0), (1, 0), (0, 1), (2, 1), (2, 1)]


def make(dtype=torch.float64, batch=3, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    sources = [draw(batch, 2, 5, 4), draw(batch, 3, 7, 6), draw(batch, 4, 1, 1)]
    targets = [draw(batch, 5, 5, 4), draw(batch, 6, 2, 3)]
    projections = [
        (draw(sources[m].shape[1], targets[n].shape[1]), draw(sources[m].shape[1]) if bias else None) for m, n in PAIRS
    ]
    channel_weights = [draw(batch, sources[m].shape[1]).abs() for m, _ in PAIRS]
    pair_weights = [draw(batch).abs() for _ in PAIRS]
    return sources, targets, projections, channel_weights, pair_weights


@pytest.mark.parametrize(("what", "where", "bias"), list(itertools.product([True, False], repeat=3)))
def test_every_none_case_against_the_oracle(what, where, bias):
    sources, targets, projections, w, lam = make(bias=bias)
    w, lam = w if what else None, lam if where else None
    betas = [0.5, 1.0, 2.0, 0.0, 3.0]
    found = feature_matching_loss(sources, targets, projections, PAIRS, w, lam, betas)
    wanted = oracle.matching_loss(sources, targets, projections, PAIRS, w, lam, betas)
    assert found.shape == () and found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [lambda b: (b,), lambda b: (b, 1), lambda b: (1, 1)])
def test_pair_weight_shapes(shape):
    sources, targets, projections, w, _ = make()
    lam = [torch.rand(shape(3), dtype=torch.float64) for _ in PAIRS]
    found = feature_matching_loss(sources, targets, projections, PAIRS, w, lam, 0.5)
    torch.testing.assert_close(
        found, oracle.matching_loss(sources, targets, projections, PAIRS, w, lam, [0.5] * 5), rtol=1e-12, atol=0
    )


def test_projection_weights_may_be_convolution_weights():
    sources, targets, projections, w, lam = make()
    as_convolutions = [(weight[:, :, None, None], bias) for weight, bias in projections]
    assert torch.equal(
        feature_matching_loss(sources, targets, as_convolutions, PAIRS, w, lam),
        feature_matching_loss(sources, targets, projections, PAIRS, w, lam),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_features_sum_in_float32(dtype):
    sources, targets, projections, w, lam = make(dtype)
    found = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    assert found.dtype == torch.float32
    wanted = oracle.matching_loss(sources, targets, projections, PAIRS, w, lam, [1.0] * 5)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


def test_mixed_features_and_autocast():
    sources, targets, projections, w, lam = make(torch.float32)
    targets = [t.bfloat16() for t in targets]
    found = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    assert torch.equal(found, inside)
    wanted = oracle.matching_loss(sources, targets, projections, PAIRS, w, lam, [1.0] * 5)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


def test_the_reference_s_loss_is_the_same_under_autocast():
    arguments = make(torch.float32)
    found = feature_matching_loss(*arguments[:3], PAIRS, *arguments[3:], backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = feature_matching_loss(*arguments[:3], PAIRS, *arguments[3:], backend="reference")
    assert torch.equal(found, inside)


def test_second_derivatives_in_all_inputs():
    sources, targets, projections, w, lam = make(batch=2)
    inputs = [*targets, *(t for pair in projections for t in pair), *w, *lam]
    inputs = [t.detach().requires_grad_() for t in inputs]

    def loss(*flat):
        flat = iter(flat)
        t = [next(flat) for _ in targets]
        r = [(next(flat), next(flat)) for _ in projections]
        return feature_matching_loss(sources, t, r, PAIRS, [next(flat) for _ in w], [next(flat) for _ in lam], 0.5)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_empty_batch_is_zero_with_gradients():
    sources, targets, projections, w, lam = make(torch.float32, batch=0)
    targets = [t.requires_grad_() for t in targets]
    weight = projections[0][0].requires_grad_()
    loss = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    assert loss.item() == 0
    loss.backward()
    assert weight.grad.abs().max() == 0 and targets[0].grad.shape == targets[0].shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda a: a.update(pairs=[(0, 0), (3, 0)]),
            ValueError,
            r"pairs\[1\] = \(3, 0\): source index 3 is out of range",
        ),
        (lambda a: a.update(pairs=[(0, 2)]), ValueError, r"target index 2 is out of range, target_features holds 2"),
        (lambda a: a.update(pairs=[(0, -1)]), ValueError, r"target index -1 is out of range"),
        (lambda a: a.update(pairs=[]), ValueError, "pairs is empty"),
        (lambda a: a.update(pairs=[(0, 1, 2)]), TypeError, r"pairs\[0\] must be two integers"),
        (lambda a: a.update(pairs=[(0, 0.5)]), TypeError, r"pairs\[0\] must be two integers"),
        (lambda a: a.update(pairs="0-0,1-1"), TypeError, "pairs must be a list of .*, not the text '0-0,1-1'"),
        (lambda a: a["projections"].pop(), ValueError, "projections has 4 entries for 5 pairs"),
        (
            lambda a: a["projections"].__setitem__(2, (torch.zeros(2, 5).double(), None)),
            ValueError,
            r"pair 2 \(source 0, target 1\): the projection's weight has shape \(2, 5\).*\(3, 2, 5, 4\).*\(3, 6, 2",
        ),
        (
            lambda a: a["projections"].__setitem__(0, (a["projections"][0][0], torch.zeros(3).double())),
            ValueError,
            r"pair 0 .* bias has shape \(3,\)",
        ),
        (lambda a: a["projections"].__setitem__(0, a["projections"][0][0]), TypeError, r"projections\[0\] must"),
        (
            lambda a: a["projections"].__setitem__(2, a["projections"][2][:1]),
            TypeError,
            r"projections\[2\] must be \(weight, bias or None\), not tuple of 1$",
        ),
        (
            lambda a: a["projections"].__setitem__(2, (None, a["projections"][2][1])),
            TypeError,
            r"projections\[2\]: the weight must be a tensor, not NoneType",
        ),
        (
            lambda a: a["projections"].__setitem__(2, (a["projections"][2][0], 0.5)),
            TypeError,
            r"projections\[2\]: the bias must be a tensor or None, not float",
        ),
        (lambda a: a["source_features"].__setitem__(0, torch.zeros(3, 2, 5).double()), ValueError, r"source_features"),
        (lambda a: a["source_features"].__setitem__(0, None), TypeError, r"source_features\[0\] must be a tensor"),
        (
            lambda a: a["target_features"].__setitem__(1, torch.zeros(2, 6, 2, 3).double()),
            ValueError,
            r"pair 2 \(source 0, target 1\): source \(3, 2, 5, 4\) and target \(2, 6, 2, 3\)",
        ),
        (
            lambda a: a["target_features"].__setitem__(0, a["target_features"][0].float()),
            TypeError,
            r"pair 0 .* torch.float32, but source feature 0 is torch.float64",
        ),
        (
            lambda a: a["target_features"].__setitem__(0, a["target_features"][0].to(torch.complex128)),
            TypeError,
            r"complex128, use float32",
        ),
        (
            lambda a: a["target_features"].__setitem__(0, a["target_features"][0].to("meta")),
            ValueError,
            r"pair 0 .* is on meta, .* put all tensors on one device",
        ),
        (
            lambda a: a["channel_weights"].__setitem__(1, torch.zeros(3, 2).double()),
            ValueError,
            r"pair 1 .*: channel weights have shape \(3, 2\)",
        ),
        (
            lambda a: a["pair_weights"].__setitem__(1, torch.zeros(3, 2).double()),
            ValueError,
            r"pair 1 .* pair weight has shape \(3, 2\)",
        ),
        (
            lambda a: a.update(pair_weights=[torch.ones(1).double()] * 5),
            ValueError,
            r"pair 0 .* pair weight has shape \(1,\)",
        ),
        (lambda a: a.update(channel_weights=a["channel_weights"][:2]), ValueError, "has 2 entries for 5 pairs"),
        (lambda a: a.update(beta=[1.0]), ValueError, "beta has 1 entries for 5 pairs"),
        (lambda a: a.update(beta="much"), TypeError, "beta must be a number"),
        (lambda a: a.update(beta="11111"), TypeError, "beta must be a number or one number a pair, not '11111'"),
        (lambda a: a.update(beta=["1", 1, 1, 1, 1]), TypeError, r"beta\[0\] must be a number, not '1'"),
        (lambda a: a.update(beta=np.array(["1"] * 5)), TypeError, r"beta\[0\] must be a number, not '1'"),
        (lambda a: a.update(beta=np.array("1")), TypeError, "beta must be a number or one number a pair, not '1'"),
        (lambda a: a.update(beta=10**400), ValueError, "beta is too large for a float, use a number below"),
        (lambda a: a.update(beta=[1, 10**400, 1, 1, 1]), ValueError, r"beta\[1\] is too large for a float"),
        (lambda a: a.update(beta=torch.tensor(2.0, device="meta")), TypeError, "beta must be .*, not tensor.*meta"),
        (lambda a: a.update(beta=torch.ones(5).to_sparse()), TypeError, "beta must be .*, not tensor"),
        (lambda a: a.update(beta=[*[1.0] * 4, torch.ones(2)]), TypeError, r"beta\[4\] must be a number, not tensor"),
        (lambda a: a.update(beta=dict.fromkeys(range(5), 1.0)), TypeError, r"beta must be .*, not \{0: 1.0"),
        (lambda a: a.update(beta={0.0, 1.0, 2.0, 3.0, 4.0}), TypeError, r"beta must be .*, not \{0.0"),
        (lambda a: a.update(beta=torch.ones(5, 1)), TypeError, r"not a tensor of shape \(5, 1\): weights of chan"),
        (lambda a: a.update(beta=[*[1.0] * 4, torch.ones((), requires_grad=True)]), TypeError, "requires grad"),
        (lambda a: a.update(backend="fast"), ValueError, "backend='fast' is not a backend"),
        (
            lambda a: a.update(pairs=None),
            TypeError,
            r"pairs must be a list of \(source index, target index\), not None",
        ),
        (lambda a: a.update(target_features=iter(())), TypeError, "target_features must be a list of tensors"),
        (
            lambda a: a.update(target_features=dict(enumerate(a["target_features"]))),
            TypeError,
            r"target_features must be a list of tensors \(B, C, H, W\), not dict",
        ),
        (lambda a: a.update(source_features=set(a["source_features"])), TypeError, "list of tensors .*, not set"),
        (lambda a: a.update(channel_weights=0.5), TypeError, "channel_weights .* must be a list with one entry a pair"),
        (lambda a: a.update(pair_weights=torch.ones(())), TypeError, "pair_weights .* must be a list .*, not Tensor"),
        (lambda a: a["pairs"].__setitem__(1, {1, 0}), TypeError, r"pairs\[1\] must be two integers .*, not \{0, 1\}"),
        (
            lambda a: a["source_features"].__setitem__(0, a["source_features"][0].to_sparse()),
            TypeError,
            r"pair 0 .*: the source feature is torch.sparse_coo, use a dense tensor",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    sources, targets, projections, w, lam = make()
    arguments = {
        "source_features": sources,
        "target_features": targets,
        "projections": projections,
        "pairs": list(PAIRS),
        "channel_weights": w,
        "pair_weights": lam,
    }
    change(arguments)
    with pytest.raises(error, match=message):
        feature_matching_loss(**arguments)


@pytest.mark.parametrize("unordered", [set, dict.fromkeys, lambda values: dict.fromkeys(values).keys()])
@pytest.mark.parametrize("name", ["projections", "pairs", "channel_weights", "pair_weights"])
def test_what_has_no_order_is_refused(name, unordered):
    sources, targets, projections, w, lam = make()
    arguments = {"projections": projections, "pairs": PAIRS, "channel_weights": w, "pair_weights": lam}
    arguments[name] = unordered(arguments[name])
    kind = type(arguments[name]).__name__
    with pytest.raises(TypeError, match=rf"{name}.* must be a list (of \(source|with one entry a pair).* not {kind}"):
        feature_matching_loss(sources, targets, **arguments)


NESTED = {
    "source_features": lambda a, nested: a["source_features"].__setitem__(0, nested),
    "source_features that no pair uses": lambda a, nested: a["source_features"].append(nested),
    "target_features": lambda a, nested: a["target_features"].__setitem__(0, nested),
    "target_features that no pair uses": lambda a, nested: a["target_features"].append(nested),
    "channel_weights": lambda a, nested: a["channel_weights"].__setitem__(0, nested),
    "pair_weights": lambda a, nested: a["pair_weights"].__setitem__(0, nested),
    "projections": lambda a, nested: a["projections"].__setitem__(0, (nested, None)),
    "projections with a bias": lambda a, nested: a["projections"].__setitem__(0, (a["projections"][0][0], nested)),
}


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("which", NESTED)
@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_nested_tensors_are_refused(which, layout):
    sources, targets, projections, w, lam = make()
    arguments = {
        "source_features": sources,
        "target_features": targets,
        "projections": projections,
        "channel_weights": w,
        "pair_weights": lam,
    }
    NESTED[which](arguments, torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout))
    with pytest.raises(TypeError, match=rf"{which.split()[0]}\[\d\].* must be a tensor.*, not a nested one"):
        feature_matching_loss(**arguments, pairs=PAIRS)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("changed", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn])
def test_maps_that_are_not_dense_matter_where_a_pair_uses_them(changed, inference):
    sources, targets, projections, w, lam = make(torch.float32)
    wanted = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    with torch.inference_mode(inference):
        unused = changed(torch.ones(3, 2, 5, 4))
    targets = [target.requires_grad_() for target in targets]
    found = feature_matching_loss([*sources, unused], [*targets, unused], projections, PAIRS, w, lam)
    torch.testing.assert_close(found, wanted)
    found.backward()
    pair = r"pair 0 \(source 0, target 0\): the"
    with pytest.raises(TypeError, match=rf"{pair} source feature is torch\..*, use a dense tensor"):
        feature_matching_loss([unused, *sources[1:]], targets, projections, PAIRS, w, lam)
    with pytest.raises(TypeError, match=rf"{pair} target feature is torch\..*, use a dense tensor"):
        feature_matching_loss(sources, [changed(targets[0].detach()), targets[1]], projections, PAIRS, w, lam)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64])
@pytest.mark.parametrize("side", [0, 1])
def test_a_map_that_no_pair_uses_may_have_any_dtype(side, dtype):
    arguments = make(torch.float32)
    wanted = feature_matching_loss(*arguments[:3], PAIRS, *arguments[3:])
    arguments[side].append(torch.ones(3, 2, 5, 4, dtype=dtype))
    assert torch.equal(feature_matching_loss(*arguments[:3], PAIRS, *arguments[3:]), wanted)


def test_source_that_requires_grad_takes_the_reference():
    sources, targets, projections, w, lam = make()
    sources[0].requires_grad_()
    loss = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    (gradient,) = torch.autograd.grad(loss, sources[0])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_source_that_no_pair_uses_may_require_grad(backend):
    if backend == "cpu" and l2t_fast.explain_backend("cpu").backend != "cpu":
        pytest.skip("needs the native kernels")
    sources, targets, projections, w, lam = make()
    target = targets[0].requires_grad_()
    wanted = feature_matching_loss(sources, targets, projections, PAIRS, w, lam, backend="reference")
    sources.append(torch.zeros_like(sources[0]).requires_grad_())
    loss = feature_matching_loss(sources, targets, projections, PAIRS, w, lam, backend=backend)
    torch.testing.assert_close(loss, wanted)
    assert torch.autograd.grad(loss, [target, sources[-1]], allow_unused=True)[1] is None


def test_a_source_that_requires_grad_is_one_as_any_other_without_grad():
    if l2t_fast.explain_backend("cpu").backend != "cpu":
        pytest.skip("needs the native kernels")
    sources, targets, projections, w, lam = make()
    wanted = feature_matching_loss(sources, targets, projections, PAIRS, w, lam, backend="cpu")
    sources[0].requires_grad_()
    with torch.no_grad():
        found = feature_matching_loss(sources, targets, projections, PAIRS, w, lam, backend="cpu")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_map_that_no_pair_uses_may_carry_a_tangent(backend, side):
    if backend == "cpu" and l2t_fast.explain_backend("cpu").backend != "cpu":
        pytest.skip("needs the native kernels")
    sources, targets, projections, w, lam = make()
    target = targets[0].requires_grad_()
    wanted = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    maps = (sources, targets)[side]
    with torch.autograd.forward_ad.dual_level():
        maps.append(torch.autograd.forward_ad.make_dual(torch.zeros_like(maps[0]), torch.ones_like(maps[0])))
        loss = feature_matching_loss(sources, targets, projections, PAIRS, w, lam, backend=backend)
        assert torch.autograd.forward_ad.unpack_dual(loss).tangent is None
    assert torch.equal(loss, wanted)
    assert torch.equal(*(torch.autograd.grad(value, target)[0] for value in (loss, wanted)))


def test_environment_variable_replaces_auto(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.setenv("L2T_FAST_BACKEND", "reference")
    assert choose_backend("auto", [x], [x]) == ("reference", "L2T_FAST_BACKEND=reference asks for it")
    monkeypatch.setenv("L2T_FAST_BACKEND", "")
    assert choose_backend("auto", [x], [x]) == l2t_fast.explain_backend("cpu")
    monkeypatch.setenv("L2T_FAST_BACKEND", "quick")
    with pytest.raises(ValueError, match="L2T_FAST_BACKEND='quick' is not a backend"):
        choose_backend("auto", [x], [x])


def test_the_choice_can_be_asked_for():
    choice = l2t_fast.explain_backend("cpu")
    assert choice.backend in ("cpu", "reference") and choice.reason
    assert l2t_fast.explain_backend("meta").backend == "reference"
    assert choose_backend("auto", [torch.zeros(1)], [torch.zeros(1, device="meta")]).backend == "reference"


def test_the_choice_that_is_told_is_the_environments(monkeypatch):
    monkeypatch.setenv("L2T_FAST_BACKEND", "reference")
    assert l2t_fast.explain_backend("cpu") == ("reference", "L2T_FAST_BACKEND=reference asks for it")
    monkeypatch.setenv("L2T_FAST_BACKEND", "quick")
    assert "refused: L2T_FAST_BACKEND='quick' is not a backend" in l2t_fast.explain_backend("cpu").reason
    monkeypatch.setenv("L2T_FAST_BACKEND", "cpu")
    monkeypatch.setattr("l2t_fast.ops.why_unavailable", lambda *_: None)
    assert l2t_fast.explain_backend("cpu") == ("cpu", "L2T_FAST_BACKEND=cpu asks for it")
    assert "'cpu' takes cpu tensors, but one is on cuda" in l2t_fast.explain_backend("cuda").reason
    monkeypatch.setattr("l2t_fast.ops.why_unavailable", lambda *_: "it was eaten")
    assert "'cpu' is not available: it was eaten" in l2t_fast.explain_backend("cpu").reason


def test_torch_func_and_forward_mode_fall_back_to_the_reference():
    sources, targets, projections, w, lam = make()

    def loss(t):
        return feature_matching_loss(sources, [t, targets[1]], projections, PAIRS, w, lam)

    by_func = torch.func.grad(loss)(targets[0])
    leaf = targets[0].clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(by_func, by_autograd, rtol=1e-12, atol=1e-12)
    tangent = torch.ones_like(targets[0])
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(targets[0], tangent))
        derivative = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(derivative, (by_autograd * tangent).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "transformed",
    [
        torch.func.grad,
        lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones_like(x))[0],
        lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        torch.func.jacfwd,
    ],
)
def test_transforms_around_weights_that_are_closed_over(transformed):
    """The transform is not given any tensor of the loss."""
    sources, targets, projections, w, lam = make()
    w, lam = [t.requires_grad_() for t in w], [t.requires_grad_() for t in lam]
    scale = torch.tensor(2.0, dtype=torch.float64)

    def loss(**backend):
        return feature_matching_loss(sources, targets, projections, PAIRS, w, lam, **backend)

    found = transformed(lambda x: x * loss())(scale)
    wanted = loss()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(found, [*w, *lam]), torch.autograd.grad(wanted, [*w, *lam]), rtol=1e-12, atol=1e-12
    )
    if l2t_fast.explain_backend("cpu").backend == "cpu":
        with pytest.raises(ValueError, match=r"backend='cpu' does not run inside torch\.func transforms"):
            transformed(lambda x: x * loss(backend="cpu"))(scale)


def test_weights_may_be_one_tensor():
    """Of pairs whose sources have equally many channels."""
    sources, targets, projections, w, lam = make()
    same = [(0, 0), (0, 1)]
    arguments = sources, targets, [projections[0], (projections[2][0][:2], projections[2][1][:2])], same
    as_lists = feature_matching_loss(*arguments, [w[0], w[0]], lam[:2])
    assert torch.equal(feature_matching_loss(*arguments, torch.stack([w[0], w[0]]), torch.stack(lam[:2])), as_lists)


def test_features_may_be_a_dictionarys_values():
    sources, targets, projections, w, lam = make()
    as_lists = feature_matching_loss(sources, targets, projections, PAIRS, w, lam)
    by_name = dict(zip("abc", sources, strict=True)), dict(zip("de", targets, strict=True))
    assert torch.equal(feature_matching_loss(*(d.values() for d in by_name), projections, PAIRS, w, lam), as_lists)


def test_beta_may_be_a_tensor():
    sources, targets, projections, w, lam = make()
    arguments = sources, targets, projections, PAIRS, w, lam
    one, each = torch.tensor(0.5), torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0])
    assert torch.equal(feature_matching_loss(*arguments, one), feature_matching_loss(*arguments, 0.5))
    assert torch.equal(feature_matching_loss(*arguments, each), feature_matching_loss(*arguments, each.tolist()))


@pytest.mark.parametrize("beta", [np.array(0.5), np.float32(0.5), np.full(5, 0.5), [np.array(0.5)] * 5])
def test_beta_may_be_numpys(beta):
    sources, targets, projections, w, lam = make()
    arguments = sources, targets, projections, PAIRS, w, lam
    assert torch.equal(feature_matching_loss(*arguments, beta), feature_matching_loss(*arguments, 0.5))


def test_a_source_from_inference_mode():
    """No gradient goes to it, but it is needed for the target's."""
    sources, targets, projections, w, lam = make()
    target = targets[0].requires_grad_()
    with torch.inference_mode():
        kept = [source.clone(memory_format=torch.preserve_format) for source in sources]
    found, wanted = (
        torch.autograd.grad(feature_matching_loss(s, targets, projections, PAIRS, w, lam), target)[0]
        for s in (kept, sources)
    )
    assert torch.equal(found, wanted)


def test_a_source_from_inference_mode_whose_sign_pytorch_changes_as_it_reads():
    """As imaginary parts of conjugates have it: the memory holds the other sign."""
    sources, targets, projections, w, lam = make()
    target = targets[0].requires_grad_()
    with torch.inference_mode():
        kept = [torch._neg_view(-source) for source in sources]
    losses = [feature_matching_loss(s, targets, projections, PAIRS, w, lam) for s in (kept, sources)]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss, target)[0] for loss in losses))


def test_what_a_backend_named_by_hand_cannot_do(monkeypatch):
    monkeypatch.setattr("l2t_fast.ops.why_unavailable", lambda *_: None)
    x = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"backend=.triton. has no float64"):
        choose_backend("triton", [x], [x])

    def loss(t):
        choose_backend("cpu", [x], [t])
        return t.sum()

    with pytest.raises(ValueError, match=r"backend=.cpu. does not run inside torch\.func"):
        torch.func.grad(loss)(x)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_beta_beyond_float32_makes_the_loss_infinite(backend):
    (source, *_), (target, *_), (projection, *_), *_ = make(torch.float32)
    assert feature_matching_loss([source], [target], [projection], [(0, 0)], beta=1e41, backend=backend) == torch.inf


def test_an_infinite_target_makes_the_loss_infinite():
    """Also where rows of a CPU kernel's tile, of weights 0, have no channel."""
    (source, *_), (target, *_), ((weight, bias), *_), *_ = make(torch.float32)
    target[1, 2, 3, 3] = torch.inf
    assert feature_matching_loss([source], [target], [(weight, bias)], [(0, 0)]) == torch.inf
