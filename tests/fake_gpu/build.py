"""Compiles the libraries of the fake GPU, into build/fake_gpu."""

import os
import shutil
import subprocess
from pathlib import Path

import torch

from l2t_fast import _native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fake_gpu"
CUDART, OPERATORS, DRIVER = (BUILD / name for name in ("libfake_cudart.so", "libfake_operators.so", "libcuda.so.1"))


def cuda_include() -> Path | None:
    """The headers of a CUDA toolkit of PyTorch's version, which pip's packages of CUDA have not all."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc:
        homes.insert(0, str(Path(nvcc).resolve().parents[1]))
    for home in filter(None, homes):
        header = Path(home) / "include" / "cuda_runtime_api.h"
        if header.is_file() and f"CUDART_VERSION  {(torch.version.cuda or '').split('.')[0]}0" in header.read_text():
            return header.parent
    return None


def why_not() -> str | None:
    """Why there can be no fake GPU here, in words; None if there can."""
    if torch.version.cuda is None:
        return "PyTorch is built without CUDA"
    if not hasattr(_native.extension, "kernel_image"):
        return "the extension is built without CUDA"
    if cuda_include() is None:
        return f"no headers of CUDA {torch.version.cuda} were found"
    if shutil.which(compiler()) is None:
        return f"there is no C++ compiler {compiler()}"
    return None


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def build() -> None:
    """Makes what is missing or older than its sources."""
    BUILD.mkdir(parents=True, exist_ok=True)
    package = Path(torch.__file__).parent
    pip = package.parent / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}" / "include"
    headers = [cuda_include(), pip, package / "include", package / "include/torch/csrc/api/include"]
    includes = [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in headers)]
    linked = [
        f"-L{package / 'lib'}",
        *(f"-l{name}" for name in ("torch", "torch_cpu", "torch_cuda", "c10", "c10_cuda")),
    ]
    emulator = ROOT / "csrc" / "cuda" / "emulator.cpp"
    inputs = {
        CUDART: [HERE / "runtime.cpp", HERE / "kernels.cpp", HERE / "unneeded.cpp", emulator],
        OPERATORS: [HERE / "operators.cpp", *linked],
        DRIVER: [HERE / "driver.cpp"],
    }
    newest = max(
        path.stat().st_mtime for folder in (HERE, ROOT / "csrc/cuda") for path in folder.glob("*") if path.is_file()
    )
    compiling = {}
    for library, files in inputs.items():
        if library.exists() and library.stat().st_mtime > newest:
            continue
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [compiler(), "-std=c++20", "-O2", "-fPIC", "-shared", "-w", *includes, *map(str, files)]
        compiling[library] = unfinished, subprocess.Popen([*command, "-o", str(unfinished)])
    for library, (unfinished, process) in compiling.items():
        if process.wait() != 0:
            raise RuntimeError(f"{library.name} was not compiled: see the compiler's messages above")
        unfinished.replace(library)


def variables() -> dict[str, str]:
    """What a process needs in its environment, before it is started, to have the fake GPU."""
    paths = [str(BUILD), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_PRELOAD": str(CUDART), "LD_LIBRARY_PATH": os.pathsep.join(paths), "TRITON_INTERPRET": "1"}
