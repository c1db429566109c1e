"""Triton's driver on the fake GPU: kernels are compiled to PTX, which a machine on the CPU runs (ptx/)."""

import ctypes
import os
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from benchmarks.machine_code import SHARED_BYTES, tool_of_triton
from tests.fake_gpu.build import CUDART

_library = ctypes.CDLL(str(CUDART))
for _name in ("fake_gpu_load", "fake_gpu_launch"):
    getattr(_library, _name).restype = ctypes.c_char_p


def _checked(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


class Launcher:
    """Hands over what Triton calls a kernel with, as its own launcher does: no constants, and two addresses more."""

    def __init__(self, source, metadata) -> None:
        kinds = list(source.signature.values())
        self.kinds = {place: kind for place, kind in enumerate(kinds) if kind != "constexpr"}
        if not all(kind.startswith("*") for kind in self.kinds.values()):
            raise NotImplementedError(f"a kernel with other arguments than addresses: {kinds}")
        self.threads, self.shared = 32 * metadata.num_warps, metadata.shared

    def __call__(self, x, y, z, stream, function, packed, launch, entered, left, *arguments) -> None:
        values = [arguments[place] for place in self.kinds]
        addresses = [value if isinstance(value, int) else value.data_ptr() for value in values]
        words = (ctypes.c_uint64 * (len(values) + 2))(*addresses, 0, 0)
        pointers = (ctypes.c_void_p * len(words))(*(ctypes.addressof(words) + 8 * i for i in range(len(words))))
        for number in (x, y, z, self.threads):
            assert 0 < number < 2**31
        sizes = (ctypes.c_uint(x), ctypes.c_uint(y), ctypes.c_uint(z), ctypes.c_uint(self.threads))
        shared = ctypes.c_size_t(self.shared)
        _checked(_library.fake_gpu_launch(ctypes.c_void_p(function), *sizes, shared, pointers, ctypes.c_void_p(stream)))


def _registers(code: bytes) -> int:
    """What a thread would take of them in machine code; asked where it tells how many blocks a processor has."""
    if os.environ.get("FAKE_GPU_TIMED", "0") == "0":
        return 0
    architecture = re.search(rb"\.target\s+(\w+)", code)[1].decode()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_bytes(code)
        command = [tool_of_triton("ptxas"), "-v", f"--gpu-name={architecture}", "kernel.ptx", "-o", "kernel.cubin"]
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return int(re.search(r"Used (\d+) registers", told.stdout + told.stderr)[1])


def _load(name: str, code: bytes, shared: int, device: int) -> tuple[None, int, int, int, int]:
    kernel, registers = ctypes.c_void_p(), _registers(code)
    _checked(_library.fake_gpu_load(code, name.encode(), registers, ctypes.byref(kernel)))
    return None, kernel.value, registers, 0, 1024  # module, function, registers, spills, threads


class Driver:
    launcher_cls = Launcher

    def __init__(self) -> None:
        self.utils = SimpleNamespace(
            load_binary=_load,
            unload_module=lambda module: None,
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED_BYTES[self.get_current_target().arch],
                "multiprocessor_count": torch.cuda.get_device_properties(device).multi_processor_count,
            },
        )

    def get_current_device(self) -> int:
        return torch.cuda.current_device()

    def set_current_device(self, device: int) -> None:
        torch.cuda.set_device(device)

    def get_current_stream(self, device: int | None) -> int:
        return torch.cuda.current_stream(device).cuda_stream

    def get_current_target(self) -> GPUTarget:
        major, minor = torch.cuda.get_device_capability()
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", self.get_current_device())


def activate() -> None:
    """For the rest of the process. What has been compiled for real GPUs must not be found (TRITON_CACHE_DIR)."""
    CUDABackend.make_cubin = lambda self, ptx, metadata, options, capability: ptx.encode()
    driver.set_active(Driver())
