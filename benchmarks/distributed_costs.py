"""What a step would move and compute on many ranks: counted, not run.

``python -m benchmarks.distributed_costs`` writes the table of docs/distributed.md. Bytes are those of
:mod:`benchmarks.distributed_traffic` and :mod:`l2t_fast.distributed.source_plan`, which tests compare with what ranks
really send. Flops are those of the networks' convolutions and matrix products, counted by PyTorch's flop counter in one
forward pass, and of the matching loss in its direct form (csrc/README.md).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.distributed_traffic import Sizes, step_bytes
from l2t_fast.distributed.source_plan import Load, Plan, choose, plans
from l2t_fast.models import build_model

#: What the table takes a GPU to compute, in flops a second, and to send to GPUs of other machines, in bytes a second:
#: a part of what the data sheet of an H100 says of TF32, and one 400 Gbit/s link. Neither was measured.
RATE = 200e12
LINK = 50e9


@dataclass(frozen=True)
class Work:
    """Flops of a training step for one image.

    Attributes:
        source: forward pass of one source
        target: forward pass of the target
        product: of one 1x1 product with all pixels, over the pairs of one source with all target maps
    """

    source: int
    target: int
    product: int

    @classmethod
    @torch.no_grad()
    def of(cls, source: nn.Module, target: nn.Module, image: torch.Tensor) -> "Work":
        """Count, with all pairs of the two networks' maps; ``image`` (1, channels, H, W) may be on "meta"."""
        counts, maps = [], []
        for network in (source.eval(), target.eval()):
            with FlopCounterMode(display=False) as counter:
                maps.append(network(image)[1])
            counts.append(counter.get_total_flops())
        channels = sum(m.shape[1] for m in maps[0])
        return cls(*counts, product=sum(2 * channels * t.shape[1] * t.shape[2] * t.shape[3] for t in maps[1]))


def passes(steps: int) -> tuple[int, int, int]:
    """How many forward passes of the target, of them going backward, and products with the maps, a step is worth.

    With "exact" and T > 0 steps on the matching loss. A gradient is 3 forward passes, a Hessian-vector product 6 and,
    but for the last step's, 3 more to make its graph again. There are the real step's gradient, T + 1 and one at the
    end in the look-ahead, T products, and one pass of tangents, which is 3. A gradient of the matching loss is 3
    products (T + 1 times, T - 1 for graphs made again, and once for the tangents), a Hessian-vector product 7 (T - 1
    times), and 3 where only the weights' derivative is wanted.
    """
    again = max(steps - 1, 0)  # the last step's graph is kept
    target = 3 + 3 * (steps + 2) + 6 * steps + 3 * again + 3
    backward = 2 + 2 * (steps + 2) + 6 * steps + 2 * again
    products = 3 * (1 + steps + (steps - 1) + 1) + 7 * (steps - 1) + 3
    return target, backward, products


@dataclass(frozen=True)
class Cost:
    """Of a step, for the rank that has most to do.

    Attributes:
        flops: of networks and matching loss
        backward: of them, those of the target's backward passes
        common: bytes sent that all plans send: sums of the target's gradients and statistics
        plan: bytes sent and held by the plan
    """

    flops: float
    backward: float
    common: float
    plan: Plan

    @property
    def compute(self) -> float:
        """Seconds at `RATE`."""
        return self.flops / RATE

    @property
    def send(self) -> float:
        """Seconds at `LINK`."""
        return (self.common + self.plan.sent) / LINK

    @property
    def hidden(self) -> float:
        """Seconds of sending that could run beside the target's backward passes, if all of it were ready in time.

        A reduction can begin when the first layers' gradients are there and must end before the next step begins: what
        it can hide behind is the rest of its own backward pass.
        """
        return min(self.send, self.backward / RATE)


def costs(load: Load, work: Work, sizes: Sizes, ranks: int) -> list[Cost]:
    """Of every plan, for sources that are all alike; ``sizes`` without projections and phi."""
    sources = len(load.source_maps)
    target, backward, products = passes(load.steps)
    once = work.target * load.batch / ranks
    common = 2 * (ranks - 1) / ranks * sum(step_bytes(sizes, load.steps).values())
    even = sources * load.batch / ranks  # images times sources a rank
    found = []
    for plan in plans(load, ranks):
        run = even * plan.uneven
        matched = run if plan.name == "pairs" else even
        flops = run * work.source + target * once + matched * products * work.product
        found.append(Cost(flops, backward * once, common, plan))
    return found


#: Sources, ranks and images of the joined batch.
_CASES = ((32, 64, 64), (64, 64, 64), (32, 64, 1024), (64, 64, 1024))


def table(source: str, target: str, image_size: int, classes: int, steps: int, cases: Sequence[Sequence[int]]) -> str:
    """Markdown: what each plan would take."""
    with torch.device("meta"):
        networks = build_model(source, 1000), build_model(target, classes)
        image = torch.zeros(1, 3, image_size, image_size)
    channels = [list(n.feature_channels) for n in networks]
    one = Load.of([networks[0].eval()], networks[1], [], [], image, 1, steps)
    work = Work.of(*networks, image)
    projections = 4 * sum(m * n + m for m in channels[0] for n in channels[1])
    phi = 4 * sum(m * m + m + m + 1 for m in channels[0]) * len(channels[1])
    sizes = Sizes.of(networks[1], nn.Module(), nn.Module())
    columns = (
        f"{source} to {target}, T = {steps}",
        "pairs",
        "plan",
        "TFLOP",
        f"at {RATE / 1e12:.0f} TFLOP/s",
        "GB sent",
        "by any plan",
        f"at {LINK / 1e9:.0f} GB/s",
        "overlap hides at most",
        "GB held",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---|" + "---:|" * (len(columns) - 3)]
    for count, ranks, batch in cases:
        load = dataclasses.replace(
            one,
            source_weights=one.source_weights * count,
            source_maps=one.source_maps * count,
            projections=projections * count,
            phi=phi * count,
            batch=batch,
        )
        pairs = count * len(channels[0]) * len(channels[1])
        auto = choose(load, ranks)[0].name
        for cost in costs(load, work, sizes, ranks):
            name = f"**{cost.plan.name}**" if cost.plan.name == auto else cost.plan.name
            lines.append(
                f"| {count} sources, {ranks} ranks, {batch} images | {pairs} | {name} | {cost.flops / 1e12:.2f} | "
                f"{1e3 * cost.compute:.0f} ms | {(cost.common + cost.plan.sent) / 1e9:.2f} | {cost.common / 1e9:.2f} | "
                f"{1e3 * cost.send:.0f} ms | {1e3 * cost.hidden:.1f} ms | {cost.plan.held / 1e9:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table of docs/distributed.md."""
    print(table("torchvision:resnet34", "torchvision:resnet18", 224, 200, 2, _CASES))


if __name__ == "__main__":
    main()
