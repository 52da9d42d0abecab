"""Compile in the background, and learn the memory of a program before it is compiled.

XLA places all arrays of a program in memory before it generates the code for the chip, which takes
most of the time. With `xla_dump_to` it writes a report of the memory at that point.
"""

import re
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

_REPORT = "*memory-usage-report.txt"
_EVERY_SECONDS = 0.5


class Compilation:
    """A running compilation.

        compilation = Compilation(lowered)
        compilation.memory_bytes()  # after a part of the time
        compiled = compilation.result()

    Args:
        lowered: what `jax.jit(…).lower(…)` returns.
        options: options of the compiler, besides those of `jax.jit`.
    """

    def __init__(self, lowered: Any, options: dict[str, Any] | None = None):
        self._directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._lowered = lowered
        self._options = options or {}
        self._future: Future[Any] = Future()
        # A daemon, so that a command may end without waiting for the compiler.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        options = {"xla_dump_to": self._directory.name, "xla_dump_hlo_as_text": True}
        options |= self._options
        try:
            self._future.set_result(self._lowered.compile(compiler_options=options))
        except BaseException as error:
            self._future.set_exception(error)

    def memory_bytes(self) -> int | None:
        """Waits until the memory per chip is known, and returns it.

        None if the compiler ends without a report: it failed, or it took the program from a cache.
        """
        while not self._future.done():
            found = self._reported()
            if found is not None:
                return found
            threading.Event().wait(_EVERY_SECONDS)
        return self._reported()

    def result(self):
        """Waits for the compiled program and returns it, or raises what the compiler raised."""
        try:
            return self._future.result()
        finally:
            self.forget()

    def forget(self) -> None:
        """Removes the compiler's reports. The compiler may still be running."""
        self._directory.cleanup()

    def _reported(self) -> int | None:
        for path in Path(self._directory.name).glob(_REPORT):
            # The first section is the chip's main memory.
            found = re.search(r"\(color=0\)\nTotal bytes: (\d+)", path.read_text())
            if found:
                return int(found.group(1))
        return None
