"""Whether all hosts of a run were started alike, before anything is compiled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

import fastervit_jax
from fastervit_jax.runs.config import by_dotted_key

# Keys that may differ from host to host.
_LOCAL = ("data.data_dir", "data.num_workers")


def check_hosts_agree(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Refuses a run whose hosts have different code, config or work directory.

    All hosts must call this. A host on its own agrees with itself.

    Raises:
        ValueError: says what differs, and on which hosts. On every host, so that all of them end.
    """
    if jax.process_count() == 1:
        return
    versions = {"the code of fastervit_jax": source_hash(), "JAX": jax.__version__}
    _check_alike(versions, "install the same version everywhere")
    keys = by_dotted_key(config.to_dict())
    values = {f"config.{key}": json.dumps(value) for key, value in keys.items()}
    for key in _LOCAL:
        del values[f"config.{key}"]
    _check_alike({**values, "--workdir": str(workdir)}, "start the same command everywhere")


def source_hash() -> str:
    """A hash of this package's source files."""
    root = Path(fastervit_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _check_alike(values: dict[str, Any], remedy: str) -> None:
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
