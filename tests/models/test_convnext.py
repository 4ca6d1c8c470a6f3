"""ConvNeXt: what is particular to it."""

import functools
import os

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from reference_packages import torchvision  # noqa: F401 - before timm
from safetensors.numpy import load_file
from tiny_backbones import TINY
from tolerances import PARITY_FORWARD

from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.convnext import ConvNeXt, ConvNeXtArch
from weights_convert.engine import convert, plan, source_shapes
from weights_convert.layouts.registry import layouts_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import timm
import transformers

SIZES = {"depths": (1, 1, 2, 1), "widths": (5, 7, 11, 13)}
ARCH = ConvNeXtArch(
    in_channels=3, patch_size=4, mlp_ratio=4.0, norm_eps=1e-6, final_norm=True, **SIZES
)


def of_timm(**options):
    return timm.models.convnext.ConvNeXt(
        depths=SIZES["depths"], dims=SIZES["widths"], num_classes=7, **options
    )


def of_transformers(config, model, **options):
    sizes = {"depths": list(SIZES["depths"]), "hidden_sizes": list(SIZES["widths"])}
    return model(config(**sizes, **options))


MODELS = {
    "convnext_timm": of_timm,
    "convnext_timm_pointwise": functools.partial(of_timm, conv_mlp=True),
    "convnext_hf": functools.partial(
        of_transformers,
        transformers.ConvNextConfig,
        transformers.ConvNextForImageClassification,
        layer_norm_eps=1e-6,
        num_labels=7,
    ),
    "convnext_dinov3_hf": functools.partial(
        of_transformers, transformers.DINOv3ConvNextConfig, transformers.DINOv3ConvNextModel
    ),
}


@jax.jit
def features(params, images):
    graphdef, state = nnx.split(create_abstract(ConvNeXt, ARCH, Execution()))
    filled = [
        (path, variable.replace(params[".".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled)).features(images)


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_published_code(name, tmp_path):
    model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(17)
    images = torch.randn(2, 3, 75, 101, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        if name.startswith("convnext_timm"):
            pooled = model.forward_head(model.forward_features(images), pre_logits=True)
            tensors = {key: value.numpy() for key, value in model.state_dict().items()}
        else:
            model.save_pretrained(tmp_path)
            tensors = load_file(tmp_path / "model.safetensors")
            pooled = getattr(model, "convnext", model)(images).pooler_output
    native = parameters(create_abstract(ConvNeXt, ARCH, Execution()))
    converted = convert({"": tensors}, native, layouts_of(ConvNeXt))
    assert converted.match.layout.name == name
    ours = features(converted.params, images.numpy().transpose(0, 2, 3, 1)).pooled
    assert np.abs(ours - pooled.numpy()).max() <= PARITY_FORWARD * pooled.abs().max()


def test_a_norm_that_a_file_has_twice_must_be_the_same_twice():
    """DINOv3's files have the last norm under two names."""
    native = parameters(create_abstract(ConvNeXt, ARCH, Execution()))
    (layout,) = (la for la in layouts_of(ConvNeXt) if la.name == "convnext_dinov3")
    tensors = {
        key: np.ones(shape.shape, np.float32)
        for key, shape in source_shapes(plan(layout, native), native).items()
    }
    assert {"norm.bias", "norms.3.bias"} <= tensors.keys()
    assert convert({"": tensors}, native, layouts_of(ConvNeXt)).match.layout is layout
    tensors["norms.3.bias"] = tensors["norms.3.bias"] + 1
    with pytest.raises(UserError, match="under two names with different values"):
        convert({"": tensors}, native, layouts_of(ConvNeXt))


def test_an_image_too_small_for_the_last_stage_is_refused():
    model = create_abstract(ConvNeXt, TINY["convnext"].arch, Execution())
    assert model.grid(6, 40) == (2, 13)
    with pytest.raises(UsageError, match=r"5x40: .* expected at least 6x6"):
        model.grid(5, 40)


def test_a_network_that_was_cut_off_has_no_norm():
    arch = TINY["convnext"].arch
    assert arch.truncated(arch.num_blocks - 1) == arch
    cut = arch.truncated(0)
    assert (cut.widths, cut.feature_width, cut.final_norm) == ((5,), 5, False)
    assert "norm.scale" not in parameters(create_abstract(ConvNeXt, cut, Execution()))
