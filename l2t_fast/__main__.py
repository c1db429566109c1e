"""``python -m l2t_fast`` is the command ``l2t-fast``."""

import sys

from l2t_fast.cli import main

sys.exit(main())
