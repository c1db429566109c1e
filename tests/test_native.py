"""The native extension as a library: what it says of itself, its threads, and when it is left alone."""

import importlib.machinery
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from l2t_fast import _native

ROOT = Path(__file__).parent.parent
extension = _native.extension
needs_extension = pytest.mark.skipif(extension is None, reason=f"no native extension: {_native.why_unavailable()}")


def write_library(folder: Path, content: bytes) -> Path:
    path = folder / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    path.write_bytes(content)
    return path


@needs_extension
def test_build_info_names_what_the_library_was_built_from():
    info = extension.build_info()
    assert set(info) == {
        *("version", "commit", "torch", "compiler", "cxx_flags", "instruction_sets", "cuda", "cuda_architectures")
    }
    assert info["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert info["torch"] == torch.__version__
    assert re.fullmatch(r"\w+ \d+(\.\d+)+", info["compiler"])
    assert "-O3" in info["cxx_flags"]
    assert "-fopenmp" in info["cxx_flags"]
    assert "native" not in info["cxx_flags"]
    assert info["commit"] is None or re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", info["commit"])
    if info["cuda"] is not None:
        assert info["cuda"].split(".")[0] == torch.version.cuda.split(".")[0]
        assert info["cuda_architectures"] == "80 90a-real"


@needs_extension
def test_the_version_mark_is_readable_without_loading():
    assert _native.built_against(Path(extension.__file__)) == torch.__version__


@needs_extension
def test_native_loops_are_parallel_and_follow_torchs_setting():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert extension.parallel_threads() == threads
    finally:
        torch.set_num_threads(before)


@needs_extension
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to list the loaded libraries")
def test_the_extension_brings_no_second_openmp_or_cuda_run_time():
    code = f"""if True:
        import sys, types, torch
        package = types.ModuleType("l2t_fast")  # not the real one, whose imports may bring other libraries' run times
        package.__path__ = [{str(Path(_native.__file__).parent)!r}]
        sys.modules["l2t_fast"] = package
        from l2t_fast import _C
        torch.set_num_threads(2)
        _C.parallel_threads()
        print(*{{line.split()[-1] for line in open("/proc/self/maps") if "/" in line}}, sep="\\n")
    """
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert any("/_C." in path for path in loaded)
    for run_time in (r"/lib(g|i)?omp\d?[-.\w]*\.so", r"/libcudart[-.\w]*\.so"):
        assert len([path for path in loaded if re.search(run_time, path)]) <= 1, (run_time, loaded)


@pytest.mark.skipif(not hasattr(extension, "kernel_image"), reason="the extension is built without CUDA")
def test_kernel_image_says_what_a_gpu_runs():
    image = extension.kernel_image(0)
    assert image["runtime"] // 1000 == int(torch.version.cuda.split(".")[0])
    if torch.cuda.is_available():
        assert image["error"] is None
        assert image["binary"] >= 80
        assert image["ptx"] in (80, 90)
    else:
        assert image["error"]
        assert image["binary"] == 0
    beyond = extension.kernel_image(torch.cuda.device_count())
    assert beyond["error"]
    if torch.cuda.is_available():
        assert torch.zeros(3, device="cuda").sum().item() == 0  # the failed query left nothing behind


@pytest.mark.parametrize("running", ["2.15.0+cpu", "2.15.0+cu132", "2.15.0"])
def test_a_library_fits_the_same_release_of_pytorch(tmp_path, running):
    library = write_library(tmp_path, b"\x7fELF..l2t_fast was built against torch==2.15.0+cu132\x00..")
    assert _native.misfit(library, running) is None


def test_a_library_of_another_pytorch_is_left_alone_with_a_sentence(tmp_path):
    write_library(tmp_path, b"\x7fELF..l2t_fast was built against torch==1.0.0+cu132\x00..")
    with pytest.warns(RuntimeWarning, match="slower reference backend") as record:
        module, problem = _native.load(tmp_path)
    assert module is None
    assert "built against PyTorch 1.0.0+cu132" in problem
    assert torch.__version__ in problem
    assert "pip install --no-build-isolation" in problem
    assert problem in str(record[0].message)


@pytest.mark.parametrize("content", [b"", b"half a library"])
def test_a_damaged_library_is_left_alone_with_a_sentence(tmp_path, content):
    library = write_library(tmp_path, content)
    with pytest.warns(RuntimeWarning, match="damaged"):
        module, problem = _native.load(tmp_path)
    assert module is None
    assert str(library) in problem


def test_an_installation_without_native_code_is_no_reason_for_a_warning(tmp_path, recwarn):
    module, problem = _native.load(tmp_path)
    assert module is None
    assert "without native code" in problem
    assert not recwarn.list


def test_a_library_that_does_not_load_is_left_alone_with_a_sentence(tmp_path, monkeypatch):
    write_library(tmp_path, f"l2t_fast was built against torch=={torch.__version__}\x00".encode())

    def refuse(name: str):
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(_native.importlib, "import_module", refuse)
    with pytest.warns(RuntimeWarning, match="undefined symbol"):
        module, problem = _native.load(tmp_path)
    assert module is None
    assert "does not load" in problem
