"""Networks with named feature maps, and loading of their weights."""

from l2t_fast.models.hooked import with_feature_maps
from l2t_fast.models.named_maps import IMAGENET_MEAN, IMAGENET_STD, NamedMapsNetwork
from l2t_fast.models.registry import build_model, layer_names, list_models
from l2t_fast.models.weights import load_weights

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NamedMapsNetwork",
    "build_model",
    "layer_names",
    "list_models",
    "load_weights",
    "with_feature_maps",
]
