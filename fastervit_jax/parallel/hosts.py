"""Communication between the processes of a run, apart from the arrays of a step."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def sum_over_processes(count: int) -> int:
    """Returns the sum of `count` over all processes. Every process must call it."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.array(count))))


@contextmanager
def failures_of_peers() -> Iterator[None]:
    """Explains JAX's error when another process has ended during a collective operation.

    Raises:
        OSError: replaces JAX's error in a run of several processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        raise OSError(
            f"Process {jax.process_index()} of {jax.process_count()} stopped because communication "
            f"between the processes failed ({reason}). Another process may have ended. Start all "
            "processes again. The run resumes from its newest checkpoint."
        ) from error


def check_hosts_agree(settings: Mapping[str, Any]) -> None:
    """Checks that all hosts have the same code and settings, before anything is compiled.

    Every host must call it with the same names. With one host it does nothing.

    Args:
        settings: values that must be the same on all hosts, by name.

    Raises:
        ValueError: a value differs. The message says which value, and on which hosts. Every host
            raises it, so that all of them stop.
    """
    if jax.process_count() == 1:
        return
    versions = {"the code of fastervit_jax": source_hash(), "JAX": jax.__version__}
    _check_alike(versions, "Install the same version on all hosts")
    _check_alike(settings, "Start the same command on all hosts")


def source_hash() -> str:
    """Returns a hash of the source files of this package."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _check_alike(values: Mapping[str, Any], remedy: str) -> None:
    """Compares values across hosts. Every host has the same names."""
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
                f"The hosts disagree on {name}. Host {jax.process_index()} has {value!r}. Of hosts "
                f"0 to {len(all_hosts) - 1}, hosts {differ} differ from host 0. {remedy}."
            )


def _digest(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
