"""Scalars for TensorBoard, written as the epochs end: what fails fails there, and not in a thread of its own.

PyTorch's SummaryWriter hands events to a thread, in which a full disk is a traceback that nobody catches.
"""

import io
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from l2t_fast.transfer.run_folder import writing

_NAME = "events.out.tfevents."


def _times(folder: Path) -> Iterator[float]:
    """When the files of a folder were begun, by their names."""
    for path in folder.glob(f"{_NAME}*"):
        if found := re.match(r"\d+(\.\d+)?", path.name.removeprefix(_NAME)):
            yield float(found[0])


class EventFile:
    """One file of events, in the format of ``tfevents``; each part of a run that is resumed begins another.

    Args:
        folder: made if it is missing.
        first_step: the step that comes first: what earlier files hold of it and later ones is not shown.

    Raises:
        L2TFastError: the file cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # TensorBoard reads the files of a folder in the order of their names, and clocks are set back.
        began = max([time.time(), *(earlier + 1 for earlier in _times(folder))])
        self._path = folder / f"{_NAME}{began:.6f}.{socket.gethostname()}.{os.getpid()}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._write(
            Event(wall_time=time.time(), step=first_step, file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)),
        )

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Append numbers by name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, *events: Event) -> None:
        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(event.SerializeToString())
        with writing(self._path), open(self._path, "ab") as file:
            file.write(records.getbuffer())
