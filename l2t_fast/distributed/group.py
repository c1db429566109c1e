"""The ranks of a job and the sums that go over them."""

import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from l2t_fast.distributed.gathering import gather
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
        exchanges: how often each rank sent something of its own to each other rank so far.
        exchanged_bytes: how much of that this rank sent to others.
        steady: whether this rank comes to reductions at short intervals, as in training and not while it reads images.
        entered: called before every operation, for whoever watches that a rank goes on.
        ending: called with the reason, from another thread, before this process ends because of another rank: on the
            rank that leads or, if that one was killed, on the one that saw it.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self._process_group = process_group
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.size = 1 if process_group is None else dist.get_world_size(process_group)
        # torchrun tells it; a process of another launcher is taken to be alone on its machine.
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.reductions = 0
        self.reduced_bytes = 0
        self.exchanges = 0
        self.exchanged_bytes = 0
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

    @torch.no_grad()
    def exchange(self, outgoing: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Each rank gets a piece from every rank, in the ranks' order, as one flat tensor.

        Args:
            outgoing: flat, the pieces for all ranks one after the other.
            sent: how many values of it are for each rank.
            received: how many each rank has for this one.

        Raises:
            PeerError: another rank is gone.
        """
        if self.size == 1:
            return outgoing
        incoming = outgoing.new_empty(sum(received))
        self.exchanges += 1
        self.exchanged_bytes += (sum(sent) - sent[self.rank]) * outgoing.element_size()
        self._collective(
            lambda: dist.all_to_all_single(incoming, outgoing, list(received), list(sent), group=self._process_group)
        )
        return incoming

    def collect(self, data: bytes, *, everyone: bool = False) -> list[bytes]:
        """What every rank has, in the ranks' order: on the rank that leads, or on ``everyone``; else nothing."""
        if self.size == 1:
            return [data]
        sizes = self.each(len(data))
        receivers = [everyone or rank == 0 for rank in range(self.size)]
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        outgoing = self._placed(own).repeat(sum(receivers))
        receives = receivers[self.rank]
        incoming = self.exchange(
            outgoing, [len(data) * takes for takes in receivers], [size * receives for size in sizes]
        )
        return [piece.numpy().tobytes() for piece in incoming.cpu().split(sizes)] if receives else []

    def wait(self) -> None:
        """Until all ranks are here."""
        self.total(0)

    def disagreement(self, tensors: Mapping[str, Tensor]) -> str | None:
        """The first name whose tensor is not the same on all ranks, bit for bit; None if all are."""
        if self.size == 1:
            return None
        own = checksums(tensors.values())
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

    def each(self, number: int) -> list[int]:
        """The whole number that each rank has, in the ranks' order."""
        if self.size == 1:
            return [number]
        values = self._placed(torch.zeros(self.size, dtype=torch.int64))
        values[self.rank] = number
        self.sum_([values])
        return values.tolist()

    def part(self, images: int, joined: int | None = None, *, own_pairs: bool = False) -> "Part":
        """This rank's part of a batch: its number of images, and that of all ranks, which is summed if it is None.

        ``own_pairs`` tells that each rank has pairs of its own and looks at the maps of all ranks' images.
        """
        if own_pairs:
            sizes = tuple(self.each(images))
            return Part(self, images, sum(sizes), sizes)
        return Part(self, images, self.total(images) if joined is None else joined)

    def _placed(self, tensor: Tensor) -> Tensor:
        """On the device that the process group reduces: NCCL knows no CPU tensors."""
        only_cuda = "cpu" not in dist.get_backend_config(self._process_group)
        return tensor.cuda() if only_cuda else tensor

    def _reduce_(self, buffer: Tensor) -> None:
        self.reductions += 1
        self.reduced_bytes += buffer.numel() * buffer.element_size()
        self._collective(lambda: dist.all_reduce(buffer, group=self._process_group))

    def _collective(self, operation: Callable[[], object]) -> None:
        self.entered()
        try:
            operation()
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

    Where each rank has pairs of its own, its share of the matching loss is that of its pairs on the images of all
    ranks, whose maps :meth:`gathered` brings. Gradients of the target network are summed as ever, those of a pair's
    parameters are whole where they are made.

    Attributes:
        group: the ranks.
        images: how many they are; 0 is possible.
        joined: how many all ranks have.
        sizes: how many each rank has in this piece, where each rank has pairs of its own; else None.
    """

    group: Group
    images: int
    joined: int
    sizes: tuple[int, ...] | None = None

    @property
    def share(self) -> float:
        """What the mean over this rank's images counts in the mean over all."""
        return 1.0 if self.images == self.joined else self.images / self.joined

    @property
    def matched(self) -> int:
        """How many images this rank's loss terms are over: its own, or all ranks' where it has pairs of its own."""
        return self.images if self.sizes is None else sum(self.sizes)

    @property
    def own_rows(self) -> slice:
        """Where this rank's images are among :attr:`matched`."""
        if self.sizes is None:
            return slice(None)
        start = sum(self.sizes[: self.group.rank])
        return slice(start, start + self.images)

    @property
    def matched_share(self) -> float:
        """What a loss term, the mean over :attr:`matched` images, counts in this rank's loss."""
        return 1.0 if self.matched == self.joined else self.matched / self.joined

    def gathered(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The target's maps (B, C, H, W) of the images that loss terms are over, differentiable: a collective."""
        return list(maps) if self.sizes is None else gather(maps, self.group, self.sizes)

    def joined_images(self, x: Tensor, accumulation: int = 1) -> Tensor:
        """The images that sources run on: x (B, ...) itself, or those of all ranks where each has its own pairs.

        With ``accumulation`` they lie piece by piece, and in each piece in the ranks' order: a piece of the sources'
        maps then belongs to the pieces that the ranks run at a time. A collective operation.
        """
        if self.sizes is None:
            return x
        (joined,) = gather([x], self.group, self.sizes)
        return joined if accumulation == 1 else joined[rows_by_piece(self.sizes, accumulation)]

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """This rank's share of the mean cross-entropy of logits (B, classes, ...) and labels (B, ...).

        Probabilities of the classes, (B, classes, ...), may take the labels' place.
        Of a batch that is not whole every label counts: how many of the others' do nobody here knows, so PyTorch's -100
        for labels that do not is out of bounds.
        """
        if self.images == self.joined:
            return F.cross_entropy(logits, y)
        labels = self.joined * logits.shape[2:].numel()  # more than images where each pixel has one
        return F.cross_entropy(logits, y, reduction="sum", ignore_index=_NO_LABEL) / labels

    def shares(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's shares of loss terms, each a mean over :attr:`matched`, or the same number on every rank."""
        return {name: _weighed(term, self.matched_share) for name, term in terms.items()}

    def share_of(self, mean: Tensor) -> Tensor:
        """This rank's share of a mean over the joined images, of which ``mean`` is that over its own."""
        return _weighed(mean, self.share)


def _weighed(mean: Tensor, share: float) -> Tensor:
    if share == 1:
        return mean
    # A mean over no image is NaN, but it stays in the graph: backward passes are the same on all ranks.
    return (mean * 0).nan_to_num() if share == 0 and isinstance(mean, Tensor) else mean * share


def checksums(tensors: Iterable[Tensor]) -> Tensor:
    """A number (tensors,) of each one's bits, int64."""
    return torch.tensor([zlib.crc32(_bytes(tensor)) for tensor in tensors], dtype=torch.int64)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


_NO_LABEL = -(2**31)

#: For a batch that is whole: a process alone.
WHOLE = Part(ALONE, 1, 1)


def pieces(
    part: Part, number: int, own: Sequence[Tensor], matched: Sequence[Tensor] = ()
) -> list[tuple[Part, list[Tensor], list[Tensor]]]:
    """A part's tensors in `number` pieces along their first dimension, which is the images, for one after the other.

    Sizes differ by one at most. Ranks of a group make the same number of pieces, and a rank's may be empty; one that no
    rank has an image for is left out. With ``number`` above 1 it is a collective operation.

    Args:
        part: of the whole.
        number: of pieces.
        own: tensors with a row for each of this rank's images.
        matched: tensors with a row for each of ``part.matched`` images; where they are those of all ranks, in the order
            of :func:`rows_by_piece`.

    Returns:
        For each piece its part, what it has of ``own``, and of ``matched``.
    """
    if number == 1:
        return [(part, list(own), list(matched))]
    # Batch normalisation has no statistics of a piece that is empty on all ranks.
    number = min(number, max(1, *(part.sizes or part.group.each(len(own[0])))))
    joined = len(own[0]) if part.images == part.joined and part.sizes is None else part.joined
    sizes: list[tuple[int, ...] | None] = [None] * number
    counts = cut(len(own[0]), number)
    if part.sizes is not None:
        sizes = list(zip(*(cut(size, number) for size in part.sizes), strict=True))
        counts = [sum(of_piece) for of_piece in sizes]
    own_pieces = zip(*(t.tensor_split(number) for t in own), strict=True)
    matched_pieces = zip(*(t.split(counts) for t in matched), strict=True) if matched else [()] * number
    return [
        (Part(part.group, len(own_piece[0]), joined, size), list(own_piece), list(matched_piece))
        for own_piece, matched_piece, size in zip(own_pieces, matched_pieces, sizes, strict=True)
    ]


def cut(count: int, number: int) -> list[int]:
    """How many of ``count`` are in each of ``number`` pieces: sizes differ by one at most, the first are the larger."""
    least, more = divmod(count, number)
    return [least + (i < more) for i in range(number)]


def rows_by_piece(sizes: Sequence[int], number: int) -> list[int]:
    """Of rows in the ranks' order, the order in which pieces lie one after the other, and in each the ranks.

    Args:
        sizes: how many rows each rank has.
        number: of pieces that each rank cuts its rows into.
    """
    number = min(number, max(1, *sizes))  # what follows is empty
    starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    ranges = []
    for lengths in zip(*(cut(size, number) for size in sizes), strict=True):
        for rank, length in enumerate(lengths):
            ranges.extend(range(starts[rank], starts[rank] + length))
            starts[rank] += length
    return ranges
