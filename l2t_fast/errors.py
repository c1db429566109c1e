"""The one exception type for mistakes that a user or the environment made, and how any error is told."""

import torch

from l2t_fast.text import printable


class L2TFastError(Exception):
    """What went wrong, where, and what would be right, in one sentence.

    Data, model, configuration and checkpoint code raises it. The command line prints the sentence alone and leaves with
    exit code 2; ``--debug`` adds the traceback. Tensor functions raise ``ValueError`` and ``TypeError`` instead.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the GPU or the machine, was too small."""
    # On the CPU, PyTorch has no exception class for it: a RuntimeError carries its allocator's or C++'s own words.
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(said in str(error) for said in ("can't allocate memory", "std::bad_alloc"))


def worker_killed(error: BaseException) -> bool:
    """Whether one of the processes that read images was killed: PyTorch then raises, wherever the program is."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def one_sentence(error: Exception) -> str:
    """What a person is told instead of a traceback; a name from a file in it moves no cursor and breaks no line."""
    return printable(_sentence(error))


def _sentence(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU has too little memory for this batch, lower data.batch_size"
    if out_of_memory(error):
        return (
            "there is too little memory for this, lower data.batch_size or data.image_size, or set data.cache to false"
        )
    if worker_killed(error):
        return (
            "a process that reads images was killed, by the system perhaps because memory ran out: lower data.workers "
            "or data.batch_size"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
