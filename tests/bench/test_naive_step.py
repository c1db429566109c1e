"""The baseline of the step benchmark trains exactly as l2t_fast does: 20 steps from one seed, theta and phi alike."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_fast.bench.naive_step import NaiveStep
from l2t_fast.bilevel import hypergradient
from tests.bilevel.test_hypergradient import make_problem


class Source(nn.Module):
    """Two strided convolutions: maps of 3x3x3 and 5x3x3 from images of 2x6x6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        a = F.relu(self.first(x))
        return None, [a, F.relu(self.second(a))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_twenty_steps(dtype, tolerance):
    torch.manual_seed(3)
    source = Source().to(dtype)
    target, matching, meta, _, _, _, _ = make_problem(dtype=dtype)
    batches = [(torch.randn(6, 2, 6, 6, dtype=dtype), torch.randint(0, 3, (6,))) for _ in range(20)]

    def optimizers(target, matching, meta):
        theta = [*target.parameters(), *matching.parameters()]
        sgd = torch.optim.SGD(theta, lr=0.05, momentum=0.9, weight_decay=1e-3)
        return sgd, torch.optim.Adam(meta.parameters(), lr=1e-2, weight_decay=1e-4)

    theirs = copy.deepcopy((target, matching, meta))
    naive = NaiveStep(source, *theirs, *optimizers(*theirs), steps=2, beta=0.5)
    sgd, adam = optimizers(target, matching, meta)
    for x, y in batches:
        naive(x, y)

        with torch.no_grad():
            _, source_features = source(x)
            weights, lambdas = meta(source_features)
        logits, features = target(x)
        sgd.zero_grad()
        (F.cross_entropy(logits, y) + matching(source_features, features, weights, 0.5, lambdas)).backward()
        sgd.step()
        found = hypergradient(target, matching, meta, sgd, source_features, x, y, steps=2, beta=0.5)
        for parameter, gradient in zip(meta.parameters(), found, strict=True):
            parameter.grad = gradient
        adam.step()

    for ours, other in zip((target, matching, meta), theirs, strict=True):
        for (name, a), b in zip(ours.named_parameters(), other.parameters(), strict=True):
            assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()), name
