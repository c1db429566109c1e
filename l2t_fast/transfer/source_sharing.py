"""Sources shared out over the ranks: who runs which, and how their maps come to where they are needed."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2t_fast.distributed.gathering import gather
from l2t_fast.distributed.group import Group, Part
from l2t_fast.transfer.source import FrozenSources, SourceOutput


@dataclass(frozen=True)
class OwnPairs:
    """Which pairs a rank has.

    Attributes:
        chosen: their indices among all pairs; none is possible
        source_maps: indices of the maps of the rank's sources among those of all sources
    """

    chosen: Sequence[int]
    source_maps: Sequence[int]


class SourceSharing:
    """The sources of this rank, in a job whose ranks run some of them each.

    Args:
        sources: all; the weights of those of other ranks may be on PyTorch's "meta" device, which has no memory.
        owners: the rank of each.
        group: the ranks.
        own_pairs: the plan ``pairs``; else it is ``maps``.

    Attributes:
        own: this rank's sources.
        own_pairs: as the argument.
    """

    def __init__(self, sources: FrozenSources, owners: Sequence[int], group: Group, *, own_pairs: bool) -> None:
        self._maps_per_source, self._owners, self._group = sources.maps_per_source, list(owners), group
        self.own_pairs = own_pairs
        self.own = sources.some([i for i, owner in enumerate(owners) if owner == group.rank])
        self._forms: dict[torch.dtype | None, list[list[_Form]]] = {}

    def pairs(self, pairs: Sequence[tuple[int, int]]) -> OwnPairs:
        """Which of all pairs are this rank's: those of its sources."""
        owner_of_map = [o for o, maps in zip(self._owners, self._maps_per_source, strict=True) for _ in range(maps)]
        mine = [m for m, owner in enumerate(owner_of_map) if owner == self._group.rank]
        chosen = [p for p, (m, _) in enumerate(pairs) if owner_of_map[m] == self._group.rank]
        return OwnPairs(chosen, mine)

    @torch.no_grad()
    def run(self, x: Tensor, part: Part, sizes: Sequence[int], accumulation: int = 1) -> SourceOutput:
        """What the method needs of the sources for a batch: a collective operation.

        Args:
            x: this rank's images (B, channels, H, W).
            part: of the batch.
            sizes: numbers of images of all ranks.
            accumulation: see `Part.joined_images`.

        Returns:
            With ``pairs`` the outputs of this rank's sources for all images, else those of all sources for x.
        """
        if self.own_pairs:
            return self.own(part.joined_images(x, accumulation))
        (joined,) = gather([x], self._group, sizes)
        return self._handed_round(self.own(joined), sizes, x)

    def _handed_round(self, own: SourceOutput, sizes: Sequence[int], x: Tensor) -> SourceOutput:
        """Outputs of this rank's sources for all images -> outputs of all sources for this rank's images, x.

        They are frozen, so that nothing is differentiated: one exchange of bytes, whatever the dtypes.
        """
        maps = iter(own.features)
        outputs = [
            [logits, *(next(maps) for _ in range(count))]
            for logits, count in zip(own.logits, self.own.maps_per_source, strict=True)
        ]
        by_rank = zip(*(t.split(list(sizes)) for of_source in outputs for t in of_source), strict=True)
        outgoing = [_as_bytes(piece) for of_rank in by_rank for piece in of_rank]
        forms = self._all_forms(outputs, x)
        row = [sum(form.row for of_source in of_rank for form in of_source) for of_rank in forms]
        incoming = self._group.exchange(
            torch.cat(outgoing) if outgoing else torch.empty(0, dtype=torch.uint8, device=x.device),
            [size * row[self._group.rank] for size in sizes],
            [len(x) * of_rank for of_rank in row],
        )
        lengths = [len(x) * form.row for of_rank in forms for of_source in of_rank for form in of_source]
        pieces = iter(incoming.split(lengths))
        per_rank: list[Iterator[list[Tensor]]] = [
            iter([[_from_bytes(next(pieces), form, x) for form in of_source] for of_source in of_rank])
            for of_rank in forms
        ]
        of_sources = [next(per_rank[owner]) for owner in self._owners]
        return SourceOutput([o[0] for o in of_sources], [m for o in of_sources for m in o[1:]])

    def _all_forms(self, outputs: Sequence[Sequence[Tensor]], x: Tensor) -> list[list[list["_Form"]]]:
        """Of each rank, of each of its sources, of its logits and maps; told once for each precision."""
        enabled = torch.is_autocast_enabled(x.device.type)
        key = torch.get_autocast_dtype(x.device.type) if enabled else None
        if key not in self._forms:
            own = [[[str(t.dtype).removeprefix("torch."), *t.shape[1:]] for t in of_source] for of_source in outputs]
            told = self._group.collect(json.dumps(own).encode(), everyone=True)
            self._forms[key] = [
                [[_Form(getattr(torch, dtype), shape) for dtype, *shape in of_source] for of_source in json.loads(text)]
                for text in told
            ]
        return self._forms[key]


@dataclass(frozen=True)
class _Form:
    """What an output is for one image."""

    dtype: torch.dtype
    shape: Sequence[int]

    @property
    def row(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _from_bytes(piece: Tensor, form: _Form, x: Tensor) -> Tensor:
    # A copy: a piece need not begin where its dtype may.
    found = piece.clone().view(form.dtype).view(len(x), *form.shape)
    channels_last = found.dim() == 4 and not x.is_contiguous()
    return found.contiguous(memory_format=torch.channels_last) if channels_last else found
