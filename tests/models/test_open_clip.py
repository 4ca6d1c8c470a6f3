"""What is particular to the image tower of CLIP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from reference_packages import torchvision  # noqa: F401 - before timm
from test_convert_read import scripted
from tiny_backbones import TINY, fill
from tolerances import PARITY_FORWARD

from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.open_clip import OpenCLIP, OpenCLIPArch
from fmi_jax.models.registry import BACKBONES
from weights_convert.engine import convert, plan
from weights_convert.layouts.registry import LAYOUTS, layouts_of
from weights_convert.read import read_checkpoint

import open_clip  # isort: skip
import timm.layers  # isort: skip
import transformers  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip

ARCH = OpenCLIPArch(
    in_channels=3,
    patch_size=5,
    width=26,
    depth=2,
    num_heads=2,
    mlp_width=52,
    embed_width=11,
    quick_gelu=False,
    grid=(3, 3),
    norm_tokens=True,
    norm_eps=1e-5,
)
QUICK = dataclasses.replace(ARCH, quick_gelu=True)


def of_transformers(hidden_act):
    config = transformers.CLIPVisionConfig(
        hidden_size=26,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=15,
        patch_size=5,
        projection_dim=11,
        hidden_act=hidden_act,
    )
    model = transformers.CLIPVisionModelWithProjection(config)

    def features(images):
        tokens = model.vision_model(images).last_hidden_state[:, 1:]
        return model(images).image_embeds, model.vision_model.post_layernorm(tokens)

    return model, features


def of_timm(act_layer):
    model = VisionTransformer(
        img_size=15,
        patch_size=5,
        embed_dim=26,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        num_classes=11,
        pre_norm=True,
        norm_layer=timm.layers.LayerNorm,
        act_layer=act_layer,
    )
    return model, lambda images: (model(images), model.forward_features(images)[:, 1:])


MODELS = {
    "open_clip_hf": (ARCH, lambda: of_transformers("gelu")),
    "open_clip_hf, quick": (QUICK, lambda: of_transformers("quick_gelu")),
    "open_clip_timm": (ARCH, lambda: of_timm("gelu")),
    "open_clip_timm, quick": (QUICK, lambda: of_timm("quick_gelu")),
}


def native(arch):
    return parameters(create_abstract(OpenCLIP, arch, Execution()))


def filled(arch, params):
    module = create_abstract(OpenCLIP, arch, Execution())
    graphdef, state = nnx.split(module)
    values = [
        (path, variable.replace(jnp.asarray(params[".".join(map(str, path))])))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(values))


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_published_code_and_go_back_to_it(name):
    arch, build = MODELS[name]
    model, features = build()
    model.eval()
    generator = torch.Generator().manual_seed(19)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key != "head.bias":
                parameter.normal_(0, 0.3, generator=generator)
            else:
                parameter.zero_()
        images = torch.randn(2, 3, 15, 15, generator=generator)
        expected = features(images)
    tensors = {k: v.numpy() for k, v in model.state_dict().items() if "position_ids" not in k}
    converted = convert({"": tensors}, native(arch), layouts_of(OpenCLIP))
    assert converted.match.layout.name == name.split(",")[0]
    module = filled(arch, converted.params)
    ours = jax.jit(lambda x: module.features(x))(images.numpy().transpose(0, 2, 3, 1))
    for mine, theirs in zip((ours.pooled, ours.tokens.reshape(2, 9, 26)), expected, strict=True):
        theirs = theirs.numpy()
        assert np.abs(mine - theirs).max() <= PARITY_FORWARD * np.abs(theirs).max()
    back = {}
    for step in converted.match.steps:
        values = step.op.inverse(*(converted.params[target] for target in step.targets))
        back.update(zip(step.sources, map(torch.tensor, values), strict=True))
    model.load_state_dict(back, strict=True)  # raises if a key or shape is off


def test_a_projection_with_a_bias_is_refused():
    tensors = of_layout("open_clip_timm")
    tensors["head.bias"] = tensors["head.bias"] + np.eye(11, dtype=np.float32)[7]
    with pytest.raises(UserError, match=r"bias of the final projection is not zero"):
        convert({"": tensors}, native(ARCH), layouts_of(OpenCLIP))


def of_layout(name):
    rng = np.random.default_rng(29)
    tensors = {}
    for step in plan(LAYOUTS[name], wanted := native(ARCH), LAYOUTS[name].prefixes[0]):
        values = [rng.normal(size=wanted[t].shape).astype(np.float32) for t in step.targets]
        tensors.update(zip(step.sources, step.op.inverse(*values), strict=True))
    return tensors


def test_the_text_tower_is_left_out_and_blocks_too_many_are_not_taken_for_it():
    tensors = of_layout("open_clip")
    text = {k.removeprefix("visual."): v[:2] for k, v in tensors.items() if "resblocks" in k}
    whole = {**tensors, **text, "logit_scale": np.float32(4.6)}
    converted = convert({"": whole}, native(ARCH), layouts_of(OpenCLIP))
    assert converted.match.prefix == "visual."
    np.testing.assert_array_equal(converted.params["proj"], tensors["visual.proj"])
    deeper = {k.replace("resblocks.1", "resblocks.2"): v for k, v in tensors.items()}
    with pytest.raises(UserError, match=r"12 not expected: visual\.transformer\.resblocks\.2\."):
        convert({"": whole | deeper}, native(ARCH), layouts_of(OpenCLIP))


def test_the_half_precision_script_of_openai_is_read(tmp_path):
    # ViT-L-14.pt as published: a TorchScript archive with settings beside the weights.
    model = open_clip.model.CLIP(
        11,
        open_clip.model.CLIPVisionCfg(
            layers=2, width=26, head_width=13, patch_size=5, image_size=15
        ),
        open_clip.model.CLIPTextCfg(context_length=7, vocab_size=19, width=26, heads=2, layers=1),
        quick_gelu=True,
    )
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    settings = {"input_resolution": 15, "context_length": 7, "vocab_size": 19}
    tensors |= {name: torch.tensor(value) for name, value in settings.items()}
    scripted(tensors).save(str(tmp_path / "ViT.pt"))
    arch = dataclasses.replace(QUICK, mlp_width=104)
    groups = read_checkpoint(tmp_path / "ViT.pt").groups
    converted = convert(groups, native(arch), layouts_of(OpenCLIP))
    assert {value.dtype for value in converted.params.values()} == {np.dtype(np.float32)}
    module = filled(arch, converted.params)
    images = np.random.default_rng(31).normal(size=(2, 15, 15, 3)).astype(np.float32)
    model.load_state_dict({k: v.float() for k, v in tensors.items() if k not in settings})
    with torch.no_grad():
        expected = model.encode_image(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    ours = jax.jit(lambda x: module.features(x).pooled)(images)
    assert np.abs(ours - expected).max() <= PARITY_FORWARD * np.abs(expected).max()


def test_tokens_are_before_the_final_norm_unless_asked_for():
    arch = TINY["open_clip"].arch
    before = fill(create_abstract(OpenCLIP, arch, Execution()))
    after = filled(dataclasses.replace(arch, norm_tokens=True), parameters(before))
    x = jnp.asarray(np.random.default_rng(31).normal(size=(1, 1 + 49, 33)), jnp.float32)
    raw, normed = (model.readout(x, 2, (7, 7)) for model in (before, after))
    np.testing.assert_array_equal(raw.pooled, normed.pooled)
    np.testing.assert_array_equal(raw.tokens.reshape(49, 33), x[0, 1:])
    np.testing.assert_array_equal(normed.tokens, before.norm(raw.tokens))


def test_an_image_of_another_size_than_the_positions_says_how_to_get_them():
    arch = BACKBONES["clip_vitb16"].arch
    with pytest.raises(UsageError, match=r"384x224: .*positions for 224x224.*sized\(384, 224\)"):
        create_abstract(OpenCLIP, arch, Execution()).grid(384, 224)
    wide = create_abstract(OpenCLIP, arch.sized(384, 224), Execution())
    assert wide.grid(384, 224) == (24, 14)
    assert wide.pos_embed.shape == (1 + 24 * 14, 768)
    with pytest.raises(UsageError, match="8x224: expected at least one patch, 16x16 pixels"):
        arch.sized(8, 224)


def test_at_1024_pixels_patches_of_14_leave_out_the_last_two():
    arch = BACKBONES["clip_vitl14"].arch.sized(1024, 1024)
    model = create_abstract(OpenCLIP, dataclasses.replace(arch, depth=1), Execution())
    image = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)
    features = nnx.eval_shape(lambda model, x: model.features(x), model, image)
    assert features.tokens.shape == (1, 73, 73, 1024)
