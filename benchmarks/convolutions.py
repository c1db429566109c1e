"""The CPU's 3x3 convolutions against PyTorch's, layer by layer of the step benchmark's target networks.

    python -m benchmarks.convolutions --output benchmarks/results/convolutions.csv

For each layer the convolution, its input's gradient and its weight's gradient, in turns, caches emptied before each
call.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.csv_rows import append
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bench.timing import Run, alternate
from l2t_fast.models import build_model

CPU = torch.device("cpu")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
REPEATS = 9


def layers(setup: str) -> dict[tuple[int, int, int, int], int]:
    """(images, input's channels, output's channels, side) of a set-up's convolutions of 3x3, and how many are alike."""
    of = STEP_SETUPS[setup]
    network, found = build_model(of.target, of.classes), {}

    def note(module: nn.Conv2d, inputs: tuple[Tensor], _: Tensor) -> None:
        if module.kernel_size == (3, 3) and module.stride == module.padding == module.dilation == (1, 1):
            shape = (len(inputs[0]), module.in_channels, module.out_channels, inputs[0].shape[-1])
            found[shape] = found.get(shape, 0) + 1

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(of.batch(CPU), 3, of.image_size, of.image_size))
    return found


def operations(shape: tuple[int, int, int, int], layout: str) -> dict[str, tuple[Callable[[], Tensor], ...]]:
    """By name: PyTorch's call and ours."""
    images, c_in, c_out, side = shape
    x, w, g = (
        torch.randn(images, c_in, side, side),
        torch.randn(c_out, c_in, 3, 3),
        torch.randn(images, c_out, side, side),
    )
    x, w, g = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, w, g))
    ours = torch.ops.l2t_fast

    def gradient(of_input: bool) -> Tensor:
        wanted = [of_input, not of_input, False]
        sizes = [1, 1], [1, 1], [1, 1]
        return torch.ops.aten.convolution_backward(g, x, w, None, *sizes, False, [0, 0], 1, wanted)[not of_input]

    return {
        "forward": (lambda: F.conv2d(x, w, padding=1), lambda: ours.convolution3x3(x, w, None, False)),
        "input gradient": (lambda: gradient(True), lambda: ours.convolution3x3(g, w, None, True)),
        "weight gradient": (lambda: gradient(False), lambda: ours.convolution3x3_weight_gradient(g, x)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV file that rows are appended to")
    parser.add_argument("--setups", nargs="+", default=["cifar", "imagenet"], choices=list(STEP_SETUPS))
    options = parser.parse_args()
    shared = {"run": now(), **conditions(CPU)}
    for setup in options.setups:
        for shape, count in layers(setup).items():
            for layout in LAYOUTS:
                for name, (pytorch, ours) in operations(shape, layout).items():
                    theirs = pytorch().double()
                    difference = ((ours() - theirs).norm() / theirs.norm()).item()  # both round
                    pytorch(), ours()
                    times = alternate({"PyTorch": Run(pytorch), "ours": Run(ours)}, REPEATS, CPU)
                    medians = {provider: taken.median * 1e3 for provider, taken in times.items()}
                    row = {
                        **dict(zip(("batch", "in_channels", "out_channels", "side"), shape, strict=True)),
                        **{"layers": count, "layout": layout, "operation": name, "repeats": REPEATS},
                        "pytorch_ms": f"{medians['PyTorch']:.3f}",
                        "ours_ms": f"{medians['ours']:.3f}",
                        "difference": f"{difference:.1e}",
                    }
                    append([shared | {"setup": setup} | row], options.output)
                    print(setup, row, f"{medians['PyTorch'] / medians['ours']:.2f} x", flush=True)


if __name__ == "__main__":
    main()
