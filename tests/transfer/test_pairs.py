import pytest

from l2t_fast.errors import L2TFastError
from l2t_fast.layer_names import source_layer, split_source_layer
from l2t_fast.transfer.pairs import pair_names, resolve_pairs

SOURCE = ["layer1", "layer2", "layer3"]
TARGET = ["features.2", "features.5", "features.9", "features.12", "features.15"]


def test_schemes_of_the_paper():
    assert resolve_pairs("single", SOURCE, TARGET) == [(2, 4)]
    assert resolve_pairs("one-to-one", SOURCE, TARGET) == [(0, 0), (1, 1), (2, 2)]
    assert resolve_pairs("all-to-all", SOURCE, TARGET) == [(m, n) for m in range(3) for n in range(5)]


@pytest.mark.parametrize(
    "pairs",
    [
        ["layer2:features.9", "0:4"],
        "layer2:features.9,0:4",
        "[layer2:features.9, 0:4]",
        ["1:2", "layer1 : features.15"],
    ],
)
def test_explicit_pairs_by_name_and_index(pairs):
    assert resolve_pairs(pairs, SOURCE, TARGET) == [(1, 2), (0, 4)]


def test_a_name_made_of_digits_wins_over_an_index():
    assert resolve_pairs(["0:2"], ["2", "0"], ["a", "b", "c"]) == [(1, 2)]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["3:0"], r"asks for source map 3, the source has maps 0 to 2 \(layer1, layer2, layer3\)"),
        (["0:5"], "asks for target map 5, the target has maps 0 to 4"),
        (["-1:0"], "no feature map '-1'"),
        (["layer9:0"], r"source has no feature map 'layer9' .*nearest: layer"),
        (["0:0", "layer1:features.2"], "twice"),
        ("al-to-all", "neither single, one-to-one, all-to-all nor a pair"),
        ([], "empty"),
    ],
)
def test_wrong_pairs_are_named(pairs, said):
    with pytest.raises(L2TFastError, match=said):
        resolve_pairs(pairs, SOURCE, TARGET)


SOURCES = ["tiny/layer1", "tiny/layer2", "tiny/layer3", "big/a", "big/b", "big/c", "big/d"]


def test_schemes_with_several_sources_are_those_of_each():
    counts = [3, 4]
    assert resolve_pairs("single", SOURCES, TARGET, counts) == [(2, 4), (6, 4)]
    assert resolve_pairs("one-to-one", SOURCES, TARGET[:3], counts) == [
        *[(i, i) for i in range(3)],
        (3, 0),
        (4, 1),
        (5, 2),
    ]
    assert resolve_pairs("all-to-all", SOURCES, TARGET, counts) == [(m, n) for m in range(7) for n in range(5)]


def test_explicit_pairs_with_several_sources():
    pairs = ["tiny/layer2:features.9", "big/b:0", "6:4"]
    assert resolve_pairs(pairs, SOURCES, TARGET, [3, 4]) == [(1, 2), (4, 0), (6, 4)]
    with pytest.raises(L2TFastError, match=r"no feature map 'layer2' .*nearest: tiny/layer2"):
        resolve_pairs(["layer2:0"], SOURCES, TARGET, [3, 4])


def test_the_source_of_a_layer():
    assert source_layer("tiny", "layer1.0") == "tiny/layer1.0"
    assert split_source_layer("tiny/layer1.0") == ("tiny", "layer1.0")
    assert split_source_layer("layer1.0") == ("", "layer1.0")


def test_names():
    assert pair_names([("layer1", "features.2")]) == ["layer1->features.2"]
