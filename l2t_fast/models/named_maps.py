"""Networks that return named feature maps beside their logits, and the choice of maps by name."""

import difflib
from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor, nn

from l2t_fast.errors import L2TFastError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class NamedMapsNetwork(nn.Module):
    """An image classifier whose ``forward(x)`` gives ``(logits, maps)``.

    ``x`` is (B, in_channels, H, W), ``logits`` (B, num_classes), and ``maps[i]`` (B, ``feature_channels[i]``, H_i, W_i)
    is the output of the module called ``feature_names[i]``. No map is changed in place after it is returned, so the
    networks can be differentiated twice and in forward mode.

    ``input_mean`` and ``input_std`` say how the published weights of the network want its input normalised, in units
    of pixels scaled to [0, 1]; they are None if there is no such convention (grey images). The network itself does not
    normalise.

    A subclass gives ``layer_channels`` and ``trunk``, and a ``head``, and calls ``choose_maps`` once it is built.
    """

    feature_names: list[str]
    feature_channels: list[int]
    input_mean: tuple[float, ...] | None
    input_std: tuple[float, ...] | None

    def layer_channels(self) -> dict[str, int]:
        """Every map that can be asked for, in the order of computation, and its channels."""
        raise NotImplementedError

    def trunk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every map by name, as ``layer_channels`` lists them; the last one goes into the head."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """Turn the last map into logits."""
        raise NotImplementedError

    def choose_maps(self, model_name: str, in_channels: int, layers: Sequence[str]) -> None:
        """Set the attributes that say which maps ``forward`` returns and how the input is normalised."""
        channels = self.layer_channels()
        check_layers(model_name, layers, channels)
        self.feature_names = list(layers)
        self.feature_channels = [channels[name] for name in layers]
        self.input_mean, self.input_std = input_normalisation(in_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = {}
        for name, x in self.trunk(x):  # noqa: B020 (x is the running activation on purpose)
            if name in self.feature_names:
                maps[name] = x
        for name in self.feature_names:
            if name not in maps:
                raise L2TFastError(
                    f"the trunk of {type(self).__name__} does not yield the map {name!r}, which its layer_channels has"
                )
        return self.head(x), [maps[name] for name in self.feature_names]


def input_normalisation(in_channels: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The mean and standard deviation that networks of ``in_channels`` input channels are used to, or (None, None)."""
    return (IMAGENET_MEAN, IMAGENET_STD) if in_channels == 3 else (None, None)


def check_layers(
    model_name: str, layers: Sequence[str], available: Sequence[str] | dict[str, int], modules: Container[str] = ()
) -> None:
    """Raise an ``L2TFastError`` if a layer is not among those ``available``, is named twice, or none is named.

    ``modules`` are names that there are, whether or not they give a map.
    """
    if isinstance(layers, str) or not layers:
        raise L2TFastError(f"the layers of {model_name} must be a list of at least one name, not {layers!r}")
    for i, name in enumerate(layers):
        if name not in available:
            wrong = f"{model_name} has no layer {name!r}"
            if name in modules:
                wrong = f"the layer {name!r} of {model_name} gives no feature map (B, C, H, W)"
            raise L2TFastError(f"{wrong}: {suggestion(name, list(available))}")
        if name in layers[:i]:
            raise L2TFastError(f"the layer {name!r} of {model_name} is named twice: name each layer once")


def suggestion(name: str, known: Sequence[str]) -> str:
    """The end of a sentence that says which names come close to ``name``, or which there are."""
    if not known:
        return "there is none to choose"
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return "the closest names are " + ", ".join(close)
    shown = ", ".join(known[:12])
    return f"the names are {shown}" + (f" and {len(known) - 12} more" if len(known) > 12 else "")


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over the pixels: (B, C, H, W) -> (B, C)."""
    return torch.mean(x, dim=(2, 3))
