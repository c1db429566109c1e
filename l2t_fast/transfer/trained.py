"""The network that a run trained, ready to be used elsewhere."""

from pathlib import Path

import torch
from torch import Tensor, nn

from l2t_fast.config import TrainConfig
from l2t_fast.data.images import FileImages, Fitted
from l2t_fast.errors import L2TFastError
from l2t_fast.files import expand_user
from l2t_fast.models import Checkpoint, build_model, load_weights, read_checkpoint
from l2t_fast.text import printable
from l2t_fast.transfer.run_folder import RunFolder, is_comparison
from l2t_fast.transfer.same_options import read_saved


class TrainedNetwork(nn.Module):
    """A run's target with the normalisation of its images: pixels in, logits out.

    A plain module, which `torch.export` takes.

    Attributes:
        network: as `l2t_fast.models.build_model` makes it, without feature maps
        class_names: in the order of the logits
        in_channels: 1 for grey images, 3 for colours, or what a data set of somebody's own has
        image_size: height and width of what it was trained on
        resize_to: the shorter side before the centre of that size is taken
    """

    def __init__(self, network: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network = network
        network.feature_names = []  # whose maps nobody asks for
        mean, std = (torch.tensor(row).view(-1, 1, 1) for row in checkpoint.normalization)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.class_names = list(checkpoint.class_names)
        self.in_channels = len(mean)
        self.image_size, self.resize_to = checkpoint.image_sizes

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, in_channels, image_size, image_size), floats in 0 ... 1."""
        return self.network((x - self.mean) / self.std)[0]

    def read_image(self, path: str | Path) -> Tensor:
        """An image file as `forward` takes it (in_channels, image_size, image_size), resized as the run's test images.

        Raises:
            L2TFastError: the file is missing, or no image, or the network takes other than grey or colour images.
        """
        if self.in_channels not in (1, 3):
            raise L2TFastError(
                f"the network takes images of {self.in_channels} channels, image files are read with 1 or 3: call it "
                "with tensors"
            )
        path = expand_user(path)
        if path.exists() and not path.is_file():
            raise L2TFastError(f"the image {printable(path)} is a folder, a pipe or a device, it must be a file")
        files = FileImages([str(path)], mode="L" if self.in_channels == 1 else "RGB")
        return Fitted(files, self.image_size, self.resize_to)[0] / 255


def load_trained(run: str | Path) -> TrainedNetwork:
    """The best network of a run, by its validation images, in eval mode, on the CPU.

    Args:
        run: the folder of a run, finished or not.

    Raises:
        L2TFastError: it is no such folder, has no checkpoint yet, or the checkpoint is damaged or not finite.
    """
    folder = RunFolder(expand_user(run))
    shown = printable(folder.path)
    if is_comparison(folder.path):
        raise L2TFastError(f"{shown} is a comparison: name one of its runs, which are the folders in {shown}/runs")
    if not folder.config.is_file():
        raise L2TFastError(f"{shown} is not the folder of a run: it holds no {folder.config.name}")
    config = saved_config(folder)
    if not folder.best.exists():
        raise L2TFastError(f"{shown} has no checkpoint yet, which the first epoch ends with")
    checkpoint = read_checkpoint(folder.best)
    if None in (checkpoint.class_names, checkpoint.image_sizes, checkpoint.normalization):
        raise L2TFastError(
            f"{printable(folder.best)} does not say which classes and images it is for, as those of this version do: "
            "train once more"
        )
    in_channels = len(checkpoint.normalization[0])
    network = trained_target(config, checkpoint, checkpoint.num_classes, in_channels)
    return TrainedNetwork(network, checkpoint).eval()


def saved_config(folder: RunFolder) -> TrainConfig:
    """What a run was made with. Raises L2TFastError if its config.yaml cannot be read, or is not as it was written."""
    from l2t_fast.parsing import read_config  # training itself does without jsonargparse

    read_saved(folder.config)  # says if a part of it is missing
    return read_config(folder.config, TrainConfig)


def trained_target(config: TrainConfig, checkpoint: Path | Checkpoint, classes: int, in_channels: int) -> nn.Module:
    """A run's target with the weights of a checkpoint or its file, with feature maps, in eval mode, on the CPU.

    Raises:
        L2TFastError: the checkpoint is missing, damaged, of another network or not finite.
    """
    target = config.target
    network = build_model(target.model, classes, in_channels=in_channels, layers=target.layers)
    load_weights(network, checkpoint)
    return network.eval()
