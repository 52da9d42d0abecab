"""Rooflines of GPU programs. The instructions are copied from programs that XLA compiled."""

import pytest

from fastervit_jax.analysis import gpu_cost, hlo, places
from fastervit_jax.analysis.chips import GPUS

H100 = GPUS["h100"]


def _cost(entry: str, others: str = "") -> gpu_cost.GpuCost:
    return gpu_cost.cost(
        hlo.parse(f"HloModule m\n\n{others}\nENTRY %main (a: f32[]) -> f32[] {{\n{entry}\n}}\n"),
        H100,
    )


MATMUL = """\
  %a = bf16[8192,4096]{1,0} parameter(0)
  %b = bf16[4096,2048]{1,0} parameter(1)
  %p = (bf16[8192,2048]{1,0}, s8[4194304]{0}) custom-call(%a, %b), TARGET, metadata={NAME}, CONFIG
  ROOT %r = bf16[8192,2048]{1,0} get-tuple-element(%p), index=0"""
MATMUL = MATMUL.replace("TARGET", 'custom_call_target="__cublas$lt$matmul"')
MATMUL = MATMUL.replace("NAME", 'op_name="jit(f)/stage3/mlp/dot_general"')
MATMUL = MATMUL.replace(
    "CONFIG",
    'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":'
    '["1"],"rhs_contracting_dimensions":["0"]},"epilogue":"GELU"}}',
)


def test_a_product_is_limited_by_the_matrix_units():
    cost = _cost(MATMUL)
    (kernel,) = cost.kernels
    assert kernel.multiply_adds == 8192 * 4096 * 2048
    assert kernel.seconds == pytest.approx(2 * 8192 * 4096 * 2048 / 989.4e12)
    assert cost.unknown == ()
    assert cost.seconds_by(places.place) == {"stage3/mlp": kernel.seconds}


CONVOLUTION = """\
  %x = bf16[128,28,28,256]{3,2,1,0} parameter(0)
  %w = bf16[512,3,3,256]{3,2,1,0} parameter(1)
  %g = bf16[128,14,14,512]{3,2,1,0} parameter(2)
  ROOT %c = (RESULT, u8[0]{0}) custom-call(OPERANDS), WINDOW, TARGET
"""
CONVOLUTION = CONVOLUTION.replace(
    "WINDOW", "window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
)


@pytest.mark.parametrize(
    "target, operands, result",
    [
        ("Forward", "%x, %w", "bf16[128,14,14,512]{3,2,1,0}"),
        ("BackwardInput", "%g, %w", "bf16[128,28,28,256]{3,2,1,0}"),
        ("BackwardFilter", "%x, %g", "bf16[512,3,3,256]{3,2,1,0}"),
    ],
)
def test_convolutions_and_their_gradients_cost_the_same(target, operands, result):
    """3 × 3 with stride 2 from 28 × 28: rows and columns −1, which are padding, are not counted."""
    entry = CONVOLUTION.replace("TARGET", f'custom_call_target="__cudnn$conv{target}"')
    cost = _cost(entry.replace("OPERANDS", operands).replace("RESULT", result))
    positions = 14 * 3 - 1
    assert cost.multiply_adds == 128 * positions**2 * 256 * 512


def test_a_fusion_reads_the_slice_that_it_uses_and_writes_in_place():
    fusion = """%fused (p0: f32[64,1000], p1: f32[1,1000], p2: s32[]) -> f32[64,1000] {
  %p0 = f32[64,1000]{1,0} parameter(0)
  %p1 = f32[1,1000]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %old = f32[1,1000]{1,0} dynamic-slice(%p0, %p2, %zero), dynamic_slice_sizes={1,1000}
  %new = f32[1,1000]{1,0} add(%old, %p1)
  ROOT %out = f32[64,1000]{1,0} dynamic-update-slice(%p0, %new, %p2, %zero)
}
"""
    cost = _cost(
        """  %a = f32[64,1000]{1,0} parameter(0)
  %b = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[64,1000]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused""",
        fusion,
    )
    (kernel,) = cost.kernels
    assert kernel.bytes == 3 * 4000 + 4
    assert kernel.seconds == pytest.approx(kernel.bytes / 3352e9)
    fast, slow = cost.seconds(H100, link_seconds=1e-3)
    assert fast == 1e-3
    assert slow == pytest.approx(kernel.seconds + 2e-6 + 1e-3)


@pytest.mark.parametrize(
    "body, read",
    [
        # A slice of a square: only what the slice needs, once.
        (
            """  %s = f32[64,100]{1,0} multiply(%p, %p)
  ROOT %r = f32[4,100]{1,0} slice(%s), slice={[0:4], [0:100]}""",
            4 * 100,
        ),
        # A sum needs all that it takes together, and the sum of a slice no more than the slice.
        ("  ROOT %r = f32[64]{0} reduce(%p, %z), dimensions={1}, to_apply=%add", 64 * 100),
        (
            """  %s = f32[64,100]{1,0} negate(%p)
  %t = f32[4,100]{1,0} slice(%s), slice={[0:4], [0:100]}
  ROOT %r = f32[4]{0} reduce(%t, %z), dimensions={1}, to_apply=%add""",
            4 * 100,
        ),
        # Both halves together are the whole.
        (
            """  %s = f32[64,100]{1,0} negate(%p)
  %t = f32[32,100]{1,0} slice(%s), slice={[0:32], [0:100]}
  %u = f32[32,100]{1,0} slice(%s), slice={[32:64], [0:100]}
  ROOT %r = f32[32,100]{1,0} add(%t, %u)""",
            64 * 100,
        ),
    ],
)
def test_a_fusion_reads_what_its_result_needs(body, read):
    fused = f"""%fused (p: f32[64,100], z: f32[]) -> f32[] {{
  %p = f32[64,100]{{1,0}} parameter(0)
  %z = f32[] parameter(1)
{body}
}}
"""
    result = body.split("ROOT %r = ")[1].split()[0]
    cost = _cost(
        f"""  %a = f32[64,100]{{1,0}} parameter(0)
  %b = f32[] parameter(1)
  ROOT %f = {result} fusion(%a, %b), kind=kLoop, calls=%fused""",
        fused,
    )
    scalar = 4 if "%z)" in body else 0
    written = 4 * hlo.parse(f"ENTRY %m {{\n{fused}}}").computations["fused"][-1].results[0].size
    assert cost.bytes == 4 * read + scalar + written


def test_the_workspace_of_a_product_is_not_written():
    assert _cost(MATMUL).bytes == 2 * (8192 * 4096 + 4096 * 2048 + 8192 * 2048)


ATTENTION = """\
  %qkv = bf16[512,53,3,8,32]{4,3,2,1,0} parameter(0)
  %bias = f32[8,53,53]{2,1,0} parameter(1)
  ROOT %p = bf16[512,53,8,32]{3,2,1,0} custom-call(%qkv, %bias), TARGET, metadata={NAME}"""
ATTENTION = ATTENTION.replace("TARGET", 'custom_call_target="__gpu$xla.gpu.triton"')


def test_attention_kernels_are_known_and_others_are_not():
    cost = _cost(ATTENTION.replace("NAME", 'op_name="jit(f)/stage3/window_attention/pallas_call"'))
    assert cost.multiply_adds == 2 * 512 * 8 * 53**2 * 32
    assert cost.unknown == ()
    other = _cost(ATTENTION.replace("NAME", 'op_name="jit(f)/another/pallas_call"'))
    assert other.unknown == ("1 × __gpu$xla.gpu.triton",)


def test_collectives_are_counted_apart():
    cost = _cost(
        """  %a = f32[1000]{0} parameter(0)
  %s = f32[1000]{0} all-reduce-start(%a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %d = f32[1000]{0} all-reduce-done(%s)"""
    )
    assert cost.collectives == {("all-reduce", 8): (1, 4000)}
    assert cost.kernels == ()
