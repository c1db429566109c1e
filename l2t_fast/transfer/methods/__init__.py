"""The transfer methods. Each file in this folder is imported, and registers the method in it."""

import importlib
import pkgutil

from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.methods.registry import METHODS, find_method, register_method, split_scheme

__all__ = ["METHODS", "Batch", "Method", "Setup", "find_method", "register_method", "split_scheme"]

for file in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(file.name)
