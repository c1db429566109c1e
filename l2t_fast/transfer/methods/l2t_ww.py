"""L2T-ww: learn *what* and *where* to transfer."""

from l2t_fast.transfer.methods.base import Setup
from l2t_fast.transfer.methods.learned_matching import LearnedMatching
from l2t_fast.transfer.methods.registry import register_method


@register_method
class L2TWW(LearnedMatching):
    """The paper's L2T-ww: channel weights and pair weights are both learned."""

    name = "l2t-ww"
    own_options = (*LearnedMatching.own_options, "lambda_start")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, pair_weights=True)
