# ruff: noqa: E501 (lines of HLO)
"""The reader of optimised HLO: operations, loops, collectives and FLOPs of texts written by hand,
in the forms that the compilers for GPUs and TPUs print."""

import pytest

from fmi_jax.aot import hlo, products, traffic

# A loop of seven steps, each with a product in a fusion, a call of cuBLAS and a reduction; after it
# a gather that starts and is waited for.
GPU = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[2,3]{1,0})->f32[2,3]{1,0}}

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%x, %y)
}

%fused_computation (p0: f32[2,3], p1: f32[3,5]) -> f32[2,5] {
  %p0 = f32[2,3]{1,0} parameter(0)
  %p1 = f32[3,5]{1,0} parameter(1)
  %dot.1 = f32[2,5]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %neg = f32[2,5]{1,0} negate(%dot.1)
}

%body (arg: (s32[], f32[2,3], bf16[11,13])) -> (s32[], f32[2,3], bf16[11,13]) {
  %arg = (s32[], f32[2,3]{1,0}, bf16[11,13]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %a = f32[2,3]{1,0} get-tuple-element(%arg), index=1
  %h = bf16[11,13]{1,0} get-tuple-element(%arg), index=2
  %b = f32[3,5]{1,0} constant({...})
  %fusion.1 = f32[2,5]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused_computation
  %gemm = (bf16[11,11]{1,0}, s8[33554432]{0}) custom-call(%h, %h), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %all-reduce-start = f32[2,5]{1,0} all-reduce-start(%fusion.1), channel_id=1, replica_groups={{0,1}}, to_apply=%add.1
  %all-reduce-done = f32[2,5]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %tuple = (s32[], f32[2,3]{1,0}, bf16[11,13]{1,0}) tuple(%i, %a, %h)
}

%condition (arg: (s32[], f32[2,3], bf16[11,13])) -> pred[] {
  %arg = (s32[], f32[2,3]{1,0}, bf16[11,13]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %bound = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (a: f32[2,3], h: bf16[11,13]) -> f32[4,3] {
  %a = f32[2,3]{1,0} parameter(0)
  %h = bf16[11,13]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %tuple.1 = (s32[], f32[2,3]{1,0}, bf16[11,13]{1,0}) tuple(%zero, %a, %h)
  %while = (s32[], f32[2,3]{1,0}, /*index=2*/bf16[11,13]{1,0}) while(%tuple.1), condition=%condition, body=%body{KNOWN}
  %copy = f32[2,3]{0,1} copy(%a)
  %all-gather-start = (f32[2,3]{1,0}, f32[4,3]{1,0}) all-gather-start(%copy), dimensions={0}
  ROOT %all-gather-done = f32[4,3]{1,0} all-gather-done(%all-gather-start)
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}'


@pytest.mark.parametrize("known", [KNOWN, ""], ids=["noted", "from the condition"])
def test_what_is_in_a_loop_counts_as_often_as_it_runs(known: str) -> None:
    module = hlo.read(GPU.replace("{KNOWN}", known))
    assert traffic.collectives(module) == {
        "all-reduce": (7, 7 * 2 * 5 * 4),
        "all-gather": (1, 4 * 3 * 4),  # of a start, what it makes, without its operand
    }
    # Seven times a fusion, a call and a comparison; a copy. No collective, no function of
    # elements, no tuple, no constant.
    assert traffic.kernels(module) == 7 * 3 + 1
    counted, unknown = products.flops(module)
    assert counted == 7 * 2 * (2 * 3 * 5 + 11 * 13 * 11)
    assert not unknown


def test_several_arrays_of_one_collective_count_together() -> None:
    text = """HloModule m

ENTRY %main (a: f32[3], b: bf16[5,7]) -> (f32[3], bf16[5,7]) {
  %a = f32[3]{0} parameter(0)
  %b = bf16[5,7]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather-start = ((f32[3]{0}, bf16[5,7]{1,0}), (f32[6]{0}, bf16[10,7]{1,0})) all-gather-start(%a, %b), dimensions={0}
  %done = (f32[6]{0}, bf16[10,7]{1,0}) all-gather-done(%all-gather-start)
  ROOT %all-reduce = (f32[3]{0}, bf16[5,7]{1,0:T(8,128)(2,1)}) all-reduce(%a, %b), to_apply=%add
}
"""  # fmt: skip
    assert traffic.collectives(hlo.read(text)) == {
        "all-gather": (1, 6 * 4 + 10 * 7 * 2),
        "all-reduce": (1, 3 * 4 + 5 * 7 * 2),
    }


def line(result: str, operands: tuple[str, ...], rest: str) -> products.Product:
    """The product in a program of this one line."""
    given = "\n".join(f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(operands))
    names = ", ".join(f"%p{i}" for i in range(len(operands)))
    opcode, _, rest = rest.partition(" ")
    text = f"ENTRY %main () -> {result} {{\n{given}\n  %y = {result} {opcode}({names}), {rest}\n}}"
    ((found, times),) = products.products(hlo.read(text))
    assert times == 1
    return found


def test_scores_as_a_tpu_writes_them_have_their_tokens_on_two_sides() -> None:
    """A batched product becomes a convolution whose windows pick the same image and head."""
    found = line(
        "f32[2,6,257,257]{2,3,1,0:T(8,128)}",
        ("bf16[2,257,6,64]{3,1,2,0}", "bf16[2,257,6,64]{3,1,2,0}"),
        "convolution window={size=2x6 stride=1x5 lhs_dilate=2x6}, dim_labels=0b1f_0o1i->01bf",
    )
    assert (found.left, found.right, found.contracted) == (257, 257, 64)
    assert not found.windowed
    assert found.flops == 2 * 2 * 6 * 257 * 257 * 64


def test_padding_and_stride_of_a_convolution_cost_nothing() -> None:
    found = line(
        "f32[1,3,1,7]{3,2,1,0}",
        ("f32[1,5,1,2]{3,2,1,0}", "f32[3,1,2,7]{3,2,1,0}"),
        "convolution window={size=3x1 stride=2x1 pad=1_1x0_0}, dim_labels=b01f_01io->b01f",
    )
    # Places 0, 2 and 4 of five: the first and the last see two elements, the middle one three.
    assert found.flops == 2 * 7 * 2 * (2 + 3 + 2)
    assert found.windowed


def test_a_batched_product_keeps_its_batch_apart() -> None:
    found = line(
        "bf16[12,17,19]{2,1,0}",
        ("bf16[12,17,64]{2,1,0}", "bf16[12,19,64]{2,1,0}"),
        "dot lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0},"
        " rhs_contracting_dims={2}",
    )
    assert (found.left, found.right, found.contracted) == (17, 19, 64)
    assert found.flops == 2 * 12 * 17 * 19 * 64


def test_attention_that_is_a_call_counts_by_its_operands() -> None:
    text = """HloModule m

ENTRY %main (q: bf16[2,5,3,8], k: bf16[2,7,3,8]) -> bf16[2,3,5,8] {
  %q = bf16[2,5,3,8]{3,2,1,0} parameter(0)
  %k = bf16[2,7,3,8]{3,2,1,0} parameter(1)
  %fwd = (bf16[2,3,5,8]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"fused":{"bmm1_dot_dimension_numbers":{"lhs_contracting_dimensions":["3"]}}}
  %pallas = bf16[2,3,5,8]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"
  ROOT %y = bf16[2,3,5,8]{3,2,1,0} get-tuple-element(%fwd), index=0
}
"""  # fmt: skip
    counted, unknown = products.flops(hlo.read(text))
    assert counted == 2 * 2 * (2 * 3) * 5 * 7 * 8  # scores, and their sum over values
    assert unknown == ("pallas",)


def test_a_fusion_moves_the_parts_that_it_takes_and_updates() -> None:
    text = """HloModule m

%fused (p0: f32[7,100], p1: f32[5,100], p2: s32[]) -> f32[5,100] {
  %p0 = f32[7,100]{1,0} parameter(0)
  %p1 = f32[5,100]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %row = f32[1,100]{1,0} dynamic-slice(%p0, %p2, %p2), dynamic_slice_sizes={1,100}
  ROOT %all = f32[5,100]{1,0} dynamic-update-slice(%p1, %row, %p2, %p2)
}

ENTRY %main (a: f32[7,100], b: f32[5,100], i: s32[]) -> f32[5,100] {
  %a = f32[7,100]{1,0} parameter(0)
  %b = f32[5,100]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %fusion = f32[5,100]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""
    read, written, index = 400, 400, 4
    # The row that is updated is in the sum as an operand and as a part of the result.
    assert traffic.bytes_accessed(hlo.read(text)) == read + 2 * written + index


def test_a_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.read("HloModule m\n")
