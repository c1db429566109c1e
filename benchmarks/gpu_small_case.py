"""Loss, gradients and Hessian-vector products of small problems on the GPU, against float64; for compute-sanitizer.

python -m benchmarks.gpu_small_case [backend ...]
"""

import sys

import torch

from l2t_fast.ops import FUSED, implementation, why_unavailable
from tests.ops.cuda.conftest import direct_form, gram_form
from tests.ops.problems import assert_accurate, draw, draw_directions, solve

PROBLEMS = (
    ([(16, 9, 9), (33, 5, 6)], [(12, 9, 9), (20, 4, 3)], [(0, 0), (1, 0), (0, 1), (1, 1)]),
    ([(64, 14, 14)], [(64, 28, 28), (160, 7, 7)], [(0, 0), (0, 1)]),
)


def check_ieee(backend: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for sizes in PROBLEMS:
            problem = draw(*sizes, batch=3, dtype=torch.float32).map(lambda tensor: tensor.to("cuda"))
            directions = draw_directions(problem)
            assert_accurate(solve(implementation(backend), problem, directions), problem, directions)
            print(f"{backend}, ieee float32: right", flush=True)


def check_tensor_cores() -> None:
    """The CUDA kernels that so small a problem does not take by itself, or not in ieee float32: all are compiled."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for sizes in PROBLEMS:
            problem = draw(*sizes, batch=3, dtype=dtype).map(lambda tensor: tensor.to("cuda"))
            directions = draw_directions(problem)
            for form in (direct_form, gram_form):
                with form():
                    found = solve(implementation("cuda"), problem, directions)
                assert_accurate(found, problem, directions, roundings=4 * 2**12)
                print(f"cuda, {dtype}, {form.__name__}: right", flush=True)


def main() -> int:
    if not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA GPU", file=sys.stderr)
        return 2
    backends = sys.argv[1:] or [name for name in FUSED["cuda"] if why_unavailable(name) is None]
    for name in backends:
        check_ieee(name)
        if name == "cuda":
            check_tensor_cores()
    print(f"{len(PROBLEMS)} problems agree with float64, on {' and '.join(backends)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
