# ruff: noqa: E501 (lines of HLO)
"""Finding arrays with a number for every pair of tokens, in programs written by hand: scores of all
forms are found, and nothing that merely has large dimensions is."""

import dataclasses

import pytest

from fmi_jax.aot import hlo
from fmi_jax.aot.pairs import pairs
from fmi_jax.aot.sizes import Sizes

# DINOv2-S at 224 pixels: 256 patches and [cls], six heads of 64, a width of 384.
SMALL = Sizes(
    tokens=257,
    patches=256,
    score_widths=frozenset((64, 128)),
    pixels=frozenset((224, 256)),
    matrices=frozenset(((384, 1152), (384, 384), (384, 1536), (1536, 384), (384, 8), (8, 384))),
    learned=0,
    frozen=0,
    backward=True,
    activations=(),
    outputs=0,
)
# DINOv2-B at 1022 pixels, and SAM-L at 1024, whose MLP is as wide as there are tokens.
LARGE = dataclasses.replace(
    SMALL, tokens=5330, patches=5329, pixels=frozenset((1022, 1168)),
    matrices=frozenset(((768, 2304), (768, 768), (768, 3072), (3072, 768))),
)  # fmt: skip
SAM = dataclasses.replace(
    SMALL, tokens=4096, patches=4096, pixels=frozenset((1024, 1170)),
    score_widths=frozenset(range(64, 257)),
    matrices=frozenset(((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024), (127, 64))),
)  # fmt: skip

Line = tuple[str, tuple[str, ...], str]


def of(sizes: Sizes, *lines: Line) -> list[str]:
    """What is found in a program of these lines, each `(result, operands, operation)`."""
    text = ["ENTRY %main () -> f32[] {"]
    for number, (result, operands, operation) in enumerate(lines):
        names = [f"%p{number}_{i}" for i in range(len(operands))]
        text += [f"  {n} = {s} parameter(0)" for n, s in zip(names, operands, strict=True)]
        opcode, _, rest = operation.partition(" ")
        text.append(f"  %y{number} = {result} {opcode}({', '.join(names)}), {rest}")
    return pairs(hlo.read("\n".join([*text, "}"])), sizes)


BATCHED = (
    "dot lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={2}"
)
LINEAR = "dot lhs_contracting_dims={1}, rhs_contracting_dims={0}"


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        pytest.param(
            SMALL,
            ("f32[16,6,257,257]{2,3,1,0}", ("bf16[16,257,6,64]{3,1,2,0}",) * 2,
             "convolution window={size=16x6 stride=15x5 lhs_dilate=16x6}, dim_labels=0b1f_0o1i->01bf"),
            id="of a TPU",
        ),
        pytest.param(
            SMALL,
            ("(bf16[96,264,264]{2,1,0}, s8[33554432]{0})", ("bf16[96,264,64]", "bf16[96,264,64]"),
             'custom-call custom_call_target="__cublas$lt$matmul", backend_config={"x":{"dot_dimension'
             '_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["2"],"lhs_bat'
             'ch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}'),
            id="of a GPU, filled up to eights",
        ),
        pytest.param(
            SMALL, ("f32[96,384,384]", ("bf16[96,384,64]",) * 2, BATCHED),
            id="filled up to 384, the network's width",
        ),
        pytest.param(
            SMALL, ("f32[96,256,257]", ("bf16[96,256,64]", "bf16[96,257,64]"), BATCHED),
            id="without [cls] as a query",
        ),
        pytest.param(
            LARGE, ("f32[12,5330,5330]", ("bf16[12,5330,64]",) * 2, BATCHED), id="1022 pixels"
        ),
        pytest.param(LARGE, ("f32[12,5336,5330]", ("f32[12]",), "negate x=1"), id="kept"),
        pytest.param(
            SAM, ("bf16[16,4096,4096]", ("bf16[16,4096,192]",) * 2, BATCHED),
            id="as many tokens as the MLP is wide, positions folded in",
        ),
    ],
)  # fmt: skip
def test_scores_of_all_pairs_are_found(sizes: Sizes, line: Line) -> None:
    assert len(of(sizes, line)) == 1


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        pytest.param(
            SMALL, ("bf16[4112,384]", ("bf16[4112,384]", "bf16[384,384]"), LINEAR),
            id="all tokens of a batch, a layer as wide as tokens are filled up to",
        ),
        pytest.param(
            SMALL, ("bf16[4112,384]", ("bf16[4112,8]", "bf16[8,384]"), LINEAR), id="LoRA"
        ),
        pytest.param(
            SMALL, ("bf16[384,1536]", ("bf16[4112,384]", "bf16[4112,1536]"),
                    "dot lhs_contracting_dims={0}, rhs_contracting_dims={0}"),
            id="the gradient of a kernel",
        ),
        pytest.param(
            SMALL, ("f32[256,257,384]", ("f32[256,257,384]",), "negate x=1"),
            id="a batch of as many images as tokens",
        ),
        pytest.param(
            SMALL, ("f32[16,224,768]", ("f32[16,224,256]", "f32[16,256,768]"),
                    "dot lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0},"
                    " rhs_contracting_dims={1}"),
            id="resampled images",
        ),
        pytest.param(
            SMALL, ("f32[96,1,257]", ("bf16[96,1,64]", "bf16[96,257,64]"), BATCHED), id="[cls]"
        ),
        pytest.param(
            SMALL, ("f32[96,257,64]", ("bf16[96,257,257]", "bf16[96,257,64]"),
                    "dot lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0},"
                    " rhs_contracting_dims={1}"),
            id="values summed up",
        ),
        pytest.param(
            SAM, ("bf16[300,196,196]", ("bf16[300,196,64]",) * 2, BATCHED), id="windows"
        ),
        pytest.param(
            SAM, ("bf16[4096,4096]", ("bf16[4096,1024]", "bf16[1024,4096]"), LINEAR),
            id="an MLP as wide as there are tokens",
        ),
        pytest.param(
            SAM, ("bf16[4096,4096]", ("bf16[4096,4096]",), "negate x=1"), id="and its activation"
        ),
        pytest.param(
            LARGE, ("bf16[5330,8192]", ("bf16[5330,8192]",), "negate x=1"), id="a gated MLP"
        ),
    ],
)  # fmt: skip
def test_large_dimensions_alone_are_no_pairs(sizes: Sizes, line: Line) -> None:
    assert of(sizes, line) == []


def test_a_network_without_attention_has_none() -> None:
    none = dataclasses.replace(LARGE, tokens=0, patches=0, score_widths=frozenset())
    assert of(none, ("f32[12,5330,5330]", ("bf16[12,5330,64]",) * 2, BATCHED)) == []


LOOP = """%body (arg: (s32[], bf16[12,5330,64], {kept})) -> (s32[], bf16[12,5330,64], {kept}) {{
  %arg = (s32[], bf16[12,5330,64]{{2,1,0}}, {kept}) parameter(0)
  %k = bf16[12,5330,64]{{2,1,0}} get-tuple-element(%arg), index=1
  %q = bf16[12,667,64]{{2,1,0}} slice(%k), slice={{[0:12], [0:667], [0:64]}}
  %scores = f32[12,667,5330]{{2,1,0}} dot(%q, %k), lhs_batch_dims={{0}}, lhs_contracting_dims={{2}}, rhs_batch_dims={{0}}, rhs_contracting_dims={{2}}
  ROOT %tuple = (s32[], bf16[12,5330,64]{{2,1,0}}, {kept}) tuple(%arg)
}}

ENTRY %main (a: f32[]) -> f32[] {{
  %start = (s32[], bf16[12,5330,64]{{2,1,0}}, {kept}) parameter(0)
  %while = (s32[], bf16[12,5330,64]{{2,1,0}}, {kept}) while(%start), body=%body, backend_config={{"known_trip_count":{{"n":"8"}}}}
}}
"""  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        pytest.param("bf16[8,12,667,64]", [], id="outputs of the groups"),
        pytest.param("bf16[2,12,667,5330]", [], id="two groups"),
        pytest.param("bf16[8,12,667,5330]", ["bf16[8,12,667,5330]"], id="scores of all groups"),
        pytest.param("f32[8,1,12,667,73,73]", ["f32[8,1,12,667,73,73]"], id="by row and column"),
    ],
)
def test_scores_of_groups_count_where_all_are_kept(kept: str, found: list[str]) -> None:
    assert pairs(hlo.read(LOOP.format(kept=kept)), LARGE) == found


def test_a_kernel_that_a_loop_carries_is_no_scores_however_large() -> None:
    program = hlo.read(LOOP.format(kept="bf16[8,42661320]"))
    assert pairs(program, LARGE) == ["bf16[8,42661320]"]
    kernels = LARGE.matrices | {(8, 42661320)}
    assert pairs(program, dataclasses.replace(LARGE, matrices=kernels)) == []
