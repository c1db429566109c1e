"""What `l2t-fast env` and a run folder's environment.json say."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

import l2t_fast
from l2t_fast import _native, environment
from l2t_fast.ops import why_unavailable


def test_the_description_is_json_and_names_versions_machine_and_backend():
    sections = environment.describe_environment()
    assert json.loads(json.dumps(sections)) == sections
    assert sections["versions"]["torch"] == torch.__version__
    assert sections["l2t_fast"]["version"] == l2t_fast.__version__
    assert sections["machine"]["cores"] >= 1
    choice = l2t_fast.explain_backend("cpu")
    if "auto on cpu" in sections["backend"]:
        assert sections["backend"]["auto on cpu"] == f"{choice.backend}: {choice.reason}"
        assert sections["backend"]["cuda"] == (why_unavailable("cuda") or "available")


def test_the_text_has_one_fact_a_line():
    native = {"isa": ["avx2", "avx512"], "gpu": []}
    sections = {"versions": {"torch": "2.15.0", "triton": None}, "native": native, "variables": {}}
    assert environment.format_environment(sections).splitlines() == [
        "versions:",
        "  torch   2.15.0",
        "  triton  none",
        "native:",
        "  isa  avx2, avx512",
        "  gpu  none",
    ]


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["cpu family : 26", "model : 2", "model name : AMD EPYC"], "AMD EPYC, family 26 model 2"),
        (["cpu family : 25", "model : 97", "model name : AMD Ryzen 9 7950X"], "AMD Ryzen 9 7950X"),
        (["model name : Loongson"], "Loongson"),
        (["CPU implementer\t: 0x41", "CPU part\t: 0xd4f"], "aarch64, implementer 0x41 part 0xd4f"),
        (
            ["model name : ARMv8 Processor rev 1 (v8l)", "CPU implementer : 0x41", "CPU part : 0xd42"],
            "ARMv8 Processor rev 1 (v8l), implementer 0x41 part 0xd42",
        ),
    ],
)
def test_a_processor_without_a_name_of_its_own_is_told_by_numbers(monkeypatch, lines, name):
    """Machines are compared by it, and rented ones give the make alone."""
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    text = "\n".join(["processor : 0", *lines, "flags : a b"])
    monkeypatch.setattr(environment.Path, "read_text", lambda path: f"{text}\n\n{text.replace('2', '3')}\n\n")
    assert environment._processor() == name


def test_without_native_code_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(_native, "extension", None)
    monkeypatch.setattr(_native, "_problem", "it was eaten")
    assert environment.describe_environment()["native"] == {"loaded": "no", "because": "it was eaten"}


def test_of_a_device_in_use_it_tells_what_serves_that():
    backends = environment.describe_environment(torch.device("cpu"))["backend"]
    assert {"auto on cpu", "cpu", "convolutions on cpu"} == set(backends)


def test_a_backend_forced_by_the_environment_is_told(monkeypatch):
    monkeypatch.setenv("L2T_FAST_BACKEND", "reference")
    sections = environment.describe_environment()
    assert sections["backend"] == {
        "auto": "reference: L2T_FAST_BACKEND asks for it",
        "convolutions on cpu": "PyTorch's: L2T_FAST_BACKEND asks for the reference",
    }
    assert sections["variables"]["L2T_FAST_BACKEND"] == "reference"


@pytest.mark.parametrize("backend", ["cuda", "fastest"])
def test_a_backend_of_the_environment_whose_calls_are_refused_is_told(monkeypatch, backend):
    monkeypatch.setenv("L2T_FAST_BACKEND", backend)
    told = environment.describe_environment()["backend"]["auto on cpu"]
    assert told.startswith(f"{backend}: calls are refused: L2T_FAST_BACKEND={backend!r} ")


IMAGE = {"runtime": 13020, "driver": 13020, "binary": 90, "ptx": 90, "error": None}


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (IMAGE, "sm_90"),
        (IMAGE | {"binary": 120, "ptx": 80}, "sm_120, compiled by the driver from compute_80"),
        (IMAGE | {"error": "no kernel image is available"}, "none, no kernel image is available"),
    ],
)
def test_a_gpu_is_described_with_the_kernels_it_runs(monkeypatch, image, text):
    properties = SimpleNamespace(name="GPU", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(_native, "extension", SimpleNamespace(kernel_image=lambda index: image))
    described = environment._gpu(0, asked=True)
    assert described == {"name": "GPU", "compute capability": "9.0", "memory": "80.0 GiB", "kernels": text}
    assert "kernels" not in environment._gpu(0, asked=False)


def test_the_commit_is_the_checkouts_and_none_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_package_folder", lambda: tmp_path / "l2t_fast")
    assert environment.source_commit() is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert environment.source_commit() == head.strip()
