"""Flash attention and what it needs: kernels in an interpreter, and padding that nobody sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_backbones import TINY, fill
from tolerances import BFLOAT16_PRODUCTS, PARITY_FORWARD, PARITY_GRADIENT

from fmi_jax.errors import UserError
from fmi_jax.models import base
from fmi_jax.models.base import Execution, create_abstract
from fmi_jax.models.deit import TokenDeiT
from fmi_jax.nn import attention, flash, hardware
from fmi_jax.protocols.cka import layers
from fmi_jax.protocols.heads.attentive import AttentiveClassifier
from fmi_jax.protocols.heads.stacked import StackedClassifier
from fmi_jax.settings import BackboneConfig
from fmi_jax.training.kernel_errors import kernel_errors

SEQUENCES = [name for name, spec in TINY.items() if spec.family.cls_first]


def arrays(dtype, queries=257, keys=263, width=40, values=24):
    rng = np.random.default_rng(7)
    shapes = [(queries, width), (keys, width), (keys, values), (queries, values)]
    return [jnp.asarray(rng.normal(size=(2, 3, *shape)), dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_splash_attention_and_its_gradients_are_those_of_plain_attention(dtype):
    """On numbers of tokens that fill no tile, with padding at the end that is not a number."""
    q, k, v, weights = arrays(dtype)
    length = 251
    k, v = (x.at[:, :, length:].set(jnp.nan) for x in (k, v))

    def value_and_gradients(attend):
        def loss(q, k, v):
            y = attend(q, k, v)
            return (y.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), y

        return jax.grad(loss, argnums=range(3), has_aux=True)(q, k, v)

    (*gradients, y) = jax.tree.leaves(
        value_and_gradients(lambda q, k, v: flash.splash(q, k, v, 0.3, length, interpret=True))
    )
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    plain = functools.partial(attention.dot_product_attention, scale=0.3, length=length)
    (*expected, expected_y) = jax.tree.leaves(
        jax.grad(
            lambda q, k, v: (
                ((out := plain(q, k, v)) * weights.astype(jnp.float32)).sum(),
                out,
            ),
            argnums=range(3),
            has_aux=True,
        )(*wide)
    )
    exact = dtype == jnp.float32
    for ours, theirs, tolerance in zip(
        (y, *gradients),
        (expected_y, *expected),
        (PARITY_FORWARD, *[PARITY_GRADIENT] * 3),
        strict=True,
    ):
        ours = np.asarray(ours, np.float32)
        atol = (tolerance if exact else BFLOAT16_PRODUCTS) * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("tokens", [1024, 1152, 5376, 5632, 128 * 43])
def test_blocks_of_splash_attention_divide_the_tokens(tokens):
    block = flash._block(tokens)
    assert tokens % block == 0
    assert block % 128 == 0
    assert block <= 1024


@pytest.fixture
def padded(monkeypatch):
    """As on an accelerator, with padding that spoils whatever it reaches."""

    def pad(x):
        more = -x.shape[1] % 8 or 8
        return jnp.pad(x, ((0, 0), (0, more), (0, 0)), constant_values=jnp.nan)

    def switch():
        monkeypatch.setattr(base, "pad_tokens", pad)

    return switch


def network(name, **execution):
    spec = TINY[name]
    return fill(create_abstract(spec.family, spec.arch, Execution(**execution)))


def same(padded, plain):
    for ours, expected in zip(jax.tree.leaves(padded), jax.tree.leaves(plain), strict=True):
        atol = PARITY_FORWARD * np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def images_for(spec):
    drawn = np.random.default_rng(4).normal(size=(2, spec.side, spec.side, 3))
    return jnp.asarray(drawn, jnp.float32)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_padding_never_leaves_the_backbone(name, remat, padded):
    """Neither as a feature at any depth, nor as a layer of CKA, nor into a head on the tokens."""
    images = images_for(TINY[name])
    net = network(name, remat=remat)
    blocks = tuple(range(len(net.blocks)))
    pool = AttentiveClassifier(net, 3, num_heads=0, eval_mode=True, rngs=nnx.Rngs(0))

    def seen():
        walked = {kind: layers(pool, images, kind) for kind in ("all", "patches", "cls", "pooled")}
        return net.features_at(images, blocks), net.features(images), pool(images), walked

    plain = jax.jit(seen)()
    padded()
    same(jax.jit(lambda: seen())(), plain)


def test_padding_stays_inside_both_networks_of_a_stacked_classifier(padded):
    net = network("dinov2")
    arch = TINY["deit"].arch.on_tokens()
    upper = fill(create_abstract(TokenDeiT, arch, Execution()))
    stacked = StackedClassifier(net, upper, 3, eval_mode=False, rngs=nnx.Rngs(0))
    images = images_for(TINY["dinov2"])
    plain = stacked(images)
    padded()
    same(stacked(images), plain)


@pytest.mark.parametrize("name", SEQUENCES)
def test_gradients_do_not_see_the_padding_of_an_accelerator(name, monkeypatch):
    graphdef, state = nnx.split(network(name))
    images = images_for(TINY[name])

    def gradients():
        def loss(state):
            features = nnx.merge(graphdef, state).features(images)
            return jnp.sin(features.pooled).sum() + jnp.sin(features.tokens).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(state))

    plain = gradients()
    monkeypatch.setattr(hardware, "platform", lambda: "tpu")
    width = []
    pad = base.pad_tokens
    monkeypatch.setattr(base, "pad_tokens", lambda x: (y := pad(x), width.append(y.shape[1]))[0])
    for ours, expected in zip(gradients(), plain, strict=True):
        atol = PARITY_GRADIENT * max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)
    assert width[0] % 8 == 0


@pytest.mark.parametrize(
    ("raised", "attention", "message"),
    [
        ("cuDNN: CUDNN_STATUS_NOT_SUPPORTED\nmore", "auto", "config.backbone.attention=plain"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying", "auto", None),
        ("INTERNAL: something else", "plain", None),
    ],
)
def test_an_error_of_a_kernel_names_the_switch_that_turns_it_off(
    raised, attention, message, monkeypatch
):
    monkeypatch.setattr(hardware, "platform", lambda: "gpu")
    config = BackboneConfig(attention=attention)
    expected = UserError if message else jax.errors.JaxRuntimeError
    with pytest.raises(expected) as found, kernel_errors(config):
        raise jax.errors.JaxRuntimeError(raised)
    assert (message or raised) in str(found.value)
