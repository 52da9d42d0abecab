"""Specifications of TPU chips, from Google's documentation.

The documentation does not list clock rates. They follow from the peak performance and from the
number of multiply-adds that the matrix units do per cycle. The compiler's estimates for a large
matrix product agree with this number (tests/analysis/test_compile_for.py).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specification of a chip.

    Attributes:
        peak_flops: bfloat16 operations per second. A multiply-add is two operations.
        multiply_adds_per_cycle: multiply-adds per cycle of all matrix units.
        memory_bytes: size of the memory (HBM).
        memory_bandwidth: bytes per second between chip and memory.
        link_bandwidth: bytes per second that the chip can send to other chips over all links.
        source: URL of the documentation.
    """

    peak_flops: float
    multiply_adds_per_cycle: int
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.peak_flops / (2 * self.multiply_adds_per_cycle)


_DOCS = "https://docs.cloud.google.com/tpu/docs/"

CHIPS = {
    # 4 matrix units of 128 × 128; 1600 Gbit/s of links.
    "TPU v5 lite": Chip(197e12, 4 * 128**2, 16 * 2**30, 819e9, 200e9, _DOCS + "v5e"),
    # 2 cores with 4 matrix units of 128 × 128 each; 4800 Gbit/s of links.
    "TPU v5": Chip(459e12, 8 * 128**2, 95 * 2**30, 2765e9, 600e9, _DOCS + "v5p"),
    # 4 matrix units of 256 × 256 (some versions of the page say 2; the compiler uses 4);
    # 3584 Gbit/s of links.
    "TPU v6 lite": Chip(918e12, 4 * 256**2, 32 * 2**30, 1640e9, 448e9, _DOCS + "v6e"),
}
"""Chips by JAX's name (`device.device_kind`)."""
