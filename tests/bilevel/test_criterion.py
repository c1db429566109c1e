"""Other losses of the task than cross-entropy, on all images at once, in pieces and on several ranks."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

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


class ByFrequency(nn.Module):
    """Classes are weighted by how often they were predicted until now: each call changes the next."""

    def __init__(self):
        super().__init__()
        self.register_buffer("share", torch.ones(3, dtype=torch.float64) / 3)

    def forward(self, logits, y):
        with torch.no_grad():
            self.share.lerp_(logits.softmax(1).mean(0), 0.3)
        return (F.cross_entropy(logits, y, reduction="none") / self.share.clone()[y]).mean()


@every_way
def test_buffers_of_a_criterion_go_from_pass_to_pass_and_come_back(way):
    problem = make_problem()
    criterion = ByFrequency()
    wanted = naive_hypergradient(*problem, steps=2, beta=0.7, criterion=copy.deepcopy(criterion))
    found = hypergradient(*problem, steps=2, beta=0.7, criterion=criterion, **WAYS[way][0])
    assert_close(found, wanted, WAYS[way][1])
    assert torch.equal(criterion.share, ByFrequency().share)


@every_way
def test_rounded_losses_teach_nothing_in_all_ways(way):
    *problem, _ = make_problem()
    found = hypergradient(
        *problem, numbers((5, 3)), criterion=lambda logits, y: (logits.round() - y).square().mean(), **WAYS[way][0]
    )
    assert not any(g.any() for g in found)


def test_threads_with_one_criterion():
    problems = [make_problem(seed=seed) for seed in range(4)]
    wanted = [hypergradient(*problem, criterion=ByFrequency()) for problem in problems]
    criterion = ByFrequency()
    kept = criterion.share
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda problem: hypergradient(*problem, criterion=criterion), problems * 3))
    for f, w in zip(found, wanted * 3, strict=True):
        assert_close(f, w, 0.0)
    assert criterion.share is kept and torch.equal(kept, ByFrequency().share)


@every_way
def test_a_scripted_criterion(way):
    *problem, _ = make_problem()
    y = numbers((5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        criterion = torch.jit.script(nn.MSELoss())
    wanted = naive_hypergradient(*problem, y, steps=2, beta=0.5, criterion=F.mse_loss)
    assert_close(hypergradient(*problem, y, criterion=criterion, **WAYS[way][0]), wanted, WAYS[way][1])


def attention(logits, y):
    """Whose kernels have no second derivative."""
    a = logits[None, :, None, :]
    return F.scaled_dot_product_attention(a, a, 2 * a).square().mean()


@torch.compile(backend="aot_eager")
def compiled(logits, y):
    return F.cross_entropy(logits, y) + logits.square().mean()


@every_way
@pytest.mark.parametrize(
    ("criterion", "plain"),
    [
        (attention, attention),
        (compiled, compiled._torchdynamo_orig_callable),
        (torch.compile(nn.CrossEntropyLoss(), backend="aot_eager"), F.cross_entropy),
    ],
)
def test_what_a_target_may_contain_a_criterion_may(way, criterion, plain):
    problem = make_problem(net="residual")
    wanted = naive_hypergradient(*problem, steps=2, beta=0.7, criterion=plain)
    found = hypergradient(*problem, steps=2, beta=0.7, criterion=criterion, **WAYS[way][0])
    assert_close(found, wanted, WAYS[way][1])


@every_way
def test_checkpoints_in_a_criterion_are_refused(way):
    def criterion(logits, y):
        return checkpoint(lambda a: F.cross_entropy(a.tanh(), y), logits, use_reentrant=False)

    with pytest.raises(RuntimeError, match=r"hypergradient cannot go through torch\.utils\.checkpoint"):
        hypergradient(*make_problem(), criterion=criterion, **WAYS[way][0])


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "criterion",
    [
        lambda logits, y: F.l1_loss(logits, y),
        lambda logits, y: (logits - y).abs().mean(),
        lambda logits, y: (1 - logits * y.sign()).clamp(min=0).mean(),
        lambda logits, y: torch.maximum(y - logits, 0.3 * (logits - y)).mean(),
    ],
)
def test_kinks_of_a_dense_loss_do_not_show_in_differences(seed, criterion):
    """With thousands of outputs some are always within epsilon of a kink: left free, up to 8 % of it was wrong here."""

    class Dense(nn.Module):
        channels = (4, 6)

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
            self.last = nn.Conv2d(6, 3, 1)

        def forward(self, x):
            x = F.interpolate(x, size=(32, 32), mode="bilinear")
            a = torch.tanh(self.first(x))
            b = torch.tanh(self.second(a))
            return self.last(b), [a, b]

    *problem, _ = make_problem(Dense, warm=False, dtype=torch.float32, seed=seed)
    problem += [torch.randn(5, 3, 32, 32)]
    wanted = hypergradient(*problem, criterion=criterion)
    found = hypergradient(*problem, criterion=criterion, method="finite_difference")
    assert_close(found, wanted, 0.02)


@every_way
@pytest.mark.parametrize(
    "criterion",
    [lambda logits, y: F.mse_loss(logits.detach(), y), torch.no_grad()(F.mse_loss), lambda logits, y: torch.zeros(())],
)
def test_a_loss_that_nothing_can_be_learned_from_is_told(way, criterion):
    *problem, _ = make_problem()
    for pieces in (1, 2):
        with pytest.raises(ValueError, match="criterion returned a loss that has no derivative by the logits"):
            hypergradient(*problem, numbers((5, 3)), criterion=criterion, accumulation=pieces, **WAYS[way][0])


def or_nothing(logits, y):
    """A mean over images, those without a label add 0."""
    return F.mse_loss(logits, y) if y.abs().max() > 0 else torch.zeros((), dtype=torch.float64)


@every_way
def test_a_piece_of_which_nothing_counts(way):
    *problem, _ = make_problem()
    problem[0].eval()
    y = numbers((5, 3))
    y[:2] = 0
    wanted = naive_hypergradient(
        *problem, y, steps=2, beta=0.5, criterion=lambda logits, y: (logits[2:] - y[2:]).square().sum() / 15
    )
    found = hypergradient(*problem, y, accumulation=5, criterion=or_nothing, **WAYS[way][0])
    assert_close(found, wanted, WAYS[way][1])


@pytest.mark.parametrize("logits", ["one class", "no classes"])
def test_without_a_criterion_other_tasks_are_told(logits):
    class Other(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            found, maps = self.network(x)
            return found[:, :1] if logits == "one class" else found[:, 0], maps

    target, *others, _ = make_problem()
    shape = r"\(5, 1\)" if logits == "one class" else r"\(5,\)"
    with pytest.raises(ValueError, match=rf"two classes or more, but target returned {shape}: give criterion"):
        hypergradient(Other(target), *others, numbers((5, 1) if logits == "one class" else (5,)))


def test_without_a_criterion_labels_are_int64():
    *problem, y = make_problem()
    with pytest.raises(
        TypeError, match=r"y must be labels in int64, or probabilities of the classes, not torch\.int32"
    ):
        hypergradient(*problem, y.int())
    assert_close(hypergradient(*problem, y.byte()), hypergradient(*problem, y), 0.0)  # as images of classes have them
    with pytest.raises(TypeError, match="y must be one tensor, for criterion, not dict"):
        hypergradient(*problem, {"labels": y}, criterion=lambda logits, y: F.cross_entropy(logits, y["labels"]))


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
        (nn.CrossEntropyLoss, r"criterion is the class CrossEntropyLoss, give an object of it: CrossEntropyLoss\(\)"),
        (
            nn.CrossEntropyLoss(reduction="none"),
            r"return one real number, .*, not one of shape \(5,\) in torch.float64",
        ),
        (lambda logits, y: logits.argmax(), r"return one real number, .*, not one of shape \(\) in torch.int64"),
        (lambda logits, y: 1.0, "return one real number, a tensor without dimensions, not a float"),
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
