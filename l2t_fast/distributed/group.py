"""The ranks of a job and the sums that go over them."""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from l2t_fast.errors import L2TFastError


class PeerError(L2TFastError):
    """A collective operation failed because another rank is gone: the cause is there, not here."""


class Group:
    """The ranks that share every batch, or this process alone.

    Every method but the properties is a collective operation: all ranks call it, in the same order.

    Args:
        process_group: of ``torch.distributed``, for example ``dist.group.WORLD``; None is this process alone, for which
            every operation returns at once.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        local_rank: its number on this machine.
        reductions: how many buffers were summed so far.
        reduced_bytes: how large they were together.
        steady: whether this rank comes to reductions at short intervals, as in training and not while it reads images.
        entered: called before every operation, for whoever watches that a rank goes on.
        ending: called with the reason, from another thread, before this process ends because of another rank.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self._process_group = process_group
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.size = 1 if process_group is None else dist.get_world_size(process_group)
        # torchrun tells it; a process of another launcher is taken to be alone on its machine.
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.reductions = 0
        self.reduced_bytes = 0
        self.steady = False
        self.entered: Callable[[], None] = lambda: None
        self.ending: Callable[[str], None] = lambda reason: None

    def __deepcopy__(self, memo: dict[int, object]) -> "Group":
        return self  # a copied network trains with the same ranks

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that writes files and speaks."""
        return self.rank == 0

    @torch.no_grad()
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks: one reduction of one flat buffer for all of a dtype.

        All ranks get the same bits, since each piece of a buffer is summed in one place and handed round.

        Raises:
            PeerError: another rank is gone.
        """
        if self.size == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            same = [t for t in tensors if t.dtype == dtype]
            whole = len(same) == 1 and same[0].is_contiguous()
            buffer = same[0] if whole else torch.cat([t.reshape(-1) for t in same])
            self._reduce_(buffer)
            if not whole:
                pieces = buffer.split([t.numel() for t in same])
                torch._foreach_copy_(same, [p.view(t.shape) for p, t in zip(pieces, same, strict=True)])

    def wait(self) -> None:
        """Until all ranks are here."""
        self.total(0)

    def disagreement(self, tensors: Mapping[str, Tensor]) -> str | None:
        """The first name whose tensor is not the same on all ranks, bit for bit; None if all are."""
        if self.size == 1:
            return None
        own = torch.tensor([zlib.crc32(_bytes(t)) for t in tensors.values()])
        first = self._placed(own if self.leads else torch.zeros_like(own))
        self.sum_([first])
        differs = self._placed((own != first.cpu()).long())
        self.sum_([differs])
        return next((name for name, count in zip(tensors, differs.tolist(), strict=True) if count), None)

    def total(self, number: int) -> int:
        """The sum of one whole number a rank."""
        if self.size == 1:
            return number
        values = self._placed(torch.tensor([number]))
        self.sum_([values])
        return int(values)

    def part(self, images: int, joined: int | None = None) -> "Part":
        """This rank's part of a batch: its number of images, and that of all ranks, which is summed if it is None."""
        return Part(self, images, self.total(images) if joined is None else joined)

    def _placed(self, tensor: Tensor) -> Tensor:
        """On the device that the process group reduces: NCCL knows no CPU tensors."""
        only_cuda = "cpu" not in dist.get_backend_config(self._process_group)
        return tensor.cuda() if only_cuda else tensor

    def _reduce_(self, buffer: Tensor) -> None:
        self.entered()
        self.reductions += 1
        self.reduced_bytes += buffer.numel() * buffer.element_size()
        try:
            dist.all_reduce(buffer, group=self._process_group)
        except RuntimeError as error:
            reason = str(error).partition(". ")[0]
            raise PeerError(f"rank {self.rank} lost the other ranks: {' '.join(reason.split())}") from error


#: This process and no other.
ALONE = Group()


@dataclass(frozen=True)
class Part:
    """This rank's images of a batch that the ranks of a group hold together, or a piece of them.

    Each rank differentiates its own share of the joined loss, and gradients are summed over the ranks. Where a rank's
    loss depends on other ranks' images, through statistics made by :func:`joint_sum`, the backward pass of that
    function sums what all ranks hand back, so that the sum of the gradients is still that of the joined loss; and so
    for the second derivative, since the gradients are a function of the same kind.

    Attributes:
        group: the ranks.
        images: how many they are; 0 is possible.
        joined: how many all ranks have.
    """

    group: Group
    images: int
    joined: int

    @property
    def share(self) -> float:
        """What the mean over this rank's images counts in the mean over all."""
        return 1.0 if self.images == self.joined else self.images / self.joined

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """This rank's share of the mean cross-entropy of logits (B, classes) and labels (B,)."""
        if self.images == self.joined:
            return F.cross_entropy(logits, y)
        return F.cross_entropy(logits, y, reduction="sum") / self.joined

    def shares(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's shares of loss terms, each a mean over its images, or the same number on every rank."""
        if self.images == self.joined:
            return dict(terms)
        if self.images:
            return {name: term * self.share for name, term in terms.items()}
        # A mean over no image is NaN, but it stays in the graph: backward passes are the same on all ranks.
        return {name: (term * 0).nan_to_num() for name, term in terms.items()}


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


#: For a batch that is whole: a process alone.
WHOLE = Part(ALONE, 1, 1)


def pieces(part: Part, number: int, *tensors: Tensor) -> list[tuple[Part, list[Tensor]]]:
    """A part's tensors in `number` pieces along their first dimension, which is the images, for one after the other.

    Sizes differ by one at most. Ranks of a group make the same number of pieces, which may be empty then; a process
    alone leaves empty ones out.
    """
    if number == 1:
        return [(part, list(tensors))]
    joined = len(tensors[0]) if part.images == part.joined else part.joined
    cut = zip(*(t.tensor_split(number) for t in tensors), strict=True)
    found = [(Part(part.group, len(of_piece[0]), joined), list(of_piece)) for of_piece in cut]
    return found if part.group.size > 1 else [p for p in found if p[0].images] or found[:1]
