"""The weights that are published with a network: packaged, or downloaded because somebody asked for them by name."""

import dataclasses

import torch
from torchvision.models import get_model_weights

from l2t_fast.errors import L2TFastError
from l2t_fast.models.efficientnet_lite import INPUT_MEAN, INPUT_STD, efficientnet_lite0_weights
from l2t_fast.models.hooked import TORCHVISION_PREFIX
from l2t_fast.models.registry import network_kind
from l2t_fast.models.timm_networks import TIMM_PREFIX, timm_package
from l2t_fast.models.weights import Checkpoint, from_state_dict, read_checkpoint
from l2t_fast.text import printable


def has_published(name: str) -> bool:
    """Whether the network ``name`` is of a kind whose weights `published_checkpoint` can find."""
    return network_kind(name) != "own"


def published_checkpoint(name: str) -> Checkpoint:
    """The published weights of the network ``name``, with the number of classes and the normalisation they take.

    ``efficientnet-lite0`` has them in its package. Those of ``torchvision:NAME`` (its DEFAULT weights) and of
    ``timm:NAME`` are downloaded to where torch.hub and Hugging Face keep such files, unless they are there.

    Raises ``L2TFastError`` if there is no such network, a package or the weights are missing, or they cannot be
    downloaded.
    """
    kind = network_kind(name)
    if kind == "efficientnet-lite":
        checkpoint = read_checkpoint(efficientnet_lite0_weights())
        return dataclasses.replace(checkpoint, normalization=(INPUT_MEAN, INPUT_STD))
    if kind == "torchvision":
        return _torchvision(name)
    if kind == "timm":
        return _timm(name)
    raise L2TFastError(f"{name} has no published weights that l2t-fast can find by itself: name a checkpoint file")


def _torchvision(name: str) -> Checkpoint:
    weights = get_model_weights(name.removeprefix(TORCHVISION_PREFIX)).DEFAULT
    try:
        # Files in the cache are read as they are, without a request.
        state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _not_had(name, error, f"; or put {weights.url} into {torch.hub.get_dir()}/checkpoints") from error
    preprocessing = weights.transforms()
    checkpoint = from_state_dict(state, f"{name} default")
    return dataclasses.replace(
        checkpoint,
        num_classes=len(weights.meta["categories"]),
        normalization=(tuple(preprocessing.mean), tuple(preprocessing.std)),
    )


def _timm(name: str) -> Checkpoint:
    timm = timm_package(name)
    try:
        network = timm.create_model(name.removeprefix(TIMM_PREFIX), pretrained=True)
    except Exception as error:  # whatever a download raises, and names and tags that timm does not know
        raise _not_had(name, error) from error
    said = network.pretrained_cfg
    checkpoint = from_state_dict(network.state_dict(), f"{name} default")
    normalization = tuple(said["mean"]), tuple(said["std"])
    return dataclasses.replace(
        checkpoint, num_classes=network.num_classes, says_classes=True, normalization=normalization
    )


def _not_had(name: str, error: Exception, also: str = "") -> L2TFastError:
    reason = printable(str(error).strip().split("\n")[0]) or type(error).__name__
    return L2TFastError(
        f"the published weights of {name} could not be had ({reason}): try again, or name a checkpoint file{also}"
    )
