"""The hypergradient of ranks that hold parts of a batch is that of one process on the joined batch."""

import pytest
import torch

from l2t_fast.bilevel import hypergradient
from l2t_fast.distributed import Group, synchronize_batch_norm
from tests.bilevel.test_hypergradient import WAYS, make_problem
from tests.distributed.ranks import run_ranks

#: Images of each rank, by the number of ranks; unequal, and a rank without any.
PARTS = {2: [(3, 2), (5, 0)], 4: [(2, 1, 1, 1), (3, 1, 0, 1)]}

#: Arguments of `make_problem` and steps.
PROBLEMS = [
    ({"net": "plain", "sgd": "momentum"}, 2),
    ({"net": "residual", "sgd": "nesterov"}, 2),
    ({"net": "shared gradient", "sgd": "dampening", "warm": False}, 1),
    ({"net": "plain", "sgd": "decay", "pair_weights": False}, 3),
    ({"net": "residual", "sgd": "plain"}, 0),
]


def hypergradients_of_a_rank(group: Group, evaluation: bool) -> dict:
    """By scenario, the hypergradient of each way on this rank's images."""
    found = {}
    for sizes in PARTS[group.size]:
        begin = sum(sizes[: group.rank])
        mine = slice(begin, begin + sizes[group.rank])
        for case, (problem, steps) in enumerate(PROBLEMS):
            for way, (arguments, _) in WAYS.items():
                target, matching, meta, optimizer, source_features, x, y = make_problem(**problem)
                synchronize_batch_norm(target, group).train(not evaluation)
                found[f"{sizes} {case} {way}"] = hypergradient(
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
    return found


@pytest.mark.parametrize("ranks", PARTS)
@pytest.mark.parametrize("evaluation", [False, True], ids=["train", "eval"])
def test_equals_one_process_on_the_joined_batch(tmp_path, ranks, evaluation):
    found = run_ranks(ranks, tmp_path, hypergradients_of_a_rank, evaluation)
    for case, (arguments, steps) in enumerate(PROBLEMS):
        for way, (options, _) in WAYS.items():
            problem = make_problem(**arguments)
            problem[0].train(not evaluation)
            wanted = hypergradient(*problem, steps=steps, beta=0.7, **options)
            scale = max(w.abs().max().item() for w in wanted)
            assert scale > 1e-8 or not steps
            for sizes in PARTS[ranks]:
                key = f"{sizes} {case} {way}"
                for a, *others, w in zip(*(f[key] for f in found), wanted, strict=True):
                    assert all(torch.equal(a, b) for b in others), f"{key}: the ranks do not agree"
                    # A difference of gradients divides their rounding, 1e-16, by the relative step of 1.5e-10.
                    tolerance = 1e-5 if way == "finite_difference" else 1e-11
                    assert (a - w).abs().max().item() <= tolerance * max(scale, 1e-12), key
