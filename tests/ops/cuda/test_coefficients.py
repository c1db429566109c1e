"""The CUDA kernel of the coefficients, emulated on the CPU and on a GPU, against their definition."""

import pytest
import torch

from l2t_fast.coefficients import Sizes, by_pair, native
from l2t_fast.ops import why_unavailable
from tests.ops.cuda.conftest import same_bits
from tests.test_coefficients import derivatives

# Tails of warps and blocks; as many pairs as a launch of the small kind takes and one more, and more than a large one.
SHAPES = {
    "few pairs": ([1, 40, 33], 7, 5),
    "as many as a small launch": ([3, 1], 200, 2),
    "one more": ([3, 1], 201, 2),
    "more than a large launch": ([1, 2], 1903, 1),
    "an empty batch": ([4], 2, 0),
}


@pytest.fixture(params=["emulated", "emulated, reversed", "gpu"])
def device(request):
    if request.param == "gpu":
        problem = why_unavailable("cuda")
        if problem is not None:
            pytest.skip(f"the cuda backend is not available: {problem}")
        return "cuda"
    request.getfixturevalue("emulate")(reversed="reversed" in request.param)
    return "cpu"


def answer(way, sizes, what, where, device) -> dict[str, torch.Tensor]:
    """alpha, its first derivatives along fixed numbers, and the derivatives of these."""
    weights = [[w.to(device).requires_grad_() for w in given] if given else None for given in (what, where)]
    alpha = way(sizes, *weights)
    inputs = [w for given in weights if given for w in given]
    parts = (alpha.detach(), *(part.detach() for part in derivatives(alpha, inputs)))
    return {str(i): part for i, part in enumerate(parts)}


@pytest.mark.parametrize("given", ["both", "what", "where", "where, one for all samples"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_definition(device, shape, given):
    channels, count, batch = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    pairs = tuple((p % len(channels), 0) for p in range(count))
    rows = 1 if "one for all" in given else batch
    what = (
        [torch.rand(batch, channels[m], generator=generator) for m, _ in pairs] if given in ("both", "what") else None
    )
    where = None if given == "what" else [torch.rand(rows, 1, generator=generator) for _ in pairs]
    sizes = Sizes(pairs, channels, (6,), tuple(1.0 + p for p in range(count)), batch, what is None)

    def definition(sizes, what, where):
        return by_pair(sizes, what, where, torch.float32, torch.device(device))

    def operators(sizes, what, where):
        return native(sizes, what, where, torch.float32)

    found, again = (answer(operators, sizes, what, where, device) for _ in range(2))
    assert same_bits(found, again)
    for name, wanted in answer(definition, sizes, what, where, device).items():
        torch.testing.assert_close(found[name], wanted)
