"""Imported, also by pytest's -p: replaces PyTorch's operators on CUDA."""

import torch

from l2t_fast import _native
from tests.fake_gpu.build import OPERATORS, runs_compiled_code

torch.cuda.init()
assert torch.cuda.get_device_name() == "fake GPU", "a GPU that is there"
assert _native.extension is not None  # its operators are replaced too
torch.ops.load_library(OPERATORS)
if runs_compiled_code():
    from tests.fake_gpu import triton_driver

    triton_driver.activate()
