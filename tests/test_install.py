"""What a user meets before the first import: setup.py's messages, the Makefile's, and wheels that work elsewhere."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
BUILT = next(ROOT.glob("build/native-*/_C.*"), None)


@pytest.fixture(scope="module")
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("l2t_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAX_JOBS")}
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True)


def run_setup(tmp_path: Path, hidden: str, **environment: str) -> subprocess.CompletedProcess:
    """`setup.py egg_info`, the first thing pip asks of it, in a Python that cannot import the package ``hidden``."""
    code = (
        f"import runpy, sys; sys.modules[{hidden!r}] = None; "
        f"sys.argv = ['setup.py', '-q', 'egg_info', '--egg-base', {str(tmp_path)!r}]; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    return run(sys.executable, "-W", "ignore", "-c", code, **environment)


def test_without_torch_the_build_stops_with_one_sentence(tmp_path):
    result = run_setup(tmp_path, hidden="torch", L2T_FAST_NATIVE="1")
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert "pip install torch torchvision" in line
    assert "pip install --no-build-isolation" in line
    assert "L2T_FAST_NATIVE=0" in line


def test_without_torch_a_pure_python_build_goes_on(tmp_path):
    result = run_setup(tmp_path, hidden="torch", L2T_FAST_NATIVE="0")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "l2t_fast.egg-info").is_dir()


@pytest.mark.parametrize("name", ["L2T_FAST_NATIVE", "L2T_FAST_CUDA"])
def test_a_switch_takes_0_and_1_only(setup_script, monkeypatch, name):
    for text, value in {"": None, "0": False, "1": True}.items():
        monkeypatch.setenv(name, text)
        assert setup_script.flag(name) is value
    monkeypatch.setenv(name, "yes")
    with pytest.raises(SystemExit, match=f"{name} is 'yes'"):
        setup_script.flag(name)


def test_jobs_are_bounded_by_memory_and_cores(setup_script, monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(setup_script.os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(setup_script, "free_memory", lambda: 7 * 2**30)
    assert setup_script.job_count() == 3
    monkeypatch.setattr(setup_script, "free_memory", lambda: 2**20)
    assert setup_script.job_count() == 1
    monkeypatch.setattr(setup_script, "free_memory", lambda: 2**50)
    assert setup_script.job_count() == 64


def test_max_jobs_is_honoured(setup_script, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "5")
    assert setup_script.job_count() == 5
    monkeypatch.setenv("MAX_JOBS", "0")
    with pytest.raises(SystemExit, match="MAX_JOBS is '0'"):
        setup_script.job_count()


def test_a_missing_tool_is_named(setup_script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_script.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(SystemExit, match=r"needs cmake: run `pip install cmake ninja`"):
        setup_script.find_tool("cmake")


def test_the_build_folder_of_a_moved_clone_is_made_anew(setup_script, tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder, root in ((here, setup_script.ROOT), (elsewhere, "/some/other/clone")):
        folder.mkdir()
        (folder / "CMakeCache.txt").write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={root}\n")
        setup_script.forget_stale_cache(folder)
    assert (here / "CMakeCache.txt").is_file()
    assert not (elsewhere / "CMakeCache.txt").exists()


def test_another_compiler_or_other_flags_make_the_build_folder_anew(setup_script, tmp_path, monkeypatch):
    """CMake keeps those of the first time, whatever the environment says later."""
    cache = tmp_path / "CMakeCache.txt"
    for name in setup_script.CACHED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for flags, kept in (("", True), ("-g", False), ("-g", True), ("-O1", False), ("", False)):
        monkeypatch.setenv("CXXFLAGS", flags) if flags else monkeypatch.delenv("CXXFLAGS", raising=False)
        cache.write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={setup_script.ROOT}\n")
        setup_script.forget_stale_cache(tmp_path)
        assert cache.exists() == kept, flags


@pytest.mark.parametrize(
    ("wish", "compilers", "message"),
    [
        ("", [], r"needs a C\+\+ compiler \(on Debian"),
        ("", ["g++"], None),
        (" ", ["c++"], None),
        ("nonsense -O1", ["c++"], "finds no compiler 'nonsense -O1', which CXX names"),
        ("mine -O1", ["mine"], None),
    ],
)
def test_a_missing_compiler_is_named(setup_script, monkeypatch, tmp_path, wish, compilers, message):
    for name in compilers:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", wish)
    if message is None:
        setup_script.check_compiler()
    else:
        with pytest.raises(SystemExit, match=message):
            setup_script.check_compiler()


def test_a_compiler_may_lie_in_a_folder_with_a_space(setup_script, monkeypatch, tmp_path):
    compiler = tmp_path / "my tools" / "c++"
    compiler.parent.mkdir()
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    setup_script.check_compiler()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="which files there are is asked of git")
def test_a_source_distribution_holds_what_its_readme_speaks_of(tmp_path):
    command = ["egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    result = run(sys.executable, "-W", "ignore", "setup.py", "-q", *command)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    tracked = run("git", "ls-files").stdout.splitlines()
    assert {name for name in tracked if not name.startswith(".")} <= held


def test_make_names_the_pythons_it_tried(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    for name in ("setup.py", "CMakeLists.txt"):
        (tmp_path / name).touch()
    result = run("make", "test", "PYTHON=no-such-python", cwd=tmp_path)
    assert result.returncode != 0
    message = result.stderr.splitlines()[0]
    assert "Python 3.11 or newer" in message
    assert "no-such-python" in message
    assert not (tmp_path / ".venv").exists()


def build_wheel(folder: Path, **environment: str) -> Path:
    command = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    )
    result = run(*command, cwd=folder, **environment)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("l2t_fast-*.whl")
    return wheel


def import_from(wheel: Path, folder: Path, code: str) -> list[str]:
    """Unpack ``wheel`` as an installer would and run ``code`` there, away from the sources; the lines it printed."""
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = f"import l2t_fast; assert l2t_fast.__file__.startswith({str(site)!r}), l2t_fast.__file__; {code}"
    result = run(sys.executable, "-c", code, cwd=folder, PYTHONPATH=str(site), OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


LOSS = (
    "import torch; loss = l2t_fast.feature_matching_loss([torch.ones(2, 3, 4, 4)], [torch.zeros(2, 5, 4, 4)], "
    "[(torch.zeros(3, 5), None)], [(0, 0)]); print(loss.item()); print(*l2t_fast.explain_backend('cpu'), sep=': ')"
)


def test_a_pure_python_wheel_works(tmp_path):
    wheel = build_wheel(tmp_path, L2T_FAST_NATIVE="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {path for path in (ROOT / "l2t_fast").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in package if not path.name.startswith("_C.")}
    assert expected <= names  # templates, configurations and py.typed too
    assert not any(name.startswith("l2t_fast/_C.") for name in names)
    loss, backend = import_from(wheel, tmp_path, LOSS)
    assert float(loss) == 1.0
    assert backend.startswith("reference: ")
    assert "without native code" in backend


@pytest.mark.skipif(BUILT is None, reason="no native build folder in this checkout (make test makes one)")
def test_a_native_wheel_works_away_from_the_sources(tmp_path):
    wheel = build_wheel(tmp_path, L2T_FAST_NATIVE="1")
    assert "-none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (library,) = [name for name in archive.namelist() if name.startswith("l2t_fast/_C.")]
        content = archive.read(library)
        names = archive.namelist()
    assert str(ROOT).encode() not in content  # no path of the build machine, as a run path or in an error message
    assert b"site-packages" not in content
    assert any(name.endswith("/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "csrc/")) for name in names)
    loss, backend = import_from(wheel, tmp_path, LOSS)
    assert float(loss) == 1.0
    assert backend.startswith("cpu: ")


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    for path in (ROOT / "setup.py", ROOT / "CMakeLists.txt", ROOT / "l2t_fast" / "__init__.py"):
        assert f'"{project["version"]}"' not in path.read_text()
