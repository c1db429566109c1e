"""What a network looks at, computed by captum."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast.errors import L2TFastError

try:
    from captum.attr import LayerGradCam, Saliency
except ImportError as error:
    raise L2TFastError(
        "saliency maps need the package captum, which is not installed: pip install 'l2t_fast[saliency]'"
    ) from error


def saliency(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How strongly each pixel moves the logit of its image's class (Simonyan et al., 2014, section 3.1).

    Args:
        network: gives (logits, maps); in eval mode.
        x: images (B, channels, H, W), normalised.
        y: classes (B,).

    Returns:
        (B, H, W), at least 0: the largest absolute derivative of the pixel's channels.
    """
    explain = Saliency(lambda images: network(images)[0])
    return explain.attribute(x.detach().clone().requires_grad_(), target=y).amax(1).detach()


def grad_cam(network: nn.Module, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """Where a feature map speaks for its image's class (Grad-CAM: Selvaraju et al., ICCV 2017, equations 1 and 2).

    Args:
        network: gives (logits, maps); in eval mode.
        layer: name of one of its modules, whose output is a map (B, C, h, w).
        x: images (B, channels, H, W), normalised.
        y: classes (B,).

    Returns:
        (B, H, W), at least 0, resized bilinearly from the map's size.

    Raises:
        L2TFastError: the module's output is no such map.
    """
    explain = LayerGradCam(lambda images: network(images)[0], network.get_submodule(layer))
    cam = explain.attribute(x, target=y, relu_attributions=True).detach()
    return F.interpolate(cam, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def check_layers(network: nn.Module, layers: Sequence[str], x: Tensor) -> None:
    """Raise L2TFastError if Grad-CAM cannot be had of a layer: its module puts out something else than its map.

    Transformers' modules put out tokens, or channels last; their maps are made of that beside the way to the logits.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str):
        return lambda module, inputs, output: shapes.update({name: tuple(getattr(output, "shape", ()))})

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.no_grad():
            _, maps = network(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    by_name = dict(zip(network.feature_names, maps, strict=True))
    for name in layers:
        if shapes[name] != tuple(by_name[name].shape):
            raise L2TFastError(
                f"Grad-CAM cannot be made of {name}: the module puts out {shapes[name]} instead of a map "
                f"{tuple(by_name[name].shape)}; ask for saliency alone with --maps none"
            )
