"""The processes that a launcher such as torchrun started for one job: how they meet, and how they end."""

import math
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from l2t_fast.distributed.group import ALONE, Group, PeerError
from l2t_fast.distributed.watch import Watch, say
from l2t_fast.errors import L2TFastError

#: Environment variable: seconds after which a rank that gives no sign of life counts as hung.
PATIENCE = "L2T_FAST_PATIENCE"
_DEFAULT_PATIENCE = 40.0

#: For ranks to meet, and for what the watch does not see.
_TIMEOUT = timedelta(minutes=10)


class Job:
    """This process's place in a job; a job of one process does nothing.

    Attributes:
        group: the ranks.
    """

    def __init__(self, group: Group = ALONE, watch: Watch | None = None) -> None:
        self.group = group
        self._watch = watch

    def set_hint(self, hint: str) -> None:
        """What to add to a sentence about a rank that is gone: how to go on."""
        if self._watch is not None:
            self._watch.hint = hint

    def leave(self, code: int) -> int:
        """The work is done on this rank: wait for the others, so that nobody's end looks like a failure.

        Returns the exit code, for a process alone. With several ranks the process ends here: about one in fifteen
        aborted on its way out of the interpreter, after all was done ("terminate called without an active exception").
        """
        if self._watch is None:
            return code
        self.group.wait()
        self._watch.stop()
        self.group.wait()  # until nobody watches any more
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def end(self, text: str, code: int, error: BaseException) -> int:
        """Say why this rank stops, and return the exit code; of a job of several ranks, which end too, only once.

        With several ranks the process ends here: operations that wait for other ranks cannot be taken back.
        """
        if self._watch is None:
            print(text, file=sys.stderr)
            return code
        if isinstance(error, PeerError):
            self._watch.wait_for_reason()
        if self._watch.claim(text):
            say(text)
        self._watch.exit(code)


def join_job() -> Job:
    """The job that the environment names (torchrun sets it), or this process alone.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, torch.distributed's names; LOCAL_RANK chooses the GPU;
    L2T_FAST_PATIENCE is the number of seconds after which a rank counts as hung. Tensors on a CPU go by gloo, those on
    a GPU by NCCL.

    Raises:
        L2TFastError: the ranks cannot meet, or a variable makes no sense.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Job()
    patience = _patience()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        store.set_timeout(_TIMEOUT)
        dist.init_process_group(backend, store=dist.PrefixStore("ranks", store), rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        reason = " ".join(str(error).split())
        raise L2TFastError(f"the ranks could not meet at {where}, start them with torchrun: {reason}") from error
    group = Group(dist.group.WORLD)
    watch = Watch(dist.PrefixStore("watch", store), group, patience)
    watch.start()
    return Job(group, watch)


def _patience() -> float:
    text = os.environ.get(PATIENCE, str(_DEFAULT_PATIENCE))
    try:
        patience = float(text)
    except ValueError:
        patience = math.nan
    if not 0 < patience < math.inf:
        raise L2TFastError(f"{PATIENCE} is {text!r}, it must be a number of seconds above 0")
    return patience
