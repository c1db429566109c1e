"""The frozen networks that are learned from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from l2t_fast.config import PUBLISHED, SourceConfig
from l2t_fast.data import DataBundle
from l2t_fast.errors import L2TFastError
from l2t_fast.layer_names import source_layer
from l2t_fast.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Checkpoint,
    build_model,
    has_published,
    in_the_names_of,
    in_the_order_of,
    load_weights,
    published_checkpoint,
    read_checkpoint,
)
from l2t_fast.transfer.source_input import Normalization, SourceInput

#: Training images that `unit_rms` looks at: a mean over all pixels and channels needs no more.
SCALE_IMAGES = 32


class SourceOutput(NamedTuple):
    """What the sources make of one batch.

    Attributes:
        logits: one a source, (B, its classes)
        features: the feature maps of all sources, one source after the other, (B, C_m, H_m, W_m) each
    """

    logits: Sequence[Tensor]
    features: Sequence[Tensor]


class FrozenSource(nn.Module):
    """A pretrained network in eval mode, without gradients, that stays so when its parent trains.

    Args:
        network: gives (logits, maps), see `l2t_fast.models.NamedMapsNetwork`.
        num_classes: of its logits; 0 where it has no classifier, and they are the pooled last map.
        prepare: makes its input of the target's batch; None takes the batch as it is.

    Attributes:
        scales: of each feature map, what it is divided by; None leaves the maps as they are.
    """

    def __init__(self, network: nn.Module, num_classes: int, prepare: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.num_classes = num_classes
        self.prepare = prepare or nn.Identity()
        self.scales: list[float] | None = None

    @property
    def feature_names(self) -> list[str]:
        """Of the network's maps."""
        return list(self.network.feature_names)

    @property
    def feature_channels(self) -> list[int]:
        """Of the network's maps."""
        return list(self.network.feature_channels)

    def train(self, mode: bool = True) -> "FrozenSource":
        """Stay in eval mode: the source's BatchNorm statistics are part of what was pretrained."""
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and feature maps for the target's images (B, channels, H, W)."""
        logits, maps = self.network(self.prepare(x))
        if self.scales is not None:
            maps = [m / scale for m, scale in zip(maps, self.scales, strict=True)]
        return logits, maps

    def to_unit_rms(self, x: Tensor) -> None:
        """From now on divide every map by its root mean square over the target's images `x`."""
        self.scales = None
        _, maps = self(x)
        # A map of zeros stays one.
        self.scales = [m.double().square().mean().sqrt().item() or 1.0 for m in maps]


class FrozenSources(nn.Module):
    """One or more frozen networks as one flat list of feature maps.

    A forward pass runs each of them once, which is enough for a batch, since they never change. On a GPU several run
    side by side, each on a stream of its own; on a CPU one after the other.

    Attributes:
        feature_names: of the maps, in order: "LAYER" with a single source, "NAME/LAYER" with several
        feature_channels: of the maps, likewise
        maps_per_source: number of maps of each source
        num_classes: of each source's logits

    Args:
        sources: by the names that pairs and reports call them.
    """

    def __init__(self, sources: Mapping[str, FrozenSource]) -> None:
        super().__init__()
        self.names = list(sources)
        self.parts = nn.ModuleList(sources.values())
        several = len(sources) > 1
        self.feature_names = [
            source_layer(name, layer) if several else layer
            for name, source in sources.items()
            for layer in source.feature_names
        ]
        self.feature_channels = [c for source in sources.values() for c in source.feature_channels]
        self.maps_per_source = [len(source.feature_names) for source in sources.values()]
        self.num_classes = [source.num_classes for source in sources.values()]
        self._streams: list[torch.cuda.Stream] = []

    def some(self, chosen: Sequence[int]) -> "FrozenSources":
        """Some of the sources, the same networks, whose maps keep their names; none is possible."""
        some = FrozenSources({self.names[i]: self.parts[i] for i in chosen})
        starts = [sum(self.maps_per_source[:i]) for i in chosen]
        counts = [self.maps_per_source[i] for i in chosen]
        some.feature_names = [
            name
            for start, count in zip(starts, counts, strict=True)
            for name in self.feature_names[start : start + count]
        ]
        return some

    @property
    def networks(self) -> list[nn.Module]:
        """The networks, without what prepares their input."""
        return [source.network for source in self.parts]

    @property
    def scales(self) -> dict[str, float]:
        """What `unit_rms` divides feature maps by, by their names; those it leaves alone are not there."""
        each = [scale for source in self.parts for scale in source.scales or [None] * len(source.feature_names)]
        return {name: scale for name, scale in zip(self.feature_names, each, strict=True) if scale is not None}

    def train(self, mode: bool = True) -> "FrozenSources":
        """Stay in eval mode."""
        return self

    def forward(self, x: Tensor) -> SourceOutput:
        """Run the target's normalised images (B, channels, H, W)."""
        side_by_side = x.is_cuda and len(self.parts) > 1
        outputs = self._on_streams(x) if side_by_side else [source(x) for source in self.parts]
        return SourceOutput([logits for logits, _ in outputs], [m for _, maps in outputs for m in maps])

    @torch.compiler.disable(recursive=False)  # streams are no part of a compiled graph; the networks may be
    def _on_streams(self, x: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        if not self._streams or self._streams[0].device != x.device:
            self._streams = [torch.cuda.Stream(x.device) for _ in self.parts]
        current = torch.cuda.current_stream(x.device)
        outputs = []
        for source, stream in zip(self.parts, self._streams, strict=True):
            stream.wait_stream(current)  # x is being made there
            with torch.cuda.stream(stream):
                outputs.append(source(x))
            # The allocator gives memory back to the stream that it came from: keep it until the other one is done.
            x.record_stream(stream)
        for (logits, maps), stream in zip(outputs, self._streams, strict=True):
            current.wait_stream(stream)
            for tensor in (logits, *maps):
                tensor.record_stream(current)
        return outputs


def load_sources(
    sources: Mapping[str, SourceConfig], data: DataBundle, weights: Checkpoint | None = None
) -> FrozenSources:
    """The sources with their weights, taking `data`'s images.

    Args:
        sources: by name; a single one's name appears in messages only.
        data: the target's images.
        weights: taken instead of what the sources' checkpoints hold.

    Raises:
        L2TFastError: a checkpoint is not named, not there or of another network; a package or published weights are
            missing; the images do not suit a source.
    """
    loaded = {name: load_source(name, config, data, weights) for name, config in sources.items()}
    scale(loaded, sources, data)
    return FrozenSources(loaded)


def scale(loaded: Mapping[str, FrozenSource], sources: Mapping[str, SourceConfig], data: DataBundle) -> None:
    """Let those of the sources that are configured so divide their maps by their root mean square."""
    wanted = [source for name, source in loaded.items() if sources[name].unit_rms]
    if wanted:
        x = _some_images(data, SCALE_IMAGES)
        for source in wanted:
            source.to_unit_rms(x)


def _some_images(data: DataBundle, count: int) -> Tensor:
    """Training images of all classes, the same whatever the device and the number of ranks."""
    images = data.train.dataset
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    found = images[0, chosen]
    if isinstance(found, L2TFastError):
        raise found
    return found[0].cpu()


def load_source(name: str, config: SourceConfig, data: DataBundle, weights: Checkpoint | None = None) -> FrozenSource:
    """One source with its weights, without the scales of `unit_rms`; arguments and errors as of `load_sources`."""
    key = config_key(name)
    checkpoint = _checkpoint(key, config) if weights is None else weights
    network = _built(config, config.num_classes or checkpoint.num_classes or 2, checkpoint, data.in_channels)
    checkpoint = in_the_names_of(network, checkpoint)
    told = in_the_order_of(network, checkpoint)
    if config.num_classes is None and _lacks_classifier(network, checkpoint):
        told = dataclasses.replace(told, num_classes=0)
    num_classes = told.num_classes if config.num_classes is None else config.num_classes
    if num_classes is None:
        raise L2TFastError(f"{key}.num_classes is not set, and {checkpoint.shown} does not tell it: set it")
    if num_classes == 0 or (told.num_classes, told.in_channels) != (checkpoint.num_classes, checkpoint.in_channels):
        network = _built(config, num_classes, told, data.in_channels)
    channels = told.in_channels or data.in_channels
    try:
        load_weights(network, checkpoint)
    except L2TFastError as error:
        raise L2TFastError(f"{key} is {config.model}, but {error}") from error
    try:
        prepare = SourceInput(
            channels,
            config.image_size,
            data.in_channels,
            (data.mean, data.std),
            _normalization(config, checkpoint, network),
        )
    except L2TFastError as error:
        raise L2TFastError(f"{key} ({config.model}) {error}") from error
    return FrozenSource(network, num_classes, prepare)


def _built(config: SourceConfig, num_classes: int, told: Checkpoint, in_channels: int) -> nn.Module:
    return build_model(config.model, num_classes, in_channels=told.in_channels or in_channels, layers=config.layers)


def _lacks_classifier(network: nn.Module, checkpoint: Checkpoint) -> bool:
    """Whether the weights are of such a network without one, as self-supervised training leaves them."""
    prefixes = getattr(network, "classifier_prefixes", ())
    return bool(prefixes) and not any(name.startswith(prefixes) for name in checkpoint.weights)


def config_key(name: str) -> str:
    """The configuration's key of the source called `name`; a single one has none and is called ""."""
    return f"sources.{name}" if name else "source"


def _checkpoint(key: str, config: SourceConfig) -> Checkpoint:
    if config.checkpoint is None:
        also = "" if key != "source" else ", or set pretrain.data and pretrain.epochs to make a source"
        published = f", or {PUBLISHED!r} for those published with it" if has_published(config.model) else ""
        raise L2TFastError(
            f"{key}.checkpoint is not set: name the file with the weights of {config.model}{published}{also}"
        )
    return published_checkpoint(config.model) if config.checkpoint == PUBLISHED else read_checkpoint(config.checkpoint)


def _normalization(config: SourceConfig, checkpoint: Checkpoint, network: nn.Module) -> Normalization | None:
    """How the source's images were normalised: as configured, as the checkpoint says, as the network is used to."""
    choice = config.normalization
    if choice == "data":
        return None
    if choice == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    if choice is not None:
        return tuple(choice[0]), tuple(choice[1])
    if checkpoint.normalization is not None:
        return checkpoint.normalization
    return (network.input_mean, network.input_std) if network.input_mean is not None else None
