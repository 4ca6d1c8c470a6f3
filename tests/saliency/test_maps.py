"""Maps of every family: their grids, what they leave out, and gradients by another way."""

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

CLASSES = 5


def classifier(name: str) -> tuple[LinearClassifier, jax.Array]:
    """A tiny network with a linear head, and two images."""
    tiny = TINY[name]
    abstract = tiny_backbones.abstract(tiny.family, tiny.arch, Execution())
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
