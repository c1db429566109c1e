"""Training a target network: methods, trainer, comparison of methods, run folders."""

from l2t_fast.transfer.methods import METHODS, Batch, Method, Setup, register_method
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run import run
from l2t_fast.transfer.trained import TrainedNetwork, load_trained
from l2t_fast.transfer.trainer import Trainer

__all__ = [
    "METHODS",
    "Batch",
    "Method",
    "Setup",
    "TrainedNetwork",
    "Trainer",
    "TrainingProgress",
    "load_trained",
    "register_method",
    "run",
]
