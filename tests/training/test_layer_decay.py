"""Layer-wise learning-rate decay: how far below the head each parameter of each family is."""

import numpy as np
import pytest
import torch
from tiny_backbones import TINY

from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.settings import OptimConfig
from fmi_jax.training import optim

STEMS = ("cls_token", "dist_token", "register_tokens", "pos_embed", "patch_embed", "norm_pre")
STEMS += ("stem", "conv1", "bn1")
READOUTS = ("norm", "norms", "proj")


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_of_every_family_has_its_layer(name):
    tiny = TINY[name]
    n = tiny.arch.num_blocks
    arch = tiny.arch.truncated(n - 1)  # as in every run: without the neck of SAM
    backbone = create_abstract(tiny.family, arch, Execution())
    names = ["backbone." + name for name in parameters(backbone)] + ["head.kernel"]
    factors = optim.layer_factors(names, 0.5)
    assert factors.keys() == set(names)
    for name, factor in factors.items():
        _, part, *rest = name.split(".")
        if part == "blocks":
            assert factor == 0.5 ** (n - int(rest[0])), name
        elif part in STEMS:
            assert factor == 0.5 ** (n + 1), name
        else:
            assert part in (*READOUTS, "kernel"), name
            assert factor == 1, name
    assert len(set(factors.values())) == n + 2  # no layer is left out


def test_what_stands_on_a_backbone_has_the_whole_rate():
    names = ["backbone.blocks.1.norm1.scale", "transformer.blocks.0.norm1.scale", "projector.bias"]
    assert list(optim.layer_factors(names, 0.1).values()) == [0.1, 1, 1]
    # With the first blocks frozen the others keep their distance.
    assert optim.layer_factors(["backbone.blocks.3.a", "backbone.blocks.2.b"], 0.5) == {
        "backbone.blocks.3.a": 0.5,
        "backbone.blocks.2.b": 0.25,
    }


@pytest.mark.parametrize("name", ["backbone.mixer.kernel", "decoder.kernel"])
def test_a_parameter_whose_layer_nobody_wrote_down_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"layer decay does not know where {name} stands"):
        optim.layer_factors([name, "head.kernel"], 0.5)


def test_it_is_torch_adamw_with_a_learning_rate_for_each_layer():
    rng = np.random.default_rng(3)
    params = {
        "backbone.pos_embed": rng.normal(size=(1, 3, 5)),
        "backbone.blocks.0.norm1.scale": rng.normal(size=5),
        "backbone.blocks.1.mlp.fc1.kernel": rng.normal(size=(5, 7)),
        "head.kernel": rng.normal(size=(5, 2)),
    }
    params = {name: value.astype(np.float32) for name, value in params.items()}
    rates = dict(zip(params, (0.125, 0.25, 0.5, 1.0), strict=True))
    config = OptimConfig(learning_rate=3e-3, weight_decay=0.1, layer_decay=0.5, clip_norm=0.7)
    ours = optim.make_optimizer(config, optim.relative_rate(config, 0, 10))
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    groups = [
        {"params": [p], "lr": config.learning_rate * rates[name],
         "weight_decay": config.weight_decay * (p.ndim > 1)}
        for name, p in theirs.items()
    ]  # fmt: skip
    torch_optimizer = torch.optim.AdamW(groups)
    state = ours.init(params)
    for _ in range(5):
        grads = {n: rng.normal(size=v.shape).astype(np.float32) for n, v in params.items()}
        updates, state = ours.update(grads, state, params)
        rate = config.learning_rate
        params = {name: params[name] + rate * updates[name] for name in params}
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), config.clip_norm)
        torch_optimizer.step()
    for name, value in params.items():
        np.testing.assert_allclose(value, theirs[name].detach(), rtol=2e-6, atol=1e-7)
