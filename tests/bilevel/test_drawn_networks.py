"""Every hypergradient method on networks drawn from most of PyTorch's layers, against the unrolled loop, in float64."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from l2t_fast.bilevel import hypergradient
from tests.bilevel.naive import naive_hypergradient
from tests.bilevel.test_hypergradient import SGD, WAYS, assert_close, every_way, make_problem

SEEDS = 40


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    """Pixels look at pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.look = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.look(x.flatten(2).transpose(1, 2)).chunk(3, dim=2)
        seen = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(2) @ value
        return seen.transpose(1, 2).unflatten(2, x.shape[2:])


class OverChannels(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def convolution(draw: random.Random, channels: int, outputs: int) -> nn.Module:
    """Any convolution that leaves a map's size as it is, or nearly."""
    size, dilation = draw.choice([1, 3, 5]), draw.choice([1, 1, 2])
    groups = draw.choice([n for n in (1, 1, 2, channels) if channels % n == 0 and outputs % n == 0])
    mode = draw.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
    # a reflection needs maps that are larger than what is reflected
    padding = min(dilation * (size - 1) // 2, 1 if mode != "zeros" else 4)
    made = nn.Conv2d(
        channels,
        outputs,
        size if padding else 1,
        padding=padding,
        dilation=dilation if mode == "zeros" else 1,
        groups=groups,
        bias=draw.random() < 0.5,
        padding_mode=mode,
    )
    wrapped = draw.random()
    if wrapped < 0.1:
        return parametrizations.weight_norm(made)
    return parametrizations.spectral_norm(made) if wrapped < 0.2 else made


def normalisation(draw: random.Random, channels: int) -> nn.Module:
    return draw.choice(
        [
            lambda: nn.BatchNorm2d(channels),
            lambda: nn.BatchNorm2d(channels, affine=False, momentum=None),
            lambda: nn.BatchNorm2d(channels, track_running_stats=False),
            lambda: nn.BatchNorm2d(channels).eval(),
            lambda: nn.GroupNorm(2, channels),
            lambda: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
            lambda: OverChannels(nn.LayerNorm(channels)),
            lambda: OverChannels(nn.RMSNorm(channels)),
        ]
    )()


def activation(draw: random.Random) -> nn.Module:
    return draw.choice(
        [
            lambda: nn.ReLU(inplace=draw.random() < 0.5),
            lambda: nn.LeakyReLU(0.2, inplace=draw.random() < 0.5),
            lambda: nn.ReLU6(),
            lambda: nn.PReLU(),
            lambda: nn.Hardtanh(-0.5, 0.7),
            lambda: nn.GELU(),
            lambda: nn.SiLU(),
            lambda: nn.Mish(),
            lambda: nn.Softplus(),
            lambda: nn.ELU(),
            lambda: nn.Tanh(),
        ]
    )()


def other(draw: random.Random, channels: int) -> nn.Module:
    return draw.choice(
        [
            lambda: nn.MaxPool2d(2),
            lambda: nn.MaxPool2d(3, stride=1, padding=1),
            lambda: nn.AvgPool2d(2, ceil_mode=True),
            lambda: nn.AdaptiveAvgPool2d((3, 2)),
            lambda: nn.AdaptiveMaxPool2d(3),
            lambda: nn.Upsample(scale_factor=2, mode="nearest"),
            lambda: nn.Upsample(size=(4, 5), mode="bilinear"),
            lambda: nn.ConvTranspose2d(channels, channels, 3, stride=2, groups=draw.choice([1, 2])),
            lambda: nn.Sequential(nn.Conv2d(channels, 4 * channels, 1), nn.PixelShuffle(2)),
            lambda: nn.Dropout(0.3),
            lambda: Attention(channels),
            lambda: Residual(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh())),
        ]
    )()


class Drawn(nn.Module):
    """Two maps, each of a few layers, and a linear classifier."""

    channels = (4, 6)

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 2
        for outputs in self.channels:
            layers = [normalisation(draw, outputs), activation(draw), other(draw, outputs)]
            draw.shuffle(layers)
            self.stages.append(nn.Sequential(convolution(draw, channels, outputs), *layers[: draw.randint(1, 3)]))
            channels = outputs
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.fc(x.mean((2, 3))), maps


@every_way
@pytest.mark.parametrize("seed", range(SEEDS))
def test_equals_the_unrolled_loop(way, seed):
    draw = random.Random(seed)
    sgd, steps = draw.choice(list(SGD)), draw.choice([1, 2, 3])
    problem = make_problem(lambda: Drawn(draw), sgd=sgd, warm=draw.random() < 0.5, seed=seed)
    print(problem[0], sgd, steps)
    torch.manual_seed(seed)
    found = hypergradient(*problem, steps=steps, beta=0.5, **WAYS[way][0])
    wanted = naive_hypergradient(*problem, steps=steps, beta=0.5, seed=seed)
    assert_close(found, wanted, WAYS[way][1])
