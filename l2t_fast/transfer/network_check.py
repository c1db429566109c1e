"""Whether a network can take images of a size, and gives what it should."""

import torch
from torch import Tensor, nn

from l2t_fast.data import DataBundle
from l2t_fast.errors import L2TFastError


@torch.no_grad()
def check_network(
    name: str, network: nn.Module, data: DataBundle, side: int, key: str, *, classes: int | None = None
) -> None:
    """Give a network one image. Raise L2TFastError if that is too small, or what comes out is not what it says.

    Too small it is where pooling leaves no pixel. To come out are the maps of its `feature_names`, with its
    `feature_channels`, and its logits.

    Args:
        name, network: which network, as the user named it.
        data: what it will see.
        side: pixels that it sees at last, if it resizes what it is given.
        key: the option that another size can be given with.
        classes: number of its logits; None if that does not matter.
    """
    device = next(network.parameters()).device
    x = torch.zeros(1, data.in_channels, data.image_size, data.image_size, device=device)
    # In eval mode, a pass changes neither BatchNorm's statistics nor the random generators.
    was_training = network.training
    try:
        output = network.eval()(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise L2TFastError(
            f"{name} cannot take images of {side}x{side} pixels ({reason}), choose another {key} or another network"
        ) from error
    network.train(was_training)
    _check_output(name, network, output, classes)


def _check_output(name: str, network: nn.Module, output: object, classes: int | None) -> None:
    logits, maps = output if isinstance(output, tuple | list) and len(output) == 2 else (None, None)
    names = network.feature_names
    listed = isinstance(maps, tuple | list) and len(maps) == len(names) and all(isinstance(m, Tensor) for m in maps)
    if not listed or not isinstance(logits, Tensor):
        raise L2TFastError(
            f"{name} must return its logits, one tensor, and a list of its feature maps {', '.join(names)} for a batch"
        )
    if classes is not None and logits.shape != (1, classes):
        raise L2TFastError(
            f"{name} has logits of shape {tuple(logits.shape)} for one image, but for {classes} classes they must be "
            f"{(1, classes)}"
        )
    for layer, channels, feature_map in zip(names, network.feature_channels, maps, strict=True):
        shape = tuple(feature_map.shape)
        if len(shape) != 4 or shape[:2] != (1, channels):
            raise L2TFastError(
                f"{name} gives a map of shape {shape} at {layer!r} for one image, but says that it has {channels} "
                f"channels: it must be (1, {channels}, height, width)"
            )
