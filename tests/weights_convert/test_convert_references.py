"""Random weights of transformers and timm models through the converter: the same features.

Layouts are theirs, so their own `save_pretrained` and state dicts are the test data.
"""

import functools
import os

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from reference_packages import torchvision  # noqa: F401 - before timm
from safetensors.numpy import load_file
from tolerances import PARITY_FORWARD

from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.models.dinov2 import DINOv2, DINOv2Arch
from weights_convert.engine import convert
from weights_convert.layouts.registry import layouts_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import timm.layers
import transformers
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

SIZES = {
    "in_channels": 3,
    "patch_size": 5,
    "width": 26,
    "depth": 2,
    "num_heads": 2,
    "grid_size": 3,
    "norm_eps": 1e-6,
}
DEIT = DeiTArch(mlp_width=52, distilled=False, **SIZES)
DISTILLED = DeiTArch(mlp_width=52, distilled=True, **SIZES)
DINOV2 = DINOv2Arch(
    swiglu=False, mlp_width=52, num_registers=0, pos_antialias=False, pos_offset=0.1, **SIZES
)
REGISTERS = DINOv2Arch(
    swiglu=True, mlp_width=40, num_registers=4, pos_antialias=True, pos_offset=0.0, **SIZES
)


def of_transformers(config, model, **sizes):
    return model(
        config(
            hidden_size=26,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=15,
            patch_size=5,
            layer_norm_eps=1e-6,
            **sizes,
        )
    )


def of_timm(model=VisionTransformer, **sizes):
    return model(img_size=15, patch_size=5, embed_dim=26, depth=2, num_heads=2, **sizes)


SWIGLU = {
    "mlp_layer": timm.layers.SwiGLUPacked,
    "act_layer": torch.nn.SiLU,
    "mlp_ratio": 80 / 26,
}
MODELS = {
    "deit_hf": (
        DeiT,
        DEIT,
        lambda: of_transformers(
            transformers.ViTConfig, transformers.ViTForImageClassification, intermediate_size=52
        ),
    ),
    "deit": (DeiT, DEIT, lambda: of_timm(mlp_ratio=2, num_classes=7)),
    "deit_hf, distilled": (
        DeiT,
        DISTILLED,
        lambda: of_transformers(
            transformers.DeiTConfig,
            transformers.DeiTForImageClassificationWithTeacher,
            intermediate_size=52,
        ),
    ),
    "deit, distilled": (
        DeiT,
        DISTILLED,
        lambda: of_timm(VisionTransformerDistilled, mlp_ratio=2, num_classes=7),
    ),
    "dinov2_hf": (
        DINOv2,
        DINOV2,
        lambda: of_transformers(transformers.Dinov2Config, transformers.Dinov2Model, mlp_ratio=2),
    ),
    "dinov2_hf, registers": (
        DINOv2,
        REGISTERS,
        lambda: of_transformers(
            transformers.Dinov2WithRegistersConfig,
            transformers.Dinov2WithRegistersModel,
            mlp_ratio=2,
            use_swiglu_ffn=True,
        ),
    ),
    "dinov2_timm": (DINOv2, DINOV2, lambda: of_timm(mlp_ratio=2, num_classes=0, init_values=1.0)),
    "dinov2_timm, registers": (
        DINOv2,
        REGISTERS,
        lambda: of_timm(
            num_classes=0, init_values=1.0, reg_tokens=4, no_embed_class=True, **SWIGLU
        ),
    ),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def normed_tokens(family, arch, params, images):
    """All tokens after the final norm, and what a head reads."""
    graphdef, state = nnx.split(create_abstract(family, arch, Execution()))
    filled = [
        (path, variable.replace(params[".".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(state)
    ]
    module = nnx.merge(graphdef, nnx.from_flat_state(filled))
    x = module.embed(images)
    for block in module.blocks:
        x = module.run_block(block, x, None)
    last = arch.num_blocks - 1
    return module.norm(x), module.readout(x, last, (arch.grid_size, arch.grid_size)).pooled


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_published_code(name, tmp_path):
    family, arch, create = MODELS[name]
    model = create().eval()
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    images = torch.randn(2, 3, 15, 15, generator=generator)
    with torch.no_grad():
        if isinstance(model, VisionTransformer):
            tensors = {k: v.numpy() for k, v in model.state_dict().items()}
            expected = model.forward_features(images)
        else:
            model.save_pretrained(tmp_path)
            tensors = load_file(tmp_path / "model.safetensors")
            expected = model.base_model(images).last_hidden_state
    native = parameters(create_abstract(family, arch, Execution()))
    converted = convert({"": tensors}, native, layouts_of(family))
    assert converted.match.layout.name == name.split(",")[0]
    images = images.numpy().transpose(0, 2, 3, 1)
    tokens, pooled = normed_tokens(family, arch, converted.params, images)
    for ours, theirs in ((tokens, expected.numpy()), (pooled, expected[:, 0].numpy())):
        assert np.abs(ours - theirs).max() <= PARITY_FORWARD * np.abs(theirs).max()
