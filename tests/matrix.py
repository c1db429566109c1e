"""Install and test in environments of their own, one a Python and a PyTorch: `python -m tests.matrix --help`.

Needs nothing but Python. Each environment is made below build/matrix and kept, with a copy of the sources in which
the native code is compiled. What cannot be had here, a Python or a PyTorch, stands in the table as not run, with the
reason.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "matrix"
PYTHONS = ("3.11", "3.12")
TORCHES = ("2.11", "newest")
TOOLS = ("setuptools>=77", "cmake>=3.22", "ninja")
#: The operators, the step and a run, in a few minutes on one core.
NATIVE = (
    *("tests/test_functional.py", "tests/test_modules.py", "tests/test_native.py", "tests/test_coefficients.py"),
    *("tests/fuzz", "tests/bilevel"),
    *("tests/transfer/test_trainer.py", "tests/transfer/test_checkpoint.py", "tests/ops/test_operators.py"),
)
PURE = ("tests/test_functional.py", "tests/test_modules.py", "tests/fuzz", "tests/transfer/test_trainer.py")


class NotRun(Exception):
    """Why an environment could not be had."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions, as 3.12")
    parser.add_argument("--torch", nargs="+", default=TORCHES, help="versions, as 2.11, or newest")
    options, pytest_options = parser.parse_known_args()
    rows = []
    for python in options.python:
        for torch in options.torch:
            name = f"python{python}-torch{torch}"
            try:
                environment = make_environment(python, torch, BUILD / name)
                versions = installed(environment)
                for native, tests in ((True, NATIVE), (False, PURE)):
                    rows.append(
                        (
                            *versions,
                            "native" if native else "pure Python",
                            check(environment, native, tests, pytest_options),
                        )
                    )
            except NotRun as reason:
                rows.append((python, torch, "", "", f"not run: {reason}"))
            print(table(rows[-2:]), flush=True)
    print("\n" + table(rows))
    return 1 if any("failed" in row[-1] or "error" in row[-1] for row in rows) else 0


def make_environment(python: str, torch: str, folder: Path) -> Path:
    """A virtual environment with PyTorch and what the tests need; returns its interpreter."""
    interpreter, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():  # what an interrupted installation leaves cannot be installed into
        shutil.rmtree(folder, ignore_errors=True)
        command([find_python(python), "-m", "venv", folder], "no virtual environment can be made")
    wanted = "torch" if torch == "newest" else f"torch=={torch}.*"
    # PyTorch first and alone with its torchvision, because the native build compiles against it.
    install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command([*install, wanted, "torchvision", *TOOLS], f"torch {torch} cannot be installed")
    dependencies = [*project_list("dependencies"), "pytest", "pytest-xdist"]
    command([*install, wanted, *dependencies], "the dependencies cannot be installed beside it")
    command([interpreter, "-c", "import torchvision"], "torchvision cannot be imported beside it")
    ready.touch()
    return interpreter


def find_python(version: str) -> str:
    """An interpreter of that version: on PATH, or one that pyenv keeps."""
    candidates = [f"python{version}", *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))]
    for candidate in candidates:
        if (found := shutil.which(candidate)) and subprocess.run(
            [found, "--version"], capture_output=True
        ).returncode == 0:
            return found
    raise NotRun(f"there is no Python {version} on this machine")


def project_list(name: str) -> list[str]:
    """A list of pyproject.toml."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][name]


def installed(interpreter: Path) -> tuple[str, str, str]:
    """Versions of Python, PyTorch (with its kind of build) and Triton."""
    program = (
        "import platform, importlib.util as u, importlib.metadata as m, torch; "
        "print(platform.python_version(), torch.__version__, m.version('triton') if u.find_spec('triton') else '-')"
    )
    python, torch, triton = command([interpreter, "-c", program], "PyTorch cannot be imported").split()[-3:]
    return python, torch, triton


def check(interpreter: Path, native: bool, tests: tuple[str, ...], options: list[str]) -> str:
    """Copy the sources, build, run the tests; the last line of pytest."""
    tree = interpreter.parents[1] / ("native" if native else "pure")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        target = tree / name
        if (ROOT / name).is_file() and not (target.exists() and target.read_bytes() == (ROOT / name).read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "L2T_FAST_CUDA": "0"}
    environment |= {"PYTHONPATH": str(tree), "PATH": f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}"}
    if native:
        command(
            [interpreter, "setup.py", "build_ext", "--inplace"], "the native build failed", cwd=tree, env=environment
        )
    run = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *options]
    done = subprocess.run(run, cwd=tree, env=environment, capture_output=True, text=True)
    (interpreter.parents[1] / f"{tree.name}.log").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or ["pytest printed nothing, error"])[-1]
    return re.sub(r" in [0-9.]+s.*|=+", "", last).strip()


def command(words: list[object], problem: str, **options: object) -> str:
    """Run a command; if it fails, raise NotRun with its last line."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise NotRun(f"{problem}: {lines[-1][:160] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as Markdown."""
    head = ("Python", "PyTorch", "Triton", "build", "result")
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * 5, *rows))


if __name__ == "__main__":
    sys.exit(main())
