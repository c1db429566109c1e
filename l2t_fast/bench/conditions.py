"""What every row says about where, when and with which code it was measured."""

import datetime
import subprocess
from pathlib import Path

import torch

import l2t_fast
from l2t_fast import _native
from l2t_fast.environment import describe_environment, source_commit

#: What decides how fast something runs; changes elsewhere (recorded rows, pages) do not make a commit dirty.
CODE = ("l2t_fast", "csrc", "CMakeLists.txt", "setup.py")


def conditions(device: torch.device) -> dict[str, object]:
    """The columns of :class:`l2t_fast.bench.rows.Row` from ``version`` to ``threads``."""
    facts = describe_environment(torch.device("cpu"))  # nothing is read that a GPU has to be asked for
    machine = facts["machine"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, capability = properties.name, f"sm_{properties.major}{properties.minor}"
    else:
        name, capability = f"{machine['processor']} ({machine['cores']} cores)", machine["instructions"]
    return {
        "version": l2t_fast.__version__,
        "commit": code_commit(),
        "native": None if _native.extension is None else _native.extension.build_info()["commit"],
        "device": name,
        "capability": capability,
        "python": facts["versions"]["python"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def code_commit() -> str | None:
    """The checkout's commit, with "-dirty" if code has changed since; None outside a checkout."""
    commit = source_commit()
    if commit is None:
        return None
    root = Path(l2t_fast.__file__).parent.parent
    command = ["git", "status", "--porcelain", "--", *CODE]
    changes = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    return commit.removesuffix("-dirty") + "-dirty" * bool(changes)


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
