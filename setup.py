"""Builds the native extension ``l2t_fast._C`` with CMake and Ninja; the rest of the package is in pyproject.toml.

Environment variables (docs/development.md has the table): L2T_FAST_NATIVE=0, L2T_FAST_CUDA=0/1, MAX_JOBS.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MEMORY_PER_JOB = 2 * 2**30  # bytes; a compiler reading PyTorch's headers takes 1 to 1.5 GiB

CACHED_VARIABLES = ("CXX", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS", "CUDAHOSTCXX")  # CMake reads them once

PURE_PYTHON = "or set L2T_FAST_NATIVE=0 for an install without native code"


def stop(sentence: str) -> None:
    """End the build with one sentence and no traceback."""
    sys.exit(f"l2t_fast: {sentence}")


def flag(name: str) -> bool | None:
    """The environment variable ``name``: 1 is True, 0 is False, unset or empty is None."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        stop(f"the environment variable {name} is {value!r}, but it can be 0 or 1 only.")
    return None if value == "" else value == "1"


def find_torch() -> Path:
    """The folder of the installed PyTorch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        stop(
            "the native build finds no PyTorch (pip's build isolation hides an installed one): run "
            "`pip install torch torchvision` and then `pip install --no-build-isolation .` (with -e for an editable "
            f"install), {PURE_PYTHON}."
        )
    return Path(spec.submodule_search_locations[0])


def find_tool(name: str) -> str:
    """The path of cmake or ninja: the one of this Python's environment, else the one on PATH."""
    beside_python = shutil.which(name, path=sysconfig.get_path("scripts"))
    path = beside_python or shutil.which(name)
    if path is None:
        stop(f"the native build needs {name}: run `pip install cmake ninja`, {PURE_PYTHON}.")
    return path


def free_memory() -> int | None:
    """Bytes new processes may take: the smaller of the machine's and the container's; None where neither is known."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        cgroup = Path("/sys/fs/cgroup")
        limits.append(int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):  # another system, another cgroup version, or no limit ("max")
        pass
    return min(limits, default=None)


def job_count() -> int:
    """Compilers to run at once: MAX_JOBS, else as many as there are cores and memory for."""
    wish = os.environ.get("MAX_JOBS", "")
    if wish:
        if not wish.isdigit() or int(wish) == 0:
            stop(f"the environment variable MAX_JOBS is {wish!r}, but it must be a positive number.")
        return int(wish)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = free_memory()
    return cores if memory is None else max(1, min(cores, memory // MEMORY_PER_JOB))


class CMakeBuild(build_ext):
    """Configure and build with CMake; the build folder is kept, so that a second build compiles only what changed."""

    def build_extension(self, extension: setuptools.Extension) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            stop(f"the native build needs Python's headers (on Debian: apt-get install python3-dev), {PURE_PYTHON}.")
        check_compiler()
        folder = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        forget_stale_cache(folder)
        cuda = {None: "AUTO", True: "ON", False: "OFF"}[flag("L2T_FAST_CUDA")]
        commands = [
            [
                *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DL2T_FAST_TORCH_DIR={find_torch()}",
                f"-DL2T_FAST_CUDA={cuda}",
            ],
            [cmake, "--build", str(folder), "--parallel", str(job_count())],
        ]
        for command in commands:
            if subprocess.run(command).returncode != 0:
                stop(f"the native build failed; the compiler's messages are above. Repair that, {PURE_PYTHON}.")
        destination = Path(self.get_ext_fullpath(extension.name))
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Replaced in one step: a Python that has the old library mapped keeps it whole.
        fresh = destination.with_name(destination.name + ".new")
        shutil.copy2(folder / destination.name, fresh)
        fresh.replace(destination)


def check_compiler() -> None:
    """Stop unless there is a C++ compiler: the one that CXX names, else one of those that CMake looks for."""
    wish = os.environ.get("CXX", "").strip()
    # As CMake takes it: the path of a compiler, which may have spaces, or one with options behind it.
    if not any(shutil.which(name) for name in ([wish, wish.split()[0]] if wish else ["c++", "g++", "clang++"])):
        found = f"finds no compiler {wish!r}, which CXX names" if wish else "needs a C++ compiler"
        stop(f"the native build {found} (on Debian: apt-get install g++), {PURE_PYTHON}.")


def forget_stale_cache(folder: Path) -> None:
    """Remove CMake's cache if it was made elsewhere (a clone that was moved or copied), which CMake would refuse, or
    with another compiler or other flags in the environment, which it reads for a new cache alone."""
    cache, stamp = folder / "CMakeCache.txt", folder / "environment.txt"
    settings = "".join(f"{name}={os.environ[name]}\n" for name in CACHED_VARIABLES if name in os.environ)
    if cache.is_file():
        moved = f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text()
        if moved or settings != (stamp.read_text() if stamp.is_file() else ""):
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(settings)


def main() -> None:
    native = flag("L2T_FAST_NATIVE") is not False
    if native and "sdist" not in sys.argv:
        find_torch()  # before pip downloads and compiles anything
    if int(setuptools.__version__.split(".")[0]) < 77:
        stop(f"setuptools {setuptools.__version__} is too old for pyproject.toml: run `pip install -U setuptools`.")
    if not native and "editable_wheel" in sys.argv:
        for library in (ROOT / "l2t_fast").glob("_C.*"):  # of an earlier install; it would be picked up
            library.unlink()
    # setuptools packs whatever lies in its build folder, modules long gone from the sources too: give it a fresh one.
    with tempfile.TemporaryDirectory() as scratch:
        setuptools.setup(
            ext_modules=[setuptools.Extension("l2t_fast._C", sources=[])] if native else [],
            cmdclass={"build_ext": CMakeBuild},
            options={"build": {"build_base": scratch}},
        )


if __name__ == "__main__":
    main()
