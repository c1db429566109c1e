"""Several processes that train one network together, each with a part of every batch."""

from l2t_fast.distributed.batch_norm import JointBatchNorm, synchronize_batch_norm
from l2t_fast.distributed.group import ALONE, Group, Part
from l2t_fast.distributed.joint_sum import joint_sum
from l2t_fast.distributed.no_pairs import NoPairs, NoWeights

__all__ = ["ALONE", "Group", "JointBatchNorm", "NoPairs", "NoWeights", "Part", "joint_sum", "synchronize_batch_norm"]
