"""L2T-w: learn *what* to transfer; every pair counts alike."""

from l2t_fast.transfer.methods.base import Setup
from l2t_fast.transfer.methods.learned_matching import LearnedMatching
from l2t_fast.transfer.methods.registry import register_method


@register_method
class L2TW(LearnedMatching):
    """The paper's L2T-w: channel weights are learned, lambda is 1."""

    name = "l2t-w"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, pair_weights=False)
