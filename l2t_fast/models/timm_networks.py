"""timm's networks with named feature maps. timm is optional, and slow to import, so it is imported when asked for."""

import difflib
import functools
import math
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor, nn

from l2t_fast.errors import L2TFastError
from l2t_fast.models.hooked import (
    MOST_DEFAULT_MAPS,
    PROBE_SIZE,
    ToMap,
    default_layers,
    plain_map,
    probe,
    with_feature_maps,
)
from l2t_fast.models.optional import optional_module

TIMM_PREFIX = "timm:"
#: Modules of transformers that come ahead of the first block, or are no part of the way through.
_BEFORE_BLOCKS = ("patch_embed", "pos_drop", "pos_embed", "norm_pre", "crpe")


def timm_package(model_name: str) -> ModuleType:
    """timm, or an ``L2TFastError`` that says how to install it."""
    return optional_module("timm", model_name, "timm")


def check_timm_name(model_name: str) -> None:
    """``L2TFastError`` if timm has no such network; the tag behind the dot is not looked at."""
    known = timm_package(model_name).list_models()
    name = model_name.removeprefix(TIMM_PREFIX).split(".")[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"the closest names are {', '.join(TIMM_PREFIX + n for n in near)}" if near else "see timm.list_models()"
        raise L2TFastError(f"there is no network {model_name!r}: {hint}")


def build_timm(
    model_name: str, num_classes: int, in_channels: int = 3, layers: Sequence[str] | None = None
) -> nn.Module:
    """Build ``timm:NAME`` with fresh weights; ``layers=None`` takes the last map of each stage."""
    network = _plain_timm(model_name, num_classes, in_channels)
    said = network.pretrained_cfg
    if in_channels == 3:
        network.input_mean, network.input_std = tuple(said["mean"]), tuple(said["std"])
    classifier = said.get("classifier") or ()
    network.classifier_prefixes = tuple(f"{n}." for n in ([classifier] if isinstance(classifier, str) else classifier))
    size, to_map = _probe_size(network), _family_to_map(network)
    if layers is None:
        layers = _default_layers(model_name, network, in_channels, size, to_map)
    return with_feature_maps(network, layers, name=model_name, in_channels=in_channels, image_size=size, to_map=to_map)


def timm_layer_names(model_name: str) -> list[str]:
    """The modules of a timm network whose outputs are feature maps, in the order in which they finish."""
    network = _plain_timm(model_name, 2, 3)
    return list(probe(network, 3, _probe_size(network), _family_to_map(network)))


def _plain_timm(model_name: str, num_classes: int, in_channels: int) -> nn.Module:
    timm = timm_package(model_name)
    name = model_name.removeprefix(TIMM_PREFIX)
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    except RuntimeError as error:  # an unknown tag behind the dot
        raise L2TFastError(f"there is no network {model_name!r}: {error}") from error


def _probe_size(network: nn.Module) -> int:
    """The size of its input, which some networks insist on."""
    return network.pretrained_cfg.get("input_size", (3, PROBE_SIZE, PROBE_SIZE))[-1]


def _family_to_map(network: nn.Module) -> ToMap:
    """(B, C, H, W) of what the network's modules give: as it is, from channels last, or from tokens behind prefixes."""
    family = type(network).__name__
    if family == "Hiera":  # tokens of its blocks are in the order of windows, not of pixels
        return plain_map
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC" or family == "VOLO"
    return functools.partial(_to_map, channels_last, getattr(network, "num_prefix_tokens", 0))


def _to_map(channels_last: bool, prefixes: int, module: nn.Module, output: object) -> Tensor | None:
    if isinstance(output, tuple) and output:  # a block's, which hands on the size of its map or a class token too
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4:
        turned = channels_last and not isinstance(module, nn.Conv2d)
        return output.permute(0, 3, 1, 2) if turned else output
    if output.ndim != 3:
        return None
    for before in (prefixes, 0):  # some networks put their class token in front of the last blocks only
        pixels = output.shape[1] - before
        side = math.isqrt(max(pixels, 0))
        if side and side * side == pixels:
            return output[:, before:].transpose(1, 2).unflatten(2, (side, side))
    return None


def _default_layers(
    model_name: str, network: nn.Module, in_channels: int, image_size: int, to_map: ToMap
) -> Sequence[str]:
    """Stages as timm lists them, of blocks that all have one resolution each quarter; else as for torchvision."""
    probed = probe(network, in_channels, image_size, to_map)
    listed = list(getattr(network, "feature_info", None) or [])
    stages = [str(stage["module"]) for stage in listed]
    # "layer4": a ResNet, whose stem timm lists too and torchvision does not.
    if "layer4" in probed or not stages or any(stage not in probed for stage in stages):
        blocks = {name: found for name, found in probed.items() if not name.startswith(_BEFORE_BLOCKS)}
        if found := default_layers(model_name, network, blocks):
            return found
        raise L2TFastError(f"{model_name} shows no maps of its blocks that could be chosen for it: name layers")
    if len({stage["reduction"] for stage in listed}) == 1:
        return [stages[len(stages) * (i + 1) // 4 - 1] for i in range(4)] if len(stages) >= 4 else stages
    return stages[-MOST_DEFAULT_MAPS:]
