"""Lock of a work directory: only one run at a time."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging
from etils import epath

from fastervit_jax.data.paths import is_remote

_FILE = "running.lock"


@contextlib.contextmanager
def exclusive(workdir: epath.Path) -> Iterator[None]:
    """Creates and locks a work directory. The lock ends with the process, even after a crash.

    Only the first process of a run takes the lock. Remote directories (`gs://…`) and file systems
    without locks cannot be locked. There, the user must not start two runs in the same directory.

    Raises:
        OSError: the directory cannot be created or written to.
        ValueError: another run uses the directory.
    """
    if jax.process_index() != 0:
        yield
        return
    if is_remote(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (Path(workdir) / _FILE).open("a+")
    except OSError as error:
        raise OSError(
            f"Cannot write to the work directory {workdir} ({error.strerror}). Use another "
            "--workdir, or change the permissions."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"Another run uses {workdir} ({file.read().strip() or 'just started'}). Wait until "
                "it ends, or use another --workdir."
            ) from None
        except OSError as error:
            logging.warning("Cannot lock %s (%s). Do not start a second run there.", workdir, error)
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield
        file.truncate(0)
