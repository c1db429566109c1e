"""What a run is continued from: its networks, optimizers and generators, and how far it was."""

import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from l2t_fast.distributed.group import Group
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.checkpoint import (
    check_momenta,
    check_optimizer,
    load_checkpoint,
    load_optimizer,
    misfit,
    momenta,
    save_checkpoint,
)
from l2t_fast.transfer.finite import first_non_finite_tensor
from l2t_fast.transfer.randomness import random_state, restore_random_state
from l2t_fast.transfer.run_folder import RunFolder
from l2t_fast.transfer.same_options import other_option
from l2t_fast.transfer.step import Step
from l2t_fast.transfer.whole_state import WholeState

#: What a state may hold in another form than the run's own: momenta come with the first step, a Gaussian may be
#: waiting or not, and GPUs have a generator each. Options are looked at by themselves.
_FREE_FORM = ("optimizer", "method_optimizers", "random.python.gauss", "random.cuda", "options")


@dataclass
class Reached:
    """How far a run is."""

    epoch: int = 0  # finished ones
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(
        default_factory=lambda: {"epoch": 0, "validation_accuracy": -1.0, "validation_loss": math.inf}
    )

    def improves(self, row: dict[str, Any]) -> bool:
        """Higher validation accuracy; at the same accuracy, which is common on few images, lower validation loss."""
        return (row["validation_accuracy"], -row["validation_loss"]) > (
            self.best["validation_accuracy"],
            -self.best["validation_loss"],
        )


class RunState:
    """Writes and reads the checkpoints of a run folder: last.pt, and best.pt with the best networks on validation data.

    Args:
        folder: where they are.
        step: what is trained, and how.
        whole: brings the ranks' states together where they have pairs of their own, else None.
        task: what a reader of the networks must know to use them, as a source for example.
        options: the run's `decisive_options`, by which its checkpoints are told from other runs'.
        group: the ranks; the one that leads writes, all of them read.
    """

    def __init__(
        self,
        folder: RunFolder,
        step: Step,
        whole: WholeState | None,
        task: dict[str, Any],
        options: dict[str, Any],
        group: Group,
    ) -> None:
        self._folder, self._step, self._whole, self._task, self._group = folder, step, whole, task, group
        self._options = options
        if whole is not None:
            whole.note(self._optimizers())

    def save(self, reached: Reached, *, improves: bool) -> None:
        """Write the checkpoints, on the rank that leads; every rank comes.

        Raises:
            L2TFastError: the disk is full.
        """
        if reached.epoch == 1:
            self._check_method_optimizers()
        state = self.state(reached)
        if not self._group.leads:
            return
        # The state comes first: a run that is killed before best.pt follows finds the best networks in last.pt.
        save_checkpoint(state, self._folder.last)
        if improves:
            self.save_best(state)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write best.pt of a state's "model", "method" and "best"."""
        networks = {name: state[name] for name in ("model", "method")}
        save_checkpoint({**networks, **state["best"], **self._task, "options": self._options}, self._folder.best)

    def restore(self, epochs: int) -> Reached:
        """Continue from last.pt a run of so many epochs; `folder.open` has looked that its configuration is the same.

        Raises:
            L2TFastError: the file is damaged or of another run, or best.pt is, or it is missing.
        """
        # Not last.pt alone: a best.pt without it belongs to nothing that could go on.
        remedy = f"put it back as it was, or remove {self._folder.path} to train from the beginning"
        try:
            state = load_checkpoint(self._folder.last)
        except L2TFastError as error:
            raise L2TFastError(f"{error}: {remedy}") from error
        try:
            reached = self._take(state, epochs)
        except (KeyError, IndexError, AttributeError, TypeError, RuntimeError, ValueError, OverflowError) as error:
            raise L2TFastError(
                f"{self._folder.last} does not fit this run, though its config.yaml does ({error}): {remedy}"
            ) from error
        spoiled = self.first_non_finite()
        if spoiled is not None:
            raise L2TFastError(f"{self._folder.last} holds NaN or infinite values in {spoiled}: {remedy}")
        if self._group.leads:
            self._restore_best(state)
            self._folder.forget_after(reached.epoch)
        return reached

    def first_non_finite(self) -> str | None:
        """The first parameter, buffer or momentum that holds NaN or infinity, by owner and name; None if none does."""
        states = {"target": self._step.target.state_dict(), "method": self._step.method.state_dict()}
        return first_non_finite_tensor(
            states | {name: momenta(optimizer) for name, optimizer in self._optimizers().items()}
        )

    def take_best(self, epoch: int) -> None:
        """Put the networks of best.pt, which are those of an epoch, in the place of those that are there.

        Raises:
            L2TFastError: the file is missing, damaged, of another run or not finite.
        """
        best = self._load_best(epoch)
        self._step.target.load_state_dict(best["model"])
        self._load_method(best["method"])

    def state(self, reached: Reached) -> dict[str, Any]:
        """All that the next epoch depends on, as a process alone would have it.

        Where ranks have pairs of their own it is a collective operation, and whole on the rank that leads.
        """
        state = self._own_state(reached)
        if self._whole is not None:
            self._whole.complete(state["method"], {"optimizer": state["optimizer"], **state["method_optimizers"]})
        return state

    def _check_method_optimizers(self) -> None:
        """After the first epoch, warn of what `restore` would refuse of a checkpoint of any."""
        for name, optimizer in self._step.method.optimizers().items():
            try:
                saved = optimizer.state_dict()
                check_momenta(optimizer, saved, name)
                check_optimizer(optimizer, saved, name)
            except Exception as error:  # whatever an optimizer of somebody's own raises
                warnings.warn(
                    f"this run cannot be continued from a checkpoint, because of the optimizer {name!r} of the method "
                    f"{self._step.method.name} ({error}): it would have to make a step in every epoch, and keep "
                    "numbers or tensors of a parameter's shape for each, as Adam and SGD do",
                    stacklevel=2,
                )

    def _own_state(self, reached: Reached) -> dict[str, Any]:
        """What this rank has of `state`; its form is that of the whole."""
        optimizers = {
            name: item.state_dict() if self._whole is None else self._whole.optimizer(name, item)
            for name, item in self._optimizers().items()
        }
        return {
            **self._networks(),
            "optimizer": optimizers.pop("optimizer"),
            "method_optimizers": optimizers,
            "scaler": self._step.scaler.state_dict(),
            "random": random_state(),
            "options": self._options,
            **asdict(reached),
        }

    def _networks(self) -> dict[str, dict[str, Tensor]]:
        """The part of a state that best.pt holds too."""
        return {"model": self._step.target.state_dict(), "method": self._step.method.state_dict()}

    def _take(self, state: dict[str, Any], epochs: int) -> Reached:
        problem = misfit(state, self._own_state(Reached()), skip=_FREE_FORM)
        problem = problem or other_option(state.get("options"), self._options)
        if problem is None and not 0 < state["epoch"] <= epochs:
            problem = f"it is of epoch {state['epoch']}, and the run has {epochs}"
        if problem is None and not all(math.isfinite(value) for value in state["best"].values()):
            problem = "its best epoch's numbers are not finite"
        if problem is not None:
            raise ValueError(problem)
        self._step.target.load_state_dict(state["model"])
        self._load_method(state["method"])
        saved = {"optimizer": state["optimizer"], **state["method_optimizers"]}
        for name, optimizer in self._optimizers().items():
            # Scaling of float16 may have left out all of the target's steps.
            if name != "optimizer" or not self._step.scaler.is_enabled():
                check_momenta(optimizer, saved[name], name)
            load_optimizer(optimizer, saved[name] if self._whole is None else self._whole.own(name, saved[name]), name)
        self._step.scaler.load_state_dict(state["scaler"])
        restore_random_state(state["random"])
        return Reached(state["epoch"], state["step"], state["seconds"], state["best"])

    def _load_method(self, saved: dict[str, Tensor]) -> None:
        """Take the method's state from a checkpoint; of other ranks' pairs there is no memory to take it."""
        own = self._step.method.state_dict()
        self._step.method.load_state_dict({k: own[k] if k in own and own[k].is_meta else v for k, v in saved.items()})

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The target's, called "optimizer", and the method's own."""
        return {"optimizer": self._step.optimizer, **self._step.method.optimizers()}

    def _restore_best(self, state: dict[str, Any]) -> None:
        """See to it that best.pt can be taken in the end, before hours go into further epochs."""
        if state["best"]["epoch"] == state["epoch"]:
            self.save_best(state)  # the run may have been killed between last.pt and it
        else:
            self._load_best(state["best"]["epoch"])

    def _load_best(self, epoch: int) -> dict[str, Any]:
        """What best.pt holds, if it is of this run and of that epoch, and can be used."""
        path, remedy = self._folder.best, "put it back, or start the run anew with another --out"
        best = load_checkpoint(path) if path.exists() else {}
        if misfit(best.get("epoch"), epoch) is not None or best["epoch"] != epoch:
            raise L2TFastError(f"{path} is missing or not of epoch {epoch}, which was the best: {remedy}")
        wanted = self._networks()
        problem = misfit({name: best.get(name) for name in wanted}, wanted)
        problem = problem or other_option(best.get("options"), self._options)
        if problem is not None:
            raise L2TFastError(f"{path} does not fit this run, {problem}: {remedy}")
        spoiled = first_non_finite_tensor({"target": best["model"], "method": best["method"]})
        if spoiled is not None:
            raise L2TFastError(f"{path} holds NaN or infinite values in {spoiled}: {remedy}")
        return best
