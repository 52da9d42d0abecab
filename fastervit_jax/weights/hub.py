"""Published weights: fetched from the Hugging Face hub, converted once, kept in a cache."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from fastervit_jax.weights.convert import convert_checkpoint
from fastervit_jax.weights.directory import FORMAT_VERSION, is_converted
from fastervit_jax.weights.loading import file_sha256, square_sibling

REPOSITORY = "ahatamiz/FasterViT"

FILES = {
    **{f"faster_vit_{n}_224": f"fastervit_{n}_224_1k.pth.tar" for n in range(7)},
    "faster_vit_4_21k_224": "fastervit_4_21k_224_w14.pth.tar",
    "faster_vit_4_21k_384": "fastervit_4_21k_384_w24.pth.tar",
    "faster_vit_4_21k_512": "fastervit_4_21k_512_w32.pth.tar",
    "faster_vit_4_21k_768": "fastervit_4_21k_768_w48.pth.tar",
}
"""The published file of each model; an any_res model starts from its sibling's."""

TERMS = (
    "These weights are NVIDIA's, made available under the NVIDIA Source Code License-NC "
    "(non-commercial): see https://github.com/NVlabs/FasterViT."
)


def cache_directory() -> Path:
    """Where converted weights are kept.

    `FASTERVIT_JAX_CACHE` where the environment sets it, else `fastervit_jax` in the user's cache
    directory (`XDG_CACHE_HOME`, or `~/.cache`).
    """
    own = os.environ.get("FASTERVIT_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "fastervit_jax"


def tell(line: str) -> None:
    """Prints to standard error: standard output belongs to whoever asked for the model."""
    print(line, file=sys.stderr, flush=True)


def pretrained_directory(name: str, *, say: Callable[[str], None] = tell) -> Path:
    """The converted published weights of a model, fetched and converted if they are not cached.

    Args:
        name: an official model name; an any_res model's are its square sibling's.
        say: gets what a person should know, a line at a time.

    Returns:
        A converted directory. Once it is there, neither the network nor torch is needed.

    Raises:
        ValueError: the name is unknown, or what came from the hub is not what it should be.
        ImportError: torch or huggingface_hub is missing, and nothing is cached.
        OSError: the hub cannot be reached and nothing is cached, or the cache cannot be written.
    """
    square = square_sibling(name)
    directory = cache_directory() / f"v{FORMAT_VERSION}" / square
    if is_converted(directory):
        return directory
    for package in ("torch", "huggingface_hub"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"Fetching the weights of {square} for the first time needs {package}, which is "
                f"not installed: pip install 'fastervit-jax[convert]'. Once converted they load "
                f"without it."
            )
    _check_cache(directory)
    say(TERMS)
    file = _download(FILES[square])
    try:
        convert_checkpoint(square, file, directory, compare=False, say=say)
    except FileExistsError:
        if not is_converted(directory):  # unless another process was faster
            raise
    return directory


def _check_cache(directory: Path) -> None:
    """Raises OSError where the cache cannot be written, before anything large is fetched."""
    parent = directory.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise OSError(
            f"The cache {parent} cannot be written: set FASTERVIT_JAX_CACHE to a directory that "
            f"can."
        )


def _download(filename: str) -> Path:
    """A file of the hub, from the hub's own cache if it is there; its SHA-256 is the hub's."""
    path = _fetch(filename, force=False)
    if _is_damaged(path):
        # Such as a download that was resumed after its beginning had been damaged.
        path = _fetch(filename, force=True)
    if _is_damaged(path):
        raise ValueError(
            f"{filename} arrived damaged twice: its SHA-256 is not the one that the hub announces. "
            f"Try again later."
        )
    return path


def _fetch(filename: str, *, force: bool) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, filename, force_download=force))
    # Which errors the library lets through, of HTTP clients and its own, differs by version.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{filename} of {REPOSITORY} could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {reason}). It is not cached either: connect to the network "
            f"and try again, or give a file that you have as weights."
        ) from error


def _is_damaged(path: Path) -> bool:
    """Whether a file is not what the hub announced.

    The hub's cache names large files by the SHA-256 that the hub announces.
    """
    announced = path.resolve().name
    return bool(re.fullmatch("[0-9a-f]{64}", announced)) and file_sha256(path) != announced
