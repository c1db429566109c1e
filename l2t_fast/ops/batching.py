"""What the fused operators answer to vmap: autograd's (``is_grads_batched``, ``vectorize``) and that of ``torch.func``.

Forward passes inside of ``torch.func`` transforms are the reference's; these come to a graph that was made outside.
"""

from typing import NoReturn

import torch

from l2t_fast import _native


def _refuse(*_arguments: object) -> NoReturn:
    raise NotImplementedError(
        "the fused matching loss cannot be differentiated under vmap (is_grads_batched=True, vectorize=True), use a "
        'loop or backend="reference"'
    )


def refuse_batches(library: torch.library.Library) -> None:
    """Have the matching operators of a library's namespace raise for batched tensors, while the library lives."""
    for operator in ("matching_forward", "matching_loss", "matching_backward", "matching_hvp"):
        for key in ("Batched", "FuncTorchBatched"):
            library.impl(operator, _refuse, key)


if _native.extension is not None:
    _NATIVE = torch.library.Library("l2t_fast", "IMPL")
    refuse_batches(_NATIVE)
