"""What pip calls to build this package: setuptools, with one sentence where even that is missing.

Environments of Python 3.12 and later start without setuptools, and pip's own message for it is a traceback.
"""

import importlib.util
import sys

if importlib.util.find_spec("setuptools") is None:
    sys.exit(
        "l2t_fast: the build needs PyTorch and setuptools, and this environment has no setuptools: run "
        "`pip install torch torchvision setuptools` and then `pip install --no-build-isolation .` (with -e for an "
        "editable install)."
    )

from setuptools.build_meta import *  # noqa: F403
