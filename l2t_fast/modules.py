"""The paper's three learned parts as modules: projections, channel weights ("what") and pair weights ("where").

``FeatureMatching``, ``WeightNetwork`` and ``LossWeightNetwork`` keep the ``state_dict`` keys, the call and the outputs
of the classes of the same names in the L2T-ww authors' code, so that their checkpoints load and their loop runs. They
are made from numbers of channels, where those take names of networks that they know.
"""

import copy
import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast.arguments import Projection
from l2t_fast.autocast import autocast_off
from l2t_fast.checks import (
    check_tensor,
    checked_maps,
    checked_number,
    checked_pairs,
    has_order,
    listed_features,
    pair_name,
    shown,
)
from l2t_fast.functional import feature_matching_loss
from l2t_fast.ops import check_backend_name

Pairs = Sequence[tuple[int, int]]


class _PairLayers(nn.ModuleList):
    """One layer a pair, and the pairs. A slice is the same module over some of the pairs, with the same layers."""

    pairs: list[tuple[int, int]]

    def __getitem__(self, index: int | slice) -> nn.Module:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        chosen = range(len(self.pairs))[index]
        if not chosen:
            raise ValueError(f"no pair is in {index}, there are {len(self.pairs)}")
        return _some_pairs(self, chosen, range(max(m for m, _ in self.pairs) + 1))


class FeatureMatching(_PairLayers):
    """One 1x1 convolution with bias a pair, and the matching loss over all pairs.

    The convolutions lend their weights and are not called. Their forward-pre-hooks run, since those of pruning and of
    the older weight and spectral norms make the weights; their forward hooks do not. ``matching[p] = layer`` puts
    another 1x1 convolution, or a linear layer, there.

    Args:
        source_channels: C_m of every source map, by its index.
        target_channels: C_n of every target map, by its index.
        pairs: per pair (source index, target index).
        backend: as in :func:`l2t_fast.feature_matching_loss`.

    Raises:
        ValueError: a pair whose index has no channel count or one below 1, or an unknown backend.
        TypeError: a pair that is not two integers, or a channel count that is no integer.
    """

    def __init__(
        self, source_channels: Sequence[int], target_channels: Sequence[int], pairs: Pairs, *, backend: str = "auto"
    ) -> None:
        check_backend_name(backend)
        pairs = _checked_pairs(pairs, source=source_channels, target=target_channels)
        super().__init__(nn.Conv2d(target_channels[n], source_channels[m], 1) for m, n in pairs)
        self.pairs = pairs
        self.backend = backend

    def __setitem__(self, index: int, projection: nn.Module) -> None:
        # One that computes something else than its weights say would be taken for what it is not, without a word.
        if not _is_projection(projection):
            raise TypeError(
                f"projection {index} must be a torch.nn.Conv2d, 1x1 without stride or padding, or a torch.nn.Linear, "
                f"since its weights are used and it is not called; a {type(projection).__name__} may do more"
            )
        super().__setitem__(index, projection)

    def forward(
        self,
        source_features: Sequence[Tensor],
        target_features: Sequence[Tensor],
        weight: Sequence[Tensor] | None = None,
        beta: float | Sequence[float] = 1.0,
        loss_weight: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The scalar loss. Shapes, dtypes and errors are those of :func:`l2t_fast.feature_matching_loss`.

        The four cases are the authors': with ``weight`` the channels are summed under it; with neither ``weight`` nor
        ``loss_weight`` they are averaged; with ``loss_weight`` alone they are **summed**, each with weight 1.
        """
        for projection in self:
            if projection._forward_pre_hooks:
                source_features, target_features, _ = checked_maps(source_features, target_features, self.pairs)
                self._run_pre_hooks(target_features)
                break
        if weight is None and loss_weight is not None:
            source_features, target_features, _ = checked_maps(source_features, target_features, self.pairs)
            weight = self._ones(source_features)
        return feature_matching_loss(
            source_features,
            target_features,
            [_weight_and_bias(projection) for projection in self],
            self.pairs,
            weight,
            loss_weight,
            beta,
            backend=self.backend,
        )

    def _run_pre_hooks(self, target_features: Sequence[Tensor]) -> None:
        """Run the projections' forward-pre-hooks, each given its pair's target map."""
        for p, (projection, (_, n)) in enumerate(zip(self, self.pairs, strict=True)):
            given = (target_features[n],)
            for key, hook in list(projection._forward_pre_hooks.items()):
                with_kwargs = key in projection._forward_pre_hooks_with_kwargs
                returned = hook(projection, given, {}) if with_kwargs else hook(projection, given)
                if returned is not None:
                    raise TypeError(
                        f"a forward-pre-hook of projection {p} must return None, not {type(returned).__name__}: "
                        "a projection is not called, so its input cannot be replaced"
                    )

    def _ones(self, source_features: Sequence[Tensor]) -> list[Tensor]:
        """Weight 1 for every channel, the same tensor for all pairs of a source map."""
        ones: dict[int, Tensor] = {}
        for (m, _), projection in zip(self.pairs, self, strict=True):
            if m not in ones:
                ones[m] = source_features[m].new_ones(source_features[m].shape[:2], dtype=projection.weight.dtype)
        return [ones[m] for m, _ in self.pairs]

    def some_pairs(self, chosen: Sequence[int], source_maps: Sequence[int]) -> "FeatureMatching":
        """The loss over some of the pairs, with the same projections.

        Args:
            chosen: indices of the pairs, at least one.
            source_maps: indices of the source maps that it is going to be called with, in their order.
        """
        return _some_pairs(self, chosen, source_maps)


def _is_projection(module: nn.Module) -> bool:
    """Whether its weight and bias are all that it does to a map."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    plain = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
    return (
        plain
        and (*module.kernel_size, *module.stride) == (1, 1, 1, 1)
        and module.padding in (0, (0, 0), "same", "valid")
    )


def _weight_and_bias(projection: nn.Module) -> Projection:
    """The attributes, looked for first where they mostly are: ``getattr`` comes there last, by an exception."""
    own = projection._parameters
    weight, bias = own.get("weight"), own.get("bias")
    return projection.weight if weight is None else weight, projection.bias if bias is None else bias


class WeightNetwork(_PairLayers):
    """*What* to transfer: w = softmax(f(GAP(S^m))), one linear layer C_m -> C_m a pair (paper, section 2).

    Weights and biases start at 0, so that every channel starts with weight 1 / C_m.
    """

    def __init__(self, source_channels: Sequence[int], pairs: Pairs) -> None:
        pairs = _checked_pairs(pairs, source=source_channels)
        super().__init__(nn.Linear(source_channels[m], source_channels[m]) for m, _ in pairs)
        for layer in self:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.pairs = pairs

    def forward(self, source_features: Sequence[Tensor]) -> list[Tensor]:
        """Per pair the channel weights (B, C_m), each row sums to 1; from ``source_features[m]`` (B, C_m, H_m, W_m)."""
        return [F.softmax(output, dim=1) for output in _per_pair(self, self.pairs, source_features)]


#: lambda = activation(g(GAP(S^m))); "relu6" is the paper's, the others are in the authors' code.
_PAIR_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "relu": F.relu,
    "relu-avg": F.relu,
    "elu": lambda x: F.elu(x) + 1,
    "sigmoid": lambda x: torch.sigmoid(2 * x),
    "tanh": lambda x: torch.tanh(x) + 1,
    "softplus": F.softplus,
}


class LossWeightNetwork(_PairLayers):
    """*Where* to transfer: lambda = ReLU6(g(GAP(S^m))), one linear layer C_m -> 1 a pair (paper, section 2).

    Args:
        source_channels: C_m of every source map, by its index.
        pairs: per pair (source index, target index).
        weight_type: the activation, one of "relu6" (the paper's), "relu", "relu-avg" (features divided by C_m first),
            "elu", "sigmoid", "tanh", "softplus"; or "const", one learned number a pair that sees no features. The
            authors' class has "relu" where none is named, and their script names one.
        init: what the biases start at; None leaves PyTorch's default, and is the authors'. "const" has none and starts
            at lambda = ln 2.
        even: the weights start at 0, and lambda with them at the activation of ``init``, alike for all pairs and
            images. Otherwise they are PyTorch's random ones, as the authors', and so is the order that pairs start in;
            a pair whose lambda is 0 for all images is one that ReLU6 lets nothing be learned of.

    Raises:
        ValueError: an unknown ``weight_type``, or a pair whose source has no channel count.
        TypeError: ``init`` is no number.
    """

    def __init__(
        self,
        source_channels: Sequence[int],
        pairs: Pairs,
        weight_type: str = "relu6",
        init: float | None = 1.0,
        *,
        even: bool = False,
    ) -> None:
        pairs = _checked_pairs(pairs, source=source_channels)
        known = ["const", *_PAIR_ACTIVATIONS]
        if weight_type not in known:
            raise ValueError(f"weight_type={weight_type!r} is not known, choose one of {', '.join(known)}")
        if init is not None:
            init = checked_number("init", init)
        super().__init__()
        self.pairs = pairs
        self.weight_type = weight_type
        if weight_type == "const":
            self.weights = nn.Parameter(torch.zeros(len(self.pairs)))
            return
        for m, _ in self.pairs:
            layer = nn.Linear(source_channels[m], 1)
            if init is not None:
                nn.init.constant_(layer.bias, init)
            if even:
                nn.init.zeros_(layer.weight)
            self.append(layer)

    def forward(self, source_features: Sequence[Tensor]) -> list[Tensor]:
        """Per pair lambda (B, 1), or (1, 1) for "const"; from ``source_features[m]`` (B, C_m, H_m, W_m)."""
        if self.weight_type == "const":
            return list(F.softplus(self.weights * 10).reshape(-1, 1, 1))
        activation = _PAIR_ACTIVATIONS[self.weight_type]
        divide = self.weight_type == "relu-avg"
        return [
            activation(output) for output in _per_pair(self, self.pairs, source_features, divide_by_channels=divide)
        ]


class MetaNetworks(nn.Module):
    """phi: the channel weight and the pair weight networks, as the hypergradient and the trainer want them.

    Args:
        source_channels: C_m of every source map, by its index.
        pairs: per pair (source index, target index).
        pair_weights: False learns *what* alone (the paper's L2T-w).
        weight_type, init, even: those of :class:`LossWeightNetwork`.
    """

    def __init__(
        self,
        source_channels: Sequence[int],
        pairs: Pairs,
        *,
        pair_weights: bool = True,
        weight_type: str = "relu6",
        init: float | None = 1.0,
        even: bool = False,
    ) -> None:
        super().__init__()
        self.weight_network = WeightNetwork(source_channels, pairs)
        self.loss_weight_network = (
            LossWeightNetwork(source_channels, self.weight_network.pairs, weight_type, init, even=even)
            if pair_weights
            else None
        )

    def forward(self, source_features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        """(channel weights, pair weights or None), each a list with one tensor a pair."""
        channel_weights = self.weight_network(source_features)
        if self.loss_weight_network is None:
            return channel_weights, None
        return channel_weights, self.loss_weight_network(source_features)

    def some_pairs(self, chosen: Sequence[int], source_maps: Sequence[int]) -> "MetaNetworks":
        """As :meth:`FeatureMatching.some_pairs`, with the same layers.

        Raises:
            ValueError: the pair weights are of the type "const", one parameter for all pairs.
        """
        pair_weights = self.loss_weight_network
        some = _shallow(self)
        some._modules = {
            "weight_network": _some_pairs(self.weight_network, chosen, source_maps),
            "loss_weight_network": None if pair_weights is None else _some_pairs(pair_weights, chosen, source_maps),
        }
        return some


def _shallow(module: nn.Module) -> nn.Module:
    """A copy with the same parameters, buffers, modules and hooks, to which others can be added without it."""
    other = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, (dict, set)):
            vars(other)[name] = copy.copy(value)
    return other


def _some_pairs(module: _PairLayers, chosen: Sequence[int], source_maps: Sequence[int]) -> _PairLayers:
    """A list with a layer a pair, cut down to some pairs: the same layers, and indices into ``source_maps``."""
    if len(module) < len(module.pairs):
        raise ValueError('pair weights of the type "const" are one parameter, which cannot be divided')
    places = {m: i for i, m in enumerate(source_maps)}
    some = _shallow(module)
    some._modules = {}
    some.extend(module[p] for p in chosen)
    some.pairs = [(places[module.pairs[p][0]], module.pairs[p][1]) for p in chosen]
    return some


def _per_pair(
    layers: nn.ModuleList,
    pairs: Pairs,
    source_features: Sequence[Tensor],
    *,
    divide_by_channels: bool = False,
) -> list[Tensor]:
    """Each pair's linear layer applied to its source map's channel means, in the layer's own precision.

    A map is averaged once, however many pairs name it; autocast is off since the weights steer second derivatives.
    """
    source_features = listed_features("source_features", source_features)
    if len(source_features) <= max(m for m, _ in pairs):
        raise ValueError(
            f"the pairs need source_features[{max(m for m, _ in pairs)}], but that list holds {len(source_features)}"
        )
    with autocast_off(layers[0].weight.device.type):
        means: dict[int, Tensor] = {}
        outputs = []
        for p, ((m, _), layer) in enumerate(zip(pairs, layers, strict=True)):
            if m not in means:
                source = _checked_map(source_features[m], p, pairs, layer.weight)
                means[m] = source.mean(dim=(2, 3), dtype=layer.weight.dtype)
            mean = means[m] / means[m].shape[1] if divide_by_channels else means[m]
            outputs.append(layer(mean))
        return outputs


def _checked_map(source: Tensor, p: int, pairs: Pairs, weight: Tensor) -> Tensor:
    """The source map of pair p, if the pair's layer, of this weight, can take its channel means."""
    m, channels = pairs[p][0], weight.shape[1]
    name, wanted = f"{pair_name(p, pairs)}: source_features[{m}]", f"(B, {channels}, H, W)"
    check_tensor(name, source, f"a tensor {wanted}")
    if source.dim() != 4 or source.shape[1] != channels:
        raise ValueError(f"{name} has shape {tuple(source.shape)}, but the layer takes {wanted}")
    if 0 in source.shape[2:]:
        raise ValueError(f"{name} has shape {tuple(source.shape)}: it has no pixels")
    if source.layout != torch.strided:
        raise TypeError(f"{name} is {source.layout}, use a dense tensor")
    if not source.is_floating_point():
        raise TypeError(f"{name} is {source.dtype}, use float32, bfloat16, float16 or float64")
    if source.device != weight.device:
        raise ValueError(f"{name} is on {source.device}, but the layer is on {weight.device}; put both on one device")
    return source


def _checked_pairs(pairs: Pairs, **channels: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs, whose source index, and target index when target channels are given, must have a channel count."""
    for side, counts in channels.items():
        if isinstance(counts, str):
            raise TypeError(
                f"{side}_channels must be a list of the {side} maps' numbers of channels, as [16, 32, 64], and not a "
                f"network's name as in the authors' code: {counts!r}"
            )
        if not has_order(counts):
            raise TypeError(f"{side}_channels must be a list of numbers of channels, not {type(counts).__name__}")
    sides = [(side, len(c), f"{side}_channels holds {len(c)} entries") for side, c in channels.items()]
    pairs = checked_pairs(pairs, *sides)
    for (side, counts), indices in zip(channels.items(), zip(*pairs, strict=True), strict=False):
        for index in sorted(set(indices)):
            _check_channels(f"{side}_channels[{index}]", counts[index])
    return pairs


def _check_channels(name: str, count: int) -> None:
    try:
        if isinstance(count, bool):  # an integer for Python, but no size for PyTorch
            raise TypeError
        fits = operator.index(count) > 0
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {shown(count)}") from None
    if not fits:
        raise ValueError(f"{name} must be at least 1, not {count}")
