import pytest
import torch

from l2t_fast import _native, plan

pytestmark = pytest.mark.skipif(_native.extension is None, reason="needs the native extension")

MAPS = [(16, 64, 56, 56), (16, 128, 28, 28), (16, 256, 14, 14), (16, 512, 7, 7)]
ALL = [(m, n) for m in range(4) for n in range(4)]


def test_many_pixels_and_few_channels_take_gram_and_the_rest_direct():
    layers = plan(MAPS, MAPS, ALL).layers
    assert [layer.target for layer in layers] == [0, 1, 2, 3]
    assert layers[0].algorithm == "gram"
    assert layers[3].algorithm == "direct"
    assert layers[1].pairs == (1, 5, 9, 13)


def test_direct_counts_three_products_and_seven_with_a_direction():
    shapes = [(4, 8, 6, 6)], [(4, 512, 6, 6)], [(0, 0)]
    product = 2 * 4 * 36 * 8 * 512
    assert plan(*shapes).flops == 3 * product
    assert plan(*shapes, work="hessian_vector").flops == 7 * product


def test_workspace_is_small_against_the_maps_and_tensors_serve_as_shapes():
    features = [torch.empty(shape, device="meta") for shape in MAPS]
    planned = plan(features, features, ALL)
    assert planned == plan(MAPS, MAPS, ALL)
    projected_maps = sum(16 * 960 * h * w * 4 for _, _, h, w in MAPS)
    assert 0 < planned.workspace < projected_maps / 10
    assert len(str(planned).splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([(2, 3, 4)], [(2, 3, 4, 4)], [(0, 0)]), {}, "source_features"),
        (([(2, 3, 4, 4)], [(1, 3, 4, 4)], [(0, 0)]), {}, "one batch size"),
        (([(2, 3, 4, 4)], [(2, 3, 4, 4)], [(0, 1)]), {}, r"pairs\[0\] = \(0, 1\): target index 1 is out of range"),
        (([(2, 3, 4, 4)], [(2, 3, 4, 4)], []), {}, "pairs is empty"),
        (([(2, 0, 4, 4)], [(2, 3, 4, 4)], [(0, 0)]), {}, r"source_features\[0\] has .* no channels or no pixels"),
        (([(2, 3, 4, 4)], [(2, 3, 0, 4)], [(0, 0)]), {}, r"target_features\[0\] has .* no channels or no pixels"),
        (([(2, 10**30, 4, 4)], [(2, 3, 4, 4)], [(0, 0)]), {}, r"source_features\[0\] of .* larger than any memory"),
        (([(2, 3, 4, 4)], [(2, 3, 2**31, 2**31)], [(0, 0)]), {}, r"target_features\[0\] of .* larger than any memory"),
        (([(0, 2**62, 4, 4)], [(0, 3, 4, 4)], [(0, 0)]), {}, r"source_features\[0\] of .* larger than any memory"),
        (
            ([(1, 2**30, 1, 1)], [(1, 2**30, 1, 1)], [(0, 0)]),
            {},
            r"pairs\[0\] = \(0, 0\): a projection's weight of shape \(1073741824, 1073741824\) is larger",
        ),
        (([(2, 3, 4, 4)], [(2, 3, 4, 4)], [(0, 0)]), {"work": "backward"}, "work must be"),
        (([(2, 3, 4, 4)], [(2, 3, 4, 4)], [(0, 0)]), {"dtype": torch.int32}, "dtype must be"),
    ],
)
def test_errors_name_what_was_wrong(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments, **options)


@pytest.mark.parametrize("shape", [(2, 3.9, 4, 5), "2345", b"2345", {2, 3, 4, 5}, {2: 3, 4: 5}, None, 3])
def test_shapes_are_four_integers_each(shape):
    with pytest.raises(TypeError, match=r"source_features\[1\] must be a tensor or four integers \(B, C, H, W\), not"):
        plan([(2, 3, 4, 4), shape], [(2, 3, 4, 4)], [(0, 0)])


@pytest.mark.parametrize("shapes", [None, 3, {0: (2, 3, 4, 4)}, {(2, 3, 4, 4)}])
def test_shapes_are_a_list(shapes):
    with pytest.raises(TypeError, match="target_features must be a list of tensors or shapes"):
        plan([(2, 3, 4, 4)], shapes, [(0, 0)])


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_a_nested_tensor_has_no_shape():
    nested = torch.nested.nested_tensor([torch.zeros(3, 4, 4)] * 2, layout=torch.strided)
    with pytest.raises(TypeError, match=r"source_features\[0\] must be a tensor .*, not a nested one"):
        plan([nested], [(2, 3, 4, 4)], [(0, 0)])


def test_an_empty_batch_is_planned():
    assert plan([(0, 3, 4, 4)], [(0, 3, 4, 4)], [(0, 0)]).flops == 0


@pytest.mark.parametrize("pairs", [None, {(0, 0)}, [(0, 0, 0)], [(0.0, 0)], ["00"]])
def test_pairs_are_two_integers_each(pairs):
    with pytest.raises(
        TypeError, match=r"must be (a list of \(source index|two integers \(source index), target index"
    ):
        plan(MAPS, MAPS, pairs)


def test_pairs_may_be_a_tensor_or_a_generator():
    assert plan(MAPS, MAPS, torch.tensor(ALL)) == plan(MAPS, MAPS, (pair for pair in ALL)) == plan(MAPS, MAPS, ALL)
