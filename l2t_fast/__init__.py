"""Learning What and Where to Transfer, fast: frozen source networks into a new target network, on little data."""

import os
import sys

from l2t_fast.interrupts import end_at_once, starts_command

if starts_command():
    try:
        os.getcwd()
    except FileNotFoundError:  # in which PyTorch's libraries end the program with a sentence about something else
        sys.stderr.write("error: the folder you are in was removed, go to another one with cd\n")
        raise SystemExit(2) from None
    end_at_once()  # the imports below take seconds
    # The command shows no window. A notebook names its own backend for all that it starts, other environments too.
    os.environ["MPLBACKEND"] = "agg"

from importlib.metadata import PackageNotFoundError, version

from l2t_fast.functional import feature_matching_loss
from l2t_fast.modules import FeatureMatching, LossWeightNetwork, MetaNetworks, WeightNetwork
from l2t_fast.ops import explain_backend
from l2t_fast.planning import plan

try:
    __version__ = version("l2t_fast")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = [
    "FeatureMatching",
    "LossWeightNetwork",
    "MetaNetworks",
    "WeightNetwork",
    "__version__",
    "explain_backend",
    "feature_matching_loss",
    "plan",
]
