"""Loss, gradients and Hessian-vector products of small problems on the GPU, against float64; for compute-sanitizer."""

import sys

import torch

from l2t_fast.ops import triton
from tests.ops.problems import assert_accurate, draw, draw_directions, solve

PROBLEMS = (
    ([(16, 9, 9), (33, 5, 6)], [(12, 9, 9), (20, 4, 3)], [(0, 0), (1, 0), (0, 1), (1, 1)]),
    ([(64, 14, 14)], [(64, 28, 28), (160, 7, 7)], [(0, 0), (0, 1)]),
)


def main() -> int:
    if not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA GPU", file=sys.stderr)
        return 2
    with torch.backends.cudnn.flags(allow_tf32=False):
        for sizes in PROBLEMS:
            problem = draw(*sizes, batch=3, dtype=torch.float32).map(lambda tensor: tensor.to("cuda"))
            directions = draw_directions(problem)
            assert_accurate(solve(triton.matching_loss, problem, directions), problem, directions)
    print(f"{len(PROBLEMS)} problems agree with float64")
    return 0


if __name__ == "__main__":
    sys.exit(main())
