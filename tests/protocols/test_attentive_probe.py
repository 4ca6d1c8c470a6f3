"""The attentive probe: every family's tokens are read, and only pool and head learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import short_runs
import torch
from flax import nnx
from tiny_backbones import TINY
from tolerances import SAME_FLOAT32

from fmi_jax.errors import UsageError
from fmi_jax.models.base import Execution, parameters
from fmi_jax.protocols.heads.attentive import AttentionPool, AttentiveClassifier
from fmi_jax.run.assembly import assemble
from fmi_jax.run.network import read_trained


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config.protocol = "attentive_probe"
    config.attentive.num_heads = 4
    config.data.fraction = 0.5
    return config


def classifier(name, num_heads):
    tiny, rngs = TINY[name], nnx.Rngs(0)
    backbone = tiny.family(tiny.arch.sized(tiny.side, tiny.side), Execution(), rngs=rngs)
    return AttentiveClassifier(backbone, 7, num_heads=num_heads, eval_mode=True, rngs=rngs)


@pytest.mark.parametrize("name", TINY)
def test_every_family_has_tokens_to_read(name):
    tiny = TINY[name]
    model = nnx.eval_shape(lambda: classifier(name, 1))
    images = jnp.zeros((2, tiny.side, tiny.side, 3))
    seen = []

    def run(model, images):
        pool = model.pool

        class Spy(nnx.Module):
            def __call__(self, tokens):
                seen.append(tokens.shape)
                return pool(tokens)

        model.pool = Spy()
        return model(images), model.backbone.features(images)

    logits, features = nnx.eval_shape(run, model, images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    _, h, w, d = features.tokens.shape
    assert seen == [(2, h * w + (features.cls is not None), d)]


def test_the_pool_is_multi_head_attention_of_torch_with_one_query():
    heads, width, rng = 3, 15, np.random.default_rng(1)
    pool = AttentionPool(width, heads, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for parameter in jax.tree.leaves(nnx.state(pool), is_leaf=lambda x: isinstance(x, nnx.Param)):
        parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape), jnp.float32))
    tokens = jnp.asarray(rng.normal(size=(2, 11, width)), jnp.float32)
    values = {name: torch.tensor(np.asarray(value)) for name, value in parameters(pool).items()}
    normed = torch.nn.functional.layer_norm(
        torch.tensor(np.asarray(tokens)), (width,), values["norm.scale"], values["norm.bias"], 1e-6
    )
    kv = normed @ values["kv.kernel"] + values["kv.bias"]
    k, v = (x.reshape(2, 11, heads, -1).transpose(1, 2) for x in kv.chunk(2, dim=-1))
    query = values["query"][None, :, None].expand(2, -1, -1, -1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, k, v).reshape(2, width)
    np.testing.assert_allclose(pool(tokens), expected, rtol=0, atol=5 * SAME_FLOAT32)


def test_pool_and_head_learn_on_any_number_of_devices_and_after_a_stop(squares, tmp_path):
    whole, found = tmp_path / "whole", tmp_path / "stopped"
    result = short_runs.run(squares, whole)
    losses = short_runs.losses(whole)
    assert len(losses) == 6
    assert losses[-1] != losses[0]
    assert short_runs.run_stopped(squares, found, after=4).test.values == result.test.values
    assert (found / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    short_runs.run(squares, tmp_path / "eight", devices=8)
    np.testing.assert_allclose(short_runs.losses(tmp_path / "eight"), losses, rtol=1e-5)
    trained = read_trained(whole)
    learned = set(trained.assembly.partition.params)
    assert {name.split(".")[0] for name in learned} == {"pool", "head"}
    assert all(name.startswith("backbone.") for name in trained.assembly.partition.frozen)
    assert result.dataset["counts"] == {"train": 22, "val": 9, "test": 9}
    assert any("22 of 43 training images" in note for note in result.notes)
    assert result.backbone["trained_params"] == 64 * (2 + 1 + 2 * 64 + 2) + 2 * 64 + 2


def test_heads_that_do_not_fit_are_refused(squares):
    config = dataclasses.replace(squares, attentive=dataclasses.replace(squares.attentive))
    config.attentive.num_heads = 12
    expected = "attentive.num_heads=12 does not divide the 64 channels .* valid: 8 or 16"
    with pytest.raises(UsageError, match=expected):
        assemble(config, channels=3, num_classes=2)
