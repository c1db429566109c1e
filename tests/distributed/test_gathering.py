"""Gathering over ranks and its transpose, as one function of what all ranks put in, against plain concatenation."""

import pytest
import torch
from torch.autograd import forward_ad

from l2t_fast.distributed import Group
from l2t_fast.distributed.gathering import gather, sum_scatter
from l2t_fast.distributed.group import cut, rows_by_piece
from tests.distributed.ranks import run_ranks

#: Rows of each rank, by number of ranks.
SIZES = {2: [(3, 2), (0, 4)], 4: [(2, 0, 1, 3)]}

SHAPES = [(2, 3, 1), (4,), (1, 2, 2)]


def joined_tensors(sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Rows of all ranks, the same on every rank; of two dtypes."""
    generator = torch.Generator().manual_seed(3)
    found = [torch.randn(sum(sizes), *shape, dtype=torch.float64, generator=generator) for shape in SHAPES]
    found[1] = found[1].float()
    return found


def own_loss(rank: int, tensors: list[torch.Tensor]) -> torch.Tensor:
    """What rank `rank` makes of all rows: no two ranks the same, and not linear. Rank 0 has no use for the second."""
    used = tensors[::2] if rank == 0 else tensors
    return sum(((rank + 1) * t.double()).sin().mul(t.double()).sum() for t in used)


def calls_of_a_rank(group: Group) -> list[list[torch.Tensor]]:
    """Per sizes: gathered, first and second derivative of the joined loss, tangents, of this rank's rows."""
    found = []
    for sizes in SIZES[group.size]:
        joined = joined_tensors(sizes)
        own = [t.split(sizes)[group.rank].clone().requires_grad_() for t in joined]
        before = group.exchanges, group.exchanged_bytes
        gathered = gather(own, group, sizes)
        assert group.exchanges - before[0] == 2  # one a dtype
        sent = (group.size - 1) * sum(t.numel() * t.element_size() for t in own)
        assert group.exchanged_bytes - before[1] == sent
        loss = own_loss(group.rank, gathered)
        first = torch.autograd.grad(loss, own, create_graph=True)
        second = torch.autograd.grad(first, own, [2 * t.detach() for t in own])
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(own[0].detach(), own[0].detach().cos()), *(t.detach() for t in own[1:])]
            tangents = [forward_ad.unpack_dual(t).tangent for t in gather(duals, group, sizes)]
            duals = [forward_ad.make_dual(t.detach(), (group.rank + 1) * t.detach()) for t in joined]
            scattered = [forward_ad.unpack_dual(t).tangent for t in sum_scatter(duals, group, sizes)]
        found.append([t.detach() for t in (*gathered, *first, *second, *tangents, *scattered)])
    return found


@pytest.mark.parametrize("ranks", SIZES)
def test_gathering_and_its_derivatives(tmp_path, ranks):
    found = run_ranks(ranks, tmp_path, calls_of_a_rank)
    for case, sizes in enumerate(SIZES[ranks]):
        joined = [t.requires_grad_() for t in joined_tensors(sizes)]
        loss = sum(own_loss(rank, joined) for rank in range(ranks))
        first = torch.autograd.grad(loss, joined, create_graph=True)
        second = torch.autograd.grad(first, joined, [2 * t.detach() for t in joined])
        for rank in range(ranks):
            gathered, *rest = (found[rank][case][i : i + 3] for i in range(0, 15, 3))
            assert all(torch.equal(a, b) for a, b in zip(gathered, joined, strict=True))
            tangents = [joined[0].detach().cos(), *(torch.zeros_like(t) for t in joined[1:])]
            scattered = [sum(range(1, ranks + 1)) * t.detach() for t in joined]
            wanted = [[t.split(sizes)[rank] for t in of] for of in (first, second)]
            wanted += [tangents, [t.split(sizes)[rank] for t in scattered]]
            for ours, truth in zip(rest, wanted, strict=True):
                for a, b in zip(ours, truth, strict=True):
                    torch.testing.assert_close(a, b)


def layouts_of_a_rank(group: Group) -> dict:
    """bfloat16 summed once in float32; channels_last stays; bytes to the leader."""
    own = torch.full((1, 2, 3, 3), 1.0, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    (gathered,) = gather([own], group, (1, 1))
    many = [torch.full((2, 1), 1 + 2**-7, dtype=torch.bfloat16)]
    with pytest.raises(ValueError, match=r"tensors\[1\] has 2 rows, but sizes says 1 for rank"):
        gather([own, many[0]], group, (1, 1))
    return {
        "channels_last": gathered.is_contiguous(memory_format=torch.channels_last),
        "sum": sum_scatter(many, group, (1, 1))[0],
        "bytes": [list(piece) for piece in group.collect(b"x" * (group.rank + 3))],
        "all bytes": [list(piece) for piece in group.collect(b"x" * group.rank, everyone=True)],
        "each": group.each(10 + group.rank),
        "part": list(group.part(group.rank + 1, own_pairs=True).sizes),
    }


def test_layouts_half_precision_and_bytes(tmp_path):
    found = run_ranks(2, tmp_path, layouts_of_a_rank)
    for rank, result in enumerate(found):
        assert result["channels_last"] and result["sum"].item() == 2 * (1 + 2**-7)
        assert result["bytes"] == ([[120] * 3, [120] * 4] if rank == 0 else [])
        assert result["all bytes"] == [[], [120]]
        assert result["each"] == [10, 11] and result["part"] == [1, 2]


def test_rows_by_piece():
    assert cut(5, 3) == [2, 2, 1] and cut(1, 3) == [1, 0, 0]
    # Ranks hold rows 0 1 2 and 3 4; two pieces each.
    assert rows_by_piece([3, 2], 2) == [0, 1, 3, 2, 4]
    assert rows_by_piece([0, 2], 3) == [0, 1]
