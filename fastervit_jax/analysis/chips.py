"""Specifications of TPU chips and GPUs, from the documentation of Google and NVIDIA.

Google does not list clock rates. They follow from the peak performance and from the number of
multiply-adds that the matrix units do per cycle. The compiler's estimates for a large matrix
product agree with this number (tests/analysis/test_compile_for.py).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the estimates need to know of a chip.

    Attributes:
        peak_flops: bfloat16 operations per second. A multiply-add is two operations.
        memory_bytes: size of the memory (HBM).
        memory_bandwidth: bytes per second between chip and memory.
        link_bandwidth: bytes per second that the chip can send to other chips over all links.
        source: URL of the documentation.
    """

    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str


@dataclasses.dataclass(frozen=True)
class TpuChip(Chip):
    """A TPU chip.

    Attributes:
        multiply_adds_per_cycle: multiply-adds per cycle of all matrix units.
    """

    multiply_adds_per_cycle: int

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.peak_flops / (2 * self.multiply_adds_per_cycle)


@dataclasses.dataclass(frozen=True)
class Gpu(Chip):
    """A GPU.

    Attributes:
        name: JAX's name (`device.device_kind`).
        compute_capability: (major, minor).
        multiprocessors: number of streaming multiprocessors (SM).
        clock_ghz: highest clock.
        l2_bytes: size of the L2 cache.
        shared_bytes: shared memory of a multiprocessor. One block can have 1 KiB less.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes: int

    def description(self) -> str:
        """Returns the card as XLA's `GpuTargetConfigProto`, in text format.

        The limits of threads and registers are those of all cards since compute capability 8.0
        (CUDA C++ Programming Guide, "Compute Capabilities").
        """
        major, minor = self.compute_capability
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_core: {self.shared_bytes}
  threads_per_core_limit: 2048
  core_count: {self.multiprocessors}
  fpus_per_core: {64 if self.compute_capability == (8, 0) else 128}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {round(self.memory_bandwidth)}
  l2_cache_size: {self.l2_bytes}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {round(self.memory_bytes)}
  shared_memory_per_block_optin: {self.shared_bytes - 2**10}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 1 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{self.name}"
"""


_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"

TPUS = {
    # 4 matrix units of 128 × 128; 1600 Gbit/s of links.
    "TPU v5 lite": TpuChip(197e12, 16 * 2**30, 819e9, 200e9, _TPU_DOCS + "v5e", 4 * 128**2),
    # 2 cores with 4 matrix units of 128 × 128 each; 4800 Gbit/s of links.
    "TPU v5": TpuChip(459e12, 95 * 2**30, 2765e9, 600e9, _TPU_DOCS + "v5p", 8 * 128**2),
    # 4 matrix units of 256 × 256 (some versions of the page say 2; the compiler uses 4);
    # 3584 Gbit/s of links.
    "TPU v6 lite": TpuChip(918e12, 32 * 2**30, 1640e9, 448e9, _TPU_DOCS + "v6e", 4 * 256**2),
}
"""TPU chips by JAX's name (`device.device_kind`)."""

# Peaks are those without sparsity. NVLink's documented bandwidth is the sum of both directions.
GPUS = {
    "a100": Gpu(
        312e12, 79.1 * 2**30, 2039e9, 300e9, _NVIDIA + "a100/",
        name="NVIDIA A100-SXM4-80GB", compute_capability=(8, 0), multiprocessors=108,
        clock_ghz=1.41, l2_bytes=40 * 2**20, shared_bytes=164 * 2**10,
    ),
    "h100": Gpu(
        989.4e12, 79.1 * 2**30, 3352e9, 450e9, _NVIDIA + "h100/",
        name="NVIDIA H100 80GB HBM3", compute_capability=(9, 0), multiprocessors=132,
        clock_ghz=1.98, l2_bytes=50 * 2**20, shared_bytes=228 * 2**10,
    ),
    "h200": Gpu(
        989.4e12, 139.7 * 2**30, 4800e9, 450e9, _NVIDIA + "h200/",
        name="NVIDIA H200", compute_capability=(9, 0), multiprocessors=132,
        clock_ghz=1.98, l2_bytes=50 * 2**20, shared_bytes=228 * 2**10,
    ),
    "b200": Gpu(
        2250e12, 180e9, 8000e9, 900e9, _NVIDIA + "dgx-b200/",
        name="NVIDIA B200", compute_capability=(10, 0), multiprocessors=148,
        clock_ghz=1.965, l2_bytes=126 * 2**20, shared_bytes=228 * 2**10,
    ),
}  # fmt: skip
"""GPUs by the name that `--compile_for` takes.

Memory is what the driver reports, and for b200 the figure of the data sheet.
"""
