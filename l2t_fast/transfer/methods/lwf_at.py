"""LwF+AT: the source's answers and its attention together."""

from collections.abc import Sequence

from torch import Tensor, nn

from l2t_fast.transfer.methods.at import AttentionTransfer
from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.methods.lwf import LwF
from l2t_fast.transfer.methods.registry import register_method


@register_method
class LwFAT(Method):
    """The sum of LwF's and AT's terms, each with its own weight: on CUB200 the next best to L2T-ww in the paper."""

    name = "lwf-at"
    loss_weights = ("lwf_weight", "at_weight")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.lwf = LwF(setup)
        self.at = AttentionTransfer(setup)

    def trained_parameters(self) -> list[nn.Parameter]:
        return self.lwf.trained_parameters()

    def loss_terms(self, batch: Batch, logits: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        return self.lwf.loss_terms(batch, logits, features) | self.at.loss_terms(batch, logits, features)

    def non_finite_part(self, batch: Batch, features: Sequence[Tensor]) -> str | None:
        return self.at.non_finite_part(batch, features)
