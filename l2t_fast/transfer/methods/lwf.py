"""Learning without forgetting (LwF): the target also learns to answer as the source does."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.methods.registry import register_method

#: Softens both sides' class probabilities (Li and Hoiem, section 3).
TEMPERATURE = 2.0


@register_method
class LwF(Method):
    """cross-entropy + lwf_weight * distillation of the source's logits, summed over sources.

    Li and Hoiem (TPAMI 2018), equations 2 and 3, for a target of another architecture: a linear head of its own, one a
    source, gives the source's classes from the globally averaged last feature map of the target, and is trained with
    the target. The term is KL(source || target) of the class probabilities at temperature 2, mean over the batch: the
    paper's cross-entropy less the source's entropy, a constant, so that the term is 0 where both agree. As in the paper
    it is not multiplied by the temperature's square; ``lwf_weight: 4`` does so.
    """

    name = "lwf"
    default_pairs = None
    loss_weights = ("lwf_weight",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        assert setup.source is not None
        if 0 in setup.source.num_classes:
            raise L2TFastError(
                f"{self.name} distils what a source answers, and the weights of a source have no classifier: take "
                "others, or another method"
            )
        self.weight = setup.options.lwf_weight
        width = setup.target.feature_channels[-1]
        self.heads = nn.ModuleList(nn.Linear(width, classes) for classes in setup.source.num_classes)

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.heads.parameters())

    def loss_terms(self, batch: Batch, logits: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        assert batch.source is not None
        pooled = features[-1].mean((2, 3))
        losses = [
            distillation_loss(wanted, head(pooled))
            for wanted, head in zip(batch.source.logits, self.heads, strict=True)
        ]
        return {"distillation loss": self.weight * sum(losses)}


def distillation_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL divergence of class probabilities at `TEMPERATURE` from the source's (B, K) to the target's, mean over B.

    At least in float32, whatever the logits are in.
    """
    dtype = torch.promote_types(source_logits.dtype, torch.float32)
    wanted = F.log_softmax(source_logits.to(dtype) / TEMPERATURE, dim=1)
    given = F.log_softmax(target_logits.to(dtype) / TEMPERATURE, dim=1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True)
