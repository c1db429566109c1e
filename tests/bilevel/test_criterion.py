"""Other losses of the task than cross-entropy, on all images at once, in pieces and on several ranks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_fast.bilevel import hypergradient
from l2t_fast.distributed import ALONE, Group, Part, synchronize_batch_norm
from tests.bilevel.naive import naive_hypergradient
from tests.bilevel.test_hypergradient import WAYS, assert_close, every_way, make_problem
from tests.distributed.ranks import run_ranks


def pixels_and_norm(logits, y):
    """Nothing PyTorch has: a distance, and how long the outputs are."""
    return (logits - y).abs().pow(1.5).mean() + 0.1 * logits.norm(dim=1).mean()


def numbers(shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


#: A criterion, and what it takes for labels of five images with three outputs each; None for the problem's own.
CRITERIA = {
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), None),
    "several labels": (nn.BCEWithLogitsLoss(), numbers((5, 3)).sign().relu()),
    "regression": (F.mse_loss, numbers((5, 3))),
    "kinks": (nn.SmoothL1Loss(beta=0.3), numbers((5, 3))),
    "own": (pixels_and_norm, numbers((5, 3))),
}
every_criterion = pytest.mark.parametrize("name", CRITERIA)


def problem_of(name, **arguments):
    *problem, y = make_problem(**arguments)
    criterion, other = CRITERIA[name]
    return *problem, y if other is None else other, criterion


@every_way
@every_criterion
@pytest.mark.parametrize("steps", [0, 2])
def test_equals_the_unrolled_loop(way, name, steps):
    *problem, criterion = problem_of(name, net="residual")
    wanted = naive_hypergradient(*problem, steps=steps, beta=0.7, criterion=criterion)
    found = hypergradient(*problem, steps=steps, beta=0.7, criterion=criterion, **WAYS[way][0])
    assert_close(found, wanted, WAYS[way][1])
    plain = make_problem(net="residual")
    if steps:
        other = hypergradient(*plain, steps=steps, beta=0.7, **WAYS[way][0])
        scale = max(w.abs().max() for w in wanted)
        assert max((f - o).abs().max() for f, o in zip(found, other, strict=True)) > 0.01 * scale


@every_way
@every_criterion
def test_in_pieces_each_image_counts_alike(way, name):
    *problem, criterion = problem_of(name)
    problem[0].eval()  # batch normalisation would see the pieces
    wanted = hypergradient(*problem, criterion=criterion, **WAYS[way][0])
    for pieces in (2, 5):
        found = hypergradient(*problem, criterion=criterion, accumulation=pieces, **WAYS[way][0])
        assert_close(found, wanted, WAYS[way][1])


@every_way
def test_probabilities_of_classes_in_place_of_labels(way):
    *problem, y = make_problem()
    problem[0].eval()
    mixed = 0.7 * F.one_hot(y, 3).double() + 0.3 * F.one_hot(y.flip(0), 3).double()
    wanted = naive_hypergradient(*problem, mixed, steps=2, beta=0.5)
    for pieces in (1, 2):
        assert_close(hypergradient(*problem, mixed, accumulation=pieces, **WAYS[way][0]), wanted, WAYS[way][1])


SIZES = {2: [(3, 2), (0, 5)], 4: [(2, 0, 2, 1)]}


def hypergradients_of_a_rank(group: Group) -> list[dict]:
    """By sizes, criterion and way, the hypergradient on this rank's images."""
    found = []
    for sizes in SIZES[group.size]:
        begin = sum(sizes[: group.rank])
        mine = slice(begin, begin + sizes[group.rank])
        ways = {}
        for name in CRITERIA:
            for way, (arguments, _) in WAYS.items():
                target, matching, meta, optimizer, maps, x, y, criterion = problem_of(name)
                synchronize_batch_norm(target, group)
                own = [s[mine] for s in maps], x[mine], y[mine]
                part = group.part(sizes[group.rank])
                modules = target, matching, meta, optimizer
                ways[name, way] = hypergradient(*modules, *own, criterion=criterion, part=part, **arguments)
        found.append(ways)
    return found


@pytest.mark.parametrize("ranks", SIZES)
def test_ranks_equal_one_process(tmp_path, ranks):
    found = run_ranks(ranks, tmp_path, hypergradients_of_a_rank)
    for name in CRITERIA:
        *problem, criterion = problem_of(name)
        wanted = hypergradient(*problem, criterion=criterion)
        for case, way in [(case, way) for case in range(len(SIZES[ranks])) for way in WAYS]:
            for rank in range(ranks):
                assert_close(found[rank][case][name, way], wanted, WAYS[way][1] if "difference" in way else 1e-11)


def test_logits_arrive_in_float32_at_least():
    *problem, _ = make_problem(dtype=torch.bfloat16)
    seen = []

    def criterion(logits, y):
        seen.append(logits.dtype)
        return F.mse_loss(logits, y)

    hypergradient(*problem, numbers((5, 3)).float(), criterion=criterion)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("cross_entropy", "criterion must be a function of .logits, y., not str"),
        (nn.CrossEntropyLoss(reduction="none"), r"criterion must return one number, .* one of shape \(5,\)"),
        (lambda logits, y: 1.0, "criterion must return one number, .* one a float"),
    ],
)
def test_what_is_no_criterion_is_told(criterion, message):
    with pytest.raises(TypeError, match=message):
        hypergradient(*make_problem(), criterion=criterion)


def test_a_rank_without_images_has_a_share_of_zero_that_can_be_differentiated():
    x = torch.zeros(0, requires_grad=True)
    share = Part(ALONE, 0, 4).share_of(x.mean())
    share.backward()
    assert share == 0
    assert Part(ALONE, 0, 4).shares({"a number": 2.0}) == {"a number": 0.0}
