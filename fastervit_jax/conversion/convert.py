"""Converting: an official file to a converted directory, and weights of ours to an official file.

What `convert_torch_weights.py` does. Both directions read back what they wrote, and compare with
the official network where it is installed.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fastervit_jax.conversion.directory import check_writable
from fastervit_jax.conversion.weights import load_model, open_weights, save_model

Say = Callable[[str], None]
"""Tells a person one line."""


def convert_checkpoint(
    name: str,
    checkpoint: str | Path,
    output: str | Path,
    *,
    ema: bool = False,
    overwrite: bool = False,
    say: Say = print,
    progress: bool = False,
    **options: Any,
) -> None:
    """Turns an official checkpoint into a directory that `create_model(name, weights=…)` loads.

    Args:
        name: an official model name.
        checkpoint: a torch or safetensors file (`read_torch_checkpoint`).
        output: the directory to write.
        ema: take the checkpoint's moving average.
        overwrite: replace a converted directory that stands there.
        say: gets what a person should know, a line at a time.
        progress: show a progress bar.
        **options: of `FasterViTConfig`, where the network differs from the named one.

    Raises:
        ValueError, ImportError, OSError: nothing was written, or what was written does not compute
            what the official network does; the message says what to do.
    """
    check_writable(output, overwrite=overwrite)
    say(f"Reading {checkpoint} …")
    weights = open_weights(checkpoint, average=ema)
    if weights.kind != "official":
        raise ValueError(
            f"{checkpoint} is no official file, and needs no conversion: give it as weights as it "
            f"is."
        )
    # On the host: an accelerator may be smaller than the model, and computes less exactly.
    with jax.default_device(jax.devices("cpu")[0]):
        loaded = load_model(name, weights, options, progress=progress)
        for line in loaded.lines:
            say(line)
        source = {"file": Path(checkpoint).name, "sha256": file_sha256(checkpoint)}
        source["weights"] = weights.part
        source["new"] = list(loaded.match.new)
        source["unused"] = list(loaded.match.unused)
        save_model(loaded.model, output, overwrite=overwrite, source=source)
        say(f"Wrote {output}.")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
