"""One run in a work directory at a time."""

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
    """Makes a work directory and holds it; the system lets go of it however the process ends.

    Only the first process of a run holds it. A remote directory (`gs://…`), or a file system
    without locks, cannot be held: that two runs do not share one is then the user's business.

    Raises:
        OSError: it cannot be made or written to.
        ValueError: another run holds it.
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
            f"The work directory {workdir} cannot be written to ({error.strerror}): give another "
            f"--workdir, or the right to write there."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"Another run is at work in {workdir} ({file.read().strip() or 'just started'}): "
                f"wait for its end, or give another --workdir."
            ) from None
        except OSError as error:
            logging.warning("%s cannot be locked (%s): start no second run there.", workdir, error)
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield
        file.truncate(0)
