"""From the target's batch to what a source was trained on: its normalisation, its size, its colours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast.errors import L2TFastError

#: (mean, std) for pixels in 0 ... 1, one number a channel, or one for all.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


class SourceInput(nn.Module):
    """(B, C, H, W) as the target sees it -> (B, channels, size, size) as one source does, on the images' device.

    Undoing one normalisation and doing the other is one affine map a channel, (x - m) / s with
    m = (m_source - m_data) / s_data and s = s_source / s_data. Resizing is bilinear with antialias, which leaves a
    constant as it is, so the affine map can come before or after: it is applied to whichever has fewer pixels. Grey
    images are repeated for a colour source. Where the source takes what the target takes, the batch itself is returned.

    Args:
        channels: input channels of the source.
        size: height and width it takes; None leaves the images' own.
        data_channels: channels of the images.
        data: how they are normalised.
        normalization: how the source was; None takes them as they are.

    Raises:
        L2TFastError: colour images for a grey source, or a normalisation of another number of channels.
    """

    def __init__(
        self,
        channels: int,
        size: int | None,
        data_channels: int,
        data: Normalization,
        normalization: Normalization | None,
    ) -> None:
        super().__init__()
        if channels != data_channels and data_channels != 1:
            raise L2TFastError(
                f"takes images of {channels} channel{'s' if channels > 1 else ''}, but the data's have "
                f"{data_channels}: choose a source that was trained on such images"
            )
        self.channels = channels
        self.size = size
        self.changes_values = normalization is not None and normalization != data
        if self.changes_values:
            mean, std = (_row(row, channels) for row in normalization)
            data_mean, data_std = (_row(row, channels) for row in data)
            # float64, and not in checkpoints: they belong to the data as much as to the network.
            self.register_buffer("scale", data_std / std, persistent=False)
            self.register_buffer("shift", (data_mean - mean) / std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        grows = self.size is not None and self.size**2 > x.shape[2] * x.shape[3]
        x = self._resized(self._normalised(x)) if grows else self._normalised(self._resized(x))
        return x.expand(-1, self.channels, -1, -1)

    def _normalised(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype)) if self.changes_values else x

    def _resized(self, x: Tensor) -> Tensor:
        if self.size is None or x.shape[2:] == (self.size, self.size):
            return x
        return F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)


def _row(row: tuple[float, ...], channels: int) -> Tensor:
    if len(row) not in (1, channels):
        raise L2TFastError(f"has a normalisation of {len(row)} numbers a row, but takes {channels} channels")
    return torch.tensor(row, dtype=torch.float64).view(-1, 1, 1)
