import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiling import AS_FOR_USERS
from flax import nnx
from tiny_backbones import TINY, fill
from tolerances import FAR_FROM_ZERO, PARITY_FORWARD, PARITY_GRADIENT, SAME_FLOAT32

from fmi_jax.models.base import Execution, create_abstract
from fmi_jax.models.resnet import ResNet
from fmi_jax.nn import attention, hardware
from fmi_jax.nn.conv import convolution
from fmi_jax.nn.linear import linear
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.recompute import compute_once
from fmi_jax.nn.transformer import Block, drop_path, linear_rates


@pytest.fixture
def qkv():
    draw = np.random.default_rng(0).normal(size=(3, 2, 3, 7, 5))
    return tuple(jnp.asarray(x, jnp.float32) for x in draw)


def test_attention_on_cpu_equals_the_library_form_used_elsewhere(qkv, monkeypatch):
    on_cpu = attention.dot_product_attention(*qkv)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    elsewhere = attention.dot_product_attention(*qkv)
    q, k, v = (np.asarray(x, np.float64) for x in qkv)
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(5))
    expected = scores / scores.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(on_cpu, expected, rtol=0, atol=SAME_FLOAT32)
    np.testing.assert_allclose(elsewhere, expected, rtol=0, atol=SAME_FLOAT32)


def test_attention_in_groups_of_queries_is_that_of_all_at_once_and_holds_fewer_scores(
    qkv, monkeypatch
):
    def weighted(q, k, v):
        return (attention.dot_product_attention(q, k, v) * jnp.arange(5)).sum()

    def compiled():
        step = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2)))
        return step.lower(*qkv).compile(AS_FOR_USERS)

    at_once = compiled()
    assert "[2,3,7,7]" in at_once.as_text()
    monkeypatch.setattr(attention, "MAX_QUERIES", 3)  # three products, of which none is recomputed
    in_parts = compiled()
    monkeypatch.setattr(attention, "MAX_SCORES", 2 * 2 * 3 * 7)  # two queries of seven
    in_groups = compiled()
    assert "while(" in in_groups.as_text()
    assert "while(" not in in_parts.as_text()
    for fewer in (in_parts, in_groups):
        for ours, expected in zip(*map(jax.tree.leaves, (fewer(*qkv), at_once(*qkv))), strict=True):
            largest = np.abs(expected).max()
            np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME_FLOAT32 * largest)
        assert "[2,3,7,7]" not in fewer.as_text()


@pytest.mark.parametrize(
    ("capability", "dtype", "head_width", "implementations"),
    [
        ((8, 0), jnp.bfloat16, 64, ["cudnn"]),
        ((8, 9), jnp.float16, 128, ["cudnn"]),
        ((9, 0), jnp.bfloat16, 192, ["cudnn"]),
        ((12, 0), jnp.bfloat16, 256, ["cudnn"]),
        ((9, 0), jnp.float32, 64, []),
        ((9, 0), jnp.bfloat16, 14, []),
        ((8, 6), jnp.bfloat16, 136, []),
        ((7, 5), jnp.bfloat16, 64, []),
        (None, jnp.bfloat16, 64, []),  # AMD
    ],
)
def test_attention_on_gpu_is_flash_where_cudnn_takes_the_type(
    capability, dtype, head_width, implementations, monkeypatch
):
    chosen = []

    def record(q, k, v, *, scale, implementation):
        chosen.append(implementation)
        assert scale == head_width**-0.5
        assert q.shape[1] % 2 == 0  # an odd number is refused in training
        return q

    monkeypatch.setattr(hardware, "platform", lambda: "gpu")
    monkeypatch.setattr(hardware, "compute_capability", lambda: capability)
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    x = jnp.zeros((1, 2, 16, head_width), dtype)
    assert attention.dot_product_attention(x, x, x).shape == x.shape
    assert chosen == implementations
    attention.dot_product_attention(x, x, x, kernel="plain")
    attention.dot_product_attention(x[:, :, :1], x, x)  # of one query there is no square
    assert chosen == implementations


def test_layer_norm_keeps_its_digits_far_from_zero():
    """The one-pass form of the variance is off by a hundredth here."""
    x = 300 + np.random.default_rng(0).normal(size=(7, 101))
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    ours = LayerNorm(101, eps=1e-6)(jnp.asarray(x))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=FAR_FROM_ZERO)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 101)), jnp.bfloat16)
    norm = LayerNorm(101, eps=1e-6)
    assert norm(x).dtype == jnp.float32
    np.testing.assert_array_equal(norm(x), norm(x.astype(jnp.float32)))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((2000, 2, 3))
    y = np.asarray(drop_path(x, 0.25, nnx.Rngs(dropout=0)))
    per_sample = y.reshape(2000, -1)
    assert (per_sample == per_sample[:, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    assert abs((y == 0).mean() - 0.25) < 0.04  # four standard deviations


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0():
    x = jnp.ones((5, 2))
    assert drop_path(x, 0.5, None) is x
    assert drop_path(x, 0.0, nnx.Rngs(dropout=0)) is x


def test_drop_path_rates_rise_linearly():
    np.testing.assert_allclose(linear_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
    assert linear_rates(0.3, 1) == (0.0,)


# XLA on a CPU fuses what it takes for cheap into each of its readers. Twice that went through the
# whole residual stream, and time grew with the square of the depth: the gradients of transformer
# blocks, and the shortcuts of ResNets. Fusions that read more the deeper the network tell.
def operands_of_the_largest_fusion(function, *args) -> int:
    compiled = jax.jit(function).lower(*args).compile(AS_FOR_USERS)
    fusions = re.findall(r" fusion\((.*?)\), kind", compiled.as_text())
    return max(operands.count("%") for operands in fusions)


def test_the_backward_pass_of_a_transformer_block_costs_the_same_at_any_depth():
    def largest(depth: int) -> int:
        rngs = nnx.Rngs(0)
        blocks = nnx.List(
            Block(
                22,
                mlp=Mlp(22, 44, dtype=jnp.float32, rngs=rngs),
                attn=attention.Attention(22, 2, dtype=jnp.float32, rngs=rngs),
                eps=1e-6,
            )
            for _ in range(depth)
        )
        graphdef, params = nnx.split(blocks)

        def loss(params, x):
            for block in nnx.merge(graphdef, params):
                x = block(x, None)
            return jnp.square(x).sum()

        return operands_of_the_largest_fusion(jax.grad(loss), params, jnp.ones((3, 53, 22)))

    assert largest(2) == largest(4) > 0


def test_a_bottleneck_costs_the_same_at_any_depth():
    def largest(depth: int) -> int:
        arch = dataclasses.replace(TINY["resnet"].arch, depths=(depth,), widths=(8,))
        graphdef, state = nnx.split(fill(create_abstract(ResNet, arch, Execution())))

        def pooled(state, images):
            return nnx.merge(graphdef, state).features(images).pooled

        return operands_of_the_largest_fusion(pooled, state, jnp.ones((2, 61, 61, 3)))

    assert largest(3) == largest(5) > 0


@pytest.mark.parametrize(
    ("size", "side", "stride", "pad"),
    [((13, 11), 3, 2, 1), ((37, 31), 7, 4, 2), ((12, 14), 3, 2, 0), ((7, 9), 2, 2, 0)],
)
def test_a_convolution_and_its_gradients_are_torchs_and_fast_in_a_loop(size, side, stride, pad):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 3, *size, 5)).astype(np.float32)  # of two turns of the loop
    kernel = rng.normal(size=(side, side, 5, 7)).astype(np.float32)

    def turn(_, x):
        pads = [(pad, pad)] * 2
        y, back = jax.vjp(
            lambda x, k: convolution(x, k, (stride, stride), pads), x, jnp.asarray(kernel)
        )
        return None, (y, *back(jnp.cos(y)))

    loop = jax.jit(lambda x: jax.lax.scan(turn, None, x)[1]).lower(x).compile(AS_FOR_USERS)
    # XLA on a CPU has no fast code for any other order of axes.
    assert set(re.findall(r"dim_labels=([^,\s]+)", loop.as_text())) <= {"b01f_01io->b01f"}
    for i, ours in enumerate(zip(*loop(x), strict=True)):
        theirs = [
            torch.tensor(x[i].transpose(0, 3, 1, 2), requires_grad=True),
            torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True),
        ]
        y = torch.nn.functional.conv2d(*theirs, stride=stride, padding=pad)
        y.backward(torch.cos(y.detach()))
        expected = [
            y.detach().permute(0, 2, 3, 1),
            theirs[0].grad.permute(0, 2, 3, 1),
            theirs[1].grad.permute(2, 3, 1, 0),
        ]
        tolerances = (PARITY_FORWARD, PARITY_GRADIENT, PARITY_GRADIENT)
        for mine, its, tolerance in zip(ours, expected, tolerances, strict=True):
            largest = np.abs(its.numpy()).max()
            np.testing.assert_allclose(mine, its, rtol=0, atol=tolerance * largest)


def test_the_gradient_of_a_linear_layer_turns_no_copy_of_its_output_round():
    layer = linear(5, 11, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(3).normal(size=(3, 7, 5)).astype(np.float32)

    def gradient(layer, x):
        return nnx.grad(lambda layer: jnp.sin(layer(x)).sum())(layer)["kernel"][...]

    compiled = nnx.jit(gradient).lower(layer, x).compile(AS_FOR_USERS)
    assert "f32[21,11]" in compiled.as_text()  # the output, as it lies in memory
    assert "f32[11,21]" not in compiled.as_text()
    kernel, bias = (np.float64(p[...]) for p in (layer.kernel, layer.bias))
    expected = np.einsum("bni,bno->io", x, np.cos(x @ kernel + bias))
    tolerance = PARITY_FORWARD * np.abs(expected).max()
    np.testing.assert_allclose(compiled(layer, x), expected, rtol=0, atol=tolerance)


def test_what_is_computed_once_is_read_from_memory():
    def three_readers(x):
        y = compute_once(lambda x: sum(x[i : i + 50] * (i + 1.5) for i in range(7)), x)
        return jnp.sin(y), jnp.cos(y[::-1]), jnp.pad(y * 2, 3)

    x = jnp.arange(60.0)
    text = jax.jit(three_readers).lower(x).compile(AS_FOR_USERS).as_text()
    assert len(re.findall(r"constant\(7\.5\)", text)) == 1  # the last factor of the sum
