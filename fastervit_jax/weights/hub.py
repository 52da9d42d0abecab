"""Published weights: downloaded from the Hugging Face Hub, converted once, and cached."""

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
"""Published file of each model. An any_res model uses the file of its square sibling."""

TERMS = (
    "These weights are NVIDIA's, made available under the NVIDIA Source Code License-NC "
    "(non-commercial): see https://github.com/NVlabs/FasterViT."
)


def cache_directory() -> Path:
    """Returns the directory of cached converted weights.

    This is the environment variable `FASTERVIT_JAX_CACHE` if it is set. Otherwise it is
    `fastervit_jax` in the user's cache directory (`XDG_CACHE_HOME` or `~/.cache`).
    """
    own = os.environ.get("FASTERVIT_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "fastervit_jax"


def tell(line: str) -> None:
    """Prints to standard error, because the caller's program may use standard output."""
    print(line, file=sys.stderr, flush=True)


def pretrained_directory(name: str, *, say: Callable[[str], None] = tell) -> Path:
    """Returns a directory with the published weights of a model, converted.

    Downloads and converts the weights if they are not cached.

    Args:
        name: an official model name. An any_res model uses the weights of its square sibling.
        say: function that shows one line of text to the user.

    Returns:
        A converted directory. Later calls need neither the internet nor torch.

    Raises:
        ValueError: the name is unknown, or the downloaded file is damaged.
        ImportError: torch or huggingface_hub is not installed, and the weights are not cached.
        OSError: the weights are not cached and the hub cannot be reached, or the cache is not
            writable.
    """
    square = square_sibling(name)
    directory = cache_directory() / f"v{FORMAT_VERSION}" / square
    if is_converted(directory):
        return directory
    for package in ("torch", "huggingface_hub"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"Downloading the weights of {square} needs {package}, which is not installed. "
                "Run pip install 'fastervit-jax[convert]'. After the conversion, the weights load "
                "without it."
            )
    _check_cache(directory)
    say(TERMS)
    file = _download(FILES[square])
    try:
        convert_checkpoint(square, file, directory, compare=False, say=say)
    except FileExistsError:
        if not is_converted(directory):  # another process did not write it either
            raise
    return directory


def _check_cache(directory: Path) -> None:
    """Raises OSError before the download if the cache is not writable."""
    parent = directory.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise OSError(
            f"The cache directory {parent} is not writable. Set FASTERVIT_JAX_CACHE to a writable "
            "directory."
        )


def _download(filename: str) -> Path:
    """Downloads a file, or takes it from the hub's cache, and checks its SHA-256."""
    path = _fetch(filename, force=False)
    if _is_damaged(path):
        # For example, the first part was damaged before the download was resumed.
        path = _fetch(filename, force=True)
    if _is_damaged(path):
        raise ValueError(
            f"{filename} was downloaded twice, and both times its SHA-256 differed from the hub's. "
            "Try again later."
        )
    return path


def _fetch(filename: str, *, force: bool) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, filename, force_download=force))
    # The library raises its own errors and those of HTTP clients. Both depend on its version.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"Cannot download {filename} of {REPOSITORY} from the Hugging Face Hub "
            f"({type(error).__name__}: {reason}), and it is not cached. Connect to the internet "
            "and try again, or pass a local file as weights."
        ) from error


def _is_damaged(path: Path) -> bool:
    """Returns whether the SHA-256 of a file differs from the hub's.

    In the hub's cache, the name of a large file is its SHA-256.
    """
    announced = path.resolve().name
    return bool(re.fullmatch("[0-9a-f]{64}", announced)) and file_sha256(path) != announced
