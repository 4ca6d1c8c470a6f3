"""An exported file is loaded strictly by the published code, and nothing of it has changed."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import test_blip
import test_convert_references as vits
import test_convnext
import test_focalnet
import test_open_clip
import torch
from reference_packages import load_exported, torchvision
from safetensors.torch import load_file
from tolerances import SAME_FLOAT32

from fmi_jax.models.base import (
    ArchConfig,
    Backbone,
    BackboneSpec,
    Execution,
    create_abstract,
    parameters,
)
from fmi_jax.models.blip import BLIP
from fmi_jax.models.convnext import ConvNeXt
from fmi_jax.models.deit import DeiT
from fmi_jax.models.dinov2 import DINOv2
from fmi_jax.models.focal_transformer import FocalTransformer
from fmi_jax.models.focalnet import FocalNet
from fmi_jax.models.open_clip import OpenCLIP
from fmi_jax.models.resnet import ResNet, ResNetArch
from fmi_jax.models.sam import SAM, SAMArch
from fmi_jax.models.seem import SEEM
from fmi_jax.models.swin import Swin, SwinArch
from weights_convert.engine import convert
from weights_convert.export import Source, export
from weights_convert.layouts.registry import LAYOUTS, layouts_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import open_clip
import segment_anything.modeling
import timm
import transformers
from timm.models.deit import VisionTransformerDistilled

NO_POOLER = {"add_pooling_layer": False}  # no published weights have one

SAM_ARCH = SAMArch(
    in_channels=3,
    patch_size=5,
    width=26,
    depth=2,
    num_heads=2,
    mlp_width=52,
    window_size=2,
    global_blocks=(1,),
    grid=(3, 3),
    rel_pos_resize="linear",
    neck_width=7,
    norm_eps=1e-6,
)
RESNET = ResNetArch(
    in_channels=3,
    stem_width=64,
    depths=(1, 1, 1, 1),
    widths=(64, 128, 256, 512),
    expansion=4,
    norm_eps=1e-5,
    norm_momentum=0.1,
)
NARROW_RESNET = dataclasses.replace(RESNET, stem_width=5, widths=(3, 5, 7, 11))
SWIN = SwinArch(
    in_channels=3,
    patch_size=3,
    width=6,
    depths=(1, 2),
    num_heads=(2, 3),
    windows=(2, 2),
    mlp_ratio=1.5,
    norm_eps=1e-5,
    final_norm=True,
)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A network of a published package.

    Attributes:
      family, arch: family and arch that it is here.
      publisher: package whose names it has.
      create: makes the module.
      side: side of images that it takes, in pixels.
      head: name of its classifier, which reads the pooled feature.
      part: attribute of a larger network that it is the image encoder of.
      options: options that `create` gave it beside a config of transformers.
    """

    family: type[Backbone]
    arch: ArchConfig
    publisher: str
    create: Callable[[], Any]
    side: int = 15
    head: str = ""
    part: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def of_timm(**options: Any) -> torch.nn.Module:
    return vits.of_timm(mlp_ratio=2, **options)


def without_pooler(config: type, model: Callable[..., Any]) -> torch.nn.Module:
    return vits.of_transformers(config, lambda made: model(made, **NO_POOLER), intermediate_size=52)


def sam(model: Callable[..., Any], neck: str, **options: Any) -> torch.nn.Module:
    return model(
        img_size=15,
        patch_size=5,
        embed_dim=26,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        use_rel_pos=True,
        window_size=2,
        global_attn_indexes=(1,),
        **{neck: 7},
        **options,
    )


def sam_of_transformers() -> torch.nn.Module:
    config = transformers.SamVisionConfig(
        hidden_size=26,
        output_channels=7,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=15,
        patch_size=5,
        mlp_dim=52,
        window_size=2,
        global_attn_indexes=[1],
    )
    return transformers.SamVisionModel(config)


def clip_tower() -> torch.nn.Module:
    return open_clip.transformer.VisionTransformer(
        image_size=15, patch_size=5, width=26, layers=2, heads=2, mlp_ratio=2, output_dim=11
    )


def resnet_of_transformers(model: type) -> torch.nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=5, hidden_sizes=[12, 20, 28, 44], depths=[1, 1, 1, 1], num_labels=7
    )
    return model(config)


def swin_of_transformers() -> torch.nn.Module:
    config = transformers.SwinConfig(
        image_size=12,
        patch_size=3,
        embed_dim=6,
        depths=[1, 2],
        num_heads=[2, 3],
        window_size=2,
        mlp_ratio=1.5,
        num_labels=7,
    )
    return transformers.SwinForImageClassification(config)


def timm_swin() -> torch.nn.Module:
    return timm.models.SwinTransformer(
        img_size=12,
        patch_size=3,
        embed_dim=6,
        depths=(1, 2),
        num_heads=(2, 3),
        window_size=2,
        mlp_ratio=1.5,
        num_classes=7,
    )


def focalnet_of_transformers() -> torch.nn.Module:
    config = transformers.FocalNetConfig(
        **test_focalnet.SIZES, mlp_ratio=2.0, image_size=32, num_labels=7
    )
    return transformers.FocalNetForImageClassification(config)


REFERENCES = {
    "timm ViT as original": Reference(
        DeiT, vits.DEIT, "original", lambda: of_timm(num_classes=7), head="head"
    ),
    "timm ViT": Reference(DeiT, vits.DEIT, "timm", lambda: of_timm(num_classes=7), head="head"),
    "timm ViT without head": Reference(DeiT, vits.DEIT, "timm", lambda: of_timm(num_classes=0)),
    "ViTForImageClassification": Reference(
        DeiT, vits.DEIT, "hf", vits.MODELS["deit_hf"][2], head="classifier"
    ),
    "ViTModel": Reference(
        DeiT,
        vits.DEIT,
        "hf",
        lambda: without_pooler(transformers.ViTConfig, transformers.ViTModel),
        options=NO_POOLER,
    ),
    "timm distilled": Reference(
        DeiT,
        vits.DISTILLED,
        "timm",
        lambda: of_timm(model=VisionTransformerDistilled, num_classes=0),
    ),
    "DeiTModel": Reference(
        DeiT,
        vits.DISTILLED,
        "hf",
        lambda: without_pooler(transformers.DeiTConfig, transformers.DeiTModel),
        options=NO_POOLER,
    ),
    "Dinov2Model": Reference(DINOv2, vits.DINOV2, "hf", vits.MODELS["dinov2_hf"][2]),
    "Dinov2WithRegistersModel": Reference(
        DINOv2, vits.REGISTERS, "hf", vits.MODELS["dinov2_hf, registers"][2]
    ),
    "timm DINOv2": Reference(
        DINOv2,
        vits.DINOV2,
        "timm",
        lambda: of_timm(num_classes=7, init_values=1.0),
        head="head",
    ),
    "timm DINOv2 with registers": Reference(
        DINOv2, vits.REGISTERS, "timm", vits.MODELS["dinov2_timm, registers"][2]
    ),
    "segment_anything": Reference(
        SAM,
        SAM_ARCH,
        "original",
        lambda: sam(
            segment_anything.modeling.ImageEncoderViT,
            "out_chans",
            norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        ),
        part="image_encoder",
    ),
    "SamVisionModel": Reference(SAM, SAM_ARCH, "hf", sam_of_transformers),
    "timm SAM": Reference(
        SAM,
        SAM_ARCH,
        "timm",
        lambda: sam(
            timm.models.vision_transformer_sam.VisionTransformerSAM, "neck_chans", num_classes=0
        ),
    ),
    "open_clip": Reference(OpenCLIP, test_open_clip.ARCH, "original", clip_tower, part="visual"),
    "CLIPVisionModelWithProjection": Reference(
        OpenCLIP, test_open_clip.ARCH, "hf", lambda: test_open_clip.of_transformers("gelu")[0]
    ),
    "timm CLIP": Reference(
        OpenCLIP, test_open_clip.ARCH, "timm", lambda: test_open_clip.of_timm("gelu")[0]
    ),
    "BlipVisionModel": Reference(
        BLIP,
        test_blip.ARCH,
        "hf",
        lambda: transformers.BlipVisionModel(
            transformers.BlipVisionConfig(
                hidden_size=26,
                intermediate_size=52,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=15,
                patch_size=5,
            )
        ),
    ),
    "FocalNetModel": Reference(
        FocalNet,
        test_focalnet.POST,
        "hf",
        test_focalnet.MODELS["focalnet_hf, post-norm"][1],
        side=24,
    ),
    "FocalNetForImageClassification": Reference(
        FocalNet, test_focalnet.PLAIN, "hf", focalnet_of_transformers, side=24, head="classifier"
    ),
    "timm FocalNet": Reference(
        FocalNet,
        test_focalnet.POST,
        "timm",
        test_focalnet.MODELS["focalnet_timm, post-norm"][1],
        side=24,
        head="head.fc",
    ),
    "torchvision": Reference(
        ResNet,
        RESNET,
        "original",
        lambda: torchvision.models.resnet.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=7
        ),
        side=37,
        head="fc",
    ),
    "timm ResNet": Reference(
        ResNet,
        dataclasses.replace(NARROW_RESNET, stem_width=64),
        "timm",
        lambda: timm.models.resnet.ResNet(
            timm.models.resnet.Bottleneck, (1, 1, 1, 1), channels=(3, 5, 7, 11), num_classes=7
        ),
        side=37,
        head="fc",
    ),
    "ResNetModel": Reference(
        ResNet,
        NARROW_RESNET,
        "hf",
        lambda: resnet_of_transformers(transformers.ResNetModel),
        side=37,
    ),
    "ResNetForImageClassification": Reference(
        ResNet,
        NARROW_RESNET,
        "hf",
        lambda: resnet_of_transformers(transformers.ResNetForImageClassification),
        side=37,
        head="classifier.1",
    ),
    "SwinForImageClassification": Reference(
        Swin, SWIN, "hf", swin_of_transformers, side=12, head="classifier"
    ),
    "timm Swin": Reference(Swin, SWIN, "timm", timm_swin, side=12, head="head.fc"),
    "ConvNextForImageClassification": Reference(
        ConvNeXt,
        test_convnext.ARCH,
        "hf",
        test_convnext.MODELS["convnext_hf"],
        side=37,
        head="classifier",
    ),
    "DINOv3ConvNextModel": Reference(
        ConvNeXt, test_convnext.ARCH, "hf", test_convnext.MODELS["convnext_dinov3_hf"], side=37
    ),
    "timm ConvNeXt": Reference(
        ConvNeXt, test_convnext.ARCH, "timm", test_convnext.of_timm, side=37, head="head.fc"
    ),
}


def first_output(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        made = model(images)
    return made if isinstance(made, torch.Tensor) else made[0]


@pytest.mark.parametrize("name", REFERENCES)
def test_the_published_code_takes_an_exported_file(name, tmp_path):
    reference = REFERENCES[name]
    model = reference.create().eval()
    generator = torch.Generator().manual_seed(23)
    for key, value in model.state_dict().items():
        if "mask_token" in key or (key == "head.bias" and not reference.head):
            value.zero_()  # not used, and a projection that has none
        elif value.is_floating_point() and "relative_position_index" not in key:
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            if key.endswith("running_var"):
                value.abs_()
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
    else:
        before = f"{reference.part}." if reference.part else ""
        tensors = {before + key: value for key, value in model.state_dict().items()}
    arrays = {key: value.numpy() for key, value in tensors.items()}

    native = parameters(create_abstract(reference.family, reference.arch, Execution()))
    converted = convert({"": arrays}, native, layouts_of(reference.family))
    head = reference.head and (
        np.ascontiguousarray(arrays[f"{reference.head}.weight"].T),
        arrays[f"{reference.head}.bias"],
    )
    source = Source(
        spec=BackboneSpec(
            name="tiny",
            family=reference.family,
            arch=reference.arch,
            num_params=0,
            patch_size=1,
            image_size=reference.side,
            sources=(),
        ),
        tag="t",
        arch=reference.arch,
        image_size=reference.side,
        params=converted.params,
        head=head or None,
        layout=converted.match.layout.name,
    )
    done = export(source, reference.publisher, tmp_path)
    assert done.with_head == bool(reference.head)
    loaded = load_exported(
        model,
        done.path,
        part=reference.part,
        wrapper=done.layout.wrappers[0],
        **reference.options,
    ).eval()
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    images = torch.randn(1, 3, reference.side, reference.side, generator=generator)
    ours, theirs = (first_output(which, images) for which in (loaded, model))
    assert (ours - theirs).abs().max() <= SAME_FLOAT32 * theirs.abs().max()


def test_every_publisher_with_a_package_is_here():
    """Without one are the originals that the last line names."""
    here = {(reference.family, reference.publisher) for reference in REFERENCES.values()}
    layouts = [(layout.family, name) for layout in LAYOUTS.values() for name in layout.publishers]
    absent = {family for family, publisher in set(layouts) - here if publisher == "original"}
    assert set(layouts) - here == {(family, "original") for family in absent}
    assert absent == {DINOv2, FocalNet, SEEM, BLIP, Swin, FocalTransformer, ConvNeXt}
