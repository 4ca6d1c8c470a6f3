import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiling import AS_FOR_USERS
from flax import nnx
from tiny_backbones import ONE_PER_FAMILY, TINY, abstract, count_params, fill
from tolerances import BFLOAT16, SAME_FLOAT32

from fmi_jax.errors import UsageError
from fmi_jax.models import base
from fmi_jax.models.base import Execution
from fmi_jax.models.deit import DeiT
from fmi_jax.models.dinov2 import DINOv2
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn import attention
from fmi_jax.types import Features

# Counted from the published files, without classification heads and mask tokens.
GOLDEN_NUM_PARAMS = {
    "deit_tiny": 5_524_416,
    "deit_small": 21_665_664,
    "deit_base": 85_798_656,
    "deit_tiny_distilled": 5_524_800,
    "deit_small_distilled": 21_666_432,
    "deit_base_distilled": 85_800_192,
    "deit_nano": 122_240,
    "resnet_nano": 79_888,
    "dino_vits16": 21_665_664,
    "dino_vits8": 21_670_272,
    "dino_vitb16": 85_798_656,
    "dino_vitb8": 85_807_872,
    "dinov2_vits14": 22_056_192,
    "dinov2_vitb14": 86_579_712,
    "dinov2_vitl14": 304_367_616,
    "dinov2_vitg14": 1_136_479_232,
    "dinov2_vits14_reg": 22_057_728,
    "dinov2_vitb14_reg": 86_582_784,
    "dinov2_vitl14_reg": 304_371_712,
    "dinov2_vitg14_reg": 1_136_485_376,
    "focalnet_tiny": 27_878_928,
    "focalnet_small": 49_573_440,
    "focalnet_base": 87_724_768,
    "seem_focal_tiny": 29_922_288,
    "clip_vitb16": 86_192_640,
    "clip_vitb16_quickgelu": 86_192_640,
    "clip_vitl14": 303_966_208,
    "clip_vitl14_quickgelu": 303_966_208,
    "blip_base": 85_798_656,
    "blip_base_384": 86_090_496,
    "blip_large": 303_301_632,
    "blip_large_384": 303_690_752,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "sam_vit_b": 89_670_912,
    "sam_vit_l": 308_278_272,
    "sam_vit_h": 637_026_048,
    "swin_tiny": 27_519_354,
    "swin_small": 48_837_258,
    "swin_base": 86_743_224,
    "focal_tiny": 28_111_380,
    "focal_small": 50_372_940,
    "focal_base": 88_790_400,
    "convnext_tiny": 27_820_128,
    "convnext_small": 49_454_688,
    "convnext_base": 87_566_464,
    "convnext_large": 196_230_336,
}

VITS = [name for name, tiny in TINY.items() if tiny.family in (DeiT, DINOv2)]


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def tiny_abstract(name: str, execution: Execution | None = None, **changes) -> base.Backbone:
    arch = dataclasses.replace(TINY[name].arch, **changes)
    return abstract(TINY[name].family, arch, execution or Execution())


def tiny(name: str, execution: Execution | None = None, **changes) -> base.Backbone:
    return fill(tiny_abstract(name, execution, **changes))


def tiny_images(name: str, batch: int, channels: int = 3) -> jax.Array:
    return images(batch, TINY[name].side, TINY[name].side, channels)


def features_at(model: base.Backbone, x: jax.Array, blocks=None, rngs_seed: int | None = None):
    blocks = blocks or (model.arch.num_blocks - 1,)
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        rngs = None if rngs_seed is None else nnx.Rngs(dropout=rngs_seed)
        return nnx.merge(graphdef, state).features_at(x, blocks, rngs=rngs)

    return run(state, x)


def gradients(model: base.Backbone, x: jax.Array):
    """Of a number that depends on every parameter, in training mode."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        def loss(state):
            features = nnx.merge(graphdef, state).features(x, rngs=nnx.Rngs(dropout=0))
            return (features.pooled**3).sum() + (features.tokens**2).sum()

        return jax.grad(loss)(state)

    return run(state, x)


def kept_for_backward(model: base.Backbone, x: jax.Array) -> int:
    """Numbers that one block keeps from its forward pass."""

    def backward(x):
        return jax.vjp(lambda x: model.run_block(model.blocks[0], x, None), model.embed(x))[1]

    kept = jax.eval_shape(backward, x)
    return sum(leaf.size for leaf in jax.tree.leaves(kept))


def assert_close(ours, expected, tolerance):
    """Largest error over the largest magnitude, array by array."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_every_family_has_a_tiny_network():
    assert {spec.family for spec in BACKBONES.values()} == {tiny.family for tiny in TINY.values()}


def test_every_backbone_has_its_golden_count():
    assert {name: spec.num_params for name, spec in BACKBONES.items()} == GOLDEN_NUM_PARAMS


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_spec_describes_the_network_it_builds(name):
    spec = BACKBONES[name]
    model = base.create_abstract(spec.family, spec.arch, Execution())
    assert count_params(model) == spec.num_params
    side = spec.image_size // spec.patch_size
    shape = jax.ShapeDtypeStruct((2, spec.image_size, spec.image_size, 3), jnp.float32)
    features = nnx.eval_shape(lambda model, x: model.features(x), model, shape)
    assert features.pooled.shape == (2, spec.arch.feature_width)
    assert features.tokens.shape == (2, side, side, spec.arch.token_width)


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(UsageError, match="'dinov2_vitb14'"):
        BACKBONES["dinov2_vitb_14"]


@functools.cache
def tiny_features(name: str) -> dict[str, Features]:
    """Of one program: after the last and the first block, and of networks that end there."""
    model = tiny(name)
    graphdef, state = nnx.split(model)
    cut, cut_state = nnx.split(abstract(type(model), model.arch.truncated(0), Execution()))
    held = dict(nnx.to_flat_state(state))
    kept = [(path, held[path]) for path, _ in nnx.to_flat_state(cut_state)]
    assert len(kept) < len(held)

    @jax.jit
    def run(state, kept, x):
        model, truncated = nnx.merge(graphdef, state), nnx.merge(cut, kept)
        last, first = model.features_at(x, (model.arch.num_blocks - 1, 0))
        return {
            "last": last,
            "whole": model.features(x),
            "first": first,
            "truncated": truncated.features(x),
        }

    return run(state, nnx.from_flat_state(kept), tiny_images(name, 2))


@pytest.mark.parametrize("name", TINY)
def test_features_at_a_block_are_those_of_the_truncated_network(name):
    features = tiny_features(name)
    assert_close(features["last"], features["whole"], SAME_FLOAT32)
    assert_close(features["first"], features["truncated"], SAME_FLOAT32)


@pytest.mark.parametrize("name", [n for family, n in ONE_PER_FAMILY.items() if family.cls_first])
def test_who_reads_only_cls_does_not_pay_for_the_last_block_of_the_others(name):
    """In either pass."""
    model = tiny(name)
    x = tiny_images(name, 3)
    graphdef, state = nnx.split(model)

    def flops(read) -> float:
        def loss(state):
            return (read(nnx.merge(graphdef, state).features(x)) ** 2).sum()

        return jax.jit(jax.grad(loss)).lower(state).compile().cost_analysis()["flops"]

    everything = flops(lambda features: jnp.concatenate([features.cls, features.tokens[:, 0, 0]]))
    saved = 1 - flops(lambda features: features.cls) / everything
    assert saved > 0.5 / model.arch.num_blocks


@pytest.mark.parametrize("name", TINY)
def test_a_block_that_does_not_exist_is_refused(name):
    model = tiny_abstract(name)
    count = model.arch.num_blocks
    with pytest.raises(UsageError, match=rf"block {count} does not exist.* 0 to {count - 1}"):
        model.features_at(tiny_images(name, 1), (0, count))
    with pytest.raises(UsageError, match="block -1 does not exist"):
        model.arch.truncated(-1)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", TINY)
def test_any_number_of_channels(name, channels):
    model = tiny_abstract(name, in_channels=channels)
    shape = tiny_images(name, 2, channels)
    pooled = nnx.eval_shape(lambda model, x: model.features(x).pooled, model, shape)
    assert pooled.shape == (2, model.arch.feature_width)
    with pytest.raises(UsageError, match=f"3 channels .* built for {channels}"):
        model.features(tiny_images(name, 2))


@pytest.mark.parametrize("name", VITS)
def test_an_image_that_is_no_multiple_of_the_patch_names_the_nearest_size(name):
    with pytest.raises(UsageError, match=r"32x32: .* multiples .* 5; nearest to 32 is 30"):
        tiny_abstract(name).features(images(1, 32, 32, 3))


def test_dinov2_at_1024_pixels_names_1022():
    arch = BACKBONES["dinov2_vitb14"].arch
    model = base.create_abstract(DINOv2, arch, Execution())
    with pytest.raises(UsageError, match="nearest to 1024 is 1022"):
        model.grid(1024, 1024)


def test_deit_refuses_images_that_are_not_square():
    with pytest.raises(UsageError, match=r"25x35: .*square images only.* nearest is 25x25"):
        tiny_abstract("deit").features(images(1, 25, 35, 3))


@pytest.mark.parametrize("name", ["dinov2", "dinov2_reg"])
def test_dinov2_takes_images_that_are_not_square(name):
    model = tiny(name)
    x = images(1, 15, 35, 3)
    tokens = nnx.eval_shape(lambda model, x: model.features(x).tokens, model, x)
    assert tokens.shape == (1, 3, 7, 33)
    # Columns are columns: a change in the last one of the image is felt there, at block 0's
    # input, and nowhere else.
    embed = jax.jit(model.embed)
    changed = np.asarray(embed(x.at[:, :, 30:].add(1.0)) != embed(x)).any((0, 2))
    patches = changed[1 + model.arch.num_registers :].reshape(3, 7)
    assert patches[:, 6].all()
    assert not patches[:, :6].any()


@pytest.mark.parametrize(("rows", "cols"), [(3, 7), (2, 8), (9, 9)])
@pytest.mark.parametrize("name", ["dinov2", "dinov2_reg"])
def test_dinov2_positions_are_resized_as_torch_does(name, rows, cols):
    """2 x 8 is as many patches as the trained 4 x 4, and resized all the same."""
    model = tiny(name)
    arch = model.arch
    table = torch.tensor(np.asarray(model.pos_embed[...]))
    grid = table[0, 1:].reshape(4, 4, 33).permute(2, 0, 1)[None]
    size = {"size": (rows, cols)}
    if arch.pos_offset:
        size = {"scale_factor": ((rows + arch.pos_offset) / 4, (cols + arch.pos_offset) / 4)}
    patches = torch.nn.functional.interpolate(
        grid, mode="bicubic", antialias=arch.pos_antialias, **size
    )
    expected = torch.cat([table[:, :1], patches[0].flatten(1).T[None]], dim=1)
    assert_close(model.positions(rows, cols), expected.numpy(), SAME_FLOAT32)


@pytest.mark.parametrize("side", [2, 3, 7, 9])
@pytest.mark.parametrize(("name", "prefix"), [("deit", 1), ("deit_distilled", 2)])
def test_deit_positions_are_resized_as_torch_does(name, prefix, side):
    model = tiny(name)
    table = torch.tensor(np.asarray(model.pos_embed[...]))
    grid = table[0, prefix:].reshape(4, 4, 33).permute(2, 0, 1)[None]
    patches = torch.nn.functional.interpolate(
        grid, mode="bicubic", scale_factor=side / 4, align_corners=False
    )
    expected = torch.cat([table[:, :prefix], patches[0].flatten(1).T[None]], dim=1)
    assert_close(model.positions(side), expected.numpy(), SAME_FLOAT32)


@pytest.mark.parametrize("name", VITS)
def test_positions_at_the_trained_size_are_the_table_itself(name):
    model = tiny(name)
    positions = model.positions(4) if isinstance(model, DeiT) else model.positions(4, 4)
    np.testing.assert_array_equal(positions, model.pos_embed[...])


def test_rematerialisation_changes_memory_not_gradients():
    """Nor the paths that are dropped: both are drawn from the same seed."""
    x = images(2, 20, 20, 3)
    plain = tiny("dinov2_reg", Execution(drop_path=0.5), depth=2)
    remat = tiny("dinov2_reg", Execution(drop_path=0.5, remat=True), depth=2)
    assert kept_for_backward(remat, x) < kept_for_backward(plain, x) / 2
    assert_close(gradients(remat, x), gradients(plain, x), SAME_FLOAT32)


def test_rematerialisation_is_not_undone_by_the_compiler(monkeypatch):
    """XLA on a CPU removes what `jax.checkpoint` does, as both passes are found to be the same,
    and sets memory aside for the loops of all blocks, here over groups of queries, at once."""
    monkeypatch.setattr(attention, "MAX_SCORES", 2**9)

    def planned(remat: bool) -> int:
        model = tiny("deit", Execution(remat=remat), depth=7)
        graphdef, state = nnx.split(model)

        def loss(state, x):
            return (nnx.merge(graphdef, state).features(x).pooled ** 2).sum()

        step = jax.jit(jax.grad(loss)).lower(state, tiny_images("deit", 31))
        return step.compile(AS_FOR_USERS).memory_analysis().temp_size_in_bytes

    assert planned(remat=True) < 0.3 * planned(remat=False)


def test_drop_path_acts_in_training_only():
    x = images(7, 20, 20, 3)
    without, dropping = tiny("deit"), tiny("deit", Execution(drop_path=0.5))
    evaluated = features_at(dropping, x)[0].pooled
    np.testing.assert_array_equal(evaluated, features_at(without, x)[0].pooled)
    trained = features_at(dropping, x, rngs_seed=0)[0].pooled
    assert (np.asarray(trained) != np.asarray(evaluated)).any()
    again = features_at(dropping, x, rngs_seed=0)[0].pooled
    np.testing.assert_array_equal(trained, again)


@pytest.mark.parametrize("name", ONE_PER_FAMILY.values())
def test_bfloat16_is_float32_up_to_its_rounding(name):
    x = tiny_images(name, 2)
    half = tiny(name, Execution(dtype=jnp.bfloat16))
    dtypes = {str(value.dtype) for value in base.parameters(half).values()}
    assert dtypes - {"int32"} == {"float32"}  # int32: counters of batches
    block = jax.eval_shape(lambda x: half.run_block(half.blocks[0], half.embed(x), None), x)
    assert block.dtype == jnp.bfloat16
    ours = features_at(half, x)[0]
    assert ours.pooled.dtype == jnp.float32
    assert_close(ours, tiny_features(name)["whole"], BFLOAT16)
