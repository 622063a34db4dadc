"""The walk over small programs, written as the TPU compiler writes them, with the numbers that one can add by hand."""

import dataclasses

import pytest

from jaxvlm.flops import Segments
from jaxvlm.planning.estimate import Row, estimate_step, kernel_flops
from jaxvlm.planning.hlo import first_group, parse
from jaxvlm.planning.slices import V5E

# A cycle is a microsecond; a link carries 1 kB in one; memory and peak are as round.
CHIP = dataclasses.replace(V5E, clock=1e6, link_bandwidth=1e9, network_bandwidth=1e8, hbm_bandwidth=1e9, flops=1e9)
MESH = {"data": 1, "fsdp": 4, "tensor": 2}
US = 1e-6


def cycles(n: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{n}","iteration_bounds":["4"]}}}}'


LOOPS = f"""HloModule jit_step, is_scheduled=true

%fused_computation.1 (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %inside = f32[8]{{0}} add(%p, %p), {cycles(1000000)}
}}

%inner_condition (w: (s32[], f32[8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(5)
  %w = (s32[]{{:T(128)}}, f32[8]{{0}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%w), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %limit), direction=LT
}}

%inner_body (w.1: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %w.1 = (s32[]{{:T(128)}}, f32[8]{{0}}) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%w.1), index=1
  %f.1 = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%fused_computation.1, {cycles(10)}
  ROOT %t.1 = (s32[]{{:T(128)}}, f32[8]{{0}}) tuple(%x, %f.1)
}}

%outer_condition (w.2: (s32[], f32[8])) -> pred[] {{
  %limit.2 = s32[]{{:T(128)}} constant(3)
  %w.2 = (s32[]{{:T(128)}}, f32[8]{{0}}) parameter(0)
  %i.2 = s32[]{{:T(128)}} get-tuple-element(%w.2), index=0
  ROOT %lt.2 = pred[]{{:T(512)}} compare(%i.2, %limit.2), direction=LT
}}

%outer_body (w.3: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %w.3 = (s32[]{{:T(128)}}, f32[8]{{0}}) parameter(0)
  %f.2 = f32[8]{{0}} fusion(%w.3), kind=kLoop, calls=%fused_computation.1, {cycles(100)}
  ROOT %inner = (s32[]{{:T(128)}}, f32[8]{{0}}) while(%w.3), condition=%inner_condition, body=%inner_body
}}

%data_condition (w.4: (s32[], s32[])) -> pred[] {{
  %w.4 = (s32[]{{:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %i.4 = s32[]{{:T(128)}} get-tuple-element(%w.4), index=0
  %n.4 = s32[]{{:T(128)}} get-tuple-element(%w.4), index=1
  ROOT %lt.4 = pred[]{{:T(512)}} compare(%i.4, %n.4), direction=LT
}}

ENTRY %main (a: f32[8]) -> (s32[], f32[8]) {{
  %a = f32[8]{{0}} parameter(0)
  %f.3 = f32[8]{{0}} fusion(%a), kind=kLoop, calls=%fused_computation.1, {cycles(7)}
  %outer = (s32[]{{:T(128)}}, f32[8]{{0}}) while(%f.3), condition=%outer_condition, body=%outer_body
  ROOT %by_data = (s32[]{{:T(128)}}, f32[8]{{0}}) while(%outer), condition=%data_condition, body=%inner_body
}}
"""


def test_loops_multiply_and_nest():
    estimate = estimate_step(LOOPS, CHIP, MESH, guessed_trips=2)
    assert estimate.compute == pytest.approx((7 + 3 * (100 + 5 * 10) + 2 * 10) * US)
    assert estimate.seconds == estimate.compute
    assert estimate.guessed_loops == {"by_data": 2}


def test_what_the_compiler_knows_of_a_loop_counts_first():
    known = 'body=%outer_body, backend_config={"known_trip_count":{"n":"11"}}'
    estimate = estimate_step(LOOPS.replace("body=%outer_body", known), CHIP, MESH)
    assert estimate.compute == pytest.approx((7 + 11 * 150 + 10) * US)


def test_a_body_of_several_rounds_runs_less_often():
    """The compiler writes a split matrix product as a loop with an unsigned counter and two rounds in a body."""
    text = LOOPS.replace("s32[]", "u32[]").replace(
        "  ROOT %t.1 = (u32[]{:T(128)}, f32[8]{0}) tuple(%x, %f.1)",
        """  %i.1 = u32[]{:T(128)} get-tuple-element(%w.1), index=0
  %one = u32[]{:T(128)} constant(1)
  %i.next = u32[]{:T(128)} add(%i.1, %one)
  %i.last = u32[]{:T(128)} add(%one, %i.next)
  ROOT %t.1 = (u32[]{:T(128)}, f32[8]{0}) tuple(%i.last, %f.1)""",
    )
    assert estimate_step(text, CHIP, MESH).compute == pytest.approx((7 + 3 * (100 + 3 * 10) + 10) * US)


def program(*lines: str, before: str = "") -> str:
    return "\n".join([before, "ENTRY %main (a: f32[1000]) -> f32[1000] {", *(f"  {x}" for x in lines), "}", ""])


GROUPS = "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true"
A = "%a = f32[1000]{0} parameter(0)"


def fusion(name: str, of: str, n: int) -> str:
    return f"%{name} = f32[1000]{{0}} fusion(%{of}), kind=kLoop, calls=%nothing, {cycles(n)}"


def only(estimate):
    (found,) = estimate.collectives.values()
    return found


@pytest.mark.parametrize(
    ("kind", "received", "microseconds"),
    [
        ("all-gather", 3 * 4000, 6),
        ("reduce-scatter", 3 * 1000, 1.5),
        ("all-reduce", 6 * 1000, 3),
        ("all-to-all", 3 * 1000, 1.5),
    ],
)
def test_a_collective_alone_is_exposed(kind, received, microseconds):
    estimate = estimate_step(program(A, f"%c = f32[1000]{{0}} {kind}(%a), channel_id=1, {GROUPS}"), CHIP, MESH)
    found = only(estimate)
    assert (found.kind, found.axis, found.count, found.bytes) == (kind, "fsdp", 1, received)
    assert found.seconds == pytest.approx(microseconds * US) and found.exposed == pytest.approx(found.seconds)
    assert estimate.seconds == pytest.approx(microseconds * US)


@pytest.mark.parametrize(("between", "exposed"), [(100, 0), (4, 2), (0, 6)])
def test_a_collective_hides_behind_what_runs_between_start_and_done(between, exposed):
    text = program(
        A,
        f"%s = (f32[1000]{{0}}, f32[4000]{{0}}) all-gather-start(%a), channel_id=1, {GROUPS}",
        fusion("f", "a", between),
        "%d = f32[4000]{0} all-gather-done(%s)",
    )
    estimate = estimate_step(text, CHIP, MESH)
    assert only(estimate).exposed == pytest.approx(exposed * US)
    assert estimate.seconds == pytest.approx((between + exposed) * US)


def test_two_collectives_share_the_links():
    starts = [
        f"%s{i} = (f32[1000]{{0}}, f32[4000]{{0}}) all-gather-start(%a), channel_id={i}, {GROUPS}" for i in (1, 2)
    ]
    dones = [f"%d{i} = f32[4000]{{0}} all-gather-done(%s{i})" for i in (1, 2)]
    estimate = estimate_step(program(A, *starts, fusion("f", "a", 10), *dones), CHIP, MESH)
    assert only(estimate).count == 2 and only(estimate).exposed == pytest.approx(2 * US)


FUSED = f"""
%nothing (p: f32[1000]) -> f32[1000] {{
  ROOT %p = f32[1000]{{0}} parameter(0)
}}

%start (p.1: f32[1000]) -> (f32[4000], u32[]) {{
  %p.1 = f32[1000]{{0}} parameter(0)
  %g.1 = f32[4000]{{0}} all-gather(%p.1), channel_id=9, {GROUPS}
  ROOT %s.1 = (f32[4000]{{0}}, u32[]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.3 (p.2: f32[1000]) -> f32[4000] {{
  %p.2 = f32[1000]{{0}} parameter(0)
  ROOT %g.2 = f32[4000]{{0}} all-gather(%p.2), channel_id=9, {GROUPS}
}}

%done (p.3: f32[1000]) -> f32[4000] {{
  %p.3 = f32[1000]{{0}} parameter(0)
  %g.3 = f32[4000]{{0}} all-gather(%p.3), channel_id=9, {GROUPS}
  ROOT %d.1 = f32[4000]{{0}} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}}

%all-reduce-scatter.1 (p.4: f32[1000]) -> f32[250] {{
  %p.4 = f32[1000]{{0}} parameter(0)
  %g.4 = f32[1000]{{0}} all-reduce(%p.4), channel_id=10, {GROUPS}
  ROOT %sliced = f32[250]{{0}} slice(%g.4), slice={{[0:250]}}
}}
"""


def test_a_collective_in_pieces_within_fusions_is_one():
    text = program(
        A,
        "%async-start = (f32[4000]{0}, u32[]) fusion(%a), kind=kCustom, calls=%start",
        f"%f = f32[4000]{{0}} fusion(%a), kind=kOutput, calls=%async_collective_fusion.3, {cycles(2)}",
        "%async-done = f32[4000]{0} fusion(%f), kind=kCustom, calls=%done",
        before=FUSED,
    )
    estimate = estimate_step(text, CHIP, MESH)
    assert (only(estimate).kind, only(estimate).count) == ("all-gather", 1)
    assert only(estimate).exposed == pytest.approx(4 * US) and estimate.compute == pytest.approx(2 * US)


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    text = program(A, "%f = f32[250]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1", before=FUSED)
    assert (only(estimate_step(text, CHIP, MESH)).kind, only(estimate_step(text, CHIP, MESH)).bytes) == (
        "reduce-scatter",
        3000,
    )


def test_between_slices_the_network_counts():
    groups = "replica_groups={{0,2},{1,3}}"
    text = program(A, f"%c = f32[1000]{{0}} all-reduce(%a), channel_id=1, {groups}")
    mesh = {"data": 2, "fsdp": 2}
    inside = only(estimate_step(text, CHIP, mesh))
    across = only(estimate_step(text, CHIP, mesh, between_slices=("data",)))
    assert inside.axis == across.axis == "data"
    assert across.seconds == pytest.approx(10 * inside.seconds)


def test_what_the_hosts_carry_between_slices():
    how = '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"'
    text = program(
        A,
        f"%s = (f32[1000]{{0}}, u32[], token[]) send(%a, %t), channel_id=2, frontend_attributes={{{how}}}",
        f"%r = (f32[1000]{{0}}, u32[], token[]) recv(%t), channel_id=1, frontend_attributes={{{how}}}",
        fusion("f", "a", 15),
        "%sd = token[] send-done(%s), channel_id=2",
        "%rd = (f32[1000]{0}, token[]) recv-done(%r), channel_id=1",
    )
    found = only(estimate_step(text, CHIP, {"data": 2, "fsdp": 4}, between_slices=("data",)))
    assert (found.kind, found.axis, found.count, found.bytes) == ("all-reduce", "data", 1, 4000)
    assert found.seconds == pytest.approx(40 * US) and found.exposed == pytest.approx(25 * US)


def test_copies_to_the_host_and_back():
    """A kilobyte of a buffer of 32 goes out beside 5 us of computation, and another comes back beside nothing."""
    chip = dataclasses.replace(CHIP, host_bandwidth=1e8)
    kept, part = "f32[32,256]{1,0:T(8,128)S(5)}", "f32[1,256]{1,0:T(8,128)}"
    text = program(
        A,
        f"%out = (({kept}, {part}, s32[]{{:T(128)}}), {kept}, u32[]{{:S(2)}}) dynamic-update-slice-start(%b, %a, %i)",
        fusion("f", "a", 5),
        f"%out.1 = {kept} dynamic-update-slice-done(%out)",
        f"%in = (({kept}, s32[]), {part}, u32[]{{:S(2)}}) dynamic-slice-start(%out.1, %i)",
        f"%in.1 = {part} dynamic-slice-done(%in)",
        "%near = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%a)",  # within the chip: free
        "%near.1 = f32[256]{0:S(1)} copy-done(%near)",
    )
    estimate = estimate_step(text, chip, MESH)
    out, back = estimate.collectives["to host", "-"], estimate.collectives["from host", "-"]
    assert (out.count, out.bytes, back.count, back.bytes) == (1, 1024, 1, 1024)
    assert out.seconds == pytest.approx(10.24 * US) and out.exposed == pytest.approx(5.24 * US)
    assert back.exposed == pytest.approx(10.24 * US)
    assert estimate.seconds == pytest.approx((5 + 5.24 + 10.24) * US)


def test_operations_without_an_estimate_take_their_bytes():
    estimate = estimate_step(program(A, "%s = f32[1000]{0} sort(%a), dimensions={0}, to_apply=%lt"), CHIP, MESH)
    assert estimate.other == pytest.approx(8 * US) and estimate.compute == 0


@pytest.mark.parametrize(
    ("groups", "group"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}, use_global", (0, 4)),
        ("[2,4]<=[8], use_global", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0), use_global", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}, use_global", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}, use_global", (0, 1, 4, 5)),
    ],
)
def test_replica_groups(groups, group):
    assert first_group(groups) == group


METADATA = '{kernel_metadata={\n"xprof_metadata":"{\\"block_q\\": 512, \\"use_fused_bwd_kernel\\": false}"\n}}'


def kernel(name: str, *operands: str) -> str:
    return (
        f'%{name}.2 = bf16[2,32,2048,128]{{3,2,1,0}} custom-call(%a), custom_call_target="tpu_custom_call", '
        f"operand_layout_constraints={{{', '.join(operands)}}}, frontend_attributes={METADATA}, metadata={{}}"
    )


HEADS = ["bf16[2,32,2048,128]{3,2,1,0}"] * 3
SEGMENTS = ["s32[2,2048,128]{2,1,0}", "s32[2,8,2048]{2,1,0}"]
PRODUCT = 2 * 2 * 32 * 2048 * 2048 * 128


@pytest.mark.parametrize(
    ("name", "operands", "flops"),
    [
        ("splash_mha_fwd_segmented_residuals", [*HEADS, *SEGMENTS], 2 * PRODUCT),
        ("splash_mha_fwd_segmented_residuals", [*HEADS, *SEGMENTS, "s32[2048,128]{1,0}"], 2 * PRODUCT * 10 / 16),
        ("splash_mha_dq_segmented_no_residuals", [*HEADS, *SEGMENTS, "s32[2048,128]{1,0}"], 3 * PRODUCT * 10 / 16),
        ("splash_mha_dkv_segmented_no_residuals", [*HEADS, *SEGMENTS, "s32[8,2048]{1,0}"], 4 * PRODUCT * 10 / 16),
    ],
)
def test_kernels_take_their_flops(name, operands, flops):
    text = program(A, kernel(name, "s8[1,4,4]{2,1,0}", "s8[1,4,4]{2,1,0}", *operands), "%end = f32[] constant(0)")
    (found,) = (x for x in parse(text).computations["main"] if x.opcode == "custom-call")
    assert kernel_flops(found) == flops
    estimate = estimate_step(text, CHIP, MESH)
    assert estimate.kernels == {name: pytest.approx(flops / 1e9)} and not estimate.unknown_kernels


@pytest.mark.parametrize(
    ("name", "visits", "products"),
    [
        ("packed_causal_fwd", "s32[8,4]{1,0}", 2),
        ("jvp_packed_causal_dq_", "s32[8,4]{1,0}", 3),
        ("packed_causal_dkv", "s32[4,8]{1,0}", 4),
        ("packed_full_fwd", "s32[8,4]{1,0}", 2),
    ],
)
def test_kernels_that_skip_blocks_take_the_share_of_assumed_segments(name, visits, products):
    text = program(A, kernel(name, visits, visits, *HEADS, "s32[4096,128]{1,0}", "s32[8,4096]{1,0}"))
    row = Row(2048, "causal" in name)
    of_one, of_two = (10, 8) if row.is_causal else (16, 12)  # of the 16 pairs of blocks of 512
    two = Segments.equal(1600, 1.6)
    assert two == (1.0, (1000, pytest.approx(600)))
    cases = [
        ({}, of_one),
        ({Row(2048, not row.is_causal): [two]}, of_one),
        ({row: [two]}, of_two),
        ({row: [Segments(0.25, two.lengths), Segments.equal(2048, 1, 0.75)]}, 0.25 * of_two + 0.75 * of_one),
    ]
    for segments, blocks in cases:
        estimate = estimate_step(text, CHIP, MESH, segments=segments)
        assert estimate.computed_blocks == {row: blocks / 16} and not estimate.unknown_kernels
        assert estimate.kernels == {name: pytest.approx(products * PRODUCT * blocks / 16 / 1e9)}


def test_an_unknown_kernel_is_named():
    estimate = estimate_step(program(A, kernel("my_kernel", *HEADS)), CHIP, MESH)
    assert estimate.unknown_kernels == {"my_kernel": 1} and estimate.seconds == 0
