"""The bilevel part of the method: look-ahead steps of the target network and the gradient through them."""

from l2t_fast.bilevel.hypergradient import METHODS, hypergradient

__all__ = ["METHODS", "hypergradient"]
