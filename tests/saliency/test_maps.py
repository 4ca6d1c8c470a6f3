"""Maps of every family: their grids, what they leave out, and the same by another way."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_backbones
from flax import nnx
from tiny_backbones import ONE_PER_FAMILY, TINY
from tolerances import SAME_FLOAT32

from fmi_jax.models.base import Execution
from fmi_jax.models.deit import TokenDeiT
from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.protocols.heads.stacked import StackedClassifier
from fmi_jax.saliency import attention, gradient
from fmi_jax.saliency.maps import TITLES, maps_of, own_maps
from fmi_jax.saliency.modulation import modulator

CLASSES = 5


def classifier(name: str, dtype: Any = jnp.float32) -> tuple[LinearClassifier, jax.Array]:
    """A tiny network with a linear head, and two images."""
    tiny = TINY[name]
    abstract = tiny_backbones.abstract(tiny.family, tiny.arch, Execution(dtype=dtype))
    module = LinearClassifier(
        tiny_backbones.fill(nnx.clone(abstract)), CLASSES, eval_mode=True, rngs=nnx.Rngs(0)
    )
    shape = (2, tiny.side, tiny.side, tiny.arch.in_channels)
    return module, jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("name", ONE_PER_FAMILY.values())
def test_every_family_has_a_map_of_its_last_layer(name: str) -> None:
    module, images = classifier(name)
    target = jnp.array([3, 1])
    layer = jax.eval_shape(lambda x: gradient.last_layer(module, target, x), images)
    tokens = jax.eval_shape(lambda x: module.backbone.features(x).tokens, images)
    assert layer.activations.shape[:3] == layer.gradients.shape[:3] == tokens.shape[:3]


@pytest.mark.parametrize("name", ONE_PER_FAMILY.values())
def test_every_family_has_the_maps_that_it_names(name: str) -> None:
    module, images = classifier(name)
    backbone = module.backbone
    found = {*jax.eval_shape(lambda x: own_maps(backbone, x), images)} - {"heads"}
    # The last blocks of these tiny ones attend within windows.
    windows = {"sam", "swin"}
    assert found == (set() if name in windows else {*backbone.own_maps})
    assert {*backbone.own_maps} <= {*TITLES}


def of_whole_map(name: str, dtype: Any = jnp.float32) -> tuple[Any, jax.Array]:
    """A backbone whose last block attends to its whole map, and two images."""
    tiny = TINY[name]
    arch, side = (tiny.arch.truncated(1), 35) if name == "sam" else (tiny.arch, 18)
    abstract = tiny_backbones.abstract(tiny.family, arch, Execution(dtype=dtype))
    backbone = tiny_backbones.fill(nnx.clone(abstract))
    rng = np.random.default_rng(1)
    return backbone, jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)


@pytest.mark.parametrize("name", ["sam", "swin"])
def test_attention_received_is_the_share_of_each_value_in_the_mean_token(name: str) -> None:
    backbone, images = of_whole_map(name)

    @jax.jit
    def both(images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        block, x = attention.last_block(backbone, images)
        found, z = attention.received_attention(backbone, images), block.norm1(x)
        width = z.shape[-1]
        values = block.attn.qkv(z)[..., 2 * width :].reshape(*z.shape[:3], found.shape[1], -1)
        mixed = jnp.einsum("bhij,bijhd->bhd", found, values).reshape(len(z), width)
        return found, block.attn.proj(mixed), block.attn(z).mean(axis=(1, 2))

    found, by_map, mean_token = both(images)
    np.testing.assert_allclose(found.sum(axis=(2, 3)), 1, rtol=SAME_FLOAT32)
    np.testing.assert_allclose(by_map, mean_token, rtol=0, atol=SAME_FLOAT32)
    assert float(found.std()) > 0.01 * float(found.mean())


@pytest.mark.parametrize("name", ["deit", "focalnet"])
def test_a_network_is_compiled_as_if_nobody_asked_where_it_looks(name: str) -> None:
    module, images = classifier(name)

    def program() -> str:
        return jax.jit(lambda x: module(x, rngs=None)).lower(images).as_text()

    before, state = program(), nnx.state(module)
    jax.eval_shape(lambda x: maps_of(module, x), images)
    assert program() == before
    assert jax.tree.structure(nnx.state(module)) == jax.tree.structure(state)


@pytest.mark.parametrize("name", ["deit", "focalnet", "sam", "swin"])
def test_maps_in_bfloat16_are_close_to_those_in_float32(name: str) -> None:
    """Within 3% of the largest value; bfloat16 has 8 bits."""
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        if name in ("sam", "swin"):
            backbone, images = of_whole_map(name, dtype)
            one = jax.jit(lambda x, backbone=backbone: own_maps(backbone, x))
        else:
            module, images = classifier(name, dtype)
            one = jax.jit(lambda x, module=module: maps_of(module, x))
        found.append(one(images.astype(dtype)))
    assert found[0].keys() == found[1].keys() != set()
    for whole, half in zip(*(x.values() for x in found), strict=True):
        assert half.dtype == jnp.float32
        scale = float(jnp.abs(whole).max())
        np.testing.assert_allclose(half, whole, rtol=0, atol=0.03 * scale)


def test_padding_receives_attention_and_is_left_out() -> None:
    backbone, images = of_whole_map("swin")
    found = jax.jit(lambda x: attention.received_attention(backbone, x))(images[:, :12, :12])
    assert found.shape[2:] == (2, 2)  # in a window of 3 x 3
    assert float(found.sum(axis=(2, 3)).max()) < 1


@pytest.mark.parametrize("name", ["focalnet", "seem"])
def test_the_map_of_a_focal_network_is_the_magnitude_of_its_last_modulator(name: str) -> None:
    module, images = classifier(name)
    backbone = module.backbone

    @jax.jit
    def both(images: jax.Array) -> tuple[jax.Array, ...]:
        block, x = attention.last_block(backbone, images)
        z = block.norm1(x) if name == "focalnet" else x + block.dw1(x)
        layer, d = block.modulation, x.shape[-1]
        _, context, gates = jnp.split(layer.f(z), (d, 2 * d), axis=-1)
        contexts = []
        for convolution in layer.focal_layers:
            context = jax.nn.gelu(convolution(context), approximate=False)
            contexts.append(context)
        contexts.append(jax.nn.gelu(context.mean(axis=(1, 2), keepdims=True), approximate=False))
        total = sum(c * gates[..., i : i + 1] for i, c in enumerate(contexts))
        by_hand = layer.h(total / len(contexts) if layer.normalise else total)
        *_, last = backbone.outputs(images, len(backbone.blocks))
        return modulator(backbone, images), by_hand, block(x, None), last

    found, by_hand, left, last = (np.asarray(part) for part in both(images))
    expected = np.sqrt((by_hand**2).sum(axis=-1))
    np.testing.assert_allclose(found, expected, rtol=10 * SAME_FLOAT32)
    np.testing.assert_allclose(left, last, atol=SAME_FLOAT32)  # it is the last block indeed


def test_registers_and_other_prefix_tokens_are_left_out() -> None:
    module, images = classifier("deit_distilled")
    backbone = module.backbone
    last = attention.block_inputs(backbone, images)[-1]
    found = attention.cls_attention(backbone, images)
    everything = attention.weights(backbone.blocks[-1], last, slice(0, 1))[:, :, 0]
    np.testing.assert_allclose(everything.sum(axis=-1), 1, rtol=SAME_FLOAT32)
    rows, cols = backbone.grid(*images.shape[1:3])
    assert found.shape == (2, 3, rows, cols)
    np.testing.assert_array_equal(found.reshape(2, 3, -1), everything[:, :, 2:])


def test_a_rollout_in_groups_of_queries_is_that_of_all_at_once(monkeypatch) -> None:
    module, images = classifier("deit")
    at_once = jax.jit(lambda x: attention.rollout(module.backbone, x))(images)
    monkeypatch.setattr(attention, "group_size", lambda scores: 13)
    in_groups = jax.jit(lambda x: attention.rollout(module.backbone, x))(images)
    np.testing.assert_allclose(in_groups, at_once, rtol=0, atol=SAME_FLOAT32)


def test_grad_cam_of_a_transformer_reads_what_the_last_attention_reads() -> None:
    module, images = classifier("deit")
    backbone, target = module.backbone, jnp.array([3, 1])
    before = attention.block_inputs(backbone, images)[-1]
    block = backbone.blocks[-1]

    @jax.jit
    def by_hand(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        def logit(z: jax.Array) -> jax.Array:
            x = before + block.attn(z)
            x = x + block.mlp(block.norm2(x))
            logits = module.head(backbone.norm(x[:, 0]))
            return logits[0, 3] + logits[1, 1]

        return jax.grad(logit)(z), z

    gradients, activations = (part[:, 1:] for part in by_hand(block.norm1(before)))
    layer = jax.jit(lambda x: gradient.last_layer(module, target, x))(images)
    for found, expected in ((layer.activations, activations), (layer.gradients, gradients)):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(
            found.reshape(expected.shape), expected, rtol=0, atol=10 * SAME_FLOAT32 * scale
        )


def test_of_a_stacked_classifier_the_transformer_is_shown() -> None:
    foundation, images = classifier("resnet")
    tiny = TINY["deit"]
    transformer = tiny_backbones.fill(
        tiny_backbones.abstract(TokenDeiT, tiny.arch.on_tokens(), Execution())
    )
    module = StackedClassifier(
        foundation.backbone, transformer, CLASSES, eval_mode=True, rngs=nnx.Rngs(0)
    )
    grid = jax.eval_shape(module.tokens, images).shape[1:3]
    backbone, entering = attention.read_by_head(module, images)
    assert backbone is transformer
    assert attention.cls_attention(backbone, entering).shape == (2, 3, *grid)
    layer = gradient.last_layer(module, jnp.array([3, 1]), images)
    assert layer.gradients.shape[:3] == (2, *grid)
    assert float(jnp.abs(layer.gradients).max()) > 0


def test_gradient_times_input_of_a_linear_network_adds_up_to_its_logit() -> None:
    class Linear(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.abs(jnp.arange(7 * 5 * 3 * 2.0)).reshape(7 * 5 * 3, 2))

        def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
            return images.reshape(len(images), -1) @ self.kernel[...]

    images = jnp.asarray(np.random.default_rng(2).uniform(size=(3, 7, 5, 3)), jnp.float32)
    target = jnp.array([0, 1, 0])
    found = gradient.gradient_times_input(Linear(), target, images)
    expected = Linear()(images)[np.arange(3), target]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), expected, rtol=SAME_FLOAT32)


def test_the_top_of_a_map_is_the_fewest_patches_that_hold_the_share() -> None:
    found = jnp.array([[[0.1, 0.4], [0.3, 0.2]], [[0.0, 0.0], [1.0, 0.0]]])
    kept = attention.top_mass(found, 0.5)
    np.testing.assert_array_equal(kept, [[[0, 1], [1, 0]], [[0, 0], [1, 0]]])
