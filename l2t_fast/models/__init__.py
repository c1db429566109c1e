"""Networks with named feature maps, and loading of their weights."""

from l2t_fast.models.hooked import with_feature_maps
from l2t_fast.models.named_maps import IMAGENET_MEAN, IMAGENET_STD, NamedMapsNetwork
from l2t_fast.models.published import has_published, published_checkpoint
from l2t_fast.models.registry import build_model, layer_names, list_models, register_network
from l2t_fast.models.weights import (
    Checkpoint,
    from_state_dict,
    in_the_names_of,
    in_the_order_of,
    load_weights,
    read_checkpoint,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Checkpoint",
    "NamedMapsNetwork",
    "build_model",
    "from_state_dict",
    "has_published",
    "in_the_names_of",
    "in_the_order_of",
    "layer_names",
    "list_models",
    "load_weights",
    "published_checkpoint",
    "read_checkpoint",
    "register_network",
    "with_feature_maps",
]
