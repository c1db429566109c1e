"""VGG networks with BatchNorm for small images: VGG9-BN, the target of L2T-ww's 32x32 experiments, and a sibling."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from l2t_fast.models.named_maps import NamedMapsNetwork, global_average_pool

# Output channels of each 3x3 convolution; "M" is a 2x2 max-pool.
VGG9_PLAN = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG5_PLAN = (32, "M", 64, "M", 128, 128, "M")


class VggBatchNorm(NamedMapsNetwork):
    """3x3 convolutions, each with BatchNorm and ReLU, max-pools, global average pool, one linear layer.

    Layers are ``features.0``, ``features.1``, ... as in torchvision's VGG, one a module; the maps that go into the
    max-pools (the last ReLU of each resolution) are the default. For VGG9-BN at 32x32 they are 64@32, 128@16, 256@8,
    512@4, 512@2. A max-pool leaves a map of a single pixel alone, so that small images (8x8) pass through any of these
    networks.
    """

    # Heads and layers of the authors' other experiments, which their VGG9-BN files hold too.
    ignored_checkpoint_prefixes = ("alphas.", "new_classifier.", "new_bn.", "w1.", "w2.", "w3.", "w.", "lwf_lyr.")

    def __init__(
        self,
        model_name: str,
        plan: Sequence[int | str],
        num_classes: int,
        in_channels: int = 3,
        layers: Sequence[str] | None = None,
    ):
        super().__init__()
        modules: list[nn.Module] = []
        width = in_channels
        for step in plan:
            if step == "M":
                modules.append(nn.MaxPool2d(2))
            else:
                modules += [nn.Conv2d(width, step, 3, padding=1), nn.BatchNorm2d(step), nn.ReLU()]
                width = step
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        if layers is None:
            layers = [f"features.{i - 1}" for i, module in enumerate(modules) if isinstance(module, nn.MaxPool2d)]
        self.choose_maps(model_name, in_channels, layers)

    def layer_channels(self) -> dict[str, int]:
        channels, width = {}, 0
        for i, module in enumerate(self.features):
            width = getattr(module, "out_channels", width)
            channels[f"features.{i}"] = width
        return channels

    def trunk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for i, module in enumerate(self.features):
            if not (isinstance(module, nn.MaxPool2d) and min(x.shape[2:]) < 2):
                x = module(x)
            yield f"features.{i}", x

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(global_average_pool(x))
