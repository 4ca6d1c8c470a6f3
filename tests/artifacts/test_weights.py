"""Converted weights files: whole, sound, of the right backbone, and made to fit."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors.numpy import save_file

from fmi_jax.artifacts.weights import (
    Provenance,
    adapt_stem,
    load_backbone,
    read_backbone,
    save_backbone,
)
from fmi_jax.atomic import whole_file
from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.base import BackboneSpec, Execution, create_abstract, parameters
from fmi_jax.models.dinov2 import DINOv2, DINOv2Arch

ARCH = DINOv2Arch(
    in_channels=3,
    patch_size=2,
    width=6,
    depth=3,
    num_heads=2,
    swiglu=False,
    mlp_width=5,
    num_registers=1,
    grid_size=2,
    pos_antialias=True,
    pos_offset=0.0,
    norm_eps=1e-6,
)
SPEC = BackboneSpec(
    name="tiny",
    family=DINOv2,
    arch=ARCH,
    num_params=0,
    patch_size=2,
    image_size=4,
    sources=(),
)
PROVENANCE = Provenance(
    backbone="tiny",
    tag="random",
    source="nowhere.pth",
    source_sha256="00",
    layout="dinov2",
    licence="unknown",
    converter="0",
)


def random_params(arch=ARCH):
    rng = np.random.default_rng(7)
    native = parameters(create_abstract(DINOv2, arch, Execution()))
    return {n: rng.normal(size=v.shape).astype(np.float32) for n, v in native.items()}


PARAMS = random_params()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.random.safetensors"
    save_backbone(path, PARAMS, ARCH, PROVENANCE)
    return path


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def test_what_is_saved_is_loaded(file):
    assert same(load_backbone(file, SPEC, ARCH), PARAMS)
    assert read_backbone(file).provenance == PROVENANCE


def test_the_same_weights_give_the_same_file(file, tmp_path):
    for i in range(3):
        again = tmp_path / f"{i}.safetensors"
        save_backbone(again, dict(reversed(PARAMS.items())), ARCH, PROVENANCE)
        assert again.read_bytes() == file.read_bytes()


def test_another_arch_names_the_fields_that_differ(file):
    other = dataclasses.replace(SPEC, arch=dataclasses.replace(ARCH, width=8, norm_eps=1e-5))
    with pytest.raises(UserError, match=r"width is 6 \(expected 8\), norm_eps is 1e-06 \(exp"):
        load_backbone(file, other, other.arch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("norm.scale"), "norm.scale is missing"),
        (lambda p: p.update(extra=np.zeros(1, np.float32)), "extra is not expected"),
        (lambda p: p.update({"norm.bias": np.zeros(5, np.float32)}), r"norm.bias is float32\[5\]"),
        (lambda p: p.update({"norm.bias": np.zeros(6)}), r"norm.bias is float64\[6\]"),
    ],
)
def test_a_parameter_that_is_off_is_named(tmp_path, change, message):
    params = dict(PARAMS)
    change(params)
    path = tmp_path / "off.safetensors"
    save_backbone(path, params, ARCH, PROVENANCE)
    with pytest.raises(UserError, match=message):
        load_backbone(path, SPEC, ARCH)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(tmp_path_factory, file, place, bit):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    damaged = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    damaged.write_bytes(content)
    with pytest.raises(UserError):
        load_backbone(damaged, SPEC, ARCH)


def test_the_damaged_tensor_is_named(tmp_path, file):
    content = bytearray(file.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + header["blocks.1.ls1.gamma"]["data_offsets"][0]] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"1 of \d+ tensors differ.*: blocks\.1\.ls1\.gamma\."):
        read_backbone(path)


@given(part=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused(tmp_path_factory, file, part):
    cut = tmp_path_factory.getbasetemp() / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(UserError, match="cut"):
        load_backbone(cut, SPEC, ARCH)


def test_a_file_that_was_not_converted_says_how_to(tmp_path):
    save_file(PARAMS, tmp_path / "raw.safetensors")
    with pytest.raises(UserError, match="python -m weights_convert"):
        load_backbone(tmp_path / "raw.safetensors", SPEC, ARCH)
    with pytest.raises(UserError, match=r"no such weights file.*raw\.safetensors"):
        load_backbone(tmp_path / "row.safetensors", SPEC, ARCH)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_file_with_a_value_that_is_not_finite_is_not_sound(tmp_path, value):
    params = {name: x.copy() for name, x in PARAMS.items()}
    params["blocks.1.ls1.gamma"][0] = value
    save_backbone(tmp_path / "a.safetensors", params, ARCH, PROVENANCE)
    with pytest.raises(UserError, match=r"not sound: 1 tensors .*infinity: blocks\.1\.ls1\.gamma"):
        load_backbone(tmp_path / "a.safetensors", SPEC, ARCH)


def test_later_blocks_are_dropped(file):
    arch = ARCH.truncated(1)
    kept = {n: v for n, v in PARAMS.items() if not n.startswith("blocks.2.")}
    assert same(load_backbone(file, SPEC, arch), kept)


@pytest.mark.parametrize("stem", ["sum", "mean", "first"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_change_the_stem_alone(file, stem, channels):
    arch = dataclasses.replace(ARCH.truncated(0), in_channels=channels)
    params = load_backbone(file, SPEC, arch, stem=stem)
    kernel = params.pop("patch_embed.proj.kernel")
    source = PARAMS["patch_embed.proj.kernel"]
    assert all(np.array_equal(params[n], PARAMS[n]) for n in params)
    assert kernel.dtype == np.float32
    image = np.random.default_rng(5).normal(size=(2, 2, channels))
    ours = np.einsum("hwc,hwcd->d", image, kernel)
    expected = {
        "sum": np.einsum("hwc,hwcd->d", image.mean(-1, keepdims=True).repeat(3, -1), source),
        "mean": np.einsum("hw,hwd->d", image.sum(-1), source.mean(2)),
        "first": sum(
            np.einsum("hw,hwd->d", image[..., c], source[:, :, c % 3]) for c in range(channels)
        ),
    }
    np.testing.assert_allclose(ours, expected[stem], rtol=1e-5, atol=1e-5)


def test_an_unknown_stem_is_refused():
    with pytest.raises(UsageError, match=r"unknown stem 'sun'\. Did you mean 'sum'"):
        adapt_stem(np.zeros((2, 2, 3, 5), np.float32), 1, "sun")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as draft:
        draft.write_text(f"half{1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with whole_file(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
