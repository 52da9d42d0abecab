"""Comparisons with the official package; left out without it (tests/conftest.py says so)."""

import ctypes
import gc
import importlib.util

import pytest

collect_ignore_glob = []

_missing = [name for name in ("torch", "timm", "fastervit") if not importlib.util.find_spec(name)]
if _missing:
    collect_ignore_glob.append("test_*.py")
else:
    import torch

    # A torchvision built for CUDA cannot be imported beside a CPU torch until the schemas of the
    # two operators that its extension would have brought are declared.
    _torchvision = torch.library.Library("torchvision", "DEF")
    _boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for _name in ("nms", "qnms"):
        _torchvision.define(_name + _boxes)


@pytest.fixture(autouse=True)
def memory_given_back(request):
    """After a test of large networks: glibc keeps gigabytes that were freed, other tests want them.

    Kept, they grew to 8 GiB in one worker, and the system killed another's program.
    """
    yield
    if request.node.get_closest_marker("slow"):
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
        if trim:
            trim(0)
