"""FocalNet and SEEM: what is particular to them."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import example, given, settings, strategies as st
from reference_packages import torchvision  # noqa: F401 - before timm
from tiny_backbones import TINY, fill
from tolerances import PARITY_FORWARD, PARITY_GRADIENT

from fmi_jax.errors import UsageError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.focalnet import FocalNet, FocalNetArch
from fmi_jax.nn.conv import depthwise_conv
from weights_convert.engine import convert
from weights_convert.layouts.registry import layouts_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import timm
import transformers


def assert_close(ours, expected, tolerance):
    expected = np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.abs(np.asarray(ours) - expected).max() <= tolerance * np.abs(expected).max()


@settings(max_examples=5, deadline=None, derandomize=True)
@example(batch=8, height=14, width=5, side=7)  # rows that are no multiple of a step of the loop
@example(batch=8, height=4, width=3, side=3)
@given(
    batch=st.sampled_from([1, 3, 8]),
    height=st.integers(1, 19),
    width=st.integers(1, 7),
    side=st.sampled_from([1, 3, 7]),
)
def test_depthwise_convolution_and_its_gradients_are_torchs(batch, height, width, side):
    rng = np.random.default_rng(5)
    x, dy = rng.normal(size=(2, batch, height, width, 5)).astype(np.float32)
    kernel = rng.normal(size=(side, side, 1, 5)).astype(np.float32)
    theirs = [
        torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True),
        torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True),
    ]
    expected = torch.nn.functional.conv2d(*theirs, padding=side // 2, groups=5)
    expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))

    @jax.jit
    def run(x, kernel):
        y, back = jax.vjp(depthwise_conv, x, kernel)
        return y, *back(jnp.asarray(dy))

    y, dx, dkernel = run(x, kernel)
    assert_close(y, expected.detach().numpy().transpose(0, 2, 3, 1), PARITY_FORWARD)
    assert_close(dx, theirs[0].grad.numpy().transpose(0, 2, 3, 1), PARITY_GRADIENT)
    assert_close(dkernel, theirs[1].grad.numpy().transpose(2, 3, 1, 0), PARITY_GRADIENT)


def test_an_image_too_small_for_the_last_stage_is_refused():
    model = create_abstract(FocalNet, TINY["focalnet"].arch, Execution())
    assert model.grid(12, 40) == (4, 13)
    with pytest.raises(UsageError, match=r"11x40: .* expected at least 12x12"):
        model.grid(11, 40)


def test_seem_fills_an_image_up_to_the_strides():
    """Zeros that are there already change nothing but the mean over the grid."""
    tiny = TINY["seem"]
    model = fill(create_abstract(tiny.family, tiny.arch, Execution()))
    x = np.random.default_rng(0).normal(size=(1, 9, 14, 3)).astype(np.float32)
    filled = np.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)))
    run = jax.jit(lambda x: model.features(x).tokens)
    np.testing.assert_allclose(run(x), run(filled), rtol=1e-5, atol=1e-5)


SIZES = {"embed_dim": 6, "depths": [1, 2], "focal_levels": [2, 1], "focal_windows": [3, 5]}
PLAIN = FocalNetArch(
    in_channels=3,
    patch_size=4,
    width=6,
    depths=(1, 2),
    focal_levels=(2, 1),
    focal_windows=(3, 5),
    mlp_ratio=2.0,
    conv_embed=False,
    layer_scale=False,
    post_norm=False,
    post_norm_in_modulation=False,
    normalise_modulator=False,
    final_norm=True,
    norm_eps=1e-5,
)
POST = dataclasses.replace(
    PLAIN,
    conv_embed=True,
    layer_scale=True,
    post_norm=True,
    post_norm_in_modulation=True,
    normalise_modulator=True,
)


def of_transformers(**options):
    config = transformers.FocalNetConfig(**SIZES, mlp_ratio=2.0, image_size=32, **options)
    return transformers.FocalNetModel(config)


def of_timm(**options):
    return timm.models.focalnet.FocalNet(**SIZES, mlp_ratio=2.0, num_classes=7, **options)


MODELS = {
    "focalnet_hf": (PLAIN, of_transformers),
    "focalnet_hf, post-norm": (
        POST,
        lambda: of_transformers(
            use_conv_embed=True,
            use_layerscale=True,
            use_post_layernorm=True,
            use_post_layernorm_in_modulation=True,
            normalize_modulator=True,
        ),
    ),
    "focalnet_timm": (PLAIN, of_timm),
    "focalnet_timm, post-norm": (
        POST,
        lambda: of_timm(
            use_overlap_down=True,
            layerscale_value=0.1,
            use_post_norm=True,
            use_post_norm_in_modulation=True,
            normalize_modulator=True,
        ),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_published_code(name):
    arch, build = MODELS[name]
    model = build().eval()
    generator = torch.Generator().manual_seed(17)
    images = torch.randn(2, 3, 24, 40, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        if name.startswith("focalnet_hf"):
            expected = model(images).last_hidden_state.reshape(2, 3, 5, 12).numpy()
        else:
            expected = model.forward_features(images).permute(0, 2, 3, 1).numpy()
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    abstract = create_abstract(FocalNet, arch, Execution())
    converted = convert({"": tensors}, parameters(abstract), layouts_of(FocalNet))
    assert converted.match.layout.name == name.split(",")[0]
    graphdef, state = nnx.split(abstract)
    filled = [
        (path, variable.replace(converted.params[".".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(state)
    ]

    @jax.jit
    def tokens(state, images):
        return nnx.merge(graphdef, state).features(images).tokens

    ours = tokens(nnx.from_flat_state(filled), images.numpy().transpose(0, 2, 3, 1))
    assert_close(ours, expected, PARITY_FORWARD)


def test_truncated_focalnet_has_no_final_norm():
    arch = TINY["focalnet"].arch
    assert not arch.truncated(1).final_norm
    assert arch.truncated(arch.num_blocks - 1) == arch
    names = parameters(create_abstract(FocalNet, arch.truncated(1), Execution()))
    assert "norm.scale" not in names
