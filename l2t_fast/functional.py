"""``feature_matching_loss``: argument checks, the None cases, and the choice of backend."""

import operator
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from itertools import chain
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from l2t_fast import _native
from l2t_fast.coefficients import Sizes, at_once, by_pair, native, native_serves
from l2t_fast.ops import choose_backend, implementation, inside_dual_level

Projection = tuple[Tensor, Tensor | None]

_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
_TENSORS = {Tensor, nn.Parameter}
#: What holds things in no order that somebody gave them.
UNORDERED = (Mapping, Set)
_BY_NAME = "weights of channels and pairs are the arguments weight and loss_weight (channel_weights and pair_weights)"
_checked = getattr(_native.extension, "checked", None)  # None without native code


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
    arguments = _checked_at_once(*given) or _checked_one_by_one(*given)
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


class _Arguments(NamedTuple):
    """Arguments that fit: all maps, and of the others one entry a pair.

    ``uniform``: all tensors have one device and one kind of dtype, and maps that no pair uses fit beside the others.
    """

    sources: Sequence[Tensor]
    targets: Sequence[Tensor]
    pairs: Sequence[tuple[int, int]]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    channel_weights: Sequence[Tensor] | None
    pair_weights: Sequence[Tensor] | None
    betas: list[float]
    uniform: bool


def _checked_at_once(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    projections: Sequence[Projection],
    pairs: Sequence[tuple[int, int]],
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
    beta: float | Sequence[float],
) -> _Arguments | None:
    """The arguments, if one look of the native code at all of them finds nothing to ask further about.

    Else None: the checks one by one find out what is wrong, and take what is only unusual.
    """
    if _checked is None or torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack():
        return None
    found = _checked(sources, targets, projections, pairs, channel_weights, pair_weights)
    if found is None:
        return None
    weights, biases = found
    betas = _checked_betas(beta, len(pairs))
    pairs = list(map(tuple, pairs))
    return _Arguments(sources, targets, pairs, weights, biases, channel_weights, pair_weights, betas, uniform=True)


def _checked_one_by_one(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    projections: Sequence[Projection],
    pairs: Sequence[tuple[int, int]],
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
    beta: float | Sequence[float],
) -> _Arguments:
    """The arguments, or an error that names what does not fit."""
    sources, targets, pairs = checked_maps(sources, targets, pairs)
    weights, biases = _checked_projections(projections, pairs, sources, targets)
    batch = _checked_batch(pairs, sources, targets)
    betas = _checked_betas(beta, len(pairs))
    channel_weights = _checked_channel_weights(channel_weights, pairs, sources, batch)
    pair_weights = _checked_pair_weights(pair_weights, pairs, batch)
    _check_devices_and_dtypes(pairs, sources, targets, weights, biases, channel_weights, pair_weights)
    return _Arguments(sources, targets, pairs, weights, biases, channel_weights, pair_weights, betas, uniform=False)


def _coefficients(arguments: _Arguments, sources: Sequence[Tensor], targets: Sequence[Tensor], backend: str) -> Tensor:
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
            and (feature.dtype == torch.float64 or feature.dtype in _SINGLE)
        )
    ]
    if len(kept) == len(features):
        return features, pairs
    place = {old: new for new, old in enumerate(kept)}
    renamed = [(place[m], n) if side == 0 else (m, place[n]) for m, n in pairs]
    return [features[i] for i in kept], renamed


def pair_name(p: int, pairs: Sequence[tuple[int, int]]) -> str:
    return f"pair {p} (source {pairs[p][0]}, target {pairs[p][1]})"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def shown(value: object) -> str:
    """A wrong value for a message: of a tensor its shape, of anything else what is not too long of its repr."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)


def checked_pairs(pairs: Sequence[tuple[int, int]], *sides: tuple[str, int, str]) -> list[tuple[int, int]]:
    """The pairs as plain integers, each index in range.

    Args:
        pairs: per pair (source index, target index).
        sides: for the source, and the target if it is known: its name, how many maps it has, and the words that say so.

    Raises:
        ValueError: no pair, or an index out of range.
        TypeError: what has no order, or an entry that is not two integers.
    """
    checked = []
    if not isinstance(pairs, Iterable) or isinstance(pairs, (str, *UNORDERED)):
        found = f"the text {pairs!r}" if isinstance(pairs, str) else type(pairs).__name__
        raise TypeError(f"pairs must be a list of (source index, target index), not {found}")
    for p, pair in enumerate(pairs):
        try:
            if isinstance(pair, UNORDERED):
                raise TypeError
            m, n = pair
            m, n = operator.index(m), operator.index(n)
        except (TypeError, ValueError):
            raise TypeError(
                f"pairs[{p}] must be two integers (source index, target index), not {shown(pair)}"
            ) from None
        for (side, count, holds), index in zip(sides, (m, n), strict=False):
            if not 0 <= index < count:
                raise ValueError(f"pairs[{p}] = ({m}, {n}): {side} index {index} is out of range, {holds}")
        checked.append((m, n))
    if not checked:
        raise ValueError("pairs is empty, give at least one (source index, target index)")
    return checked


def checked_maps(
    sources: Collection[Tensor], targets: Collection[Tensor], pairs: Sequence[tuple[int, int]]
) -> tuple[Sequence[Tensor], Sequence[Tensor], list[tuple[int, int]]]:
    """Both sides' feature maps (B, C, H, W), and the pairs, each of which has its maps.

    Raises:
        ValueError: a map of another shape, no pair, or a pair whose index is out of range.
        TypeError: no list, a map that is no tensor, or a pair that is not two integers.
    """
    sources, targets = listed_features("source_features", sources), listed_features("target_features", targets)
    pairs = checked_pairs(pairs, features_side("source", len(sources)), features_side("target", len(targets)))
    for side, (name, features) in enumerate((("source_features", sources), ("target_features", targets))):
        first_pair = {pair[side]: pair_name(p, pairs) + ": " for p, pair in reversed(list(enumerate(pairs)))}
        for i, feature in enumerate(features):
            _check_map(f"{first_pair.get(i, '')}{name}[{i}]", feature)
    return sources, targets, pairs


def features_side(side: str, count: int) -> tuple[str, int, str]:
    return side, count, f"{side}_features holds {count} feature map{'' if count == 1 else 's'}"


def listed_features(name: str, features: Collection[Tensor]) -> Sequence[Tensor]:
    """The features, made into a list where they have an order but no index, like a dictionary's values.

    Raises:
        TypeError: no collection, or one that has no order or would give its keys.
    """
    if isinstance(features, (list, tuple)):
        return features
    if not has_order(features):
        raise TypeError(f"{name} must be a list of tensors (B, C, H, W), not {type(features).__name__}")
    return features if hasattr(features, "__getitem__") else list(features)


def has_order(values: object) -> bool:
    """Whether it holds a known number of things, one after the other: no number, set, dictionary or iterator."""
    if isinstance(values, UNORDERED):
        return False
    try:
        len(values)
    except (TypeError, RuntimeError):  # a nested tensor's is a RuntimeError
        return False
    return True


def check_tensor(name: str, value: object, wanted: str) -> None:
    """Raise TypeError where it is no tensor, or a nested one, which fails when it is asked for its shape."""
    if not isinstance(value, Tensor) or value.is_nested:
        given = "a nested one" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be {wanted}, not {given}")


def checked_number(name: str, value: float) -> float:
    """A number as a float.

    Raises:
        ValueError: it is too large for one.
        TypeError: it is none; text, which ``float()`` reads, is none.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float, use a number below 1.8e308") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None


def _check_map(name: str, feature: Tensor) -> None:
    check_tensor(name, feature, "a tensor (B, C, H, W)")
    if feature.dim() != 4:
        raise ValueError(f"{name} has shape {_shape(feature)}, but a feature map is (B, C, H, W)")
    if 0 in feature.shape[1:]:
        raise ValueError(f"{name} has shape {_shape(feature)}: it has no channels or no pixels")


def _channel_weights(at: str = "") -> str:
    """What the argument, or an entry of it, is called here and by the module that calls this."""
    return f"channel_weights{at} (weight{at} of FeatureMatching)"


def _pair_weights(at: str = "") -> str:
    return f"pair_weights{at} (loss_weight{at} of FeatureMatching)"


def _check_length(name: str, values: Sequence[object], pairs: Sequence[tuple[int, int]]) -> None:
    if not has_order(values):
        raise TypeError(f"{name} must be a list with one entry a pair, not {type(values).__name__}")
    if len(values) != len(pairs):
        raise ValueError(f"{name} has {len(values)} entries for {len(pairs)} pairs, give one a pair")


def _checked_projections(
    projections: Sequence[Projection],
    pairs: list[tuple[int, int]],
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor | None]]:
    _check_length("projections", projections, pairs)
    weights, biases = [], []
    for p, ((m, n), projection) in enumerate(zip(pairs, projections, strict=True)):
        # A tensor with two rows would unpack, so the type is asked first.
        if not isinstance(projection, (tuple, list)) or len(projection) != 2:
            entries = f" of {len(projection)}" if isinstance(projection, (tuple, list)) else ""
            raise TypeError(
                f"projections[{p}] must be (weight, bias or None), not {type(projection).__name__}{entries}"
            )
        weight, bias = projection
        check_tensor(f"projections[{p}]: the weight", weight, "a tensor")
        if bias is not None:
            check_tensor(f"projections[{p}]: the bias", bias, "a tensor or None")
        wanted = (sources[m].shape[1], targets[n].shape[1])
        if tuple(weight.shape) not in (wanted, (*wanted, 1, 1)):
            raise ValueError(
                f"{pair_name(p, pairs)}: the projection's weight has shape {_shape(weight)}, but source "
                f"{_shape(sources[m])} and target {_shape(targets[n])} need {wanted} or {(*wanted, 1, 1)}"
            )
        if bias is not None and tuple(bias.shape) != wanted[:1]:
            raise ValueError(
                f"{pair_name(p, pairs)}: the projection's bias has shape {_shape(bias)}, "
                f"but source {_shape(sources[m])} needs {wanted[:1]}"
            )
        weights.append(weight)
        biases.append(bias)
    return weights, biases


def _checked_batch(pairs: list[tuple[int, int]], sources: Sequence[Tensor], targets: Sequence[Tensor]) -> int:
    batch = targets[pairs[0][1]].shape[0]
    for p, (m, n) in enumerate(pairs):
        if sources[m].shape[0] != batch or targets[n].shape[0] != batch:
            raise ValueError(
                f"{pair_name(p, pairs)}: source {_shape(sources[m])} and target {_shape(targets[n])} "
                f"must both have the batch size {batch} of the first pair"
            )
    return batch


def _checked_betas(beta: float | Sequence[float], count: int) -> list[float]:
    given = beta if isinstance(beta, (list, tuple)) else [beta]
    for tensor in [b for b in given if type(b) is not float and isinstance(b, Tensor)]:
        if tensor.requires_grad:
            raise TypeError(
                f"beta must be a number, or one for each pair, not {shown(tensor)} that requires grad: {_BY_NAME}"
            )
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type == "meta":
            raise TypeError(f"beta must be a number or one number a pair, not {tensor!r}")
        if tensor.dim() > 1 and tensor.numel() != 1:
            raise TypeError(f"beta must be a number or one number a pair, not {shown(tensor)}: {_BY_NAME}")
    if not isinstance(beta, Real) and hasattr(beta, "tolist"):  # a tensor or an array, of one number too
        beta = beta.tolist()
    if isinstance(beta, Real):
        return [checked_number("beta", beta)] * count
    if not isinstance(beta, Iterable) or isinstance(beta, (str, bytes, *UNORDERED)):
        raise TypeError(f"beta must be a number or one number a pair, not {beta!r}")
    betas = [b if type(b) is float else checked_number(f"beta[{p}]", b) for p, b in enumerate(beta)]
    if len(betas) != count:
        raise ValueError(f"beta has {len(betas)} entries for {count} pairs, give one number, or one a pair")
    return betas


def _checked_channel_weights(
    weights: Sequence[Tensor] | None, pairs: list[tuple[int, int]], sources: Sequence[Tensor], batch: int
) -> Sequence[Tensor] | None:
    if weights is None:
        return None
    _check_length(_channel_weights(), weights, pairs)
    for p, weight in enumerate(weights):
        check_tensor(_channel_weights(f"[{p}]"), weight, "a tensor (B, C_m)")
        wanted = (batch, sources[pairs[p][0]].shape[1])
        if tuple(weight.shape) != wanted:
            raise ValueError(
                f"{pair_name(p, pairs)}: channel weights have shape {_shape(weight)}, "
                f"but source {_shape(sources[pairs[p][0]])} needs {wanted}"
            )
    return list(weights)


def _checked_pair_weights(
    weights: Sequence[Tensor] | None, pairs: list[tuple[int, int]], batch: int
) -> Sequence[Tensor] | None:
    if weights is None:
        return None
    _check_length(_pair_weights(), weights, pairs)
    for p, weight in enumerate(weights):
        check_tensor(_pair_weights(f"[{p}]"), weight, "a tensor (B,), (B, 1) or (1, 1)")
        if tuple(weight.shape) not in ((batch,), (batch, 1), (1, 1)):
            raise ValueError(
                f"{pair_name(p, pairs)}: the pair weight has shape {_shape(weight)}, "
                f"but a batch of {batch} needs ({batch},), ({batch}, 1) or (1, 1)"
            )
    return list(weights)


def _check_devices_and_dtypes(
    pairs: list[tuple[int, int]],
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
) -> None:
    first = sources[pairs[0][0]]
    tensors = [*(sources[m] for m, _ in pairs), *(targets[n] for _, n in pairs), *weights]
    tensors += [*(bias for bias in biases if bias is not None), *(channel_weights or ()), *(pair_weights or ())]
    dtypes = {tensor.dtype for tensor in tensors}
    if (dtypes == {torch.float64} or dtypes <= set(_SINGLE)) and all(
        tensor.layout == torch.strided and tensor.device == first.device for tensor in tensors
    ):
        return
    for p, (m, n) in enumerate(pairs):
        named = {
            "source feature": sources[m],
            "target feature": targets[n],
            "projection weight": weights[p],
            "projection bias": biases[p],
            "channel weight": channel_weights[p] if channel_weights is not None else None,
            "pair weight": pair_weights[p] if pair_weights is not None else None,
        }
        for name, tensor in named.items():
            if tensor is None:
                continue
            if tensor.layout != torch.strided:
                raise TypeError(f"{pair_name(p, pairs)}: the {name} is {tensor.layout}, use a dense tensor")
            if tensor.dtype != torch.float64 and tensor.dtype not in _SINGLE:
                raise TypeError(
                    f"{pair_name(p, pairs)}: the {name} is {tensor.dtype}, use float32, bfloat16, float16 or float64"
                )
            if (tensor.dtype == torch.float64) != (first.dtype == torch.float64):
                raise TypeError(
                    f"{pair_name(p, pairs)}: the {name} is {tensor.dtype}, but source feature {pairs[0][0]} is "
                    f"{first.dtype}; float64 does not mix with other dtypes"
                )
            if tensor.device != first.device:
                raise ValueError(
                    f"{pair_name(p, pairs)}: the {name} is on {tensor.device}, but source feature {pairs[0][0]} is on "
                    f"{first.device}; put all tensors on one device"
                )
