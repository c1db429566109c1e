"""Whether a network can take images of a size."""

import torch
from torch import nn

from l2t_fast.data import DataBundle
from l2t_fast.errors import L2TFastError


@torch.no_grad()
def check_image_size(name: str, network: nn.Module, data: DataBundle, side: int, key: str) -> None:
    """Raise L2TFastError if the images are too small for a network: its pooling leaves no pixel.

    Args:
        name, network: which network, as the user named it.
        data: what it will see.
        side: pixels that it sees at last, if it resizes what it is given.
        key: the option that another size can be given with.
    """
    device = next(network.parameters()).device
    x = torch.zeros(1, data.in_channels, data.image_size, data.image_size, device=device)
    # In eval mode, a pass changes neither BatchNorm's statistics nor the random generators.
    was_training = network.training
    try:
        network.eval()(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise L2TFastError(
            f"{name} cannot take images of {side}x{side} pixels ({reason}), choose another {key} or another network"
        ) from error
    network.train(was_training)
