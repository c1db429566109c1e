"""Loads the native extension ``l2t_fast._C`` if this installation has one, and keeps the reason if not."""

try:
    from l2t_fast import _C  # noqa: F401  (registers torch.ops.l2t_fast)

    _PROBLEM = None
except ImportError as error:
    _PROBLEM = f"the native extension is not loaded ({error})"


def why_unavailable() -> str | None:
    """Why the native extension cannot be used, or None when it is loaded."""
    return _PROBLEM
