"""Reading compiled programs: a small one by hand, and real ones with counts known beforehand."""

import jax
import jax.numpy as jnp
import pytest

from fastervit_jax.analysis import hlo, tpu_cost

CYCLES = 'backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}'


def _program(entry: str, others: str = "") -> hlo.Program:
    return hlo.parse(
        f"HloModule small\n\n{others}\nENTRY %main (x: f32[64,64]) -> f32[] {{\n{entry}\n}}\n"
    )


LOOP = """
%body (state: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %state = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %v = f32[64,64]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %product = f32[64,64]{1,0:T(8,128)} dot(%v, %v), lhs_contracting_dims={1}, BODY
  ROOT %out = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}) tuple(%next, %product)
}

%condition (state.1: (s32[], f32[64,64])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %last = s32[]{:T(128)} constant(LAST)
  ROOT %test = pred[]{:T(512)} compare(%i.1, %last), direction=DIRECTION
}
"""
ENTER_LOOP = """
  %x = f32[64,64]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(3)
  %zero.copy = s32[]{:T(128)} copy(%zero)
  %start = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}) tuple(%zero.copy, %x)
  ROOT %end = (s32[], f32[64,64]) while(%start), condition=%condition, body=%body, op_name="NAME"
"""


def _loop(last="10", direction="LT", name="jit(f)/while") -> tpu_cost.TpuCost:
    loop = LOOP.replace("BODY", CYCLES.format(100)).replace("LAST", last)
    loop = loop.replace("DIRECTION", direction)
    return tpu_cost.cost(_program(ENTER_LOOP.replace("NAME", name), loop))


def test_a_body_counts_as_often_as_it_runs():
    cost = _loop()
    assert cost.cycles == 7 * 100
    assert cost.multiply_adds == 7 * 64**3
    assert cost.unknown == ()


def test_a_loop_of_unknown_length_makes_the_total_unknown():
    cost = _loop(direction="NE")
    assert cost.cycles == 100
    assert "loop of unknown length, jit(f)/while" in cost.unknown[0]


def test_rejection_sampling_is_counted_often_enough():
    cost = _loop(direction="NE", name="jit(f)/jit(_gamma)/while")
    assert (cost.cycles, cost.unknown) == (800, ())


def test_of_a_conditional_the_dearer_branch_counts():
    branch = """
%{name} (p{name}: f32[64,64]) -> f32[64,64] {{
  %p{name} = f32[64,64]{{1,0}} parameter(0)
  ROOT %r{name} = f32[64,64]{{1,0}} negate(%p{name}), {config}
}}
"""
    others = branch.format(name="cheap", config=CYCLES.format(5))
    others += branch.format(name="dear", config=CYCLES.format(50))
    entry = """
  %x = f32[64,64]{1,0} parameter(0)
  %which = s32[] constant(0)
  ROOT %c = f32[64,64]{1,0} conditional(%which, %x, %x), branch_computations={%dear, %cheap}
"""
    assert tpu_cost.cost(_program(entry, others)).cycles == 50


def test_what_has_no_estimate_is_named_and_never_free():
    entry = """
  %x = f32[64,64]{1,0} parameter(0)
  %moved = f32[64,64]{0,1} copy(%x)
  %known = f32[64,64]{1,0} custom-call(%x), custom_call_target="ConcatBitcast"
  %few = f32[4]{0} negate(%x)
  %kernel = f32[2]{0} custom-call(%x), custom_call_target="my_kernel"
  %written = f32[64,64]{1,0} dynamic-update-slice(%x, %row, %few, %few)
  %row = f32[1,64]{1,0} parameter(1)
  %ahead = (f32[64,64]{1,0}, f32[64,64]{1,0}, u32[]) copy-start(%x)
  %there = f32[64,64]{1,0} copy-done(%ahead)
  ROOT %odd.3 = f32[64,64]{1,0} cosine(%x)
"""
    cost = tpu_cost.cost(_program(entry))
    assert cost.unknown == ("1 × custom call my_kernel", "1 × cosine odd")
    assert cost.moved_bytes == 2 * 4 * 64**2 + 2 * 4 * 64
    assert cost.prefetched_bytes == 4 * 64**2
    assert (cost.small, cost.cycles) == (1, 0)


@pytest.mark.parametrize(
    "groups, size",
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", 4),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 8),
    ],
)
def test_collectives_are_told_by_kind_devices_and_bytes(groups, size):
    entry = f"""
  %x = f32[64,64]{{1,0}} parameter(0)
  %y = f32[8]{{0}} constant({{0,0,0,0,0,0,0,0}})
  %sum = (f32[64,64]{{1,0}}, f32[8]{{0}}) all-reduce(%x, %y), {groups}, to_apply=%add
  ROOT %all = f32[256,64]{{1,0}} all-gather(%x), {groups}, dimensions={{0}}
"""
    assert tpu_cost.cost(_program(entry)).collectives == {
        ("all-reduce", size): (1, 4 * (64**2 + 8)),
        ("all-gather", size): (1, 4 * 4 * 64**2),
    }


ASYNC = """
%start.body (p: bf16[1,512]) -> (bf16[1,512], bf16[4,512]) {
  %p = bf16[1,512]{1,0} parameter(0)
  %g = bf16[4,512]{1,0} all-gather(%p), channel_id=7, GROUPS
  ROOT %s = (bf16[1,512], bf16[4,512]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%carried.body (q: bf16[1,512], x.1: f32[64,64]) -> f32[64,64] {
  %q = bf16[1,512]{1,0} parameter(0)
  %x.1 = f32[64,64]{1,0} parameter(1)
  %g.1 = bf16[4,512]{1,0} all-gather(%q), channel_id=CARRIED, GROUPS
  ROOT %d = f32[64,64]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}
}

%done.body (r: bf16[1,512]) -> bf16[4,512] {
  %r = bf16[1,512]{1,0} parameter(0)
  %g.2 = bf16[4,512]{1,0} all-gather(%r), channel_id=7, GROUPS
  ROOT %e = bf16[4,512]{1,0} custom-call(%r, %g.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (t: f32[64,64]) -> f32[16,64] {
  %t = f32[64,64]{1,0} parameter(0)
  %u = f32[64,64]{1,0} all-reduce(%t), channel_id=8, GROUPS, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %v = f32[16,64]{1,0} dynamic-slice(%u, %zero, %zero), dynamic_slice_sizes={16,64}
}
""".replace("GROUPS", "replica_groups={{0,1,2,3}}")
RUN_ASYNC = """
  %small = bf16[1,512]{1,0} parameter(0)
  %x = f32[64,64]{1,0} parameter(1)
  %a = (bf16[1,512]{1,0}, bf16[4,512]{1,0}) fusion(%small), kind=kCustom, calls=%start.body
  %b = f32[64,64]{1,0} fusion(%small, %x), kind=kOutput, calls=%carried.body, ESTIMATE
  %c = bf16[4,512]{1,0} fusion(%small), kind=kCustom, calls=%done.body
  ROOT %f = f32[16,64]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
"""


def test_a_collective_beside_computing_counts_once_and_an_all_reduce_kept_in_part_by_its_name():
    """What the TPU compiler makes of fsdp: started, carried on inside a product, ended."""
    entry = RUN_ASYNC.replace("ESTIMATE", CYCLES.format(9))
    cost = tpu_cost.cost(_program(entry, ASYNC.replace("CARRIED", "7")))
    assert cost.collectives == {
        ("all-gather", 4): (1, 2 * 4 * 512),
        ("reduce-scatter", 4): (1, 4 * 64**2),
    }
    assert (cost.cycles, cost.multiply_adds, cost.unknown) == (9, 64**3, ())


def test_collectives_without_a_channel_all_count():
    others = ASYNC.replace("channel_id=7, ", "").replace("channel_id=CARRIED, ", "")
    cost = tpu_cost.cost(_program(RUN_ASYNC.replace("ESTIMATE", CYCLES.format(9)), others))
    assert cost.collectives["all-gather", 4] == (3, 3 * 2 * 4 * 512)


def test_what_nothing_started_counts_and_computing_beside_a_collective_needs_an_estimate():
    cost = tpu_cost.cost(_program(RUN_ASYNC, ASYNC.replace("CARRIED", "9")))
    assert cost.collectives["all-gather", 4] == (2, 2 * 2 * 4 * 512)
    assert cost.unknown == ("1 × fusion b",)


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="Invalid HLO program"):
        hlo.parse("nothing")


def _compiled(function, *arguments) -> tpu_cost.TpuCost:
    return tpu_cost.cost(hlo.parse(jax.jit(function).lower(*arguments).compile().as_text()))


def test_multiply_adds_of_a_compiled_loop():
    """Eleven rounds of a product of 32 × 48 by 48 × 48."""

    def function(x, w):
        return jax.lax.fori_loop(0, 11, lambda _, x: jnp.tanh(x @ w), x)

    cost = _compiled(function, jnp.ones((32, 48)), jnp.ones((48, 48)))
    assert cost.multiply_adds == 11 * 32 * 48 * 48


@pytest.mark.parametrize("stride, groups, map_size", [(1, 1, 9), (2, 1, 9), (2, 1, 8), (1, 4, 8)])
def test_multiply_adds_of_a_compiled_convolution_and_its_gradients(stride, groups, map_size):
    """Against a count of the pairs of output and input positions that meet."""
    images, kernel = jnp.ones((2, map_size, map_size, 8)), jnp.ones((3, 3, 8 // groups, 12))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    pairs = sum(
        0 <= out * stride - 1 + offset < map_size
        for out in range((map_size - 1) // stride + 1)
        for offset in range(3)
    )
    once = 2 * pairs**2 * (8 // groups) * 12
    lowered = jax.jit(convolve).lower(images, kernel)
    # Before optimisation, in which XLA may turn a convolution into something else on CPUs.
    text = lowered.compiler_ir("hlo").as_hlo_text()
    assert tpu_cost.cost(hlo.parse(text)).multiply_adds == once

    def loss(images, kernel):
        return (convolve(images, kernel) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(images, kernel)
    text = gradient.compiler_ir("hlo").as_hlo_text()
    assert tpu_cost.cost(hlo.parse(text)).multiply_adds == 3 * once
