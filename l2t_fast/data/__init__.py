"""Data sets, limited-data subsets, and loaders that a resumed run continues bit for bit."""

from l2t_fast.data.bundle import DataBundle, load_data
from l2t_fast.data.config import DataConfig
from l2t_fast.data.datasets import register_dataset
from l2t_fast.data.loader import ImageLoader

__all__ = ["DataBundle", "DataConfig", "ImageLoader", "load_data", "register_dataset"]
