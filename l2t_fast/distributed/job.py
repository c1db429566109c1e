"""The processes that a launcher such as torchrun started for one job: how they meet, and how they end."""

import math
import os
import signal
import sys
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

from l2t_fast.distributed.group import ALONE, Group, PeerError
from l2t_fast.distributed.interface import INTERFACE, interface_towards
from l2t_fast.distributed.watch import FAILED, LAUNCHER_KEEPS_STORE, Watch, say
from l2t_fast.errors import L2TFastError

#: Environment variable: seconds after which a rank that gives no sign of life counts as hung.
PATIENCE = "L2T_FAST_PATIENCE"
_DEFAULT_PATIENCE = 40.0

#: For what the watch does not see.
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
        if threading.current_thread() is threading.main_thread():
            # Another Ctrl-C hastens nothing, and would end this in tracebacks.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if isinstance(error, PeerError):
            self._watch.wait_for_reason()
        if self._watch.claim(text.strip()):
            say(text)
        self._watch.exit(code)


def join_job() -> Job:
    """The job that the environment names (torchrun sets it), or this process alone.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, torch.distributed's names; LOCAL_RANK chooses the GPU;
    L2T_FAST_PATIENCE is the number of seconds that ranks wait for each other to come, and after which one counts as
    hung. Tensors on a CPU go by gloo, those on a GPU by NCCL. GLOO_SOCKET_IFNAME names the network interface to other
    machines; it is set to the one that reaches MASTER_ADDR if it is not.

    Raises:
        L2TFastError: the store of the job cannot be reached, or a variable makes no sense. If it is reached and the
            ranks do not meet, the process ends with a sentence.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Job()
    patience = _patience()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    # Connecting to a process that is stopped knows no end; to none at all it takes the time of `patience`.
    silence = threading.Timer(patience + 5, _store_is_silent, [where, patience])
    silence.daemon = True
    silence.start()
    try:
        size = _variable("WORLD_SIZE", 1)
        rank = _variable("RANK", 0, size - 1)
        if not os.environ.get("MASTER_ADDR"):
            raise ValueError("the environment variable MASTER_ADDR is not set, it must name the machine of rank 0")
        store = _connect(rank, size, timedelta(seconds=patience))
        watch = Watch(dist.PrefixStore("watch", store), rank, size, patience)
        watch.start()
    except (RuntimeError, ValueError) as error:
        at = "" if where == ":" else f" at {where}"
        raise L2TFastError(f"the ranks could not meet{at}, start them with torchrun: {_line(error)}") from error
    finally:
        silence.cancel()
    try:
        store.set_timeout(_TIMEOUT)
        _choose_interface(size)
        ranks = dist.PrefixStore("ranks", store)
        dist.init_process_group(backend, store=ranks, rank=rank, world_size=size, timeout=_TIMEOUT)
        group = Group(dist.group.WORLD)
        group.wait()
    except RuntimeError as error:
        through = os.environ.get(INTERFACE, "which gloo chose")
        advice = f"through the network interface {through} ({INTERFACE} names another)"
        lost = PeerError(f"rank {rank} of {size} could not connect to the others {advice}: {_line(error)}")
        Job(watch=watch).end(f"error: {lost}", FAILED, lost)
    watch.follow(group)
    return Job(group, watch)


def _connect(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The job's store, kept by the launcher or by rank 0, which waits for nobody: who does not come, the watch tells.

    A launcher that starts all ranks again may keep the store of the first attempt.
    """
    address, port = os.environ["MASTER_ADDR"], _variable("MASTER_PORT", 0, 65535)
    keeps = rank == 0 and not LAUNCHER_KEEPS_STORE
    store = dist.TCPStore(address, port, size, keeps, timeout, wait_for_workers=False, multi_tenant=True)
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _choose_interface(size: int) -> None:
    """For gloo, unless the user has."""
    if INTERFACE not in os.environ:
        leaves = os.environ.get("LOCAL_WORLD_SIZE", str(size)) != str(size)
        interface = interface_towards(os.environ["MASTER_ADDR"], leaves_machine=leaves)
        if interface is not None:
            os.environ[INTERFACE] = interface


def _variable(name: str, least: int, most: int = 2**31 - 1) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
        above = f"from {least} to {most}" if most < 2**31 - 1 else f"of at least {least}"
        raise ValueError(f"the environment variable {name} is {text!r}, it must be a whole number {above}")
    return int(text)


def _store_is_silent(where: str, patience: float) -> None:
    say(f"error: the ranks could not meet: the store at {where} has not answered for {patience:g} s")
    os._exit(FAILED)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _patience() -> float:
    text = os.environ.get(PATIENCE, str(_DEFAULT_PATIENCE))
    try:
        patience = float(text)
    except ValueError:
        patience = math.nan
    if not 0 < patience < math.inf:
        raise L2TFastError(f"{PATIENCE} is {text!r}, it must be a number of seconds above 0")
    return patience
