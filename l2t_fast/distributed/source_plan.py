"""Where to run the sources when there are several ranks: the plans, what each moves and holds, and the choice.

Every plan shares the target's batch out by images. They differ in what happens to the sources and to the pairs:

* ``images``: each rank runs all sources on its own images. No map leaves its rank; the gradients of the projections and
  of phi are summed over the ranks with the target's.
* ``maps``: each rank runs some of the sources on the images of all ranks, and sends their maps to the images' ranks.
  The networks' weights are shared out, the maps of a rank's images are not.
* ``pairs``: each rank runs some of the sources and keeps their maps and their pairs. For each look at the matching loss
  it gets the target's maps of all images, and sends back its pairs' part of their gradient. Projections and phi have
  one rank each, so that nothing of them is summed.

The trainer runs ``images``. The other two are counted, so that one sees when they would move less.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Load:
    """What a run consists of, in bytes.

    Attributes:
        source_weights: of each source network
        source_maps: of each source's matched maps, for one image
        target_maps: of the target's matched maps, for one image
        image: of one image
        projections: of all pairs' 1x1 convolutions
        phi: of the meta networks
        batch: images of the joined batch
        steps: T, look-ahead steps on the matching loss
    """

    source_weights: Sequence[int]
    source_maps: Sequence[int]
    target_maps: int
    image: int
    projections: int
    phi: int
    batch: int
    steps: int

    @classmethod
    @torch.no_grad()
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
        was_training = target.training
        maps = [network(image)[1] for network in (*sources, target.eval())]
        target.train(was_training)
        return cls(
            source_weights=[_bytes(network.state_dict().values()) for network in sources],
            source_maps=[_bytes(m) for m in maps[:-1]],
            target_maps=_bytes(maps[-1]),
            image=_bytes([image]),
            projections=_bytes(projections),
            phi=_bytes(phi),
            batch=batch,
            steps=steps,
        )


@dataclass(frozen=True)
class Plan:
    """A plan's cost.

    Attributes:
        name: images, maps or pairs
        sent: bytes that a rank sends in a step, on the average over the ranks, beside what all plans sum alike
        held: bytes of source weights and source maps that the fullest rank holds
    """

    name: str
    sent: int
    held: int


def plans(load: Load, ranks: int) -> list[Plan]:
    """The cost of each plan.

    Reductions are rings, which send 2 (N - 1) / N of a buffer from each of N ranks; gathering sends half of that.
    Sources go to the ranks in turn, the largest first.

    The matching loss is looked at in the real step and in T look-ahead steps (the target's maps in, gradients out),
    once for tangents (maps and directions in), and in the T - 1 other transposed steps (maps and directions in,
    gradients and their derivatives out): maps cross 6 T times, or twice without a look-ahead.
    """
    others = (ranks - 1) / ranks
    here = -(-load.batch // ranks)
    # Projections are part of the real step's reduction, of T look-ahead steps' and of T - 1 Hessian-vector products'.
    summed = 2 * others * (max(2 * load.steps, 1) * load.projections + load.phi)
    images = others * load.batch * load.image
    target = load.batch * load.target_maps
    weights = sum(sorted(load.source_weights, reverse=True)[::ranks])
    own_maps = load.batch * sum(sorted(load.source_maps, reverse=True)[::ranks])
    all_maps = sum(load.source_maps)
    exchanged = others * load.batch * all_maps / ranks
    crossings = max(6 * load.steps, 2)
    return [
        Plan("images", round(summed), sum(load.source_weights) + here * all_maps),
        Plan("maps", round(summed + images + exchanged), weights + own_maps + here * all_maps),
        Plan("pairs", round(images + crossings * others * target), weights + own_maps + target),
    ]


def choose(load: Load, ranks: int, memory: int | None = None) -> tuple[Plan, str]:
    """The plan that sends the least of those whose sources fit into `memory` bytes a rank, and why, in one sentence.

    If none fits, it is the one that holds the least.
    """
    known = plans(load, ranks)
    fitting = [plan for plan in known if memory is None or plan.held <= memory]
    best = min(fitting, key=lambda plan: plan.sent) if fitting else min(known, key=lambda plan: plan.held)
    sizes = ", ".join(f"{plan.name} {plan.sent / 1e6:.1f} MB ({plan.held / 1e6:.0f} MB held)" for plan in known)
    if not fitting:
        reason = f"no plan's sources fit into {memory / 1e6:.0f} MB, and it holds the least"
    elif len(fitting) < len(known):
        left_out = " and ".join(plan.name for plan in known if plan not in fitting)
        reason = f"it sends the least of those that fit into {memory / 1e6:.0f} MB, which {left_out} does not"
    else:
        reason = "it sends the least"
    return best, f"{best.name}: {reason} (a rank and step: {sizes})"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
