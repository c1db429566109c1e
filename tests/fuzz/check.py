"""Runs a case on backends, and holds loss, gradients and Hessian-vector products against the float64 oracle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from l2t_fast import _native, feature_matching_loss
from l2t_fast.ops import BACKENDS, why_unavailable
from tests import oracle
from tests.fuzz.cases import Case
from tests.ops.problems import laid_out

#: Roundings of the type of the sums, per unit of the sum of magnitudes that a number is a sum of. A stable algorithm,
#: in whatever order it sums, needs a small multiple of one.
ROUNDINGS = 64

#: The same where tf32 is allowed: each of a term's up to four factors is rounded to 11 bits, or to 8 where maps, and so
#: the products, are bfloat16.
ROUNDINGS_OF_TF32, ROUNDINGS_OF_BFLOAT16 = 4 * 2**12, 4 * 2**14

#: The CUDA kernels in their emulator, on CPU tensors.
EMULATED = "emulated"

#: The backends that a case says how to compute for: whether in tf32, and the like.
GPU_KERNELS = ("cuda", "triton", EMULATED)

#: The same per pixel of a source's longest side: where a pixel of the target lies in the source is a number as large as
#: that, and rounded as such, here and in the oracle.
ROUNDINGS_A_PIXEL = 4


class Wrong(AssertionError):
    """A backend's answer is not what the oracle says."""


@dataclass(frozen=True)
class Tensors:
    """The tensors of a case; the lists are in the order of the maps, or of the pairs."""

    sources: list[Tensor]
    targets: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    channel_weights: list[Tensor] | None
    pair_weights: list[Tensor] | None

    @property
    def inputs(self) -> list[Tensor]:
        """All that the loss can be differentiated by."""
        biases = [bias for bias in self.biases if bias is not None]
        return [*self.targets, *self.weights, *biases, *(self.channel_weights or ()), *(self.pair_weights or ())]

    def with_inputs(self, inputs: Sequence[Tensor]) -> Tensors:
        following = iter(inputs)

        def take(old: Sequence[Tensor | None] | None) -> list[Tensor | None] | None:
            return None if old is None else [None if tensor is None else next(following) for tensor in old]

        targets, weights, biases = take(self.targets), take(self.weights), take(self.biases)
        return replace(
            self,
            targets=targets,
            weights=weights,
            biases=biases,
            channel_weights=take(self.channel_weights),
            pair_weights=take(self.pair_weights),
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Tensors:
        changed = replace(self, sources=[change(source) for source in self.sources])
        return changed.with_inputs([change(tensor) for tensor in self.inputs])


Loss = Callable[[Tensors], Tensor]


def available_backends() -> list[str]:
    """What runs on this machine: backends, and the emulator. Triton in its interpreter where TRITON_INTERPRET is 1."""
    found = [name for name in BACKENDS if name != "auto" and why_unavailable(name) is None]
    return [*found, EMULATED] if "cpu" in found else found


def serves(backend: str, case: Case) -> bool:
    """Whether a backend has the types of a case, of which the GPU's lack float64, and the emulator time for it."""
    if backend == EMULATED and case.products > 5e7:  # which takes it half a minute
        return False
    return backend not in GPU_KERNELS or "float64" not in case.dtypes


def check(case: Case, backends: Sequence[str] | str) -> None:
    """Raise `Wrong`, or whatever a backend raises, if a backend does not answer a case as it should."""
    tensors = make_tensors(case)
    generator = torch.Generator().manual_seed(case.seed + 1)
    wanted = [bool(torch.rand((), generator=generator) >= case.frozen) for _ in tensors.inputs]
    directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in tensors.inputs]
    exact = solve(_oracle_loss(case), tensors.map(Tensor.double), wanted, [d.double() for d in directions])
    magnitude = _magnitudes(case, tensors, wanted, directions)
    for backend in [backends] if isinstance(backends, str) else backends:
        try:
            with _unwritten_memory_is_nan(), _float32_is_float32(), _cpu_ways(case, backend), _gpu_ways(case, backend):
                _check_backend(case, backend, tensors, wanted, directions, exact, magnitude)
        except Exception as error:
            raise type(error)(f"{backend}: {error}") from error


def make_tensors(case: Case) -> Tensors:
    """The tensors of a case, on the CPU, without gradients."""
    generator = torch.Generator().manual_seed(case.seed)
    used = {p.source for p in case.pairs}, {p.target for p in case.pairs}

    def normal(shape: Sequence[int], dtype: str, layout: str, scale: float = 1.0) -> Tensor:
        tensor = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).mul_(scale)
        return _laid_out(tensor.to(getattr(torch, dtype)), layout)

    def maps(side: int) -> list[Tensor]:
        return [
            normal(
                (case.batch + (case.odd_unused and i not in used[side]), m.channels, m.height, m.width),
                m.dtype,
                m.layout,
                case.scale,
            )
            for i, m in enumerate((case.sources, case.targets)[side])
        ]

    weights, biases, channel_weights, pair_weights = [], [], [], []
    for pair in case.pairs:
        rows, columns = case.sources[pair.source].channels, case.targets[pair.target].channels
        weight = normal((rows, columns), pair.dtype, pair.layout, columns**-0.5)
        weights.append(weight[:, :, None, None] if pair.convolution else weight)
        biases.append(None if pair.bias is None else normal((rows,), pair.bias, pair.layout, case.scale))
        if case.channel_weights is not None:
            channel_weights.append(normal((case.batch, rows), case.weight_dtype, case.channel_weights, 1 / rows))
        if case.pair_weights:
            shape = {"(B,)": (case.batch,), "(B, 1)": (case.batch, 1), "(1, 1)": (1, 1)}[pair.pair_weight]
            pair_weights.append(normal(shape, case.weight_dtype, "contiguous"))
    sources, targets = maps(0), maps(1)
    if case.one_storage:
        _move_together(sources, targets)
    if case.inference:
        with torch.inference_mode():
            sources = [_in_storage(source.untyped_storage().clone(), source) for source in sources]
    return Tensors(
        sources,
        targets,
        weights,
        biases,
        channel_weights if case.channel_weights is not None else None,
        pair_weights if case.pair_weights else None,
    )


@dataclass(frozen=True)
class Answer:
    """None where an input is frozen."""

    loss: Tensor
    gradients: list[Tensor | None]
    products: list[Tensor | None]

    def parts(self) -> dict[str, Tensor]:
        named = {"loss": self.loss.detach()}
        for kind, values in (("gradient", self.gradients), ("Hessian-vector product", self.products)):
            named |= {f"{kind} of input {i}": v for i, v in enumerate(values) if v is not None}
        return named


def solve(loss: Loss, tensors: Tensors, wanted: Sequence[bool], directions: Sequence[Tensor]) -> Answer:
    """Loss, gradients, and the Hessian times the directions of the inputs that are `wanted`."""
    moving = tensors.with_inputs([t.detach().requires_grad_(w) for t, w in zip(tensors.inputs, wanted, strict=True)])
    chosen = [t for t in moving.inputs if t.requires_grad]
    value = loss(moving)
    gradients = _derivatives([value], chosen, [torch.ones_like(value)], create_graph=True)
    products = _derivatives(gradients, chosen, [d for d, w in zip(directions, wanted, strict=True) if w])

    def spread(values: Sequence[Tensor]) -> list[Tensor | None]:
        following = iter(values)
        return [next(following).detach() if w else None for w in wanted]

    return Answer(value.detach(), spread(gradients), spread(products))


def _derivatives(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], along: Sequence[Tensor], *, create_graph: bool = False
) -> Sequence[Tensor]:
    """torch.autograd.grad, with zeros where an output depends on nothing."""
    dependent = [(o, a) for o, a in zip(outputs, along, strict=True) if o.requires_grad]
    if not dependent or not inputs:
        return [torch.zeros_like(t) for t in inputs]
    outputs, along = zip(*dependent, strict=True)
    return torch.autograd.grad(outputs, inputs, along, create_graph=create_graph, materialize_grads=True)


def _check_backend(
    case: Case,
    backend: str,
    tensors: Tensors,
    wanted: Sequence[bool],
    directions: Sequence[Tensor],
    exact: Answer,
    magnitude: Answer,
) -> None:
    device = "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"
    tensors, directions = tensors.map(lambda t: _moved(t, device)), [d.to(device) for d in directions]
    kept = tensors.map(torch.clone)

    def loss(these: Tensors) -> Tensor:
        served_as = "cpu" if backend == EMULATED else backend
        return feature_matching_loss(*_arguments(case, these), case.beta, backend=served_as)

    found = solve(loss, tensors, wanted, directions)
    sums = torch.float64 if tensors.sources[case.pairs[0].source].dtype == torch.float64 else torch.float32
    if found.loss.shape != () or found.loss.dtype != sums:
        raise Wrong(f"the loss is {found.loss.dtype} of shape {tuple(found.loss.shape)}, not a scalar of {sums}")
    precision = _precision(case, sums, backend in GPU_KERNELS)
    _compare(found, exact, magnitude, tensors, precision)

    # A first-order backward pass goes another way: without a graph, and by another number than 1.
    moving = tensors.with_inputs([t.detach().requires_grad_(w) for t, w in zip(tensors.inputs, wanted, strict=True)])
    chosen = [t for t in moving.inputs if t.requires_grad]
    value = loss(moving)
    gradients = iter(_derivatives([value], chosen, [torch.full_like(value, case.scaled_by)]))
    first = Answer(value.detach(), [next(gradients) if w else None for w in wanted], [None] * len(wanted))
    factor = case.scaled_by
    scaled = replace(exact, gradients=[g if g is None else g * factor for g in exact.gradients])
    allowed = replace(magnitude, gradients=[g if g is None else g * abs(factor) for g in magnitude.gradients])
    _compare(first, scaled, allowed, tensors, precision)
    if not torch.equal(first.loss, found.loss):
        raise Wrong(f"two calls gave two losses, {first.loss.item()!r} and {found.loss.item()!r}")
    for before, after in zip([*kept.sources, *kept.inputs], [*tensors.sources, *tensors.inputs], strict=True):
        if not torch.equal(before, after):
            raise Wrong(f"an input of shape {tuple(before.shape)} was written to")


def _precision(case: Case, sums: torch.dtype, gpu: bool) -> float:
    """The error allowed for a number that is a sum of magnitudes of one."""
    longest = max(max(case.sources[pair.source].height, case.sources[pair.source].width) for pair in case.pairs)
    roundings = [ROUNDINGS, ROUNDINGS_A_PIXEL * longest]
    if gpu and case.tf32:
        types = {m.dtype for m in (*case.sources, *case.targets)}
        roundings.append(ROUNDINGS_OF_BFLOAT16 if "bfloat16" in types else ROUNDINGS_OF_TF32)
    return max(roundings) * torch.finfo(sums).eps


def _compare(found: Answer, exact: Answer, magnitude: Answer, tensors: Tensors, precision: float) -> None:
    exact_parts, sizes = exact.parts(), magnitude.parts()
    for name, value in found.parts().items():
        right, own = exact_parts[name], torch.finfo(value.dtype)
        if value.shape != right.shape:
            raise Wrong(f"the {name} has shape {tuple(value.shape)}, not {tuple(right.shape)}")
        allowed = precision * sizes[name] + own.eps * right.abs() + own.smallest_normal
        error = (value.cpu().double() - right).abs()
        # What float16 cannot hold may come back as infinity.
        error = torch.where((right.abs() > own.max) & value.cpu().isinf(), 0.0, error)
        if not bool((error <= allowed).all()):
            raise Wrong(f"the {name} is off by {float((error / allowed).max()):.3g} times what is allowed")
    for i, (gradient, tensor) in enumerate(zip(found.gradients, tensors.inputs, strict=True)):
        if gradient is not None and (gradient.dtype != tensor.dtype or gradient.device != tensor.device):
            raise Wrong(f"the gradient of input {i} is {gradient.dtype} on {gradient.device}, unlike the input")


def _arguments(case: Case, tensors: Tensors) -> tuple[Any, ...]:
    """What the loss and its oracle take, but for beta."""
    projections = list(zip(tensors.weights, tensors.biases, strict=True))
    pairs = [(pair.source, pair.target) for pair in case.pairs]
    return tensors.sources, tensors.targets, projections, pairs, tensors.channel_weights, tensors.pair_weights


def _oracle_loss(case: Case) -> Loss:
    betas = [case.beta] * len(case.pairs) if isinstance(case.beta, float) else case.beta

    def loss(these: Tensors) -> Tensor:
        return oracle.matching_loss(*_arguments(case, these), betas)

    return loss


def _magnitudes(case: Case, tensors: Tensors, wanted: Sequence[bool], directions: Sequence[Tensor]) -> Answer:
    """For every number of the answer the sum of the magnitudes it is a sum of.

    All terms have one sign where the sources are negative and everything else is positive, so no luck of cancellation
    is mistaken for an error, and no error for rounding.
    """
    positive = tensors.map(lambda t: t.double().abs())
    positive = replace(positive, sources=[-s for s in positive.sources])
    betas = abs(case.beta) if isinstance(case.beta, float) else tuple(abs(b) for b in case.beta)
    return solve(_oracle_loss(replace(case, beta=betas)), positive, wanted, [d.double().abs() for d in directions])


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another memory layout (for "expanded": those of the first row for all)."""
    if tensor.dim() == 4:
        if layout == "reversed":  # the batch is the innermost dimension in memory, the width the outermost
            return tensor.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        if layout == "one pixel":  # of each map
            return tensor[:, :, :1, :1].expand(tensor.shape)
        if layout == "one channel":
            return tensor[:, :1].expand(tensor.shape)
        if layout == "overlapping":  # pixels of one row lie in the next too
            batch, channels, height, width = tensor.shape
            row = tensor.new_zeros(batch, channels, height + width).copy_(tensor.flatten(2)[:, :, :1])
            row[:, :, : min(row.shape[2], height * width)] = tensor.flatten(2)[:, :, : row.shape[2]]
            return row.as_strided(tensor.shape, (*row.stride()[:2], 1, 1))
        return laid_out(tensor, layout)
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "sliced":  # every second number of rows that are longer
        wider = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan)
        return wider[..., 1::2].copy_(tensor)
    if layout == "offset":
        return tensor.new_full((tensor.numel() + 1,), torch.nan)[1:].view(tensor.shape).copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    raise ValueError(layout)


def _move_together(*sides: list[Tensor]) -> None:
    """Put the contiguous maps of each dtype into one storage."""
    places = [(maps, i) for maps in sides for i in range(len(maps)) if maps[i].is_contiguous()]
    for dtype in {maps[i].dtype for maps, i in places}:
        same = [(maps, i) for maps, i in places if maps[i].dtype == dtype]
        together = torch.cat([maps[i].flatten() for maps, i in same])
        for (maps, i), piece in zip(same, together.split([maps[i].numel() for maps, i in same]), strict=True):
            maps[i] = piece.view(maps[i].shape)


def _moved(tensor: Tensor, device: str) -> Tensor:
    """On another device with the same strides; `Tensor.to` makes views contiguous."""
    if tensor.device.type == device:
        return tensor
    return _in_storage(tensor.untyped_storage().to(device=device), tensor)


def _in_storage(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """A tensor that lies in `storage` as `like` does in its own."""
    tensor = torch.empty(0, dtype=like.dtype, device=storage.device)
    return tensor.set_(storage, like.storage_offset(), like.shape, like.stride())


@contextlib.contextmanager
def _unwritten_memory_is_nan() -> Iterator[None]:
    """torch.empty, from C++ too, returns NaN: an output that is not written, or is read before, shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def _float32_is_float32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def _cpu_ways(case: Case, backend: str) -> Iterator[None]:
    """Either algorithm, and cut for several threads, which small problems would not be."""
    if backend != "cpu":
        yield
        return
    native, threads = _native.extension, torch.get_num_threads()
    native.force_algorithm(case.algorithm)
    native.force_chunks(case.chunks)
    torch.set_num_threads(case.threads)
    try:
        yield
    finally:
        native.force_algorithm("auto")
        native.force_chunks(False)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _gpu_ways(case: Case, backend: str) -> Iterator[None]:
    """Products in tf32, and of the CUDA kernels either form, emulated ones on a small chip or a large one."""
    if backend not in GPU_KERNELS:
        yield
        return
    native = _native.extension if backend != "triton" else None
    if backend == EMULATED:
        native.emulate_cuda(case.processors, reversed=case.reversed)
    if native is not None:
        native.force_algorithm(case.algorithm)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=case.tf32):
            yield
    finally:
        if native is not None:
            native.force_algorithm("auto")
        if backend == EMULATED:
            native.emulate_cuda(0)
