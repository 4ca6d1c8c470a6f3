"""The stacked classifier: any foundation under a DeiT, and the study's checkpoints of it."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file
from tiny_backbones import TINY, fill

from fmi_jax.artifacts.weights import load_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.deit import DeiT, DeiTArch, TokenDeiT
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.heads.stacked import StackedClassifier
from fmi_jax.run.assembly import assemble
from fmi_jax.training.partition import partition
from weights_convert.cli import main
from weights_convert.engine import plan, source_shapes
from weights_convert.layouts.registry import LAYOUTS, layouts_of
from weights_convert.stacked import Stacked, StackedArch, blocks_again, stacked_layouts

DEIT = DeiTArch(
    in_channels=3,
    patch_size=5,
    width=22,
    depth=1,
    num_heads=2,
    mlp_width=13,
    distilled=False,
    grid_size=3,
    norm_eps=1e-6,
)


def images(side):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side, 3)), jnp.float32)


def stack(name, *, frozen, drop_path=0.0):
    """On the tiny foundation of that name; the transformer itself drops no path."""
    tiny, rngs = TINY[name], nnx.Rngs(0)
    arch = tiny.arch.sized(tiny.side, tiny.side)
    if drop_path:  # these are compiled
        arch = arch.truncated(1)
    return StackedClassifier(
        tiny.family(arch, Execution(drop_path=drop_path), rngs=rngs),
        TokenDeiT(DEIT.on_tokens(), Execution(), rngs=rngs),
        7,
        eval_mode=frozen,
        rngs=rngs,
    )


@pytest.mark.parametrize("name", TINY)
def test_every_foundation_goes_under_the_same_transformer(name):
    model = nnx.eval_shape(lambda: stack(name, frozen=True))
    logits = nnx.eval_shape(lambda m, x: m(x), model, images(TINY[name].side))
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert not [n for n in parameters(model.transformer) if n.startswith("patch_embed")]


@pytest.mark.parametrize("name", TINY)
def test_tokens_can_be_read_before_the_norm_that_ends_the_foundation(name):
    """Of a cut one that is what the study does; where tokens are never normed it is the same."""
    tiny = TINY[name]
    arch = tiny.arch.sized(tiny.side, tiny.side).truncated(0)

    def both(x):
        model = StackedClassifier(
            tiny.family(arch, Execution(), rngs=nnx.Rngs(0)),
            TokenDeiT(DEIT.on_tokens(), Execution(), rngs=nnx.Rngs(0)),
            7,
            eval_mode=True,
            before_norm=True,
            rngs=nnx.Rngs(0),
        )
        (_, last) = model.backbone.outputs(x, 1)
        return model.tokens(x), model.backbone.features(x).tokens, last

    tokens, normed, last = nnx.eval_shape(both, images(tiny.side))
    assert tokens.shape == normed.shape
    if name != "deit":
        return
    tokens, normed, last = (np.asarray(x) for x in both(images(tiny.side)))
    np.testing.assert_array_equal(tokens.reshape(2, -1, tokens.shape[-1]), last[:, 1:])
    assert np.abs(tokens - normed).max() > 0.01


def test_the_config_says_which_tokens_are_read():
    for tokens in ("normed", "block"):
        config = ExperimentConfig(protocol="stacked_probe", image_size=32)
        config.backbone.name = config.transformer.name = "deit_nano"
        config.transformer.tokens = tokens
        model = nnx.eval_shape(lambda c=config: assemble(c, 3, 2).create(jax.random.key(0)))
        assert model.before_norm is (tokens == "block")


def test_a_deit_of_tokens_is_the_deit_after_its_patch_embedding():
    whole = fill(create_abstract(DeiT, DEIT, Execution()))
    abstract = create_abstract(TokenDeiT, DEIT.on_tokens(), Execution())
    held, part = parameters(whole), partition(abstract, lambda name: True)
    upper = part.merge({name: held[name] for name in part.variables})
    graphdef, state = nnx.split((whole, upper))

    @jax.jit
    def run(state, x):
        whole, upper = nnx.merge(graphdef, state)
        return upper.features(whole.patch_embed(x)), whole.features(x)

    ours, expected = run(state, images(35))  # 7 x 7 patches, which is not the trained 3 x 3
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    with pytest.raises(UsageError, match="token grid 4x5: a DeiT takes square grids only"):
        upper.features(jnp.zeros((1, 4, 5, 22)))
    with pytest.raises(UsageError, match="built for 22"):
        upper.features(jnp.zeros((1, 4, 4, 21)))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_foundation_is_in_evaluation_mode_and_gets_no_gradient(frozen):
    model = stack("deit", frozen=frozen, drop_path=0.9)
    part = partition(model, lambda name: not (frozen and name.startswith("backbone.")))
    arrays = {name: variable.get_value() for name, (_, variable) in part.variables.items()}
    rest = {name: arrays[name] for name in part.frozen}

    @jax.jit
    def run(params, rest, x):
        def loss(params):
            logits = part.merge(params, rest)(x, rngs=nnx.Rngs(dropout=1))
            return (logits**2).sum(), logits

        evaluated = part.merge(params, rest)(x)
        return evaluated, *jax.value_and_grad(loss, has_aux=True)(params)

    evaluated, (_, trained), gradients = run({n: arrays[n] for n in part.params}, rest, images(35))
    assert np.allclose(evaluated, trained, rtol=0, atol=1e-7) == frozen
    parts = {name.split(".")[0] for name in gradients}
    assert parts == {"projector", "transformer", "head"} | (set() if frozen else {"backbone"})
    assert all(np.any(gradients[name]) for name in ("head.kernel", "projector.linear.kernel"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint as the study saves one: deit_nano under DeiT-Ti, and what else lies in it."""
    arch = StackedArch(
        in_channels=3,
        backbone=BACKBONES["deit_nano"].arch,
        transformer=BACKBONES["deit_tiny"].arch.on_tokens(),
        num_classes=5,
    )
    native = parameters(create_abstract(Stacked, arch, Execution()))
    (layout,) = stacked_layouts(arch, layouts_of(DeiT))
    rng = np.random.default_rng(31)
    shapes = source_shapes(plan(layout, native), native)
    state = {k: rng.normal(size=s.shape).astype(np.float32) for k, s in shapes.items()}
    state = blocks_again(state)  # as the study's own class registers them
    assert "foundation_model.blocks.2.norm1.weight" in state
    path = tmp_path_factory.mktemp("study") / "run-0"
    content = {key: torch.from_numpy(value) for key, value in state.items()}
    torch.save({"iters": 7, "state_dict": content, "epoch": 1, "parameters": {"lr": 0.1}}, path)
    return path, state


def convert(path, out, *more):
    return main(["deit_nano", "--checkpoint", str(path), "--out", str(out), *more])


def test_the_foundation_is_taken_out_of_a_checkpoint_of_the_study(saved, tmp_path, capsys):
    path, state = saved
    assert convert(path, tmp_path) == 0
    assert "as the foundation in a checkpoint of the study" in capsys.readouterr().out
    params = load_file(tmp_path / "deit_nano.custom.safetensors")
    key = "foundation_model.backbone.blocks.2.attn.qkv.weight"
    np.testing.assert_array_equal(params["blocks.2.attn.qkv.kernel"], state[key].T)
    assert main(["inspect", str(path)]) == 0
    assert "fits deit_nano: layout deit_study" in capsys.readouterr().out


def test_the_whole_classifier_goes_there_and_back(saved, tmp_path, capsys):
    path, state = saved
    assert convert(path, tmp_path, "--stacked") == 0
    native = tmp_path / "stacked_deit_nano.custom.safetensors"
    params = load_file(native)
    np.testing.assert_array_equal(params["head.kernel"], state["main_model.fc.weight"].T)
    assert "transformer.blocks.11.norm1.scale" in params
    assert main(["verify", str(native)]) == 0
    assert convert(native, tmp_path, "--export", "original") == 0
    back = torch.load(tmp_path / "stacked_deit_nano.custom.original.pth")["state_dict"]
    assert back.keys() == state.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value.numpy(), state[key])
    capsys.readouterr()
    assert convert(native, tmp_path, "--export", "hf") == 2
    assert "unknown publisher of stacked_deit_nano 'hf'" in capsys.readouterr().err


def test_it_may_be_for_grey_images_of_another_size(tmp_path, capsys):
    """As the study saves SAM after radiographs of 224 pixels: a grey stem, position tables for
    that size, no neck."""
    spec = BACKBONES["sam_vit_b"]
    arch = dataclasses.replace(
        spec.arch.sized(224, 224).truncated(1), in_channels=1, global_blocks=(1,)
    )
    small = dataclasses.replace(
        spec,
        name="small",
        arch=dataclasses.replace(spec.arch, depth=2, global_blocks=(1,)),
        num_params=15_000_000,
    )
    whole = StackedArch(
        in_channels=1,
        backbone=arch,
        transformer=BACKBONES["deit_tiny"].arch.on_tokens(),
        num_classes=2,
    )
    native = parameters(create_abstract(Stacked, whole, Execution()))
    (layout,) = stacked_layouts(whole, LAYOUTS.values())
    rng = np.random.default_rng(5)
    shapes = source_shapes(plan(layout, native), native)
    state = {k: rng.normal(size=s.shape).astype(np.float32) for k, s in shapes.items()}
    path = tmp_path / "run-1"
    torch.save({"state_dict": {k: torch.from_numpy(v) for k, v in state.items()}}, path)
    with mock.patch.dict(BACKBONES._specs, {"small": small}):
        for more in ((), ("--stacked",)):
            assert main(["small", "--checkpoint", str(path), "--out", str(tmp_path), *more]) == 0
        for name in ("small", "stacked_small"):
            assert main(["verify", str(tmp_path / f"{name}.custom.safetensors")]) == 0
        export = ["--checkpoint", str(tmp_path / "stacked_small.custom.safetensors"), "--out"]
        assert main(["small", *export, str(tmp_path), "--export", "original"]) == 0
        assert main(["inspect", str(path)]) == 0
    assert "fits small: layout sam_study" in capsys.readouterr().out
    back = torch.load(tmp_path / "stacked_small.custom.original.pth")["state_dict"]
    for key, value in state.items():
        np.testing.assert_array_equal(back[key].numpy(), value)

    native = tmp_path / "small.custom.safetensors"
    grey = load_backbone(native, small, arch)
    key = "foundation_model.backbone.pos_embed"
    np.testing.assert_array_equal(grey["pos_embed"], state[key])
    target = dataclasses.replace(arch, in_channels=3).sized(320, 320)
    colour = load_backbone(native, small, target)
    assert colour["pos_embed"].shape == (1, 20, 20, 768)
    kernel = colour["patch_embed.proj.kernel"]
    np.testing.assert_allclose(
        kernel.sum(2, keepdims=True), grey["patch_embed.proj.kernel"], rtol=1e-6
    )
    with pytest.raises(UserError, match="weights of small, not of sam_vit_l"):
        load_backbone(native, BACKBONES["sam_vit_l"], BACKBONES["sam_vit_l"].arch)


def test_a_classifier_that_is_not_whole_is_refused(saved, tmp_path, capsys):
    _, state = saved
    content = {key: torch.from_numpy(value) for key, value in state.items()}
    out = tmp_path / "out"

    def refusal(content, *more):
        torch.save({"state_dict": content}, tmp_path / "spoilt")
        assert convert(tmp_path / "spoilt", out, *more) == 1
        assert not out.exists()
        return capsys.readouterr().err

    del content["linear_projector.1.bias"]
    assert "1 missing: linear_projector.1.bias" in refusal(content, "--stacked")
    content["surprise"] = torch.zeros(2)
    assert "1 not expected: surprise" in refusal(content)
    del content["main_model.fc.weight"]
    assert "no stacked classifier of the study" in refusal(content, "--stacked")
    content["main_model.fc.weight"] = torch.zeros(5, 100)
    content["main_model.backbone.cls_token"] = torch.zeros(1, 1, 100)
    assert "12 blocks of width 100: expected those" in refusal(content, "--stacked")
