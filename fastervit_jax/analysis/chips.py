"""What TPU chips can do, from their maker's documentation.

Clocks are not documented. They follow from the peak: a chip's matrix units do a known number of
multiply-adds a cycle, and the compiler's own estimates for a large matrix product agree with that
number (tests/training/test_compile_for.py).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        peak_flops: bfloat16 operations a second; a multiply-add is two.
        multiply_adds_per_cycle: of all its matrix units together.
        memory_bytes: of its memory (HBM).
        memory_bandwidth: bytes a second between it and its memory.
        link_bandwidth: bytes a second that it can send to other chips, over all its links.
        source: where these figures stand.
    """

    peak_flops: float
    multiply_adds_per_cycle: int
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peak_flops / (2 * self.multiply_adds_per_cycle)


_DOCS = "https://docs.cloud.google.com/tpu/docs/"

CHIPS = {
    # 4 matrix units of 128 × 128; 1600 Gbit/s of links.
    "TPU v5 lite": Chip(197e12, 4 * 128**2, 16 * 2**30, 819e9, 200e9, _DOCS + "v5e"),
    # 2 cores with 4 matrix units of 128 × 128 each; 4800 Gbit/s of links.
    "TPU v5": Chip(459e12, 8 * 128**2, 95 * 2**30, 2765e9, 600e9, _DOCS + "v5p"),
    # 4 matrix units of 256 × 256 (some editions of the page say 2; the compiler counts with 4);
    # 3584 Gbit/s of links.
    "TPU v6 lite": Chip(918e12, 4 * 256**2, 32 * 2**30, 1640e9, 448e9, _DOCS + "v6e"),
}
"""Chips by JAX's name for their kind (`device.device_kind`)."""
