"""Training from scratch: cross-entropy alone."""

from l2t_fast.transfer.methods.base import Method
from l2t_fast.transfer.methods.registry import register_method


@register_method
class Scratch(Method):
    """The target without any source, the baseline of every comparison."""

    name = "scratch"
    needs_source = False
    runs_source = False
    default_pairs = None
