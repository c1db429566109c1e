"""Finds out which part of a step turned NaN or infinite first."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from l2t_fast.transfer.methods import Batch, Method
from l2t_fast.transfer.source import FrozenSources


def name_non_finite(
    batch: Batch,
    source: FrozenSources | None,
    target: nn.Module,
    logits: Tensor,
    features: Sequence[Tensor],
    cross_entropy: Tensor,
    terms: Mapping[str, Tensor],
    method: Method,
) -> str | None:
    """A clause that names the first part that is not finite, in the order in which a step computes them.

    None if this rank has pairs of its own and it is another rank's images that spoil their loss.
    """
    if not _finite(batch.x):
        return "the images are not finite"
    if source is not None and batch.source is not None:
        for name, feature in zip(source.feature_names, batch.source.features, strict=True):
            if not _finite(feature):
                return f"feature map {name} of the source is not finite"
    for name, feature in zip(target.feature_names, features, strict=True):
        if not _finite(feature):
            return f"feature map {name} of the target is not finite{_layer(target, batch.x)}"
    if not _finite(logits):
        return f"the target's logits are not finite{_layer(target, batch.x)}"
    if not _finite(cross_entropy):
        return "the cross-entropy is not finite"
    part = method.non_finite_part(batch, features)
    if part is not None:
        return f"{part} is not finite"
    if batch.part.sizes is not None:
        return None
    for name, term in terms.items():
        if not _finite(term):
            return f"the {name} is not finite"
    return "the sum of the loss terms is not finite"


def first_non_finite_layer(network: nn.Module, x: Tensor) -> str | None:
    """The first layer, by name, whose output holds NaN or infinity though its inputs do not; None if there is none.

    The network runs once more, without gradients; buffers stay as they are. It runs in the mode it is in, but on
    several ranks in eval mode, since the others take no part.
    """
    found: list[str] = []
    hooks = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None:

            def look(layer: nn.Module, inputs: tuple[object, ...], output: object, name: str = name) -> None:
                if not found and not _all_finite(output) and all(_all_finite(value) for value in inputs):
                    found.append(f"{name} ({type(layer).__name__})")

            hooks.append(module.register_forward_hook(look))
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    modes = [(module, module.training) for module in network.modules()]
    if dist.is_available() and dist.is_initialized():
        network.eval()
    try:
        with torch.no_grad():
            network(x)
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
    return found[0] if found else None


def _layer(network: nn.Module, x: Tensor) -> str:
    """What is wrong in the network, as the end of a clause: the layer, and its parameter if that is the reason."""
    layer = first_non_finite_layer(network, x)
    if layer is None:
        return ""
    parameter = first_non_finite_parameter({"its": network.get_submodule(layer.split(" ")[0])})
    return f", from layer {layer} on" + (f", where {parameter} is NaN or infinite" if parameter else "")


def _all_finite(value: object) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or _finite(value)


def first_non_finite_parameter(modules: Mapping[str, nn.Module]) -> str | None:
    """The first parameter or buffer that holds NaN or infinity, by module and name; None if all are finite."""
    return first_non_finite_tensor({owner: module.state_dict() for owner, module in modules.items()})


def first_non_finite_tensor(states: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The first tensor that holds NaN or infinity, by owner and name; None if all are finite."""
    named = [
        (f"{owner} {name}", tensor)
        for owner, tensors in states.items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.is_meta
    ]
    if not named:
        return None
    # One number a tensor, one transfer for all; of a network on a GPU, Adam's counts of steps are on the CPU.
    device = named[0][1].device
    finite = torch.stack([torch.isfinite(tensor).all().to(device) for _, tensor in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
