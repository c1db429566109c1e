"""Networks by name."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from l2t_fast.errors import L2TFastError
from l2t_fast.models.efficientnet_lite import (
    EFFICIENTNET_LITE0,
    build_efficientnet_lite0,
    efficientnet_lite0_layer_names,
)
from l2t_fast.models.hooked import (
    TORCHVISION_PREFIX,
    build_torchvision,
    torchvision_layer_names,
    torchvision_names,
)
from l2t_fast.models.named_maps import NamedMapsNetwork, suggestion
from l2t_fast.models.resnet import CifarResNet, TinyImageNetResNet32
from l2t_fast.models.timm_networks import TIMM_PREFIX, build_timm, check_timm_name, timm_layer_names
from l2t_fast.models.vgg import VGG5_PLAN, VGG9_PLAN, VggBatchNorm
from l2t_fast.plugins import check_entry, register

# Each is called with (num_classes, in_channels, layers).
_OWN: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{6 * n + 2}": partial(CifarResNet, f"resnet{6 * n + 2}", n) for n in (1, 3, 5, 7, 9)},
    "l2tww_resnet32": partial(TinyImageNetResNet32, "l2tww_resnet32"),
    "vgg5bn": partial(VggBatchNorm, "vgg5bn", VGG5_PLAN),
    "vgg9bn": partial(VggBatchNorm, "vgg9bn", VGG9_PLAN),
}


def build_model(name: str, num_classes: int, *, in_channels: int = 3, layers: Sequence[str] | None = None) -> nn.Module:
    """Build a network with fresh weights whose ``forward(x)`` gives ``(logits, maps)`` (see ``NamedMapsNetwork``).

    ``name`` is one of ``list_models()``, or ``timm:NAME`` where timm is installed. ``layers`` names the maps to
    return, in that order; ``layer_names(name)`` lists them, None takes the network's default: the last of each stage,
    or the map before each max-pool. Initial weights come from PyTorch's global random state. A network of timm has no
    classifier with 0 classes, as it is published where nobody labelled its images: its logits are what would go in.

    Raises ``L2TFastError`` for an unknown network or layer, a missing package, or too small a number of classes or
    channels.
    """
    kind = network_kind(name)
    fewest = 0 if kind == "timm" else 1
    for what, value, least in (("classes", num_classes, fewest), ("input channels", in_channels, 1)):
        if value < least:
            raise L2TFastError(f"{name} cannot have {value} {what}: at least {least} is needed")
    if kind == "own":
        network = _OWN[name](num_classes, in_channels, layers)
        if not (isinstance(network, nn.Module) and hasattr(network, "feature_names")):
            raise L2TFastError(
                f"the network {name} is {type(network).__name__} without feature maps: its function must return a "
                "NamedMapsNetwork or with_feature_maps(network, layers)"
            )
        return network
    if kind == "efficientnet-lite":
        return build_efficientnet_lite0(num_classes, in_channels, layers)
    build = build_timm if kind == "timm" else build_torchvision
    return build(name, num_classes, in_channels, layers)


def register_network(name: str, build: Callable[..., nn.Module]) -> None:
    """From now on ``target.model`` and ``source.model`` can be ``name``: a network that ``build`` makes.

    ``build(num_classes, in_channels, layers)`` returns a network as ``NamedMapsNetwork`` describes it: an object of a
    class derived from it, or what ``with_feature_maps`` makes of any other. ``layers`` is None for maps of its choice.

    Registered again, as when a notebook's cell runs again, the later function counts. Raises ``ValueError`` if another
    network has the name, or it begins as torchvision's and timm's do, and ``TypeError`` if ``name`` is no text or
    ``build`` cannot be called.
    """
    check_entry("register_network", name, build)
    if ":" in name or name == EFFICIENTNET_LITE0:
        raise ValueError(f"a network of your own cannot be called {name!r}: rename it")
    register("network", name, build, _OWN)


def list_models() -> list[str]:
    """The names that ``build_model`` knows without timm, whose own list is ``timm.list_models()``."""
    return [*_OWN, EFFICIENTNET_LITE0, *torchvision_names()]


def layer_names(name: str) -> list[str]:
    """The layers of a network whose maps ``build_model`` can return, in the order of computation."""
    kind = network_kind(name)
    if kind == "own":
        network = _OWN[name](1, 3, None)
        return list(network.layer_channels()) if isinstance(network, NamedMapsNetwork) else network.feature_names
    if kind == "efficientnet-lite":
        return efficientnet_lite0_layer_names()
    return timm_layer_names(name) if kind == "timm" else torchvision_layer_names(name)


def network_kind(name: str) -> str:
    """own, efficientnet-lite, torchvision or timm; ``L2TFastError`` for a name that none of them has."""
    if name in _OWN:
        return "own"
    if name == EFFICIENTNET_LITE0:
        return "efficientnet-lite"
    if name.startswith(TIMM_PREFIX):
        check_timm_name(name)
        return "timm"
    known = list_models()
    if name in known:
        return "torchvision"
    if TORCHVISION_PREFIX + name in known:
        raise L2TFastError(f"there is no network {name!r}: torchvision's is called {TORCHVISION_PREFIX}{name}")
    if name.startswith(TORCHVISION_PREFIX):
        known = [model for model in known if model.startswith(TORCHVISION_PREFIX)]
    raise L2TFastError(f"there is no network {name!r}: {suggestion(name, known)}; --plugin FILE brings your own")
