"""BYOL's pickle of haiku's objects: its arrays are read, its classes never looked up."""

import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_backbones import TINY
from tolerances import PARITY_FORWARD

from fmi_jax.errors import UserError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.resnet import ResNet
from fmi_jax.training.partition import partition
from weights_convert.engine import convert
from weights_convert.haiku_pickle import read_haiku_pickle
from weights_convert.layouts.registry import layouts_of
from weights_convert.read import read_checkpoint

ARCH = TINY["resnet"].arch
ENCODER = "res_net50"


class Tree:
    """Stands for haiku's frozen dict, which keeps its entries in an attribute."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._storage, self._hash = entries, None


class State(NamedTuple):
    """Stands for the state of BYOL's experiment."""

    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


def weights(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and running statistics of a tiny ResNet by the names of haiku."""
    rng = np.random.default_rng(seed)
    params, stats = {}, {}

    def add(conv: str, norm: str, *shape: int) -> None:
        spread = np.sqrt(2 / np.prod(shape[:3]))
        params[f"{ENCODER}/~/{conv}"] = {"w": rng.normal(0, spread, shape).astype(np.float32)}
        channels = (1, 1, 1, shape[-1])
        params[f"{ENCODER}/~/{norm}"] = {
            "scale": rng.uniform(0.5, 1.5, channels).astype(np.float32),
            "offset": rng.normal(0, 0.3, channels).astype(np.float32),
        }
        for name, low in (("mean_ema", -0.5), ("var_ema", 0.5)):
            average = rng.uniform(low, low + 1, channels).astype(np.float32)
            values = {"counter": np.array(7, np.int32), "hidden": average / 2, "average": average}
            stats[f"{ENCODER}/~/{norm}/~/{name}"] = values

    add("initial_conv", "initial_batchnorm", 7, 7, 3, ARCH.stem_width)
    before = ARCH.stem_width
    for stage, (depth, width) in enumerate(zip(ARCH.depths, ARCH.widths, strict=True)):
        after = width * ARCH.expansion
        for j in range(depth):
            block = f"block_group_{stage}/~/block_{j}/~"
            add(f"{block}/conv_0", f"{block}/batchnorm_0", 1, 1, before, width)
            add(f"{block}/conv_1", f"{block}/batchnorm_1", 3, 3, width, width)
            add(f"{block}/conv_2", f"{block}/batchnorm_2", 1, 1, width, after)
            if j == 0:
                shortcut = f"{block}/shortcut_conv", f"{block}/shortcut_batchnorm"
                add(*shortcut, 1, 1, before, after)
            before = after
    params["projector/linear"] = {"w": np.ones((2, 3), np.float32)}
    params["predictor/linear_1"] = {"b": np.ones(3, np.float32)}
    params["classifier"] = {"b": np.ones(3, np.float32)}
    return params, stats


PARAMS, STATS = weights(0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose classes cannot be imported when it is read."""
    made = tmp_path_factory.mktemp("byol") / "pretrain_res50x1.pkl"
    module: Any = types.ModuleType("byol_experiment")
    module.Tree, module.State = Tree, State
    target_params, target_state = weights(1)
    state = State(
        Tree({name: Tree(values) for name, values in PARAMS.items()}),
        Tree(target_params),
        Tree({name: Tree(values) for name, values in STATS.items()}),
        Tree(target_state),
        [np.zeros(3, np.float32)],
    )
    content = {"experiment_state": state, "step": 3, "rng": np.arange(2, dtype=np.uint32)}
    places = {each: each.__module__ for each in (Tree, State)}
    sys.modules[module.__name__] = module
    try:
        for each in places:
            each.__module__ = module.__name__
        made.write_bytes(pickle.dumps(content, protocol=2))
    finally:
        del sys.modules[module.__name__]
        for each, place in places.items():
            each.__module__ = place
    return made


def as_haiku(images: jax.Array) -> jax.Array:
    """Pooled features of haiku's ResNet, whose convolutions pad by "SAME"."""

    def conv(x: jax.Array, name: str, stride: int) -> jax.Array:
        kernel = PARAMS[f"{ENCODER}/~/{name}"]["w"]
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(x: jax.Array, name: str) -> jax.Array:
        values = PARAMS[f"{ENCODER}/~/{name}"]
        mean, var = (STATS[f"{ENCODER}/~/{name}/~/{n}_ema"]["average"] for n in ("mean", "var"))
        return (x - mean) * values["scale"] / jnp.sqrt(var + 1e-5) + values["offset"]

    x = jax.nn.relu(norm(conv(images, "initial_conv", 2), "initial_batchnorm"))
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "SAME")
    for stage, depth in enumerate(ARCH.depths):
        for j in range(depth):
            block = f"block_group_{stage}/~/block_{j}/~"
            stride = 2 if stage and j == 0 else 1
            y = jax.nn.relu(norm(conv(x, f"{block}/conv_0", 1), f"{block}/batchnorm_0"))
            y = jax.nn.relu(norm(conv(y, f"{block}/conv_1", stride), f"{block}/batchnorm_1"))
            y = norm(conv(y, f"{block}/conv_2", 1), f"{block}/batchnorm_2")
            if j == 0:
                x = norm(conv(x, f"{block}/shortcut_conv", stride), f"{block}/shortcut_batchnorm")
            x = jax.nn.relu(x + y)
    return x.mean((1, 2))


def test_weights_of_byol_compute_its_features_where_haiku_pads_as_pytorch_does(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    assert set(checkpoint.groups) == {"online", "target"}
    abstract = create_abstract(ResNet, ARCH, Execution())
    converted = convert(checkpoint.groups, parameters(abstract), layouts_of(ResNet))
    assert converted.match.layout.name == "resnet_haiku_byol"
    structure = partition(abstract, lambda name: True)
    arrays = jax.tree.map(jnp.asarray, converted.params)

    def features(images: jax.Array) -> jax.Array:
        return structure.merge(arrays).features(images).pooled  # type: ignore[attr-defined]

    errors = {}
    for side in (33, 32):
        images = np.random.default_rng(2).normal(size=(2, side, side, 3)).astype(np.float32)
        theirs = np.asarray(jax.jit(as_haiku)(images))
        errors[side] = np.abs(jax.jit(features)(images) - theirs).max() / np.abs(theirs).max()
    # One pixel more than a multiple of 32 is odd before every stride: "SAME" pads both sides alike.
    assert errors[33] < PARITY_FORWARD
    assert errors[32] > 100 * PARITY_FORWARD


def test_arrays_of_every_type_and_order_are_read_and_others_refused(tmp_path: Path) -> None:
    arrays = {
        "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 5), np.float16),
    }
    file = tmp_path / "arrays.pkl"
    state = (arrays, {}, {}, {})
    file.write_bytes(pickle.dumps({"experiment_state": state}, protocol=2))
    found = read_haiku_pickle(file)["online"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=name != "big")
    for wrong in (np.array(["words"]), np.array([print], object)):
        state = ({"a": wrong}, {}, {}, {})
        file.write_bytes(pickle.dumps({"experiment_state": state}, protocol=2))
        with pytest.raises(UserError, match=r"arrays\.pkl: refused: an array of type"):
            read_checkpoint(file)


class Payload:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Payload.target),)

    target: Path


@pytest.mark.parametrize("inside", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, inside: bool) -> None:
    Payload.target = tmp_path / "it_ran"
    content = {"experiment_state": ({"a": Payload()}, {}, {}, {})} if inside else Payload()
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(content, protocol=2))
    words = "no tensors" if inside else r"neither PyTorch nor BYOL wrote: .* it is posix\.mkdir"
    with pytest.raises(UserError, match=words):
        read_checkpoint(tmp_path / "evil.pkl")
    assert not Payload.target.exists()


def test_a_cut_pickle_is_named(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    (tmp_path / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.pkl"):
        read_checkpoint(tmp_path / "cut.pkl")
