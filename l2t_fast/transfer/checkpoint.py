"""Checkpoints that are either whole or not there, and of which nothing is believed before it is looked at."""

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2t_fast.errors import L2TFastError
from l2t_fast.files import check_archive, write_whole
from l2t_fast.models.weights import repeats_numbers

#: Adam's count of steps and its mean of squares, of which it takes roots.
_NEVER_NEGATIVE = {"step", "exp_avg_sq"}


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values so that a reader sees the old file or the new one, whatever happens meanwhile.

    Raises:
        L2TFastError: the disk is full or cannot be written; what stood at `path` before is untouched.
    """
    # In memory first: given a path, PyTorch reports a full disk as "unexpected pos 704 vs 598".
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        write_whole(buffer.getbuffer(), path)
    except OSError as error:
        kept = "; the one before it is intact" if path.exists() else ""
        raise L2TFastError(f"the checkpoint {path} could not be written: {error.strerror or error}{kept}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, to the CPU, without running any code from the file.

    Raises:
        L2TFastError: the file is missing, cannot be read, is cut short, or no such checkpoint.
    """
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise L2TFastError(f"there is no checkpoint {path}") from error
    except PermissionError as error:
        raise L2TFastError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:
        # What a damaged file makes PyTorch raise is nearly anything.
        raise L2TFastError(
            f"{path} is not a whole checkpoint of l2t-fast: it is cut short or of another kind"
        ) from error
    if not isinstance(state, dict):
        raise L2TFastError(f"{path} is not a checkpoint of l2t-fast: it holds a {type(state).__name__}")
    return state


def misfit(saved: object, wanted: object, *, skip: Collection[str] = (), name: str = "") -> str | None:
    """Where a state that was loaded differs in form from one of this run: names, types, dtypes, shapes.

    Args:
        saved: what a checkpoint holds.
        wanted: nested tables of tensors and plain values.
        skip: dotted names that are not looked into.
        name: of the two in the answer.

    Returns:
        The first difference in a clause such as "model.0.weight is float32 (3, 2) and not float32 (3, 4)", or None.
    """
    if isinstance(wanted, Tensor):
        if isinstance(saved, Tensor) and saved.dtype == wanted.dtype and saved.shape == wanted.shape:
            whole = saved.layout == wanted.layout and not repeats_numbers(saved)
            return None if whole else f"{name} holds fewer numbers than its shape says"
        return f"{name} is {_form(saved)} and not {_form(wanted)}"
    if isinstance(wanted, Mapping):
        if not isinstance(saved, Mapping):
            return f"{name} is {_form(saved)} and not a table of names"
        keys = [key for key in wanted if _join(name, key) not in skip]
        for key in keys:
            if key not in saved:
                return f"{_join(name, key)} is missing"
        for key in saved:
            if key not in wanted and _join(name, key) not in skip:
                return f"{_join(name, key)} is unknown"
        problems = (misfit(saved[key], wanted[key], skip=skip, name=_join(name, key)) for key in keys)
        return next((problem for problem in problems if problem is not None), None)
    if type(saved) is not type(wanted):
        return f"{name} is {_form(saved)} and not {_form(wanted)}"
    return None


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], name: str) -> None:
    """Continue with the momenta of an optimizer's state dict; learning rate and the like stay those of this run.

    Raises:
        ValueError: they are not those of the optimizer's parameters.
    """
    check_optimizer(optimizer, saved, name)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(_states(saved, name)), "param_groups": groups})


def check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if the momenta of an optimizer's state dict are not those of the optimizer's parameters."""
    states, wanted = _states(saved, name), _left_by_a_step(optimizer)
    for i, values in states.items():
        if type(i) is not int or not 0 <= i < len(wanted):
            raise ValueError(f"{name} is of another network")
        problem = misfit(values, wanted[i], name=f"{name}.state.{i}")
        if problem is not None:
            raise ValueError(problem)
        for key in _NEVER_NEGATIVE & values.keys():
            if (values[key] < 0).any():
                raise ValueError(f"{name}.state.{i}.{key} is negative")


def check_momenta(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if the state dict of such an optimizer has no momenta, though they come with the first step.

    Some parameters may have none: those that nothing depends on.
    """
    if not _states(saved, name) and any(_left_by_a_step(optimizer)):
        raise ValueError(f"{name} holds no momenta, though steps were made")


def momenta(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of an optimizer's state, by what messages call them."""
    states = optimizer.state_dict()["state"]
    return {
        f"{key} of parameter {i}": value
        for i, values in states.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def _states(saved: Mapping[str, Any], name: str) -> Mapping[object, Any]:
    states = saved.get("state") if isinstance(saved, Mapping) else None
    if not isinstance(states, Mapping):
        raise ValueError(f"{name} holds no state")
    return states


def _left_by_a_step(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the optimizer keeps for each of its parameters after a step, with tensors that have a form and no memory.

    Found by a step on two numbers a dimension, with the options of each group.
    """
    forms: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        kept: dict[tuple[torch.dtype, int], dict[str, Any]] = {}
        for p in group["params"]:
            kind = p.dtype, p.dim()
            if kind not in kept:
                few = nn.Parameter(p.detach().new_zeros((2,) * p.dim()))
                few.grad = torch.zeros_like(few)
                twin = type(optimizer)([{**group, "params": [few]}])
                twin.step()
                kept[kind] = twin.state[few]
            forms.append({key: _shaped(value, p.shape) for key, value in kept[kind].items()})
    return forms


def _shaped(value: object, shape: torch.Size) -> object:
    """Of what is kept for a parameter, a count say, or a tensor of the parameter's shape, what it is for `shape`."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty(shape if value.dim() else (), dtype=value.dtype, device="meta")


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _form(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
