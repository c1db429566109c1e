"""Named feature maps of any network, torchvision's among them, by forward hooks on its modules."""

import copy
import copyreg
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model

from l2t_fast.errors import L2TFastError, one_sentence, out_of_memory
from l2t_fast.models.named_maps import check_layers, input_normalisation

TORCHVISION_PREFIX = "torchvision:"
PROBE_SIZE = 224  # pixels; the input size for which torchvision's networks are made
MOST_DEFAULT_MAPS = 5

# Turns a module's output into a map (B, C, H, W), or None if it is none.
ToMap = Callable[[nn.Module, object], Tensor | None]


@dataclass
class Probed:
    """What one forward pass showed of a module's output."""

    shape: torch.Size  # of the map (1, C, H, W)
    changed_later: bool  # a later module writes into it


class _HookedMaps:
    """Mixed into the class of a network: ``forward(x)`` gives ``(logits, maps)`` instead of logits.

    Hooks live for one forward pass only, so that the network can be deep-copied and its parameters be replaced
    (``torch.func.functional_call``) like those of any other. A module that runs several times gives its last output.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: dict[str, Tensor] = {}
        compiling = torch.compiler.is_compiling()
        thread = None if compiling else threading.get_ident()

        def keep(name: str) -> Callable[[nn.Module, tuple, object], None]:
            def hook(module: nn.Module, inputs: tuple, output: object) -> None:
                if not compiling and threading.get_ident() != thread:  # of the same network, run elsewhere meanwhile
                    return
                feature_map = self._to_map(module, output)
                if feature_map is not None:
                    maps[name] = feature_map.clone() if name in self._changed_later else feature_map

            return hook

        handles = [self.get_submodule(name).register_forward_hook(keep(name)) for name in self.feature_names]
        try:
            logits = super().forward(x)
        finally:
            for handle in handles:
                handle.remove()
        for name in self.feature_names:
            if name not in maps:
                raise L2TFastError(
                    f"the layer {name!r} gave no feature map for images {tuple(x.shape)}: choose one that runs in "
                    "training as in evaluation, whatever the images' size, in the thread that calls the network"
                )
        return logits, [maps[name] for name in self.feature_names]

    def __reduce_ex__(self, protocol: int) -> tuple:
        """The class is made as it is needed, and found by no name: pickle takes the one that it was made of."""
        make, arguments, *rest = super().__reduce_ex__(protocol)
        _, base, plain, *_ = type(self).__mro__
        if base is not _HookedMaps or make not in (copyreg.__newobj__, copyreg._reconstructor):
            # Its class was derived again, or the network says itself how it is made.
            return make, arguments, *rest
        of_new = arguments[1:] if make is copyreg.__newobj__ else ()
        return _unpickled, (plain, *of_new), *rest


def with_feature_maps(
    network: nn.Module,
    layers: Sequence[str],
    *,
    name: str | None = None,
    in_channels: int = 3,
    image_size: int = PROBE_SIZE,
    to_map: ToMap | None = None,
) -> nn.Module:
    """Make ``network``, in place, return named feature maps beside its logits, and return it.

    ``layers`` are module names (``network.named_modules()``) whose outputs are maps (B, C, H, W), or become such by
    ``to_map(module, output)``, which is asked of every module and says None where there is no map. The network then
    follows the contract of ``NamedMapsNetwork``: ``forward(x) -> (logits, maps)``, ``feature_names``,
    ``feature_channels``. Parameter names stay as they are, modules that work in place are set to work out of place, and
    SiLU and Hardsigmoid are written out, since PyTorch lacks derivatives of their backward. Maps that the network's own
    code overwrites afterwards, in evaluation or in training, are copied first. Forward passes on zeros of
    ``image_size`` find that and the channels, in evaluation and, of a copy, in training. The layers must run in the
    thread that calls the network.

    Called again, it chooses other maps. Raises ``L2TFastError`` if a layer does not exist or gives no map, the network
    or ``to_map`` fails on the zeros, or the network cannot be given maps: it has an attribute of those names already,
    or a ``forward`` of its own beside its class's (``torch.compile`` sets one: compile afterwards).
    """
    name = name or type(network).__name__
    _check_free(name, network)
    to_map = to_map or getattr(network, "_to_map", plain_map)
    _make_differentiable(network)
    try:
        probed = probe(network, in_channels, image_size, to_map)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise L2TFastError(
            f"{name} fails on zeros (1, {in_channels}, {image_size}, {image_size}), or its to_map does: "
            f"{one_sentence(error)}; in_channels and image_size must be those of its images"
        ) from error
    check_layers(name, layers, list(probed), dict(network.named_modules()))
    network.feature_names = list(layers)
    network.feature_channels = [probed[layer].shape[1] for layer in layers]
    if not hasattr(network, "input_mean"):
        network.input_mean, network.input_std = input_normalisation(in_channels)
    network._to_map = to_map
    in_training = _changed_in_training(network, in_channels, image_size, to_map)
    network._changed_later = frozenset(n for n in layers if probed[n].changed_later or n in in_training)
    plain = type(network)
    if not issubclass(plain, _HookedMaps):
        network.__class__ = _hooked_class(plain)
    return network


@functools.cache
def _hooked_class(plain: type[nn.Module]) -> type[nn.Module]:
    return type(plain.__name__, (_HookedMaps, plain), {"__module__": plain.__module__})


def _unpickled(plain: type[nn.Module], *arguments: object) -> nn.Module:
    """An empty network of a class with feature maps, whose attributes pickle sets."""
    hooked = _hooked_class(plain)
    return hooked.__new__(hooked, *arguments)


def _check_free(name: str, network: nn.Module) -> None:
    if isinstance(network, _HookedMaps):
        return
    for attribute in ("feature_names", "feature_channels", "_to_map", "_changed_later"):
        if hasattr(network, attribute):
            raise L2TFastError(
                f"{name} has an attribute {attribute!r} already, which its feature maps need: rename it, or choose the "
                "maps of a NamedMapsNetwork when it is built"
            )
    if "forward" in vars(network):
        raise L2TFastError(
            f"{name} has a forward of its own beside its class's, as torch.compile sets one: give it feature maps first"
        )


class _SiLU(nn.Module):
    """``nn.SiLU`` of operations that have every derivative: its own backward has none in forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class _Hardsigmoid(nn.Module):
    """``nn.Hardsigmoid`` of operations that have every derivative: its own backward has none."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def _make_differentiable(network: nn.Module) -> None:
    written_out = {nn.SiLU: _SiLU, nn.Hardsigmoid: _Hardsigmoid}
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if getattr(child, "inplace", False):
                child.inplace = False
            if type(child) in written_out:
                parent.add_module(name, written_out[type(child)]())


def build_torchvision(
    model_name: str, num_classes: int, in_channels: int = 3, layers: Sequence[str] | None = None
) -> nn.Module:
    """Build ``torchvision:NAME`` without weights; ``layers=None`` takes those of ``default_layers``."""
    network = _plain_torchvision(model_name, num_classes, in_channels)
    to_map = _family_to_map(model_name)
    if layers is None:
        layers = default_layers(model_name, network, probe(network, in_channels, PROBE_SIZE, to_map))
    return with_feature_maps(network, layers, name=model_name, in_channels=in_channels, to_map=to_map)


def torchvision_names() -> list[str]:
    """``torchvision:NAME`` of every classification network of the installed torchvision."""
    return [TORCHVISION_PREFIX + name for name in torchvision.models.list_models(module=torchvision.models)]


def torchvision_layer_names(model_name: str) -> list[str]:
    """The modules of a torchvision network whose outputs are feature maps, in the order in which they finish."""
    return list(probe(_plain_torchvision(model_name, 2, 3), 3, PROBE_SIZE, _family_to_map(model_name)))


def _plain_torchvision(model_name: str, num_classes: int, in_channels: int) -> nn.Module:
    name = model_name.removeprefix(TORCHVISION_PREFIX)
    options = {}
    if name in ("googlenet", "inception_v3"):
        # No auxiliary classifiers: their training mode returns more than logits. transform_input undoes the ImageNet
        # normalisation, which the published weights of these two were not trained with.
        options = {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    network = get_model(name, weights=None, num_classes=num_classes, **options)
    network.ignored_checkpoint_prefixes = ("AuxLogits.", "aux1.", "aux2.")
    if in_channels != 3:
        _replace_first_convolution(network, in_channels)
    return network


def _replace_first_convolution(network: nn.Module, in_channels: int) -> None:
    path, old = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def plain_map(module: nn.Module, output: object) -> Tensor | None:
    """A module's output where it is a map (B, C, H, W) as it stands."""
    return output if isinstance(output, Tensor) and output.ndim == 4 else None


def _channels_last_map(module: nn.Module, output: object) -> Tensor | None:
    """Swin: (B, H, W, C) -> (B, C, H, W), but for its first convolution and what follows its last block."""
    if plain_map(module, output) is None:
        return None
    channels_first = isinstance(module, nn.Conv2d | nn.AdaptiveAvgPool2d) or getattr(module, "dims", None) == [
        0,
        3,
        1,
        2,
    ]
    return output if channels_first else output.permute(0, 3, 1, 2)


def _token_map(module: nn.Module, output: object) -> Tensor | None:
    """ViT: (B, 1 + H W, C) with the class token in front, H = W -> (B, C, H, W)."""
    if not isinstance(output, Tensor) or output.ndim != 3:
        return None
    side = math.isqrt(output.shape[1] - 1)
    if side * side != output.shape[1] - 1:
        return None
    return output[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _family_to_map(model_name: str) -> ToMap:
    name = model_name.removeprefix(TORCHVISION_PREFIX)
    if name.startswith("swin"):
        return _channels_last_map
    if name.startswith("vit"):
        return _token_map
    return plain_map


def probe(network: nn.Module, in_channels: int, image_size: int, to_map: ToMap) -> dict[str, Probed]:
    """Run ``network`` in evaluation and say which modules give maps, in the order in which they finish."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        return _probe(network, 1, in_channels, image_size, to_map)
    finally:
        for module, training in modes:
            module.training = training


def _changed_in_training(network: nn.Module, in_channels: int, image_size: int, to_map: ToMap) -> set[str]:
    """The modules into whose maps a later one writes in training; none where a copy cannot be trained on zeros."""
    gpus = {tensor.device for tensor in _tensors(network) if tensor.device.type == "cuda"}
    try:
        copied = copy.deepcopy(network).train()  # what training changes in it stays there
        with torch.random.fork_rng(gpus):
            found = _probe(copied, 2, in_channels, image_size, to_map)  # batch normalisation may need two images
    except Exception as error:
        if out_of_memory(error):
            raise
        return set()
    return {name for name, probed in found.items() if probed.changed_later}


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(network.parameters(), network.buffers())


def _probe(network: nn.Module, images: int, in_channels: int, image_size: int, to_map: ToMap) -> dict[str, Probed]:
    """Run ``network`` on zeros."""
    seen: dict[str, tuple[Tensor, int]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            feature_map = to_map(module, output)
            if feature_map is not None and len(feature_map) == images:  # some networks cut images into a larger batch
                seen.pop(name, None)  # a module that runs again counts where it runs last
                seen[name] = (feature_map, feature_map._version)  # a view has the version of what it is one of

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name]
    try:
        like = next((tensor for tensor in _tensors(network) if tensor.is_floating_point()), torch.empty(0))
        with torch.no_grad():
            network(torch.zeros(images, in_channels, image_size, image_size, dtype=like.dtype, device=like.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: Probed(m.shape, m._version != version) for name, (m, version) in seen.items()}


def default_layers(model_name: str, network: nn.Module, probed: dict[str, Probed]) -> list[str]:
    """The last map of each stage; of a ViT, of each quarter of its blocks; else the last block of each resolution.

    "Block" is a module outside every other but plain containers; heads, pooling modules and single pixels do not count,
    and of many resolutions the five smallest are taken.
    """
    name = model_name.removeprefix(TORCHVISION_PREFIX)
    if "layer4" in probed:
        return ["layer1", "layer2", "layer3", "layer4"]
    if name.startswith(("swin", "convnext")):
        return ["features.1", "features.3", "features.5", "features.7"]
    if name.startswith("vit"):
        depth = len(network.encoder.layers)
        return [f"encoder.layers.encoder_layer_{depth * (i + 1) // 4 - 1}" for i in range(4)]
    blocks = {path for path, module in _blocks(network)}
    last_of: dict[tuple[int, int], str] = {}
    for path, found in probed.items():
        height, width = found.shape[2:]
        if path in blocks and height * width > 1:
            last_of[height, width] = path
    by_size = sorted(last_of, reverse=True)[-MOST_DEFAULT_MAPS:]
    return [last_of[size] for size in by_size]


def _blocks(network: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    blocks = []
    for name, module in network.named_children():
        path = prefix + name
        if type(module) in (nn.Sequential, nn.ModuleList):
            if name != "classifier":
                blocks += _blocks(module, path + ".")
        elif "Pool" not in type(module).__name__:
            blocks.append((path, module))
    return blocks
