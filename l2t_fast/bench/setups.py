"""What the step and hypergradient benchmarks train: networks, a batch and optimizers, the same for every provider."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2t_fast.config import TransferOptions
from l2t_fast.models import build_model
from l2t_fast.transfer.methods import Setup, find_method
from l2t_fast.transfer.pairs import resolve_pairs
from l2t_fast.transfer.source import FrozenSource, FrozenSources
from l2t_fast.transfer.step_graph import sgd_options

#: So many of a batch set the source's statistics, which happens on the CPU.
CALIBRATION_IMAGES = 32


@dataclass(frozen=True)
class StepSetup:
    """Networks and sizes of one training step of L2T-ww, all-to-all.

    Attributes:
        cpu_batch, gpu_batch: batch size on either kind of device
        lr: of the target's SGD. Smaller than the paper's where networks with fresh weights would leave the region in
            which float32 and float64 agree on three SGD steps; it changes no time.
        steps: T, look-ahead steps on the matching loss
    """

    name: str
    source: str
    target: str
    image_size: int
    classes: int
    cpu_batch: int
    gpu_batch: int
    lr: float = 0.001
    steps: int = 2

    def batch(self, device: torch.device) -> int:
        return self.gpu_batch if device.type == "cuda" else self.cpu_batch

    def build(
        self,
        device: torch.device,
        *,
        batch: int | None = None,
        dtype: torch.dtype = torch.float32,
        hypergradient: str = "exact",
        keep_graphs: bool = False,
        cuda_graph: bool = False,
        backend: str = "auto",
        precision: str = "float32",
        channels_last: bool = False,
        seed: int = 0,
    ) -> Training:
        """Fresh networks, optimizers and a random batch; the same numbers for one seed, whatever the other arguments.

        `precision` is the trainer's: what autocast computes the source and the real step in.

        No weights are downloaded: time and memory do not depend on them. The source's BatchNorm takes its statistics
        from the batch, so that its maps have the size that trained networks' maps have.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            source = build_model(self.source, self.classes)
            target = build_model(self.target, self.classes)
            size = self.batch(device) if batch is None else batch
            x = torch.randn(size, 3, self.image_size, self.image_size)
            y = torch.randint(0, self.classes, (size,))
            _calibrate(source, x[:CALIBRATION_IMAGES])
            frozen = FrozenSources({"": FrozenSource(source, self.classes)})
            pairs = resolve_pairs("all-to-all", frozen.feature_names, list(target.feature_names))
            options = TransferOptions(
                hypergradient=hypergradient,
                keep_graphs=keep_graphs,
                cuda_graph=cuda_graph,
                backend=backend,
                precision=precision,
                lookahead_steps=self.steps,
                lr=self.lr,
            )
            method = find_method("l2t-ww")(Setup(options, frozen, target, pairs, self.classes))
            # Away from the start, where f is 0 and half of the second derivatives are, too.
            for parameter in method.meta.weight_network.parameters():
                nn.init.normal_(parameter, std=0.1)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        frozen, target, method = (
            m.to(device=device, dtype=dtype, memory_format=layout) for m in (frozen, target, method)
        )
        x = x.to(device=device, dtype=dtype, memory_format=layout)
        optimizer = torch.optim.SGD(
            [*target.parameters(), *method.trained_parameters()],
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            **sgd_options(options, device),
        )
        return Training(self, frozen, target, method, optimizer, x, y.to(device), getattr(torch, precision))


@dataclass
class Training:
    """One provider's own networks, optimizers and batch."""

    setup: StepSetup
    source: FrozenSources
    target: nn.Module
    method: nn.Module
    optimizer: torch.optim.SGD
    x: Tensor
    y: Tensor
    precision: torch.dtype

    @property
    def meta_optimizer(self) -> torch.optim.Optimizer:
        return self.method.optimizers()["meta"]

    def theta(self) -> list[Tensor]:
        """Parameters of the target network and of the projections."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def phi(self) -> list[Tensor]:
        """Parameters of the meta networks."""
        return list(self.method.meta.parameters())

    def remember(self) -> Callable[[], None]:
        """Keep the present state; the function that is returned puts it back, in the memory that CUDA graphs know."""
        modules, optimizers = [self.target, self.method], [self.optimizer, self.meta_optimizer]
        start = [copy.deepcopy(part.state_dict()) for part in (*modules, *optimizers)]

        def restore() -> None:
            for module, state in zip(modules, start[:2], strict=True):
                module.load_state_dict(state)
            for optimizer, state in zip(optimizers, start[2:], strict=True):
                load_in_place(optimizer, state)
            self.optimizer.zero_grad(set_to_none=True)
            self.meta_optimizer.zero_grad(set_to_none=True)

        return restore


@torch.no_grad()
def load_in_place(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """As ``load_state_dict``, which puts new tensors in the place of momenta; here they keep their memory.

    Raises:
        ValueError: the optimizer has momenta already, of other parameters than the saved ones.
    """
    present = optimizer.state_dict()["state"]
    if not present:
        optimizer.load_state_dict(copy.deepcopy(saved))  # an optimizer keeps the tensors it is given
        return
    if {i: set(values) for i, values in present.items()} != {i: set(v) for i, v in saved["state"].items()}:
        raise ValueError("the two optimizers hold states of different parameters, they must have made the same steps")
    for i, values in saved["state"].items():
        for name, value in values.items():
            present[i][name].copy_(value)  # which are the optimizer's own


@torch.no_grad()
def _calibrate(network: nn.Module, x: Tensor) -> None:
    """Set BatchNorm's running statistics to those of one batch."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


STEP_SETUPS: dict[str, StepSetup] = {
    setup.name: setup
    for setup in (
        StepSetup("cifar", "l2tww_resnet32", "vgg9bn", 32, classes=10, cpu_batch=32, gpu_batch=128),
        StepSetup(
            "imagenet", "torchvision:resnet34", "torchvision:resnet18", 224, classes=200, cpu_batch=4, gpu_batch=64
        ),
        # small enough for a test; bound by launches and Python
        StepSetup("tiny", "resnet8", "vgg5bn", 8, classes=4, cpu_batch=8, gpu_batch=8),
    )
}
