"""Compiles the libraries of the fake GPU, into build/fake_gpu."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.machine_code import tool_of_triton
from l2t_fast import _native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fake_gpu"
CUDART, OPERATORS, DRIVER = (BUILD / name for name in ("libfake_cudart.so", "libfake_operators.so", "libcuda.so.1"))
PTX = BUILD / "extension.ptx"


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
    own = [HERE / f"{name}.cpp" for name in ("runtime", "kernels", "ptx_kernels", "unneeded")]
    libraries = {
        CUDART: [*own, *sorted(HERE.glob("ptx/*.cpp")), ROOT / "csrc" / "cuda" / "emulator.cpp"],
        OPERATORS: [HERE / "operators.cpp"],
        DRIVER: [HERE / "driver.cpp"],
    }
    # The PTX machine's products are rounded as its instructions say, not as the compiler likes best.
    flags = ["-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-w", *includes]
    sources = [source for files in libraries.values() for source in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = dict(zip(sources, pool.map(lambda source: _compile(source, flags), sources), strict=True))
    torch_libraries = ("torch", "torch_cpu", "torch_cuda", "c10", "c10_cuda")
    linked = {OPERATORS: [f"-L{package / 'lib'}", *(f"-l{name}" for name in torch_libraries)]}
    for library, files in libraries.items():
        own_objects = [objects[source] for source in files]
        if _is_newer(library, own_objects):
            continue
        _make(library, [compiler(), "-shared", *map(str, own_objects), *linked.get(library, [])])


def _compile(source: Path, flags: list[str]) -> Path:
    made = BUILD / f"{source.stem}.o"
    headers = [path for folder in (HERE, HERE / "ptx", ROOT / "csrc" / "cuda") for path in folder.glob("*.h")]
    if not _is_newer(made, [source, *headers]):
        _make(made, [compiler(), *flags, "-c", str(source)])
    return made


def _is_newer(made: Path, sources: list[Path]) -> bool:
    return made.exists() and made.stat().st_mtime > max(path.stat().st_mtime for path in sources)


def _make(made: Path, command: list[str]) -> None:
    """Runs a compiler; what another process sees is nothing or all of its result."""
    unfinished = made.with_suffix(f".{os.getpid()}")
    if subprocess.run([*command, "-o", str(unfinished)]).returncode != 0:
        raise RuntimeError(f"{made.name} was not compiled: see the compiler's messages above")
    unfinished.replace(made)


def runs_compiled_code() -> bool:
    """Whether FAKE_GPU_CODE asks for what the compilers made of the kernels, instead of their emulator."""
    return os.environ.get("FAKE_GPU_CODE", "emulator") == "compiled"


def extract_ptx() -> None:
    """What nvcc made of the extension's kernels, and the extension has for GPUs it has no machine code for."""
    extension = Path(_native.extension.__file__)
    if PTX.exists() and PTX.stat().st_mtime > extension.stat().st_mtime:
        return
    told = subprocess.run([tool_of_triton("cuobjdump"), "-ptx", extension], capture_output=True, check=True).stdout
    unfinished = PTX.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(told)
    unfinished.replace(PTX)


def variables() -> dict[str, str]:
    """What a process needs in its environment, before it is started, to have the fake GPU."""
    paths = [str(BUILD), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    found = {"LD_PRELOAD": str(CUDART), "LD_LIBRARY_PATH": os.pathsep.join(paths)}
    if not runs_compiled_code():
        return found | {"TRITON_INTERPRET": "1"}
    return found | {"FAKE_GPU_PTX": os.environ.get("FAKE_GPU_PTX", str(PTX)), "TRITON_CACHE_DIR": str(BUILD / "triton")}
