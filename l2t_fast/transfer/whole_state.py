"""One state of a run whose ranks have pairs of their own: as a process alone would have it, and back."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2t_fast.distributed.group import Group


class WholeState:
    """Brings the ranks' states together on the leader, for checkpoints that any number of ranks can read.

    A method keeps the layers of all pairs, so that the names in its state are those of a process alone; the layers of
    other ranks' pairs are on PyTorch's "meta" device, without memory. Optimizers count their parameters, which here are
    fewer: their places in the optimizers of a process alone are noted before the pairs are divided.

    Args:
        group: the ranks.
        whole: by optimizer, the parameters as a process alone gives them to it.
        shared: parameters that all ranks train together; the leader's are everybody's.
    """

    def __init__(
        self, group: Group, whole: Mapping[str, Sequence[nn.Parameter]], shared: Sequence[nn.Parameter]
    ) -> None:
        self._group = group
        self._whole = {name: list(parameters) for name, parameters in whole.items()}
        self._shared = {id(p) for p in shared}
        self._counts = {name: len(parameters) for name, parameters in whole.items()}
        self._places: dict[str, dict[int, int]] = {}
        self._private: dict[str, list[int]] = {}

    def note(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """Note where the parameters of this rank's optimizers are; called once, after the pairs were divided."""
        for name, optimizer in optimizers.items():
            place_of = {id(p): i for i, p in enumerate(self._whole[name])}
            own = [p for group in optimizer.param_groups for p in group["params"]]
            known = [(i, place_of[id(p)], id(p)) for i, p in enumerate(own) if id(p) in place_of]
            self._places[name] = {i: place for i, place, _ in known}
            self._private[name] = [place for _, place, key in known if key not in self._shared]
        self._whole.clear()  # other ranks' parameters need not stay

    def optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """This rank's part of the optimizer's state, numbered as in a process alone."""
        state = optimizer.state_dict()
        places = self._places[name]
        entries = {places[i]: entry for i, entry in state["state"].items() if i in places}
        groups = [{**state["param_groups"][0], "params": list(range(self._counts[name]))}]
        return {"state": entries, "param_groups": groups}

    def own(self, name: str, saved: object) -> object:
        """Of an optimizer's state of a process alone what this rank's optimizer needs, numbered as it does.

        Raises:
            ValueError: it is that of another network.
        """
        states = saved.get("state") if isinstance(saved, Mapping) else None
        if not isinstance(states, Mapping):
            return saved  # whoever reads it says so
        if any(not isinstance(i, int) or not 0 <= i < self._counts[name] for i in states):
            raise ValueError(f"{name} is of another network")
        return {**saved, "state": {i: states[p] for i, p in self._places[name].items() if p in states}}

    def complete(self, method: dict[str, Tensor], optimizers: dict[str, dict[str, Any]]) -> None:
        """Put into the leader's states what the other ranks have: a collective operation.

        Args:
            method: its `state_dict`, with tensors without memory for other ranks' pairs.
            optimizers: as `optimizer` makes them.
        """
        buffer = io.BytesIO()
        if not self._group.leads:
            own = {
                "method": {name: t.cpu() for name, t in method.items() if not t.is_meta},
                "optimizers": {
                    name: {place: state["state"][place] for place in self._private[name] if place in state["state"]}
                    for name, state in optimizers.items()
                },
            }
            torch.save(own, buffer)
        for data in self._group.collect(buffer.getvalue())[1:]:
            theirs = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            method.update(theirs["method"])
            for name, entries in theirs["optimizers"].items():
                optimizers[name]["state"].update(entries)
        for state in optimizers.values():
            state["state"] = dict(sorted(state["state"].items()))
