"""The converter's tables: every published layout, in both directions, strictly."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_backbones import TINY

from fmi_jax.errors import UserError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.models.dinov2 import DINOv2
from fmi_jax.models.registry import BACKBONES
from weights_convert.engine import convert, match, plan, same, source_shapes
from weights_convert.identify import identify
from weights_convert.layouts.registry import LAYOUTS, layouts_of

HERE = Path(__file__).parent.parent
MANIFESTS = json.loads((HERE / "golden" / "manifests.json").read_text())
SHARED = HERE.parent.parent / "shared" / "manifests"

DEIT = DeiTArch(
    in_channels=3,
    patch_size=2,
    width=10,
    depth=2,
    num_heads=2,
    mlp_width=7,
    distilled=False,
    grid_size=3,
    norm_eps=1e-6,
)


@functools.cache
def native_of(family, arch):
    return parameters(create_abstract(family, arch, Execution()))


def expresses(layout, arch):
    try:
        return bool(plan(layout, native_of(layout.family, arch)))
    except UserError:
        return False


VARIANTS = [
    pytest.param(layout, tiny.arch, id=f"{layout.name}-{name}")
    for layout in LAYOUTS.values()
    for name, tiny in TINY.items()
    if tiny.family is layout.family and expresses(layout, tiny.arch)
]


def test_every_layout_has_a_tiny_network_and_every_tiny_network_a_layout():
    assert {variant.values[0].name for variant in VARIANTS} == set(LAYOUTS)
    assert {tiny.family for tiny in TINY.values()} == {la.family for la in LAYOUTS.values()}


def tensors_of(manifest):
    """Shapes by key, written out for every block."""
    tensors = {}
    for key, shape in manifest["tensors"].items():
        depth = manifest["depth"] if "{i}" in key else 1
        for i in range(depth):
            tensors[key.format(i=i)] = jax.ShapeDtypeStruct(tuple(shape), np.float32)
    return tensors


def random_tensors(layout, arch):
    """A checkpoint of `arch` in `layout`, with every ignored key that has a full name."""
    rng = np.random.default_rng(3)
    native = native_of(layout.family, arch)
    random = {n: (9 * rng.normal(size=s.shape)).astype(s.dtype) for n, s in native.items()}
    tensors = {}
    for step in plan(layout, native):
        values = step.op.inverse(*(random[name] for name in step.targets))
        tensors.update(zip(step.sources, values, strict=True))
    return tensors | {key: np.ones(3, np.float32) for key in ignored_keys(layout)}


def ignored_keys(layout):
    """One key that each entry names."""
    keys = [re.sub(r"\{\w+\}", "0", entry.key) for entry in layout.ignored]
    return [f"{key}weight" if key.endswith(".") else key for key in keys]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_published_checkpoint_converts_in_the_abstract(name):
    manifest = MANIFESTS[name]
    spec = BACKBONES[manifest["backbone"]]
    native = native_of(spec.family, spec.arch)
    tensors = tensors_of(manifest)
    best = match({manifest["wrapper"]: tensors}, native, layouts_of(spec.family))[0]
    assert best.problems() == []
    assert best.layout.name == manifest["layout"]
    if spec.sources[0].url == manifest["file"]:
        assert spec.sources[0].layout == manifest["layout"]
    made = {}
    for step in best.steps:
        outputs = jax.eval_shape(step.op.forward, *(tensors[key] for key in step.sources))
        for target, output in zip(step.targets, outputs, strict=True):
            assert target not in made
            made[target] = (output.shape, output.dtype)
    assert made == {n: (v.shape, v.dtype) for n, v in native.items()}


def test_our_lists_of_keys_are_the_shared_ones():
    for name, manifest in MANIFESTS.items():
        path = SHARED / f"{name}.json"
        if path.exists():
            shared = json.loads(path.read_text())
            ours = {key: list(shape.shape) for key, shape in tensors_of(manifest).items()}
            assert ours == shared["tensors"]
            assert manifest["wrapper"] == (shared["wrapper"] or "")


@pytest.mark.parametrize(("layout", "arch"), VARIANTS)
def test_random_weights_come_back_unchanged(layout, arch):
    tensors = random_tensors(layout, arch)
    for wrapper in layout.wrappers:
        for prefix in layout.prefixes:
            prefixed = {prefix + key: value for key, value in tensors.items()}
            converted = convert(
                {wrapper: prefixed}, native_of(layout.family, arch), layouts_of(layout.family)
            )
            assert (converted.match.wrapper, converted.match.prefix) == (wrapper, prefix)
            back = {}
            for step in converted.match.steps:
                values = step.op.inverse(*(converted.params[name] for name in step.targets))
                back.update(zip(step.sources, values, strict=True))
            assert back.keys() == converted.match.expected.keys()
            for key, value in back.items():
                np.testing.assert_array_equal(value, prefixed[key])


@pytest.mark.parametrize(("layout", "arch"), VARIANTS)
def test_layouts_do_not_take_each_others_files_for_their_own(layout, arch):
    prefix, wrapper = layout.prefixes[0], layout.wrappers[0]
    groups = {wrapper: {prefix + k: v for k, v in random_tensors(layout, arch).items()}}
    found = match(groups, native_of(layout.family, arch), layouts_of(layout.family))
    fitting = [m.layout.name for m in found if not m.problems()]
    assert fitting[0] == layout.name
    assert not fitting[1:]


GROUPS = random_tensors(LAYOUTS["deit"], DEIT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.norm2.bias"), "1 missing: blocks.1.norm2.bias"),
        (lambda t: t.update({"neck.0.weight": t["norm.bias"]}), "1 not expected: neck.0.weight"),
        (
            lambda t: t.update({"pos_embed": t["pos_embed"][:, 1:]}),
            "pos_embed is [1, 9, 10] (expected [1, 10, 10])",
        ),
        (
            lambda t: t.update({"norm.bias": t["norm.bias"].astype(np.float64)}),
            "norm.bias is float64 (expected float32)",
        ),
        (
            lambda t: t.update({"norm.bias": np.full(10, np.nan, np.float32)}),
            "1 with NaN or infinity: norm.bias",
        ),
        (
            lambda t: t.update({"cls_token": np.full((1, 1, 10), -np.inf, np.float32)}),
            "1 with NaN or infinity: cls_token",
        ),
    ],
)
def test_whatever_is_off_is_named(change, message):
    tensors = dict(GROUPS)
    change(tensors)
    with pytest.raises(UserError, match=re.escape(message)):
        convert({"": tensors}, native_of(DeiT, DEIT), layouts_of(DeiT))


def test_one_error_names_everything():
    tensors = dict(GROUPS)
    del tensors["blocks.0.attn.qkv.weight"], tensors["blocks.1.attn.qkv.weight"]
    tensors |= {"dist_token": tensors["cls_token"], "norm.weight": tensors["norm.weight"][:3]}
    tensors["norm.bias"] = np.full(10, np.inf, np.float32)
    with pytest.raises(UserError) as error:
        convert({"": tensors}, native_of(DeiT, DEIT), layouts_of(DeiT))
    assert str(error.value) == (
        "the file fits no known layout of this backbone. Nearest: deit (DeiT and DINO as"
        " published, and in timm): 2 missing: blocks.{0-1}.attn.qkv.weight; 1 not expected:"
        " dist_token; 1 of another shape: norm.weight is [3] (expected [10]); 1 with NaN or"
        " infinity: norm.bias."
    )


@pytest.mark.parametrize(("layout", "arch"), VARIANTS)
def test_every_dropped_key_is_missed(layout, arch):
    native, prefix, wrapper = native_of(layout.family, arch), layout.prefixes[0], layout.wrappers[0]
    tensors = {prefix + key: value for key, value in random_tensors(layout, arch).items()}
    for key in tensors:
        if key.removeprefix(prefix) not in ignored_keys(layout):
            rest = {k: v for k, v in tensors.items() if k != key}
            assert match({wrapper: rest}, native, [layout])[0].missing == [key]


def test_an_undeclared_wrapper_is_not_looked_into():
    with pytest.raises(UserError, match="The file holds 'weights'"):
        convert({"weights": GROUPS}, native_of(DeiT, DEIT), layouts_of(DeiT))


def test_every_computed_slot_is_in_a_key_and_no_target():
    for layout in LAYOUTS.values():
        sources = {key for rule in layout.rules for key in rule.sources}
        targets = {name for rule in layout.rules for name in rule.targets}
        for slot in layout.computed:
            assert any(f"{{{slot}}}" in key for key in sources)
            assert not any(f"{{{slot}}}" in name for name in targets)


def test_a_layout_that_reads_one_key_for_two_blocks_is_wrong():
    layout = dataclasses.replace(LAYOUTS["dinov2_chunked"], rules=same("a.{chunk}", "b.{i}"))
    with pytest.raises(ValueError, match=r"dinov2_chunked reads twice: a\.0, a\.1"):
        plan(layout, [f"b.{i}" for i in range(8)])


def dinov2_training(depth, chunks):
    """A DINOv2 and the teacher that its code saves: `[[Identity()] * i + blocks[i : i + size]]`."""
    arch = dataclasses.replace(TINY["dinov2_reg"].arch, depth=depth)
    tensors = {f"backbone.{k}": v for k, v in random_tensors(LAYOUTS["dinov2"], arch).items()}
    tensors |= {f"{head}_head.mlp.0.bias": np.ones(3, np.float32) for head in ("dino", "ibot")}
    chunked = dict(tensors)
    starts = range(0, depth, depth // chunks)
    for chunk, start in enumerate(starts):
        for i in range(start, min(start + starts.step, depth)):
            for key in [key for key in tensors if key.startswith(f"backbone.blocks.{i}.")]:
                new = key.replace(f"blocks.{i}.", f"blocks.{chunk}.{i}.")
                chunked[new] = chunked.pop(key)
    return native_of(DINOv2, arch), tensors, chunked


@pytest.mark.parametrize("depth", [4, 8, 11])
def test_a_dinov2_in_chunks_is_the_dinov2_without_them(depth):
    native, tensors, chunked = dinov2_training(depth, 4)
    assert f"backbone.blocks.{3 if depth < 11 else 5}.{depth - 1}.ls1.gamma" in chunked
    plain, other = (
        convert({"teacher": held}, native, layouts_of(DINOv2)) for held in (tensors, chunked)
    )
    assert (plain.match.layout.name, other.match.layout.name) == ("dinov2", "dinov2_chunked")
    assert plain.params.keys() == other.params.keys() == native.keys()
    for name, value in plain.params.items():
        np.testing.assert_array_equal(other.params[name], value)


def test_a_block_in_another_chunk_is_missing_there_and_not_expected_here():
    native, _, chunked = dinov2_training(8, 4)
    chunked["backbone.blocks.3.5.norm1.bias"] = chunked.pop("backbone.blocks.2.5.norm1.bias")
    found = match({"teacher": chunked}, native, layouts_of(DINOv2))[0]
    assert found.missing == ["backbone.blocks.2.5.norm1.bias"]
    assert found.extra == ["backbone.blocks.3.5.norm1.bias"]
    with pytest.raises(UserError, match=r"1 missing: backbone\.blocks\.2\.5\.norm1\.bias; 1 not"):
        convert({"teacher": chunked}, native, layouts_of(DINOv2))


def test_other_chunks_than_those_of_the_training_configs_are_refused():
    native, _, chunked = dinov2_training(8, 2)
    with pytest.raises(UserError, match="fits no known layout"):
        convert({"teacher": chunked}, native, layouts_of(DINOv2))


@pytest.mark.parametrize("layout", ["deit", "deit_hf"])
@pytest.mark.parametrize("name", ["deit_tiny", "deit_tiny_distilled"])
def test_a_plain_and_a_distilled_deit_are_told_apart(layout, name):
    native = native_of(DeiT, BACKBONES[name].arch)
    tensors = source_shapes(plan(LAYOUTS[layout], native), native)
    assert [found.spec.name for found in identify({"": tensors}, BACKBONES.values())] == [name]
