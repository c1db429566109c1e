"""The hypergradient of ranks that hold parts of a batch is that of one process on the joined batch."""

import pytest
import torch

from l2t_fast.bilevel import hypergradient
from l2t_fast.distributed import Group, synchronize_batch_norm
from tests.bilevel.test_hypergradient import WAYS, make_problem
from tests.distributed.ranks import run_ranks

#: Images of each rank, arguments of `make_problem`, whether the target is in eval mode, and steps: by number of ranks.
SCENARIOS = {
    2: [
        ((3, 2), {"net": "plain", "sgd": "momentum"}, False, 2),
        ((5, 0), {"net": "residual", "sgd": "nesterov"}, False, 2),
        ((1, 4), {"net": "shared gradient", "sgd": "dampening", "warm": False}, False, 1),
        ((2, 3), {"net": "residual", "sgd": "plain"}, False, 0),
        ((3, 2), {"net": "residual", "sgd": "momentum"}, True, 2),
        ((0, 5), {"net": "plain", "sgd": "decay", "pair_weights": False}, True, 1),
    ],
    4: [
        ((2, 0, 2, 1), {"net": "plain", "sgd": "decay", "pair_weights": False}, False, 3),
        ((1, 2, 1, 1), {"net": "residual", "sgd": "nesterov"}, False, 1),
    ],
}


def hypergradients_of_a_rank(group: Group) -> list[dict]:
    """By scenario and way, the hypergradient on this rank's images."""
    found = []
    for sizes, problem, evaluation, steps in SCENARIOS[group.size]:
        begin = sum(sizes[: group.rank])
        mine = slice(begin, begin + sizes[group.rank])
        ways = {}
        for way, (arguments, _) in WAYS.items():
            target, matching, meta, optimizer, source_features, x, y = make_problem(**problem)
            synchronize_batch_norm(target, group).train(not evaluation)
            ways[way] = hypergradient(
                target,
                matching,
                meta,
                optimizer,
                [s[mine] for s in source_features],
                x[mine],
                y[mine],
                steps=steps,
                beta=0.7,
                part=group.part(sizes[group.rank]),
                **arguments,
            )
        found.append(ways)
    return found


@pytest.mark.parametrize("ranks", SCENARIOS)
def test_equals_one_process_on_the_joined_batch(tmp_path, ranks):
    found = run_ranks(ranks, tmp_path, hypergradients_of_a_rank)
    for case, (_, arguments, evaluation, steps) in enumerate(SCENARIOS[ranks]):
        problem = make_problem(**arguments)
        problem[0].train(not evaluation)
        wanted = hypergradient(*problem, steps=steps, beta=0.7, method="exact")
        scale = max(w.abs().max().item() for w in wanted)
        assert scale > 1e-8 or not steps
        for way in WAYS:
            # A difference of gradients divides their rounding, 1e-16, by the relative step of 1.5e-10; and it is one.
            tolerance = WAYS[way][1] if way == "finite_difference" else 1e-11
            for a, *others, w in zip(*(rank[case][way] for rank in found), wanted, strict=True):
                assert all(torch.equal(a, b) for b in others), f"{case} {way}: the ranks do not agree"
                assert (a - w).abs().max().item() <= tolerance * max(scale, 1e-12), f"{case} {way}"


def unsynchronized_rank(group: Group) -> str:
    target, matching, meta, optimizer, source_features, x, y = make_problem()
    try:
        hypergradient(target, matching, meta, optimizer, source_features, x, y, part=group.part(len(x)))
    except ValueError as error:
        return str(error)
    return ""


def test_batch_norm_of_one_rank_alone_is_an_error(tmp_path):
    for said in run_ranks(2, tmp_path, unsynchronized_rank):
        assert said.startswith("batch normalisation first.1 of target would take the statistics of this rank's images")
