"""Which rank holds which source: looked at one after the other, planned, and loaded where they run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from l2t_fast.config import TransferOptions
from l2t_fast.data import DataBundle
from l2t_fast.distributed.group import Group, checksums
from l2t_fast.distributed.source_plan import PLANS, Load, Plan, bytes_of, choose, output_bytes, plans
from l2t_fast.errors import L2TFastError
from l2t_fast.models import Checkpoint
from l2t_fast.transfer.methods import Method
from l2t_fast.transfer.source import FrozenSources, config_key, load_source, scale
from l2t_fast.transfer.source_sharing import SourceSharing
from l2t_fast.transfer.whole_state import WholeState

#: Of a GPU's free memory, what the sources may take if the configuration does not say: the target's training needs the
#: rest, which nobody knows before it runs.
SHARE_OF_FREE_MEMORY = 0.5


@dataclass(frozen=True)
class Placement:
    """Where the sources run; by default every rank runs all of them."""

    plan: Plan | None = None  # None where there was no choice
    reason: str = "images: there is one source"
    sharing: SourceSharing | None = None
    whole_state: WholeState | None = None  # where ranks have pairs of their own


class UnplacedSources:
    """The sources' structure without their weights, and what each would cost.

    Each is built, loaded and tried in turn on the CPU, so that no process ever holds more than one of those it does not
    run.

    Args:
        options: the run's configuration.
        data: the target's images.
        check: called with each source's name and the source, before its weights go.
        untrained: as `load_sources` takes weights.

    Attributes:
        sources: all of them, on PyTorch's "meta" device.
        checksums: of each source's weights, by its name.
    """

    def __init__(
        self,
        options: TransferOptions,
        data: DataBundle,
        check: Callable[[str, nn.Module], None],
        untrained: Checkpoint | None = None,
    ) -> None:
        self._options, self._data, self._untrained = options, data, untrained
        image = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
        self.weights: list[int] = []
        self.maps: list[int] = []
        self.checksums: dict[str, torch.Tensor] = {}
        described = {}
        for name, config in options.named_sources().items():
            source = load_source(name, config, data, untrained)
            check(name, source)
            self.weights.append(bytes_of(source.state_dict().values()))
            self.maps.append(output_bytes(source, image))
            self.checksums[name] = checksums(source.state_dict().values())
            described[name] = source.to("meta")
        self.sources = FrozenSources(described)

    def load(self, owners: Sequence[int] | None, group: Group) -> None:
        """Give `sources` the weights of those that this rank owns, on the CPU; None is all of them."""
        options = self._options.named_sources()
        loaded = {
            name: load_source(name, options[name], self._data, self._untrained)
            for i, name in enumerate(self.sources.names)
            if owners is None or owners[i] == group.rank
        }
        scale(loaded, options, self._data)
        for i, name in enumerate(self.sources.names):
            if name in loaded:
                self.sources.parts[i] = loaded[name]
        if owners is None:
            return
        told = [json.loads(text) for text in group.collect(_scales(loaded).encode(), everyone=True)]
        for i, (name, owner) in enumerate(zip(self.sources.names, owners, strict=True)):
            self.sources.parts[i].scales = told[owner][name]


def _scales(loaded: dict[str, nn.Module]) -> str:
    return json.dumps({name: source.scales for name, source in loaded.items()})


def plan_sources(
    load: Load, options: TransferOptions, method: type[Method], group: Group, device: torch.device
) -> tuple[Plan, str]:
    """The plan to run, the same on all ranks, and why, in one sentence: a collective operation.

    ``source_plan`` decides if it names one that the method can run; else the planner does, by bytes and by memory.
    """
    possible = [name for name in PLANS if name != "pairs" or method.shares_pairs]
    named = options.source_plan
    if named in possible:
        best = next(plan for plan in plans(load, group.size) if plan.name == named)
        return best, (
            f"{named}: the configuration says so (a rank and step: {best.sent / 1e6:.1f} MB sent, "
            f"{best.held / 1e6:.0f} MB held)"
        )
    best, reason = choose(load, group.size, _memory(options, group, device), possible)
    if not method.shares_pairs:
        reason += f"; pairs cannot be shared out by {method.name}"
    return best, reason


def _memory(options: TransferOptions, group: Group, device: torch.device) -> int | None:
    """Bytes that the sources may take on the rank that has least; None if that is not known."""
    if options.source_memory is not None:
        return int(options.source_memory * 2**30)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return min(group.each(int(free * SHARE_OF_FREE_MEMORY)))


def place_sources(
    unplaced: UnplacedSources,
    options: TransferOptions,
    data: DataBundle,
    target: nn.Module,
    method: Method,
    pairs: Sequence[tuple[int, int]],
    group: Group,
    device: torch.device,
) -> Placement:
    """Plan where the sources run, load those of this rank, and divide the pairs if that is the plan: collective.

    Raises:
        L2TFastError: a rank has read other weights than rank 0, which nobody would see where each runs some of them.
    """
    name = group.disagreement(unplaced.checksums)
    if name is not None:
        raise L2TFastError(
            f"the ranks do not read the same weights of {config_key(name)}: {config_key(name)}.checkpoint must be the "
            "same file on every machine"
        )
    source = unplaced.sources
    image = torch.zeros(1, data.in_channels, data.image_size, data.image_size, device=device)
    meta = getattr(method, "meta", None)
    owner_of_map = [i for i, maps in enumerate(source.maps_per_source) for _ in range(maps)]
    with_pairs = [owner_of_map[m] for m, _ in pairs]
    load = Load(
        source_weights=unplaced.weights,
        source_maps=unplaced.maps,
        target_maps=output_bytes(target, image, logits=False),
        image=bytes_of([image]),
        projections=bytes_of(method.trained_parameters()),
        phi=bytes_of(meta.parameters()) if meta is not None else 0,
        batch=options.data.batch_size,
        steps=options.lookahead_steps if meta is not None else 0,
        keep_graphs=options.keep_graphs,
        source_pairs=[with_pairs.count(i) for i in range(len(unplaced.weights))],
    )
    plan, reason = plan_sources(load, options, type(method), group, device)
    if plan.name == "images":
        unplaced.load(None, group)
        source.to(device)
        return Placement(plan, reason)
    owners = load.owners(group.size, plan.name)
    unplaced.load(owners, group)
    sharing = SourceSharing(source, owners, group, own_pairs=plan.name == "pairs")
    sharing.own.to(device)
    if not sharing.own_pairs:
        return Placement(plan, reason, sharing)
    whole = {"optimizer": [*target.parameters(), *method.trained_parameters()]}
    for name, optimizer in method.optimizers().items():
        whole[name] = [p for parameters in optimizer.param_groups for p in parameters["params"]]
    whole_state = WholeState(group, whole, list(target.parameters()))
    method.keep_pairs(sharing.pairs(pairs))
    return Placement(plan, reason, sharing, whole_state)
