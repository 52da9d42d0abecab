"""Messages of a command that takes minutes: what it does, for how long, how long it took before."""

import json
import os
import sys
import threading
import time
from pathlib import Path

_EVERY_SECONDS = 30.0


class Waiting:
    """A block of work that says what it does, and every 30 seconds that it is still at work.

    Messages go to standard error. The duration of a block is kept in the user's cache directory
    (`$XDG_CACHE_HOME/fastervit_jax/durations.json`), and printed by the next one of the same name.

        with Waiting("compile faster_vit_0_224 for h100") as waiting:
            waiting.say("Tracing the step.")

    Args:
        name: what the block does. Blocks with one name take about the same time.
        every: seconds between two messages.
    """

    def __init__(self, name: str, *, every: float = _EVERY_SECONDS):
        self._name = name
        self._every = every
        self._doing = ""
        self._ended = threading.Event()
        self._begin = time.monotonic()

    def __enter__(self) -> "Waiting":
        before = _read().get(self._name)
        if before is not None:
            _print(f"This took {_minutes(before)} the last time.")
        self._begin = time.monotonic()
        threading.Thread(target=self._repeat, daemon=True).start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._ended.set()
        if kind is None:
            _keep(self._name, time.monotonic() - self._begin)

    def say(self, text: str) -> None:
        """Prints what begins now."""
        self._doing = text
        _print(text)

    def _repeat(self) -> None:
        while not self._ended.wait(self._every):
            _print(f"{self._doing} {_minutes(time.monotonic() - self._begin)} so far.")


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} minutes"


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "fastervit_jax" / "durations.json"


def _read() -> dict[str, float]:
    try:
        found = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(name: str, seconds: float) -> None:
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        _path().write_text(json.dumps({**_read(), name: round(seconds, 1)}, indent=1))
    except OSError:
        pass  # a home that cannot be written to only loses the hint
