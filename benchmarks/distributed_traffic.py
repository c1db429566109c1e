"""How many bytes the ranks exchange in a training step, by part: the formula that docs/distributed.md prints.

``python -m benchmarks.distributed_traffic`` writes the tables of that page. A ring all-reduce, gloo's and NCCL's for
large buffers, sends 2 (N - 1) / N of a buffer from each of N ranks, so that a rank sends less than twice these bytes,
however many there are.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2t_fast import FeatureMatching, MetaNetworks
from l2t_fast.distributed.source_plan import Load, choose, plans
from l2t_fast.models import build_model


@dataclass(frozen=True)
class Sizes:
    """Numbers of values of what is trained.

    Attributes:
        target: parameters of the target network
        projections: parameters of the 1x1 convolutions
        phi: parameters of the meta networks
        batch_norm: channels of each batch normalisation of the target, if it is in training mode
    """

    target: int
    projections: int
    phi: int
    batch_norm: tuple[int, ...]

    @classmethod
    def of(cls, target: nn.Module, matching: nn.Module, meta: nn.Module) -> "Sizes":
        """Count."""
        channels = [m.num_features for m in target.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return cls(*(_count(module.parameters()) for module in (target, matching, meta)), tuple(channels))


def step_bytes(sizes: Sizes, steps: int, *, keep_graphs: bool = False) -> dict[str, int]:
    """Bytes of the buffers that one training step sums over the ranks, by part.

    Args:
        sizes: of what is trained.
        steps: T, look-ahead steps on the matching loss, with second derivatives by "exact".
        keep_graphs: whether all graphs of the look-ahead are kept, and not only the last step's, so that none of its
            passes is run again.

    Batch normalisation sums two float64 numbers a channel and one count in a forward pass, two values a channel in a
    backward pass or for tangents, and five in the pass that differentiates a backward pass.
    """
    value = 4  # bytes of a parameter
    channels = sum(sizes.batch_norm)
    forward = 8 * (2 * channels + len(sizes.batch_norm))
    backward = tangents = 2 * channels * value
    twice = backward + 5 * channels * value
    again = 0 if keep_graphs else steps - 1
    theta = sizes.target + sizes.projections
    return {
        "gradient of the real step, and the loss": value * (theta + 1),
        "gradients of T + 1 look-ahead steps and at their end": value * (steps * theta + 2 * sizes.target),
        "Hessian-vector products, T": value * ((steps - 1) * theta + sizes.target) if steps else 0,
        "hypergradient": value * sizes.phi,
        "batch normalisation": (steps + 3) * (forward + backward)
        + (steps * twice + again * (forward + backward) + forward + tangents if steps else 0),
    }


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _networks(source: str, target: str, classes: int) -> tuple[nn.Module, nn.Module]:
    return build_model(source, classes), build_model(target, classes)


def _step_table(source: str, target: str, classes: int, steps: int) -> str:
    networks = _networks(source, target, classes)
    channels = [list(n.feature_channels) for n in networks]
    pairs = [(m, n) for m in range(len(channels[0])) for n in range(len(channels[1]))]
    matching, meta = FeatureMatching(*channels, pairs), MetaNetworks(channels[0], pairs)
    sizes = Sizes.of(networks[1], matching, meta)
    rows = step_bytes(sizes, steps)
    lines = [f"| {source} to {target}, {len(pairs)} pairs, T = {steps} | MB a step |", "|---|---:|"]
    lines += [f"| {part} | {count / 1e6:.3f} |" for part, count in (*rows.items(), ("sum", sum(rows.values())))]
    return "\n".join(lines)


def _plan_table(source: str, target: str, image_size: int, classes: int, steps: int, batch: int) -> str:
    networks = _networks(source, target, classes)
    channels = [list(n.feature_channels) for n in networks]
    products = sum(m * n + m for m in channels[0] for n in channels[1])
    phi = sum(m * m + m + m + 1 for m in channels[0]) * len(channels[1])
    image = torch.zeros(1, 3, image_size, image_size)
    one = Load.of([networks[0].eval()], networks[1], [], [], image, batch, steps)
    lines = [
        f"| sources {source}, target {target}, {batch} images, T = {steps} | pairs | "
        + " | ".join(f"{name}: MB sent" for name in ("images", "maps", "pairs"))
        + " | auto runs |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for count, ranks in ((8, 8), (32, 8), (64, 8), (8, 64), (32, 64), (64, 64)):
        load = dataclasses.replace(
            one,
            source_weights=one.source_weights * count,
            source_maps=one.source_maps * count,
            projections=4 * products * count,
            phi=4 * phi * count,
        )
        known = plans(load, ranks)
        pairs = count * len(channels[0]) * len(channels[1])
        sent = " | ".join(f"{plan.sent / 1e6:.0f}" for plan in known)
        lines.append(f"| {count} sources on {ranks} ranks | {pairs} | {sent} | {choose(load, ranks)[0].name} |")
    return "\n".join(lines)


#: Source, target, image size, classes and look-ahead steps of the two set-ups that the benchmarks use, and a batch.
_SETUPS = (
    ("l2tww_resnet32", "vgg9bn", 32, 10, 2, 128),
    ("torchvision:resnet34", "torchvision:resnet18", 224, 200, 2, 64),
)


def main() -> None:
    """Print the tables of docs/distributed.md."""
    for source, target, _, classes, steps, _ in _SETUPS:
        print(_step_table(source, target, classes, steps), end="\n\n")
    for setup in _SETUPS:
        print(_plan_table(*setup), end="\n\n")


if __name__ == "__main__":
    main()
