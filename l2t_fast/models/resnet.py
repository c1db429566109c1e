"""Residual networks for images of about 32x32 pixels: the CIFAR family and the TinyImageNet ResNet-32 of L2T-ww.

The two differ in how a block changes its width. The CIFAR family (He et al. 2016, section 4.2, option A) subsamples and
pads with zero channels, which has no parameters; the L2T-ww network has a 1x1 convolution and a BatchNorm there.
Parameter names are those of the published checkpoints of each.
"""

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast.models.named_maps import NamedMapsNetwork, global_average_pool

STAGE_WIDTHS = (16, 32, 64)


class ZeroPadShortcut(nn.Module):
    """Every second pixel, and zero channels on both sides: (B, in_channels, H, W) -> (B, out_channels, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, ReLU. ``downsample`` is the shortcut where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(NamedMapsNetwork):
    """ResNet-(6n + 2) with n blocks in each of three stages of 16, 32 and 64 channels.

    Layers are ``layer1.0`` ... ``layer3.{n-1}``, one a block; the last of each stage is the default. An input of 32x32
    gives maps of 32x32, 16x16 and 8x8; one of 8x8 gives 8x8, 4x4 and 2x2.
    """

    def __init__(
        self,
        model_name: str,
        blocks: int,
        num_classes: int,
        in_channels: int = 3,
        layers: Sequence[str] | None = None,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STAGE_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGE_WIDTHS[0])
        width = STAGE_WIDTHS[0]
        for stage, channels in enumerate(STAGE_WIDTHS, start=1):
            grows = channels != width
            first = BasicBlock(width, channels, 2 if grows else 1, ZeroPadShortcut(width, channels) if grows else None)
            rest = (BasicBlock(channels, channels) for _ in range(blocks - 1))
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            width = channels
        self.linear = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        if layers is None:
            layers = [f"layer{stage}.{blocks - 1}" for stage in (1, 2, 3)]
        self.choose_maps(model_name, in_channels, layers)

    def _stages(self) -> Iterator[tuple[str, nn.Sequential]]:
        for stage in range(1, len(STAGE_WIDTHS) + 1):
            yield f"layer{stage}", self.get_submodule(f"layer{stage}")

    def layer_channels(self) -> dict[str, int]:
        return {f"{name}.{i}": stage[i].conv2.out_channels for name, stage in self._stages() for i in range(len(stage))}

    def trunk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = F.relu(self.bn1(self.conv1(x)))
        for name, stage in self._stages():
            for i, block in enumerate(stage):
                x = block(x)
                yield f"{name}.{i}", x

    def head(self, x: Tensor) -> Tensor:
        return self.linear(global_average_pool(x))


class TinyImageNetResNet32(NamedMapsNetwork):
    """The source network of L2T-ww's 32x32 experiments, in the layout of the authors' checkpoint.

    A stem of 16 channels with bias, then three stages, each of one block (``block1``, ``block3``, ``block5``) and four
    more (``blocks2.0`` ... ``blocks6.3``). Those 15 names are its layers; the last of each stage (maps 4, 9 and 14
    counted from 0, the paper's choice) is the default.
    """

    STAGES = (("block1", "blocks2"), ("block3", "blocks4"), ("block5", "blocks6"))
    MORE_BLOCKS = 4
    # Left over in some of the authors' files from another experiment; no part of this network.
    ignored_checkpoint_prefixes = ("alphas.",)

    def __init__(self, model_name: str, num_classes: int, in_channels: int = 3, layers: Sequence[str] | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STAGE_WIDTHS[0], 3, padding=1)
        self.bn1 = nn.BatchNorm2d(STAGE_WIDTHS[0])
        width = STAGE_WIDTHS[0]
        for (first, rest), channels in zip(self.STAGES, STAGE_WIDTHS, strict=True):
            downsample = None
            if channels != width:
                downsample = nn.Sequential(
                    nn.Conv2d(width, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels)
                )
            self.add_module(first, BasicBlock(width, channels, 1 if downsample is None else 2, downsample))
            self.add_module(rest, nn.Sequential(*(BasicBlock(channels, channels) for _ in range(self.MORE_BLOCKS))))
            width = channels
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if layers is None:
            layers = [f"{rest}.{self.MORE_BLOCKS - 1}" for _, rest in self.STAGES]
        self.choose_maps(model_name, in_channels, layers)

    def layer_channels(self) -> dict[str, int]:
        channels = {}
        for (first, rest), width in zip(self.STAGES, STAGE_WIDTHS, strict=True):
            channels[first] = width
            channels |= {f"{rest}.{i}": width for i in range(self.MORE_BLOCKS)}
        return channels

    def trunk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = F.relu(self.bn1(self.conv1(x)))
        for first, rest in self.STAGES:
            x = self.get_submodule(first)(x)
            yield first, x
            for i, block in enumerate(self.get_submodule(rest)):
                x = block(x)
                yield f"{rest}.{i}", x

    def head(self, x: Tensor) -> Tensor:
        return self.fc(global_average_pool(x))
