"""Matching problems to test with, their float64 truth, and how far from it an answer may lie."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l2t_fast.ops import reference

# name -> (source maps, target maps, pairs), maps as (channels, height, width)
SIZES: dict[str, tuple[list[tuple[int, int, int]], list[tuple[int, int, int]], list[tuple[int, int]]]] = {
    "equal": ([(3, 4, 4)], [(2, 4, 4)], [(0, 0)]),
    "source larger": ([(3, 6, 8)], [(2, 3, 4)], [(0, 0)]),
    "source smaller": ([(3, 2, 3)], [(2, 4, 6)], [(0, 0)]),
    "neither divides": ([(2, 5, 3)], [(3, 3, 7)], [(0, 0)]),
    "source of one pixel": ([(3, 1, 1)], [(2, 3, 4)], [(0, 0)]),
    "target of one pixel": ([(3, 4, 3)], [(2, 1, 1)], [(0, 0)]),
    "one row, one column": ([(2, 1, 5)], [(2, 5, 1)], [(0, 0)]),
    "one channel": ([(1, 3, 3)], [(1, 3, 3)], [(0, 0)]),
    "all to all": ([(3, 4, 3), (2, 2, 2)], [(2, 4, 3), (4, 3, 5)], [(0, 0), (1, 0), (0, 1), (1, 1)]),
    "duplicates": ([(2, 3, 3)], [(3, 3, 3)], [(0, 0), (0, 0), (0, 0)]),
    "an unused map of each": ([(2, 3, 3), (3, 2, 2)], [(3, 2, 3), (2, 3, 3)], [(1, 1)]),
}

LAYOUTS = ("contiguous", "channels_last", "sliced", "sliced channels_last", "transposed", "offset", "expanded")


@dataclass(frozen=True)
class Problem:
    """The arguments of a backend's ``matching_loss``."""

    sources: list[Tensor]
    targets: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    alpha: Tensor
    pairs: list[tuple[int, int]]

    @property
    def slots(self) -> list[Tensor | None]:
        """The differentiable inputs: targets, weights, biases (with or without one), alpha."""
        return [*self.targets, *self.weights, *self.biases, self.alpha]

    @property
    def inputs(self) -> list[Tensor]:
        return [slot for slot in self.slots if slot is not None]

    def with_inputs(self, inputs: Sequence[Tensor]) -> "Problem":
        """The same problem with other differentiable inputs, in the order of :attr:`inputs`."""
        following = iter(inputs)
        slots = [None if slot is None else next(following) for slot in self.slots]
        targets, pairs = len(self.targets), len(self.pairs)
        return replace(
            self,
            targets=slots[:targets],
            weights=slots[targets : targets + pairs],
            biases=slots[targets + pairs : -1],
            alpha=slots[-1],
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """Every tensor changed."""
        changed = replace(self, sources=[change(source) for source in self.sources])
        return changed.with_inputs([change(tensor) for tensor in self.inputs])

    def requiring_grad(self) -> "Problem":
        return self.with_inputs([tensor.detach().requires_grad_() for tensor in self.inputs])

    def loss(self, matching_loss: Callable[..., Tensor]) -> Tensor:
        return matching_loss(self.sources, self.targets, self.weights, self.biases, self.alpha, self.pairs)

    def as_function(self, matching_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """inputs -> loss, for gradcheck and torch.func."""
        return lambda *inputs: self.with_inputs(inputs).loss(matching_loss)

    def operator_arguments(self, needs: Sequence[bool] | None = None) -> tuple:
        """The arguments of torch.ops.l2t_fast.matching_forward; by default every input's gradient is wanted."""
        needs = [slot is not None for slot in self.slots] if needs is None else list(needs)
        flat = [index for pair in self.pairs for index in pair]
        return self.sources, self.targets, self.weights, self.biases, self.alpha, flat, needs


def draw(
    sources: Sequence[tuple[int, int, int]],
    targets: Sequence[tuple[int, int, int]],
    pairs: Sequence[tuple[int, int]],
    *,
    batch: int = 2,
    biased: Sequence[bool] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """A random problem with numbers of order 1 (and alpha of order 1 / (B P)), without gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    biased = [True] * len(pairs) if biased is None else biased
    columns = []
    for m, n in pairs:
        pixels = targets[n][1] * targets[n][2]
        columns.append(
            torch.rand(batch, sources[m][0], generator=generator, dtype=torch.float64) / max(batch * pixels, 1)
        )
    problem = Problem(
        sources=[normal(batch, *shape) for shape in sources],
        targets=[normal(batch, *shape) for shape in targets],
        weights=[normal(sources[m][0], targets[n][0]) / targets[n][0] ** 0.5 for m, n in pairs],
        biases=[normal(sources[m][0]) if has else None for (m, _), has in zip(pairs, biased, strict=True)],
        alpha=torch.cat(columns, dim=1) if columns else torch.zeros(batch, 0, dtype=torch.float64),
        pairs=list(pairs),
    )
    return in_dtype(problem, dtype)


def draw_matched() -> Problem:
    """A float32 problem whose D is nothing but rounding: a source of the target's size, and a smaller one."""
    generator = torch.Generator().manual_seed(0)
    maps, small = (torch.randn(3, 16, *size, generator=generator) + 10 for size in ((14, 12), (7, 6)))
    resized = torch.nn.functional.interpolate(small.double(), (14, 12), mode="bilinear", align_corners=False)
    return Problem(
        sources=[maps, small],
        targets=[maps.clone(), resized.float()],
        weights=[torch.eye(16), torch.eye(16)],
        biases=[None, None],
        alpha=torch.ones(3, 32),
        pairs=[(0, 0), (1, 1)],
    )


def assert_no_negative_squares(problem: Problem, matching_loss: Callable[..., Tensor]) -> None:
    """Neither the loss nor any Q, the gradient of a coefficient: they are sums of squares."""
    problem = problem.requiring_grad()
    loss = problem.loss(matching_loss)
    assert float(loss.detach()) >= 0
    assert bool((torch.autograd.grad(loss, problem.alpha)[0] >= 0).all())


def draw_sizes(name: str, **options) -> Problem:
    return draw(*SIZES[name], **options)


def in_dtype(problem: Problem, features: torch.dtype, parameters: torch.dtype | None = None) -> Problem:
    """Features in one dtype, projections in another (by default the same), alpha in the dtype of the sums."""
    parameters = features if parameters is None else parameters
    return replace(
        problem,
        sources=[s.to(features) for s in problem.sources],
        targets=[t.to(features) for t in problem.targets],
        weights=[w.to(parameters) for w in problem.weights],
        biases=[None if b is None else b.to(parameters) for b in problem.biases],
        alpha=problem.alpha.to(torch.float64 if features == torch.float64 else torch.float32),
    )


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers (for "expanded": the first sample's, for all) in another memory layout."""
    batch, channels, height, width = tensor.shape
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout in ("sliced", "sliced channels_last"):  # every second channel and column, one border row
        wider = tensor.new_full((batch, 2 * channels, height + 1, 2 * width), torch.nan)
        if layout == "sliced channels_last":
            wider = wider.contiguous(memory_format=torch.channels_last)
        view = wider[:, ::2, 1:, 1::2]
        return view.copy_(tensor)
    if layout == "transposed":  # height and width swapped in memory
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "offset":  # starts at an address that is no multiple of a vector's size
        return tensor.new_full((tensor.numel() + 1,), torch.nan)[1:].view(tensor.shape).copy_(tensor)
    if layout == "expanded":  # one sample in memory, batch stride 0
        return tensor[:1].expand(tensor.shape)
    raise ValueError(layout)


@dataclass(frozen=True)
class Answer:
    """What a backend computes from a problem; lists are one entry an input, None where it was not asked for."""

    loss: Tensor
    gradients: list[Tensor | None]
    products: list[Tensor | None]  # Hessian times directions

    def parts(self) -> dict[str, Tensor]:
        named = {"loss": self.loss.detach()}
        named |= {f"gradient {i}": g.detach() for i, g in enumerate(self.gradients) if g is not None}
        return named | {f"Hessian-vector product {i}": h for i, h in enumerate(self.products) if h is not None}


def solve(matching_loss: Callable[..., Tensor], problem: Problem, directions: Sequence[Tensor]) -> Answer:
    """Loss, gradients and Hessian times ``directions``, all by autograd."""
    problem = problem.requiring_grad()
    loss = problem.loss(matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True, materialize_grads=True)
    products = torch.autograd.grad(gradients, problem.inputs, directions, materialize_grads=True)
    return Answer(loss, list(gradients), list(products))


def draw_directions(problem: Problem, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            * (0.1 if tensor is problem.alpha else 1)
        ).to(tensor)
        for tensor in problem.inputs
    ]


def draw_directions_laid_out(problem: Problem, layout: str) -> list[Tensor]:
    """Directions whose maps lie in a layout, weights and coefficients by columns, and biases in every second place."""

    def moved(direction: Tensor) -> Tensor:
        if direction.dim() == 4:
            return laid_out(direction, layout)
        return direction.t().contiguous().t() if direction.dim() == 2 else torch.stack([direction] * 2, 1)[:, 1]

    return [moved(direction) for direction in draw_directions(problem)]


def draw_some(problem: Problem, seed: int) -> tuple[list[Tensor | None], list[bool]]:
    """Directions of half of the slots, None for the others, and whether a slot's result is wanted, for half of them."""
    generator = torch.Generator().manual_seed(seed)
    coins = torch.rand(2, len(problem.slots), generator=generator) < 0.5
    moved = iter(draw_directions(problem))
    directions = [next(moved) if slot is not None else None for slot in problem.slots]
    directions = [v if heads else None for v, heads in zip(directions, coins[0], strict=True)]
    return directions, [slot is not None and bool(heads) for slot, heads in zip(problem.slots, coins[1], strict=True)]


def truth(problem: Problem, directions: Sequence[Tensor]) -> Answer:
    """The reference in float64, from the very numbers the problem holds."""
    return solve(
        reference.matching_loss,
        problem.map(lambda t: t.detach().cpu().double()),
        [d.cpu().double() for d in directions],
    )


def magnitudes(problem: Problem, directions: Sequence[Tensor]) -> Answer:
    """For every number of the answer the sum of the magnitudes it is a sum of.

    The terms of D, of the gradients and of the products have all one sign where the sources are negative and everything
    else is positive. An algorithm that is stable, in whatever order it sums, is off by a small multiple of these times
    the machine's precision, element by element; no luck of cancellation is mistaken for an error.
    """
    positive = problem.map(lambda t: t.detach().abs())
    return truth(replace(positive, sources=[-s for s in positive.sources]), [d.abs() for d in directions])


def assert_accurate(found: Answer, problem: Problem, directions: Sequence[Tensor], *, roundings: float = 64) -> None:
    """Every number within ``roundings`` roundings of the type of the sums, and one of the type it is returned in."""
    precision = torch.finfo(problem.alpha.dtype).eps
    exact, scale = truth(problem, directions).parts(), magnitudes(problem, directions).parts()
    for name, value in found.parts().items():
        own = torch.finfo(value.dtype)
        allowed = roundings * precision * scale[name] + own.eps * exact[name].abs() + own.smallest_normal
        error = (value.cpu().double() - exact[name]).abs()
        assert value.shape == exact[name].shape, name
        assert bool((error <= allowed).all()), (
            f"{name}: off by {float((error / allowed).max()):.3g} times what is allowed"
        )
