"""The hypergradient of ranks that hold parts of a batch is that of one process on the joined batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from l2t_fast import FeatureMatching
from l2t_fast.bilevel import hypergradient
from l2t_fast.distributed import ALONE, Group, NoPairs, NoWeights, synchronize_batch_norm
from l2t_fast.distributed.batch_norm import JointBatchNorm
from l2t_fast.distributed.group import rows_by_piece
from tests.bilevel.test_hypergradient import PAIRS, SOURCE_CHANNELS, WAYS, make_problem
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


#: As `SCENARIOS`, with the rank that has each of the two sources, and the number of pieces of a batch.
OWN_PAIRS = {
    2: [
        ((3, 2), {"net": "plain", "sgd": "momentum"}, False, 2, (0, 1), 1),
        ((2, 3), {"net": "residual", "sgd": "nesterov"}, False, 3, (1, 1), 1),
        ((5, 0), {"net": "shared gradient", "sgd": "dampening", "warm": False}, False, 1, (1, 0), 1),
        ((3, 2), {"net": "residual", "sgd": "plain"}, False, 0, (0, 1), 1),
        ((3, 2), {"net": "plain", "sgd": "decay", "pair_weights": False}, True, 2, (1, 0), 2),
        ((1, 4), {"net": "residual", "sgd": "momentum"}, True, 1, (0, 0), 3),
    ],
    4: [
        ((2, 0, 2, 1), {"net": "plain", "sgd": "decay"}, False, 2, (3, 1), 1),
        ((1, 2, 1, 1), {"net": "residual", "sgd": "nesterov"}, True, 2, (2, 2), 2),
    ],
}


def own_hypergradients_of_a_rank(group: Group) -> list[dict]:
    """By scenario and way, the hypergradient of this rank's phi; the ranks have pairs of their own."""
    found = []
    for sizes, arguments, evaluation, steps, owners, accumulation in OWN_PAIRS[group.size]:
        mine = slice(sum(sizes[: group.rank]), sum(sizes[: group.rank + 1]))
        part = group.part(sizes[group.rank], own_pairs=True)
        assert part.sizes == sizes
        order = rows_by_piece(sizes, accumulation)
        ways = {}
        for way, (options, _) in WAYS.items():
            target, matching, meta, optimizer, source_features, x, y = make_problem(**arguments)
            assert torch.equal(part.joined_images(x[mine], accumulation), x[order])
            synchronize_batch_norm(target, group).train(not evaluation)
            maps = [m for m, owner in enumerate(owners) if owner == group.rank]
            chosen = [p for p, (m, _) in enumerate(PAIRS) if m in maps]
            matching = matching.some_pairs(chosen, maps) if chosen else NoPairs()
            meta = meta.some_pairs(chosen, maps) if chosen else NoWeights().double()
            own = {id(p) for p in (*target.parameters(), *matching.parameters())}
            own_group = optimizer.param_groups[0]
            own_group["params"] = [p for p in own_group["params"] if id(p) in own]
            ways[way] = hypergradient(
                target,
                matching,
                meta,
                optimizer,
                [source_features[m][order] for m in maps],
                x[mine],
                y[mine],
                steps=steps,
                beta=0.7,
                accumulation=accumulation,
                part=part,
                **options,
            )
        found.append({"ways": ways, "chosen": chosen})
    return found


@pytest.mark.parametrize("ranks", OWN_PAIRS)
def test_own_pairs_equal_one_process_on_the_joined_batch(tmp_path, ranks):
    found = run_ranks(ranks, tmp_path, own_hypergradients_of_a_rank)
    for case, (_, arguments, evaluation, steps, owners, _) in enumerate(OWN_PAIRS[ranks]):
        problem = make_problem(**arguments)
        problem[0].train(not evaluation)
        meta = problem[2]
        wanted = hypergradient(*problem, steps=steps, beta=0.7, method="exact")
        scale = max(w.abs().max().item() for w in wanted)
        assert scale > 1e-8 or not steps
        names = [name for name, _ in meta.named_parameters()]
        for rank in range(ranks):
            chosen = found[rank][case]["chosen"]
            assert bool(chosen) == (rank in owners)
            # phi of pair p has the index p in the name of a layer, as "weight_network.2.bias".
            own = [w for name, w in zip(names, wanted, strict=True) if int(name.split(".")[1]) in chosen]
            for way, (_, loose) in WAYS.items():
                tolerance = loose if way == "finite_difference" else 1e-11
                ours = found[rank][case]["ways"][way]
                if not chosen:
                    assert all(torch.equal(g, torch.zeros_like(g)) for g in ours)
                    continue
                for a, w in zip(ours, own, strict=True):
                    assert (a - w).abs().max().item() <= tolerance * max(scale, 1e-12), f"{case} {way} {rank}"


class BatchNormAndMore(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a class of its own, which does more than normalise."""

    def forward(self, x):
        return F.silu(super().forward(x))


class OddNet(nn.Module):
    """Batch normalisation in other ways than by torch's own modules, one without running statistics."""

    channels = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(2, 4, 3, padding=1, bias=False), BatchNormAndMore(4, momentum=None)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.synced = nn.SyncBatchNorm(6) if dist.is_initialized() else nn.BatchNorm2d(6)
        self.plain = nn.BatchNorm2d(6, affine=False, track_running_stats=False)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        a = self.more(self.conv(x))
        b = self.synced(self.second(a))
        b = torch.tanh(F.batch_norm(b, self.mean, self.var, training=self.training)) + self.plain(
            a.repeat(1, 2, 1, 1)[:, :6]
        )
        return self.fc(b.mean((2, 3))), [a, b]


def odd_net(group: Group, sizes: tuple[int, ...]) -> dict:
    """A training step of `OddNet`, copied after it was synchronized, and the hypergradient after it."""
    mine = slice(sum(sizes[: group.rank]), sum(sizes[: group.rank + 1]))
    _, _, meta, _, source_features, x, y = make_problem()
    torch.manual_seed(1)
    target = copy.deepcopy(synchronize_batch_norm(OddNet().double(), group))
    matching = FeatureMatching(SOURCE_CHANNELS, target.channels, PAIRS, backend="reference").double()
    trained = [*target.parameters(), *matching.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    x, y, source_features = x[mine], y[mine], [s[mine] for s in source_features]
    part = group.part(len(x))
    logits, features = target(x)
    weights, lambdas = meta(source_features)
    loss = part.cross_entropy(logits, y) + part.share * matching(source_features, features, weights, 0.7, lambdas)
    loss.backward()
    group.sum_([p.grad for p in trained])
    optimizer.step()
    found = hypergradient(target, matching, meta, optimizer, source_features, x, y, steps=2, beta=0.7, part=part)
    return {**target.state_dict(), **{f"hypergradient {i}": g for i, g in enumerate(found)}}


def test_batch_norm_in_other_ways(tmp_path):
    wanted = odd_net(ALONE, (5,))
    for found in run_ranks(2, tmp_path, odd_net, (2, 3)):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_joint_batch_norm_keeps_what_hangs_on_the_one_before():
    norm = nn.BatchNorm2d(3).eval()
    norm.note = "mine"
    norm.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    norm.register_forward_hook(lambda module, inputs, output: output + 1)
    x = torch.randn(2, 3, 4, 4)
    joint = JointBatchNorm(norm, ALONE)
    assert joint.note == "mine" and not joint.training and joint.state_dict().keys() == norm.state_dict().keys()
    assert joint.weight is norm.weight and torch.equal(joint(x), norm(x))


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
