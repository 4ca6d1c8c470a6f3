"""Swin and the Focal Transformer: what is particular to attention in windows."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_families import FAMILIES as ADAPTORS
from tiny_backbones import TINY

from fmi_jax.errors import UsageError
from fmi_jax.models.base import Execution, create_abstract
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn.focal_attention import neighbourhoods
from fmi_jax.nn.window_attention import join_windows, split_windows
from weights_convert.layouts.registry import LAYOUTS
from weights_convert.read import read_checkpoint

HERE = Path(__file__).parent.parent
BUFFERED = [name for name, layout in LAYOUTS.items() if layout.buffers]


def test_windows_are_taken_apart_and_joined():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 9, 10)), jnp.float32)
    windows = split_windows(x, 3, 5)
    np.testing.assert_array_equal(windows[1, 4, 2, 5], x[1, 4, 5, 4:6])
    np.testing.assert_array_equal(join_windows(windows, 6, 9), x)


@pytest.mark.parametrize(("window", "reach"), [(3, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("wrap", [True, False])
def test_a_neighbourhood_is_a_window_and_what_is_around_it(window, reach, wrap):
    x = np.random.default_rng(0).normal(size=(2, 4 * window, 5 * window, 1)).astype(np.float32)
    pads = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    padded = np.pad(x, pads, mode="wrap" if wrap else "constant")
    side = window + 2 * reach
    expected = [
        padded[:, i : i + side, j : j + side].reshape(2, -1, 1)
        for i in range(0, 4 * window, window)
        for j in range(0, 5 * window, window)
    ]
    ours = neighbourhoods(jnp.asarray(x), window, reach, wrap=wrap)
    np.testing.assert_array_equal(ours, np.stack(expected, axis=1))


@pytest.mark.parametrize("name", [f"{f}_{s}" for f in ("swin", "focal") for s in ("tiny", "base")])
def test_1024_pixels(name):
    spec = BACKBONES[name]
    model = create_abstract(spec.family, spec.arch, Execution())
    images = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)
    stages = nnx.eval_shape(lambda m, x: m.features_at(x, range(4)), model, images)
    assert [stage.tokens.shape[1:3] for stage in stages] == [
        (256, 256),
        (128, 128),
        (64, 64),
        (32, 32),
    ]


@pytest.mark.parametrize(("family", "nearest"), [("swin", "3x37"), ("focal_transformer", "6x37")])
def test_an_image_without_a_patch_names_the_nearest(family, nearest):
    tiny = TINY[family]
    with pytest.raises(UsageError, match=f"2x37: .* nearest is {nearest}"):
        create_abstract(tiny.family, tiny.arch, Execution()).features(jnp.zeros((1, 2, 37, 3)))


@pytest.mark.parametrize("family", BUFFERED)
def test_exported_buffers_are_those_of_the_published_code(family):
    """The compact case is Microsoft's own state dict, buffers included, at its own image size."""
    (folder,) = HERE.glob(f"golden/{family}_tiny*")
    meta = json.loads((folder / "meta.json").read_text())
    groups = read_checkpoint(folder / "checkpoint.pth").groups
    arch = ADAPTORS[family].arch(meta["config"], groups)
    parts = ("_index", "valid_ind", "attn_mask")
    published = {k: v for k, v in groups["model"].items() if any(part in k for part in parts)}
    side = max(meta["runs"]["(primary)"]["image"][2:])
    ours = LAYOUTS[family].buffers(arch, side)
    assert ours.keys() == published.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, published[key])
        assert value.dtype == published[key].dtype
