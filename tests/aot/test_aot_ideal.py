"""What a step must communicate, from the config alone, beside numbers by hand."""

import dataclasses

import jax
import pytest

from fmi_jax import parallel
from fmi_jax.aot import step
from fmi_jax.aot.ideal import communication
from fmi_jax.aot.program import program
from fmi_jax.aot.sizes import Sizes, sizes
from fmi_jax.aot.targets import target

P, FROZEN, OUTPUTS = 1000, 70, 13
A = (200, 200, 200, 200)  # two blocks, each with a reduction after attention and one after the MLP
SIZES = Sizes(
    tokens=17,
    patches=16,
    score_widths=frozenset((8,)),
    pixels=frozenset((64,)),
    matrices=frozenset(),
    learned=P,
    frozen=0,
    backward=True,
    activations=(),
    outputs=OUTPUTS,
)
ON_MODEL = dataclasses.replace(SIZES, activations=A)
PROBE = dataclasses.replace(SIZES, frozen=FROZEN, backward=False)
LORA = dataclasses.replace(SIZES, frozen=FROZEN)


@pytest.mark.parametrize(
    ("given", "what", "mesh", "fsdp", "remat", "expected"),
    [
        (SIZES, "train", (1, 1), False, False, {}),
        (SIZES, "train", (8, 1), False, False, {"all-reduce": P}),
        (SIZES, "train", (8, 1), True, False, {"all-gather": 2 * P, "reduce-scatter": P}),
        (SIZES, "train", (8, 1), True, True, {"all-gather": 3 * P, "reduce-scatter": P}),
        (ON_MODEL, "train", (1, 2), False, False, {"all-reduce": 2 * 4 * 200}),
        (ON_MODEL, "train", (4, 2), False, False, {"all-reduce": 2 * 4 * 200 + P}),
        (PROBE, "train", (8, 1), True, False, {"all-gather": 2 * P + FROZEN, "reduce-scatter": P}),
        (LORA, "train", (8, 1), True, False,
         {"all-gather": 2 * P + 2 * FROZEN, "reduce-scatter": P}),
        (SIZES, "eval", (8, 1), False, False, {"all-gather": OUTPUTS}),
        (LORA, "features", (8, 1), True, False, {"all-gather": OUTPUTS + P + FROZEN}),
        (ON_MODEL, "eval", (1, 2), False, False, {"all-reduce": 2 * 2 * 200}),
    ],
)  # fmt: skip
def test_each_way_to_divide_a_step_has_its_bytes(given, what, mesh, fsdp, remat, expected) -> None:
    data, model = mesh
    found = communication(given, what=what, data=data, model=model, fsdp=fsdp, remat=remat)
    assert found == expected


def found(what: str = "train", model: int = 1, **fields: object) -> Sizes:
    named = {name.replace("__", "."): value for name, value in fields.items()}
    named |= {"train.batch_size": 16, "train.model_parallel": model}
    asked = program(target("h200"), what, fields={"backbone.dtype": "bfloat16", **named})
    mesh = parallel.make_mesh(model, devices=jax.devices()[:8])
    return sizes(asked, step.network(asked.config), step.CLASSES, mesh)


# DeiT-nano at 96 pixels: 144 patches and [cls], width 64, MLP 128, a head of 32.
BLOCK = (64 * 192 + 192) + (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + 4 * 64
STEM = (8 * 8 * 3 * 64 + 64) + 64 + 145 * 64
REST = 2 * 64 + (64 * 5 + 5)  # the last norm and the head
NANO = {"backbone__name": "deit_nano", "image_size": 96}


def test_the_parameters_that_learn_are_counted_in_the_compute_type() -> None:
    whole = found(**NANO)
    assert (whole.tokens, whole.patches) == (145, 144)
    assert 32 in whole.score_widths
    assert whole.learned == 2 * (STEM + 3 * BLOCK + REST)
    assert (whole.frozen, whole.backward, whole.activations) == (0, True, ())
    assert found(**NANO, backbone__dtype="float32").learned == 2 * whole.learned
    probe = found(**NANO, protocol="linear_probe")
    assert probe.learned == 2 * (64 * 5 + 5)
    assert probe.learned + probe.frozen == whole.learned
    assert not probe.backward


def test_the_model_axis_divides_parameters_and_reduces_activations() -> None:
    halves = found(model=2, **NANO)
    columns = 64 * 192 + (64 * 128 + 128)  # the bias of queries, keys and values is whole
    rows = 64 * 64 + 128 * 64
    assert halves.learned == 2 * (STEM + 3 * BLOCK + REST - 3 * (columns + rows) // 2)
    # 16 images on 4 pairs of chips, [b, n, d] in bfloat16, two in each of three blocks.
    assert halves.activations == (4 * 145 * 64 * 2,) * 6


def test_an_evaluation_returns_its_rows_whole() -> None:
    assert found("eval", **NANO).outputs == 16 * (5 + 3) * 4  # logits, label, mask, index
    assert found("features", **NANO).outputs == 16 * (64 + 2) * 4


def test_networks_without_attention_have_no_tokens() -> None:
    resnet = found(backbone__name="resnet50")
    assert (resnet.tokens, resnet.patches, resnet.score_widths) == (0, 0, frozenset())
    assert found(backbone__name="swin_tiny").patches == 56 * 56


def test_a_convolutional_network_reduces_one_activation_a_block() -> None:
    halves = found(model=2, backbone__name="convnext_tiny")
    stages = enumerate((3, 3, 9, 3))
    each = [(4 * (56 // 2**i) ** 2 * 96 * 2**i * 2, depth) for i, depth in stages]
    assert sorted(halves.activations) == sorted(size for size, n in each for _ in range(n))
