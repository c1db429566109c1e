"""``feature_matching_loss``: the choice of backend, the None cases, and what a backend is given."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from l2t_fast import _native
from l2t_fast.arguments import SINGLE, Arguments, Projection, checked_at_once, checked_one_by_one
from l2t_fast.coefficients import Sizes, at_once, by_pair, native, native_serves
from l2t_fast.ops import choose_backend, implementation, inside_dual_level

_TENSORS = {Tensor, nn.Parameter}


def feature_matching_loss(
    source_features: Sequence[Tensor],
    target_features: Sequence[Tensor],
    projections: Sequence[Projection],
    pairs: Sequence[tuple[int, int]],
    channel_weights: Sequence[Tensor] | None = None,
    pair_weights: Sequence[Tensor] | None = None,
    beta: float | Sequence[float] = 1.0,
    *,
    backend: str = "auto",
) -> Tensor:
    """Weighted channel-wise feature matching, for all layer pairs at once (Jang et al. 2019, section 2).

    For a pair p = (m, n), with r the 1x1 projection of the pair and S~ the source map resized bilinearly (half-pixel
    centres, no antialias) to the target map's P = H_n * W_n pixels::

        loss = sum_p beta_p * mean_b( lambda_p[b] * sum_c w_p[b, c] * mean_pixels( (r_p(T^n) - S~^m)[b, c]^2 ) )

    Args:
        source_features: maps of the frozen source network(s), ``source_features[m]`` of shape (B, C_m, H_m, W_m).
        target_features: maps of the target network, ``target_features[n]`` of shape (B, C_n, H_n, W_n).
        projections: per pair a weight (C_m, C_n) or (C_m, C_n, 1, 1) and a bias (C_m,) or None.
        pairs: per pair (source index m, target index n).
        channel_weights: per pair w (B, C_m), *what* to transfer; None takes the mean over the channels, w = 1 / C_m.
        pair_weights: per pair lambda (B,), (B, 1) or (1, 1), *where* to transfer it; None takes 1.
        beta: weight of the whole loss, or one number a pair. A tensor is read by the host, which waits for its device
            and which a graph of ``torch.compile`` cannot hold.
        backend: "auto", "reference", "cpu", "cuda" or "triton". "auto" takes the fused path when all tensors are on one
            device that has one and no source feature requires grad, outside of ``torch.func`` transforms, and for
            float64 on a CPU alone; the environment variable ``L2T_FAST_BACKEND``
            replaces "auto". ``l2t_fast.explain_backend(device)`` tells the choice.

    Returns:
        A scalar, float32 (float64 for float64 tensors), twice differentiable in target features, projections, channel
        weights and pair weights. With B = 0 it is 0.

    A fused loss's graph is differentiated twice at most, and not under vmap (``is_grads_batched``, ``vectorize``): take
    "reference" for that.

    Features are float32, bfloat16 or float16 in any mixture, with sums in float32, or all float64. Any height and
    width, contiguous, channels_last or strided, are read as they are. float32 products follow PyTorch's convolution
    precision (``torch.backends.cudnn.allow_tf32``).

    Raises:
        ValueError: shapes, batch sizes, devices, lengths or pair indices that do not fit; the message names the pair.
            An unknown backend, or one named by hand for tensors that are elsewhere, for a source feature that requires
            grad or inside a ``torch.func`` transform.
        TypeError: an argument of the wrong type, float64 mixed with other dtypes, or with "cuda" or "triton".
        RuntimeError: ``backend`` names one that this installation does not have.
    """
    given = (source_features, target_features, projections, pairs, channel_weights, pair_weights, beta)
    arguments = checked_at_once(*given) or checked_one_by_one(*given)
    source_features, target_features = arguments.sources, arguments.targets
    pairs, weights, biases = arguments.pairs, arguments.weights, arguments.biases

    used = {m for m, _ in pairs}
    used_sources = [source_features[m] for m in sorted(used)]
    others = ()
    if not arguments.uniform or inside_dual_level():
        others = [target_features[n] for n in sorted({n for _, n in pairs})]
        others += [*weights, *(b for b in biases if b is not None)]
        others += [*(arguments.channel_weights or ()), *(arguments.pair_weights or ())]
    choice = choose_backend(backend, used_sources, others)

    alpha = _coefficients(arguments, source_features, target_features, choice.backend)
    sources, targets = source_features, target_features
    if len(used) < len(sources):  # what no pair uses takes no part, whatever it requires
        sources = [source if m in used else source.detach() for m, source in enumerate(sources)]
    if inside_dual_level() and choice.backend != "reference":
        sources, targets = _without_tangents(sources, pairs, 0), _without_tangents(targets, pairs, 1)
    if not arguments.uniform:
        sources, pairs = _without_misfits(sources, pairs, 0, alpha)
        targets, pairs = _without_misfits(targets, pairs, 1, alpha)
    sources = _savable(sources)
    loss = implementation(choice.backend)
    if choice.backend == "reference":  # the others take a convolution's weight as it is
        weights = [weight.flatten(1) for weight in weights]
    elif arguments.uniform and not inside_dual_level():  # found to be so by the native code, which is there then
        by_triton = choice.backend == "triton"
        return _native.extension.matching_loss(sources, targets, weights, biases, alpha, pairs, by_triton)
    return loss(sources, targets, weights, biases, alpha, pairs)


def _coefficients(arguments: Arguments, sources: Sequence[Tensor], targets: Sequence[Tensor], backend: str) -> Tensor:
    """alpha (B, sum of C_m) = beta lambda w / (B P): one coefficient a sample and channel, differentiable in w, lambda.

    Everything that scales a pair is folded into one tensor, so that the kernels know nothing of the None cases.
    """
    what, where = arguments.channel_weights, arguments.pair_weights
    first = sources[arguments.pairs[0][0]]
    sizes = Sizes(
        tuple(arguments.pairs),
        tuple(source.shape[1] for source in sources),
        tuple(target.shape[2] * target.shape[3] for target in targets),
        tuple(arguments.betas),
        first.shape[0],
        what is None,
    )
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    plain = arguments.uniform or _plain(chain(targets, what or (), where or ()))
    if backend == "reference" or not plain or inside_dual_level():
        return by_pair(sizes, what, where, dtype, first.device)
    if (what or where) and native_serves(first.device):
        return native(sizes, what, where, dtype)
    return at_once(sizes, what, where, dtype, first.device)


def _plain(tensors: Iterable[Tensor]) -> bool:
    """Whether nothing but autograd looks on: no compiler, torch.func transform or subclass."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._functorch.peek_interpreter_stack()
        and set(map(type, tensors)) <= _TENSORS
    )


def _savable(sources: Sequence[Tensor]) -> Sequence[Tensor]:
    """Source features as tensors that may be saved for a backward pass.

    Who runs the frozen source in ``torch.inference_mode()`` gets tensors that autograd refuses to keep, although no
    gradient goes to them: other views of the same numbers are kept in their place.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return sources
    return [_viewed(source) if source.is_inference() else source for source in sources]


def _viewed(source: Tensor) -> Tensor:
    if source.is_neg():  # its sign is no part of the memory
        return source.resolve_neg()
    view = torch.empty(0, dtype=source.dtype, device=source.device)
    return view.set_(source.untyped_storage(), source.storage_offset(), source.shape, source.stride())


def _without_tangents(features: Sequence[Tensor], pairs: list[tuple[int, int]], side: int) -> list[Tensor]:
    """The maps, those that no pair uses without forward-mode tangents, which the fused operators would refuse."""
    used = {pair[side] for pair in pairs}
    return [f if i in used else forward_ad.unpack_dual(f).primal for i, f in enumerate(features)]


def _without_misfits(
    features: Sequence[Tensor], pairs: list[tuple[int, int]], side: int, alpha: Tensor
) -> tuple[Sequence[Tensor], list[tuple[int, int]]]:
    """The maps and pairs less the maps that no pair uses and that an operator would refuse beside the others.

    A map of another batch size, layout, device or dtype takes no part in the loss. Unused maps that fit stay: their
    gradient is zero, where a map that is left out has none.
    """
    used = {pair[side] for pair in pairs}
    kept = [
        i
        for i, feature in enumerate(features)
        if i in used
        or (
            feature.shape[0] == alpha.shape[0]
            and feature.layout == torch.strided
            and feature.device == alpha.device
            and (feature.dtype == torch.float64) == (alpha.dtype == torch.float64)
            and (feature.dtype == torch.float64 or feature.dtype in SINGLE)
        )
    ]
    if len(kept) == len(features):
        return features, pairs
    place = {old: new for new, old in enumerate(kept)}
    renamed = [(place[m], n) if side == 0 else (m, place[n]) for m, n in pairs]
    return [features[i] for i in kept], renamed
