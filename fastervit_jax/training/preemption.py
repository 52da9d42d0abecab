"""Stopping on SIGTERM, which clouds and schedulers send before they take a machine away.

The first signal asks the run to stop after the current step. A second signal ends the process at
once. With several processes, one signal to any of them is enough: JAX's preemption service tells
all processes, and makes them agree on a step. It also receives a cloud's own notice where JAX
supports it.
"""

import ctypes
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """A run was asked to stop."""


class StopRequest:
    """Listens for SIGTERM inside a `with` block.

    Attributes:
        received: whether this process was asked to stop.
    """

    def __init__(self) -> None:
        self.received = False
        self._restore: Any = None
        self._service: Callable[[int], None] | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGTERM)
            if before == signal.SIG_DFL:
                self._service = _handler_below_python()
            signal.signal(signal.SIGTERM, self._receive)
            self._restore = before
        return self

    def __exit__(self, *unused: object) -> None:
        if self._restore is not None:
            signal.signal(signal.SIGTERM, self._restore)
            self._restore = None

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step: the same answer in all processes.

        All processes must call this after every step, in increasing order of steps.
        """
        if jax.process_count() == 1:
            return self.received
        return multihost_utils.reached_preemption_sync_point(step)

    def interrupt(self, *unused: object) -> None:
        """Raises Interrupted if this process was asked to stop and is the only process.

        For work between two steps that is repeated after a resume, such as an evaluation. Several
        processes finish it, because the others could not know that this one left.
        """
        if self.received and jax.process_count() == 1:
            raise Interrupted

    def _receive(self, number: int, frame: object) -> None:
        del frame
        self.received = True
        # The second signal is then answered by the system, also inside a long compilation.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print(
            "Asked to stop: finishing this step, then saving. Send SIGTERM again to end at once.",
            flush=True,
        )
        if self._service is not None:
            self._service(number)


def _handler_below_python():
    """The handler that JAX's preemption service installed in C, where Python does not see it."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    address = libc.signal(signal.SIGTERM, None)  # None is SIG_DFL
    if address in (None, int(signal.SIG_IGN)):
        return None
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
