"""What is particular to SAM: position tables, windows, the neck, and memory at 1024 pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_backbones import TINY
from tolerances import PARITY_GRADIENT

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models import base
from fmi_jax.models.base import Execution
from fmi_jax.models.registry import BACKBONES
from fmi_jax.models.sam import SAM
from fmi_jax.nn import attention as plain_attention
from fmi_jax.nn.relative_position import attention, by_pair
from fmi_jax.run.assembly import assemble

ARCH = TINY["sam"].arch


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def table_params() -> dict[str, np.ndarray]:
    native = base.parameters(base.create_abstract(SAM, ARCH, Execution()))
    return {name: normal(*value.shape) for name, value in native.items()}


def dense(q, k, v, rel_h, rel_w):
    """The definition: every pair of tokens has its own bias."""
    rows, cols = len(rel_h), len(rel_w)
    row, col = np.divmod(np.arange(rows * cols), cols)
    bias = jnp.einsum("bhnd,nmd->bhnm", q, rel_h[row[:, None], row])
    bias += jnp.einsum("bhnd,nmd->bhnm", q, rel_w[col[:, None], col])
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5 + bias
    return jnp.einsum("bhnm,bhmd->bhnd", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("cols", [17, 131])
def test_attention_and_its_gradients_are_those_of_a_bias_per_pair(cols, monkeypatch):
    """Also where it is computed a row of queries at a time, for maps too long to be folded."""
    monkeypatch.setattr(plain_attention, "MAX_SCORES", 1)
    rows, d = 3, 5
    q, k, v, weights = jnp.asarray(normal(4, 2, 2, rows * cols, d))
    tables = [by_pair(jnp.asarray(normal(2 * n - 1, d))) for n in (rows, cols)]

    def value_and_gradients(function):
        def loss(*arrays):
            y = function(*arrays)
            return (y * weights).sum(), y

        return jax.jit(jax.grad(loss, argnums=range(5), has_aux=True))(q, k, v, *tables)

    ours, expected = value_and_gradients(attention), value_and_gradients(dense)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= PARITY_GRADIENT * np.abs(b).max()


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_positions_are_resized_as_torch_does(mode):
    """At loading, rows and columns apart; windows keep their relative positions."""
    params = table_params()
    target = dataclasses.replace(ARCH.sized(25, 55), rel_pos_resize=mode)
    adapted = SAM.adapt(params, ARCH, target)
    resize = torch.nn.functional.interpolate
    grid = torch.tensor(params["pos_embed"]).permute(0, 3, 1, 2)
    positions = resize(grid, size=(5, 11), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    np.testing.assert_allclose(adapted["pos_embed"], positions, atol=1e-5)
    for axis, side in (("h", 5), ("w", 11)):
        name = f"blocks.1.attn.rel_pos_{axis}"
        table = torch.tensor(params[name], dtype=torch.float64).T[None]
        expected = resize(table, size=2 * side - 1, mode=mode)[0].T.numpy()
        assert adapted[name].dtype == np.float32
        np.testing.assert_allclose(adapted[name], expected.astype(np.float32), atol=1e-6)
    changed = {name for name in params if adapted[name] is not params[name]}
    assert changed == {"pos_embed", "blocks.1.attn.rel_pos_h", "blocks.1.attn.rel_pos_w"}


def test_unknown_resize_is_refused():
    with pytest.raises(UsageError, match=r"rel_pos_resize 'bilinear'.*linear, nearest"):
        dataclasses.replace(ARCH, rel_pos_resize="bilinear")


def test_another_size_than_the_positions_says_how_to_get_it():
    model = base.create_abstract(SAM, ARCH, Execution())
    with pytest.raises(UsageError, match=r"25x35: .* positions for 35x35; .*arch.sized\(25, 35\)"):
        model.grid(25, 35)
    with pytest.raises(UsageError, match=r"32x35: .* multiples .* 5; nearest to 32 is 30"):
        ARCH.sized(32, 35)


def test_truncated_networks_have_no_neck_even_after_the_last_block():
    params = table_params()
    target = ARCH.truncated(ARCH.num_blocks - 1)
    adapted = SAM.adapt(params, ARCH, target)
    native = base.parameters(base.create_abstract(SAM, target, Execution()))
    assert adapted.keys() == native.keys()
    assert {name.split(".")[0] for name in params.keys() - native.keys()} == {"neck"}


def test_memory_at_1024_pixels_has_no_number_per_pair_of_tokens():
    """No array of a training step of a global block is as large as the scores of one head."""
    arch = dataclasses.replace(BACKBONES["sam_vit_b"].arch, depth=1, global_blocks=(0,))
    graphdef, state = nnx.split(base.create_abstract(SAM, arch, Execution()).blocks[0])
    x = jax.ShapeDtypeStruct((1, 64, 64, arch.width), jnp.float32)

    def loss(state, x):
        return (nnx.merge(graphdef, state)(x, None) ** 2).sum()

    largest = max(sizes(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(state, x).jaxpr))
    assert largest < arch.num_heads * 4096**2 / 10


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def test_an_experiment_has_its_size_its_choice_and_no_neck():
    config = ExperimentConfig(protocol="linear_probe", image_size=224)
    config.backbone.name, config.backbone.rel_pos_resize = "sam_vit_b", "nearest"
    arch = assemble(config, channels=3, num_classes=2).arch
    assert (arch.grid, arch.rel_pos_resize, arch.neck_width) == ((14, 14), "nearest", None)
    config.backbone.name = "deit_base"
    with pytest.raises(UsageError, match=r"rel_pos_resize='nearest': deit_base has no such"):
        assemble(config, channels=3, num_classes=2)
