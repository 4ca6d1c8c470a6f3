"""Backbones at their real size beside the published code, random weights, through the converter."""

import functools
import os
from collections.abc import Callable

import jax
import numpy as np
import pytest
import torch
from compiling import AS_FOR_USERS
from flax import nnx
from reference_packages import torchvision
from tolerances import PARITY_FORWARD

from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.registry import BACKBONES
from weights_convert.engine import convert
from weights_convert.layouts.registry import layouts_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import open_clip
import segment_anything
import timm
import transformers

pytestmark = pytest.mark.slow

Reference = tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]


def of_timm(name: str, **options: object) -> Reference:
    """A model whose pooled feature is that of the study."""
    model = timm.create_model(name, num_classes=0, **options)
    return model, model


def of_clip() -> Reference:
    model = open_clip.create_model("ViT-B-16")
    return model, model.visual


def of_blip() -> Reference:
    config = transformers.BlipVisionConfig(image_size=224, layer_norm_eps=1e-6)
    model = transformers.BlipVisionModel(config)
    # Not `pooler_output`, which passes the final norm a second time.
    return model, lambda images: model(images).last_hidden_state[:, 0]


def of_sam() -> Reference:
    model = segment_anything.sam_model_registry["vit_b"]()
    encoder = model.image_encoder
    last = {}
    encoder.blocks[-1].register_forward_hook(lambda *call: last.update(tokens=call[2]))

    def pooled(images: torch.Tensor) -> torch.Tensor:
        encoder(images)
        return last["tokens"].mean((1, 2))

    return model, pooled


def of_resnet() -> Reference:
    model = torchvision.models.resnet152()
    model.fc = torch.nn.Identity()
    return model, model


REFERENCES: dict[str, Callable[[], Reference]] = {
    "deit_base": lambda: of_timm("deit_base_patch16_224", global_pool="token"),
    "dinov2_vitb14": lambda: of_timm("vit_base_patch14_dinov2", img_size=518),
    "clip_vitb16": of_clip,
    "blip_base": of_blip,
    "sam_vit_b": of_sam,
    "resnet152": of_resnet,
    "swin_base": lambda: of_timm("swin_base_patch4_window7_224"),
    "focalnet_tiny": lambda: of_timm("focalnet_tiny_lrf"),
    "convnext_tiny": lambda: of_timm("convnext_tiny"),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_full_size_network_is_that_of_the_published_code(name: str) -> None:
    torch.manual_seed(0)
    reference, pooled = REFERENCES[name]()
    reference.eval()
    spec = BACKBONES[name]
    images = torch.randn(1, 3, spec.image_size, spec.image_size)
    with torch.no_grad():
        for parameter in reference.parameters():
            # Biases and position tables are zero, and scales one or tiny, when made.
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.2 * torch.randn_like(parameter))
        expected = pooled(images).numpy()
    tensors = {key: value.numpy() for key, value in reference.state_dict().items()}
    native = parameters(create_abstract(spec.family, spec.arch, Execution()))
    params = convert({"": tensors}, native, layouts_of(spec.family)).params

    graphdef, state = nnx.split(create_abstract(spec.family, spec.arch, Execution()))

    @functools.partial(jax.jit, compiler_options=AS_FOR_USERS)
    def features(params, images):
        filled = [
            (path, variable.replace(params[".".join(map(str, path))]))
            for path, variable in nnx.to_flat_state(state)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(filled)).features(images).pooled

    ours = np.asarray(features(params, images.numpy().transpose(0, 2, 3, 1)))
    assert np.abs(ours - expected).max() <= PARITY_FORWARD * np.abs(expected).max()
