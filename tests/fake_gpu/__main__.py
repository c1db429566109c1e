"""Runs a module, such as pytest, in a process that has the fake GPU."""

import os
import runpy
import sys
import time

from tests.fake_gpu import __doc__ as description
from tests.fake_gpu.build import CUDART, build, extract_ptx, runs_compiled_code, variables, why_not

PLUGIN = "tests.fake_gpu.plugin"

if sys.argv[1:2] in ([], ["-h"], ["--help"]):
    sys.exit(description)
if os.environ.get("LD_PRELOAD") != str(CUDART):
    problem = why_not()
    if problem:
        sys.exit(f"error: a fake GPU cannot be had here: {problem}")
    build()
    if runs_compiled_code():
        extract_ptx()
    os.execve(sys.executable, [sys.executable, "-m", "tests.fake_gpu", *sys.argv[1:]], os.environ | variables())
__import__(PLUGIN)
module, *arguments = sys.argv[1:]
sys.argv = [module, *(["-p", PLUGIN] if module == "pytest" else []), *arguments]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    # PyTorch's thread of a GPU may still hold the results of the last backward, which are Python's too: if it lets go
    # of them while Python ends, the process aborts.
    time.sleep(0.5)
