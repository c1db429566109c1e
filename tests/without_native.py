"""A plugin of pytest, `-p tests.without_native`: the package as it is where nothing was compiled."""

import sys

sys.modules["l2t_fast._C"] = None
