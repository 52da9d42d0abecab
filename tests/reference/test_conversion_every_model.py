"""Every published model through the command line, there and back, at full size.

`pytest -m slow -rP` prints a row a model: the largest differences from the official logits, and the
largest memory of the conversion over the size of the float32 weights. Numbers 5 and 6 need 16 GiB
of memory and 20 GiB of disk.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import fastervit.models.faster_vit
import fastervit.models.faster_vit_any_res
import pytest
import torch

from fastervit_jax import list_models
from tests.reference.freed_memory import give_memory_back
from tests.reference.official import randomise

ROOT = Path(__file__).parents[2]
ANY_RES = {
    "wide grid, padding": ("faster_vit_0_any_res", dict(resolution=(576, 960))),
    "tall grid": ("faster_vit_1_any_res", dict(resolution=(448, 224))),
    "its own height, padding": ("faster_vit_2_any_res", {}),
    "windows of 12 and 6": (
        "faster_vit_3_any_res",
        dict(resolution=(576, 960), window_size=(7, 7, 12, 6)),
    ),
    "square grid, padding": ("faster_vit_0_any_res", dict(resolution=(224, 200), ct_size=3)),
    "one window": ("faster_vit_0_any_res", dict(resolution=(112, 100))),
    "two hierarchical stages": (
        "faster_vit_0_any_res",
        dict(resolution=(320, 512), hat=(False, False, True, True)),
    ),
    "21k, padding": ("faster_vit_4_21k_224_any_res", dict(resolution=(300, 500))),
}
CASES = {
    name: (name, {}) for name in list_models("faster_vit_*") if not name.endswith("any_res")
} | ANY_RES
DERIVED = ("relative_bias", "relative_position_index", "num_batches_tracked")


def write_official(name: str, options: dict, path: Path) -> int:
    """Stores an official network with informative weights; returns its number of parameters."""
    any_res = name.endswith("any_res")
    module = fastervit.models.faster_vit_any_res if any_res else fastervit.models.faster_vit
    network = getattr(module, name)(**options)
    randomise(network, seed=0)
    torch.save({"state_dict": network.state_dict()}, path)
    return sum(parameter.numel() for parameter in network.parameters())


def run(*flags) -> tuple[str, int]:
    """Runs the command; its output, and the most memory it held, mapped files not counted."""
    process = subprocess.Popen(
        [sys.executable, "convert_torch_weights.py", *map(str, flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        anonymous = re.search(r"RssAnon:\s+(\d+) kB", status)
        peak = max(peak, 1024 * int(anonymous[1]) if anonymous else 0)
        time.sleep(0.02)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output, peak


def difference(output: str) -> float:
    return float(re.search(r"largest difference is (\S+) of the largest logit", output)[1])


def as_flags(options: dict) -> list[str]:
    flags = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        flags.append(f"--{name}=" + ",".join(str(item).lower() for item in values))
    return flags


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case, tmp_path):
    name, options = CASES[case]
    source, converted, back = (tmp_path / end for end in ("in.pth.tar", "ours", "out.pth.tar"))
    parameters = write_official(name, options, source)
    give_memory_back()  # the command needs it
    flags = [f"--model={name}", f"--checkpoint={source}", f"--output={converted}"]
    started = time.monotonic()
    output, peak = run(*flags, *as_flags(options))
    seconds = time.monotonic() - started
    inwards = difference(output)
    output, peak_back = run(f"--model={name}", f"--weights={converted}", f"--to_torch={back}")
    outwards = difference(output)

    size = 4 * parameters
    settings = " ".join(as_flags(options)).replace("--", "")
    print(
        f"\n| {name} {settings} | {inwards:.1e} | {outwards:.1e} | {peak / 2**30:.2f} GiB, "
        f"{peak / size:.2f}× | {peak_back / 2**30:.2f} GiB | {seconds:.0f} s |"
    )
    assert max(inwards, outwards) < 2e-5
    if size > 3 * 2**30:  # in smaller networks libraries, maps and buffers weigh more than weights
        assert peak < 2.5 * size

    theirs, ours = (torch.load(path, mmap=True)["state_dict"] for path in (source, back))
    assert theirs.keys() == ours.keys()
    for key in theirs:
        if not key.endswith(DERIVED):
            assert torch.equal(theirs[key], ours[key]), key
