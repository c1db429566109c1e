"""What a bug report and a run folder need: versions, machine, GPUs, native build, and the backend ``auto`` takes."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import l2t_fast
from l2t_fast import _native
from l2t_fast.convolution import why_plain
from l2t_fast.ops import ENVIRONMENT_VARIABLE, FUSED, backend_of_environment, why_unavailable

PACKAGES = ("torchvision", "triton", "numpy", "scikit-learn")
VARIABLES = (ENVIRONMENT_VARIABLE, "L2T_FAST_TUNE", "L2T_FAST_PATIENCE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def describe_environment(device: torch.device | None = None) -> dict[str, dict[str, Any]]:
    """Everything that decides what runs here and how fast, in named sections; strings, numbers, lists and None only.

    Sections: ``l2t_fast``, ``versions``, ``machine``, one ``gpu N`` for each GPU, ``native``, ``backend`` and
    ``variables`` (the environment variables that are set).

    Args:
        device: the one that is used; None for all. A GPU whose driver is asked what it makes of the kernels has a
            context from then on, some 500 MiB of its memory, so that GPUs which are not used are not asked.
    """
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    sections: dict[str, dict[str, Any]] = {
        "l2t_fast": {"version": l2t_fast.__version__, "commit": source_commit(), "folder": str(_package_folder())},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # with "+cu132" or "+cpu", that the package's metadata leaves out
            **{name: _version(name) for name in PACKAGES},
        },
        "machine": _machine(),
    }
    for index in range(torch.cuda.device_count()):
        sections[f"gpu {index}"] = _gpu(index, asked=device is None or device == torch.device("cuda", index))
    sections["native"] = _native_build()
    sections["backend"] = _backends(device)
    sections["variables"] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return sections


def format_environment(sections: dict[str, dict[str, Any]]) -> str:
    """The sections as plain text, one fact a line, ready to be pasted into a bug report."""
    lines = []
    for title, facts in sections.items():
        if not facts:
            continue
        lines.append(f"{title}:")
        width = max(len(name) for name in facts)
        lines += [f"  {name:<{width}}  {_text(value)}" for name, value in facts.items()]
    return "\n".join(lines)


def source_commit() -> str | None:
    """The commit of the checkout this package runs from, with "-dirty" if it has changes; None outside a checkout."""
    root = _package_folder().parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of another user
        return None


def _package_folder() -> Path:
    return Path(__file__).parent


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch CUDA": torch.version.cuda,
    }


def _processor() -> str:
    """The processor's name; Linux tells it in a file only.

    A virtual machine's may be the make alone, "AMD EPYC": then family and model tell one such processor from another.
    ARM's have no name there, or that of the architecture: maker and part tell them apart, as numbers.
    """
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts and not any(character.isdigit() for character in name):
        name += f", family {facts['cpu family']} model {facts.get('model')}"
    if "CPU part" in facts:
        name += f", implementer {facts.get('CPU implementer')} part {facts['CPU part']}"
    return name


def _gpu(index: int, *, asked: bool) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    facts = {
        "name": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
    }
    return facts | {"kernels": _kernels(index)} if asked else facts


def _kernels(index: int) -> str:
    """What a GPU runs of the extension's CUDA kernels: machine code made for it, PTX its driver compiled, or none."""
    inspect = getattr(_native.extension, "kernel_image", None)
    if inspect is None:
        return "none, built without CUDA"
    image = inspect(index)
    if image["error"]:
        return f"none, {image['error']}"
    compiled_by_driver = image["ptx"] != image["binary"]
    return f"sm_{image['binary']}" + (f", compiled by the driver from compute_{image['ptx']}" * compiled_by_driver)


def _native_build() -> dict[str, Any]:
    if _native.extension is None:
        return {"loaded": "no", "because": _native.why_unavailable()}
    return {
        "loaded": "yes",
        **_native.extension.build_info(),
        "threads of a parallel loop": _native.extension.parallel_threads(),
    }


def _backends(device: torch.device | None) -> dict[str, str]:
    """What ``backend="auto"`` takes, and why, for each kind of device in use; which of its fused backends could run.

    And whose the convolutions on a CPU are.
    """
    plain = why_plain()
    convolutions = {"convolutions on cpu": "fast where 3x3 in float32" if plain is None else f"PyTorch's: {plain}"}
    if backend_of_environment() == "reference":  # which serves every device
        return {"auto": f"reference: {ENVIRONMENT_VARIABLE} asks for it", **convolutions}
    devices = [torch.device("cpu")]
    if device is None:
        devices += [torch.device("cuda")] * torch.cuda.is_available()
    elif device.type != "cpu":
        devices.append(device)
    choices = {device.type: l2t_fast.explain_backend(device) for device in devices}
    taken = {f"auto on {kind}": f"{choice.backend}: {choice.reason}" for kind, choice in choices.items()}
    names = [name for kind in ("cpu", "cuda") if device is None or kind in choices for name in FUSED[kind]]
    fused = {name: why_unavailable(name, device) or "available" for name in names}
    return taken | fused | convolutions


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
