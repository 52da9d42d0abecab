"""Comparisons with the official package; left out without it (tests/conftest.py says so)."""

import importlib.util

import pytest

from tests.reference.freed_memory import give_memory_back

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
    """After a test of large networks, the next ones and their programs want the memory."""
    yield
    if request.node.get_closest_marker("slow"):
        give_memory_back()
