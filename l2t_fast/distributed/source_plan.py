"""Where to run the sources when there are several ranks: the plans, what each moves and holds, and the choice.

Every plan shares the target's batch out by images. They differ in what happens to the sources and to the pairs:

* ``images``: each rank runs all sources on its own images. No map leaves its rank; the gradients of the projections and
  of phi are summed over the ranks with the target's.
* ``maps``: each rank runs some of the sources on the images of all ranks, and sends their maps to the images' ranks.
  The networks' weights are shared out, the maps of a rank's images are not.
* ``pairs``: each rank runs some of the sources and keeps their maps and their pairs. For each look at the matching loss
  it gets the target's maps of all images, and sends back its pairs' part of their gradient. Projections and phi have
  one rank each, so that nothing of them is summed.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: The plans' names, as the configuration knows them.
PLANS = ("images", "maps", "pairs")

#: A plan whose fullest rank has more than this times its even share of the sources is slower than what it saves: the
#: others wait for that rank.
MOST_UNEVEN = 1.5

#: How often a rank of the plan ``pairs`` holds the target's maps of all images while it differentiates the matching
#: loss twice: the maps, their gradient, a direction and what the Hessian makes of it.
TARGET_COPIES = 4


@dataclass(frozen=True)
class Load:
    """What a run consists of, in bytes.

    Attributes:
        source_weights: of each source network
        source_maps: of what each source makes of one image, matched maps and logits
        target_maps: of the target's matched maps, for one image
        image: of one image
        projections: of all pairs' 1x1 convolutions
        phi: of the meta networks
        batch: images of the joined batch
        steps: T, look-ahead steps on the matching loss; 0 for a method without look-ahead
        keep_graphs: whether the look-ahead's graphs are kept
        source_pairs: number of pairs of each source; None takes it that all have as many
    """

    source_weights: Sequence[int]
    source_maps: Sequence[int]
    target_maps: int
    image: int
    projections: int
    phi: int
    batch: int
    steps: int
    keep_graphs: bool = False
    source_pairs: Sequence[int] | None = None

    @classmethod
    def of(
        cls,
        sources: Iterable[nn.Module],
        target: nn.Module,
        projections: Iterable[Tensor],
        phi: Iterable[Tensor],
        image: Tensor,
        batch: int,
        steps: int,
    ) -> "Load":
        """Measure: ``image`` (1, channels, H, W) is run through every network, each giving (logits, maps)."""
        sources = list(sources)
        return cls(
            source_weights=[bytes_of(network.state_dict().values()) for network in sources],
            source_maps=[output_bytes(network, image) for network in sources],
            target_maps=output_bytes(target, image, logits=False),
            image=bytes_of([image]),
            projections=bytes_of(projections),
            phi=bytes_of(phi),
            batch=batch,
            steps=steps,
        )

    @property
    def crossings(self) -> int:
        """How often the target's maps of all images cross between the ranks in a step of ``pairs``, with "exact".

        The matching loss is looked at in the real step and in T look-ahead steps (maps in, gradients out), once for
        tangents (maps and directions in), and in the T - 1 other transposed steps (directions in, derivatives of the
        gradients out, after maps in and gradients out once more if graphs are not kept).
        """
        if not self.steps:
            return 2
        return 2 + 2 * self.steps + 2 + (2 if self.keep_graphs else 4) * (self.steps - 1)

    def owners(self, ranks: int, plan: str) -> list[int]:
        """The rank that runs each source under ``maps`` or ``pairs``: the largest first, each to the least laden rank.

        A source weighs as much as its maps, or with ``pairs`` as its maps times its pairs, so that rank 0 has a pair.
        """
        weights = list(self.source_maps)
        if plan == "pairs" and self.source_pairs is not None:
            weights = [maps * pairs for maps, pairs in zip(weights, self.source_pairs, strict=True)]
        laden = [(0, 0, rank) for rank in range(ranks)]
        owners = [0] * len(weights)
        for source in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
            weight, count, rank = min(laden)
            owners[source] = rank
            laden[rank] = (weight + weights[source], count + 1, rank)
        return owners


@dataclass(frozen=True)
class Plan:
    """A plan's cost.

    Attributes:
        name: images, maps or pairs
        sent: bytes that a rank sends in a step, on the average over the ranks, beside what all plans sum alike
        held: bytes that the fullest rank holds of source weights, source maps, and the target's maps of other ranks
        uneven: the fullest rank's share of the sources' maps over an even share; 1 at best
    """

    name: str
    sent: int
    held: int
    uneven: float


def plans(load: Load, ranks: int) -> list[Plan]:
    """The cost of each plan.

    Reductions are rings, which send 2 (N - 1) / N of a buffer from each of N ranks; in an exchange each rank sends what
    is for the others.
    """
    others = (ranks - 1) / ranks
    here = -(-load.batch // ranks)
    # Projections are part of the real step's reduction, of T look-ahead steps' and of T - 1 Hessian-vector products'.
    summed = 2 * others * (max(2 * load.steps, 1) * load.projections + load.phi)
    images = others * load.batch * load.image
    target = load.batch * load.target_maps
    all_maps = sum(load.source_maps)
    exchanged = others * load.batch * all_maps / ranks

    def fullest(plan: str) -> tuple[int, float]:
        """Bytes of weights and maps of own sources on the rank that has most, and how uneven that is."""
        held, own_maps = [0] * ranks, [0] * ranks
        owners = load.owners(ranks, plan)
        for weights, maps, rank in zip(load.source_weights, load.source_maps, owners, strict=True):
            held[rank] += weights + load.batch * maps
            own_maps[rank] += maps
        return max(held), max(own_maps) * ranks / all_maps if all_maps else 1.0

    by_maps, uneven_maps = fullest("maps")
    by_pairs, uneven_pairs = fullest("pairs")
    pairs = round(images + load.crossings * others * target)
    return [
        Plan("images", round(summed), sum(load.source_weights) + here * all_maps, 1.0),
        Plan("maps", round(summed + images + exchanged), by_maps + here * all_maps, uneven_maps),
        Plan("pairs", pairs, by_pairs + TARGET_COPIES * target, uneven_pairs),
    ]


def choose(load: Load, ranks: int, memory: int | None = None, possible: Collection[str] = PLANS) -> tuple[Plan, str]:
    """The plan that sends the least of those whose sources fit into `memory` bytes a rank, and why, in one sentence.

    Of ``maps`` and ``pairs``, those that would leave ranks waiting (`MOST_UNEVEN`) are taken only if nothing else fits.
    If none fits, it is the one that holds the least. ``possible`` names the plans that the method can run; one source
    is run by all ranks.
    """
    known = [plan for plan in plans(load, ranks) if plan.name in possible]
    if len(load.source_weights) < 2 and "images" in possible:
        known = known[:1]
    fitting = [plan for plan in known if memory is None or plan.held <= memory]
    even = [plan for plan in fitting if plan.uneven <= MOST_UNEVEN]
    candidates = even or fitting
    best = min(candidates, key=lambda plan: plan.sent) if candidates else min(known, key=lambda plan: plan.held)
    sizes = ", ".join(f"{plan.name} {plan.sent / 1e6:.1f} MB ({plan.held / 1e6:.0f} MB held)" for plan in known)
    if len(known) == 1:
        reason = "there is one source" if len(load.source_weights) < 2 else "the method can run no other plan"
    elif not fitting:
        reason = f"no plan's sources fit into {memory / 1e6:.0f} MB, and it holds the least"
    else:
        left_out = []
        if len(fitting) < len(known):
            left_out.append(f"{_names(known, fitting)} would not fit into {memory / 1e6:.0f} MB")
        if even and len(even) < len(fitting):
            left_out.append(f"{_names(fitting, even)} would leave ranks without a source waiting")
        reason = "it sends the least" + (f" of those that remain: {' and '.join(left_out)}" if left_out else "")
    return best, f"{best.name}: {reason} (a rank and step: {sizes})"


def _names(of: Sequence[Plan], without: Sequence[Plan]) -> str:
    return " and ".join(plan.name for plan in of if plan not in without)


@torch.no_grad()
def output_bytes(network: nn.Module, image: Tensor, *, logits: bool = True) -> int:
    """Bytes of the maps, and the logits, that a network in eval mode gives for ``image`` (1, channels, H, W)."""
    was_training = network.training
    found, maps = network.eval()(image)
    network.train(was_training)
    return bytes_of([*maps, *([found] if logits else [])])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)
