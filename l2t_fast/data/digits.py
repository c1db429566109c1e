"""scikit-learn's 8x8 digits, which need no download."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from l2t_fast.data.raw import Pool, RawData

# The images count 0 ... 16 dark pixels; 15 times that fits into bytes, exactly.
LEVELS = 16
FACTOR = 15
# Of all images.
STATISTICS = ((0.3053,), (0.3760,))


def read_digits() -> RawData:
    """1,797 grey images, 8x8, without a test set of their own."""
    bunch = load_digits()
    images = torch.from_numpy((bunch.images * FACTOR).astype(np.uint8)).unsqueeze(1)
    return RawData(
        train=Pool(images, bunch.target.astype(np.int64), "digits"),
        validation=None,
        test=None,
        class_names=[str(name) for name in bunch.target_names],
        in_channels=1,
        full_scale=float(LEVELS * FACTOR),
        statistics=STATISTICS,
    )
