"""What the processes of a run tell each other beside the arrays of a step."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def sum_over_processes(count: int) -> int:
    """The sum of every process's count. All must call this."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.array(count))))


@contextmanager
def failures_of_peers() -> Iterator[None]:
    """Says in a sentence that another process has gone, where JAX notices it in a collective.

    Raises:
        OSError: in place of JAX's own error, in a run of several processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        raise OSError(
            f"Process {jax.process_index()} of {jax.process_count()} stops, since the processes "
            f"could not go on together ({reason}): has one of them ended? Start all of them again; "
            f"the run goes on from its newest checkpoint."
        ) from error


def check_hosts_agree(settings: Mapping[str, Any]) -> None:
    """Refuses a run whose hosts have different code or settings, before anything is compiled.

    All hosts must call this, with the same names. A host on its own agrees with itself.

    Args:
        settings: what must be the same on all hosts, by the name that a message uses.

    Raises:
        ValueError: says what differs, and on which hosts. On every host, so that all of them end.
    """
    if jax.process_count() == 1:
        return
    versions = {"the code of fastervit_jax": source_hash(), "JAX": jax.__version__}
    _check_alike(versions, "install the same version everywhere")
    _check_alike(settings, "start the same command everywhere")


def source_hash() -> str:
    """A hash of this package's source files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _check_alike(values: Mapping[str, Any], remedy: str) -> None:
    """Compares values across hosts, which all have the same names."""
    mine = np.stack([_digest(f"{name} {value!r}") for name, value in values.items()])
    all_hosts = np.asarray(multihost_utils.process_allgather(mine))
    for number, (name, value) in enumerate(values.items()):
        differ = [
            host
            for host in range(1, len(all_hosts))
            if not np.array_equal(all_hosts[host, number], all_hosts[0, number])
        ]
        if differ:
            raise ValueError(
                f"The hosts disagree on {name}: host {jax.process_index()} has {value!r}, and "
                f"{differ} of hosts 0 to {len(all_hosts) - 1} are not as host 0: {remedy}."
            )


def _digest(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
