"""What is particular to the image encoder of BLIP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tolerances import PARITY_FORWARD

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.blip import BLIP, BLIPArch
from fmi_jax.models.registry import BACKBONES
from fmi_jax.run.assembly import assemble
from weights_convert import cli as command
from weights_convert.engine import convert, plan
from weights_convert.layouts.registry import LAYOUTS, layouts_of

ARCH = BLIPArch(
    in_channels=3,
    patch_size=5,
    width=26,
    depth=2,
    num_heads=2,
    mlp_width=52,
    grid=(3, 3),
    readout="cls",
    norm_eps=1e-6,
)


def native(arch):
    return parameters(create_abstract(BLIP, arch, Execution()))


def filled(arch, params):
    graphdef, state = nnx.split(create_abstract(BLIP, arch, Execution()))
    values = [
        (path, variable.replace(jnp.asarray(params[".".join(map(str, path))])))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(values))


@pytest.fixture(scope="module")
def of_transformers():
    """A model of transformers with random weights, images, and its normed tokens of them."""
    config = transformers.BlipVisionConfig(
        hidden_size=26,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=15,
        patch_size=5,
        layer_norm_eps=1e-6,
    )
    model = transformers.BlipVisionModel(config).eval()
    generator = torch.Generator().manual_seed(37)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        images = torch.randn(2, 3, 15, 15, generator=generator)
        return model, images.numpy().transpose(0, 2, 3, 1), model(images).last_hidden_state.numpy()


@pytest.mark.parametrize(("readout", "token"), [("cls", 0), ("first_patch", 1)])
def test_features_are_those_of_the_published_code_and_go_back_to_it(
    of_transformers, readout, token
):
    model, images, expected = of_transformers
    tensors = {f"vision_model.{k}": v.numpy() for k, v in model.state_dict().items()}
    arch = dataclasses.replace(ARCH, readout=readout)
    converted = convert({"": tensors}, native(arch), layouts_of(BLIP))
    assert converted.match.layout.name == "blip_hf"
    module = filled(arch, converted.params)
    ours = jax.jit(lambda x: module.features(x))(images)
    for mine, theirs in (
        (ours.pooled, expected[:, token]),
        (ours.cls, expected[:, 0]),
        (ours.tokens.reshape(2, 9, 26), expected[:, 1:]),
    ):
        assert np.abs(mine - theirs).max() <= PARITY_FORWARD * np.abs(theirs).max()
    back = {}
    for step in converted.match.steps:
        values = step.op.inverse(*(converted.params[target] for target in step.targets))
        keys = (key.removeprefix("vision_model.") for key in step.sources)
        back.update(zip(keys, map(torch.tensor, values), strict=True))
    model.load_state_dict(back, strict=True)  # raises if a key or shape is off


def test_a_readout_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match=r"unknown readout 'first_path'.*'first_patch'"):
        dataclasses.replace(ARCH, readout="first_path")


def test_the_tag_says_which_of_the_two_encoders_in_a_file_is_read(tmp_path, monkeypatch, capsys):
    spec = dataclasses.replace(BACKBONES["blip_base"], arch=ARCH)
    monkeypatch.setattr(command, "BACKBONES", {"blip_base": spec})
    rng = np.random.default_rng(41)
    params = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in native(ARCH).items()}
    state = {}
    for layout, factor in ((LAYOUTS["blip"], 1), (LAYOUTS["blip_momentum"], 2)):
        for step in plan(layout, params, layout.prefixes[0]):
            values = step.op.inverse(*(factor * params[name] for name in step.targets))
            state.update(zip(step.sources, map(torch.tensor, values), strict=True))
    path = tmp_path / "model_base.pth"
    torch.save({"model": state}, path)
    for options, factor, layout in (
        ([], 1, "blip "),
        (["--tag", "129m_momentum"], 2, "blip_momentum "),
    ):
        assert (
            command.main(["blip_base", "--checkpoint", str(path), "--out", str(tmp_path), *options])
            == 0
        )
        tag = options[-1] if options else "129m"
        file = command.read_backbone(tmp_path / f"blip_base.{tag}.safetensors")
        np.testing.assert_array_equal(file.params["norm.bias"], factor * params["norm.bias"])
        assert f"layout {layout}" in capsys.readouterr().out


def test_an_experiment_has_positions_for_its_image_size():
    config = ExperimentConfig(protocol="linear_probe", image_size=1024)
    config.backbone.name, config.backbone.last_block = "blip_base", 0
    assembly = assemble(config, channels=3, num_classes=2)
    assert assembly.arch.grid == (64, 64)
    shapes = assembly.partition.shapes(tuple(assembly.partition.variables))
    assert shapes["backbone.pos_embed"].shape == (1, 1 + 64 * 64, 768)
