"""A batch in pieces: the hypergradient of one that goes through the networks at once."""

import pytest
import torch
from torch import nn

from l2t_fast import MetaNetworks
from l2t_fast.bilevel import hypergradient
from l2t_fast.distributed import ALONE, Part
from tests.bilevel.naive import naive_hypergradient
from tests.bilevel.test_hypergradient import (
    PAIRS,
    SOURCE_CHANNELS,
    WAYS,
    ResidualNet,
    assert_close,
    every_way,
    make_problem,
)


class InPieces(nn.Module):
    """Runs a network on pieces of the batch: what batch normalisation and dropout see of it are the pieces."""

    def __init__(self, network, pieces):
        super().__init__()
        self.network, self.pieces = network, pieces

    def forward(self, x):
        found = [self.network(piece) for piece in x.tensor_split(self.pieces)]
        features = zip(*(maps for _, maps in found), strict=True)
        return torch.cat([logits for logits, _ in found]), [torch.cat(maps) for maps in features]


@every_way
@pytest.mark.parametrize("net", ["plain", "dropout", "shared gradient"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_equals_the_unrolled_loop_over_a_network_that_cuts_the_batch_itself(way, net, steps):
    target, *others = make_problem(net)
    torch.manual_seed(4)
    wanted = naive_hypergradient(InPieces(target, 2), *others, steps=steps, beta=0.7)
    torch.manual_seed(4)
    found = hypergradient(target, *others, steps=steps, beta=0.7, accumulation=2, **WAYS[way][0])
    assert_close(found, wanted, WAYS[way][1])


@every_way
@pytest.mark.parametrize("pieces", [3, 5, 9])
def test_without_batch_statistics_the_number_of_pieces_does_not_matter(way, pieces):
    problem = make_problem("residual")
    problem[0].eval()
    wanted = hypergradient(*problem, **WAYS[way][0])
    assert_close(hypergradient(*problem, accumulation=pieces, **WAYS[way][0]), wanted, WAYS[way][1])


class Segmenting(ResidualNet):
    """Logits of each pixel, and labels of each."""

    def forward(self, x):
        a, b = super().forward(x)[1]
        return self.fc(b.movedim(1, 3)).movedim(3, 1), [a, b]


@every_way
def test_logits_and_labels_of_each_pixel(way):
    *problem, _ = make_problem(Segmenting, warm=False)
    problem[0].eval()
    y = torch.randint(0, 3, (5, 3, 3))
    wanted = naive_hypergradient(*problem, y, steps=2, beta=0.5)
    for pieces in (1, 2, 5):
        assert_close(hypergradient(*problem, y, accumulation=pieces, **WAYS[way][0]), wanted, WAYS[way][1])


@every_way
def test_a_pair_weight_that_all_images_share(way):
    target, matching, _, *others = make_problem()
    target.eval()
    meta = MetaNetworks(SOURCE_CHANNELS, PAIRS, weight_type="const").double()
    nn.init.normal_(meta.weight_network[0].weight, std=0.5)
    wanted = hypergradient(target, matching, meta, *others, **WAYS[way][0])
    found = hypergradient(target, matching, meta, *others, accumulation=2, **WAYS[way][0])
    assert_close(found, wanted, WAYS[way][1])
    assert all(w.abs().max() > 0 for w in wanted[-1:])


@every_way
def test_labels_that_do_not_count_are_refused_in_pieces(way):
    *problem, x, y = make_problem()
    y[0] = -100
    hypergradient(*problem, x, y, **WAYS[way][0])
    with pytest.raises(IndexError, match="-100 is out of bounds"):
        hypergradient(*problem, x, y, accumulation=2, **WAYS[way][0])


def test_a_part_of_other_images_is_refused():
    problem = make_problem()
    with pytest.raises(ValueError, match=r"x has shape \(5, 2, 6, 6\), which is not a row for each of 3 images"):
        hypergradient(*problem, part=Part(ALONE, 3, 6))


def test_no_piece_is_an_error():
    problem = make_problem()
    alone = hypergradient(*problem, accumulation=len(problem[5]))  # each image by itself
    assert_close(hypergradient(*problem, accumulation=10**12), alone, 0.0)
    with pytest.raises(ValueError, match="accumulation=0 pieces"):
        hypergradient(*make_problem(), accumulation=0)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (4, lambda maps: [maps[0], maps[1][:4]], r"source_features\[1\] has shape \(4, 5, 3, 3\), .* of 5 images"),
        (5, lambda x: x[:4], r"y has shape \(5,\), which is not a row for each of 4 images"),
        (6, lambda y: y[0], r"y has shape \(\), which is not a row for each of 5 images"),
    ],
)
def test_what_is_not_of_the_batch_s_images_is_named(place, change, message):
    problem = list(make_problem())
    problem[place] = change(problem[place])
    with pytest.raises(ValueError, match=message):
        hypergradient(*problem, accumulation=2)
