"""`python -m weights_convert --export`: native weights back to PyTorch."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file
from test_convert import VARIANTS, native_of, random_tensors
from tiny_backbones import TINY, fill

from fmi_jax.artifacts.weights import Provenance, save_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UserError
from fmi_jax.models.base import BackboneSpec, Execution, create_abstract, parameters
from fmi_jax.models.registry import BACKBONES
from fmi_jax.models.sam import SAM
from fmi_jax.models.swin import Swin
from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.run.assembly import BARE
from fmi_jax.run.network import whole_backbone
from fmi_jax.training.partition import named_values, partition
from weights_convert.cli import main
from weights_convert.engine import convert
from weights_convert.export import Source, export
from weights_convert.layouts.registry import LAYOUTS


def spec_of(family, arch):
    return BackboneSpec(
        name="tiny",
        family=family,
        arch=arch,
        num_params=0,
        patch_size=1,
        image_size=1,
        sources=(),
    )


def read(path, layout):
    """The tensors of an exported file."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=True)
    content = content[layout.wrappers[0]] if layout.wrappers[0] else content
    return {key: value.numpy() for key, value in content.items()}


PUBLISHED = [
    pytest.param(*variant.values, publisher, id=f"{variant.id}-{publisher}")
    for variant in VARIANTS
    for publisher in variant.values[0].publishers
]


@pytest.mark.parametrize(("layout", "arch", "publisher"), PUBLISHED)
def test_what_was_converted_is_exported_bit_by_bit(tmp_path, layout, arch, publisher):
    prefix, wrapper = layout.prefixes[0], layout.wrappers[0]
    tensors = {prefix + key: value for key, value in random_tensors(layout, arch).items()}
    converted = convert({wrapper: tensors}, native_of(layout.family, arch), [layout])
    source = Source(
        spec=spec_of(layout.family, arch),
        tag="t",
        arch=arch,
        image_size=1,
        params=converted.params,
        layout=layout.name,
    )
    done = export(source, publisher, tmp_path)
    assert done.layout is layout
    back = read(done.path, layout)
    expected = converted.match.expected.keys()
    for key in expected:
        np.testing.assert_array_equal(back[key], tensors[key], strict=True)
    zeros = {prefix + rule.key for rule in layout.ignored if rule.zeros}
    buffers = {prefix + key for key in layout.buffers(arch, 1)} if layout.buffers else set()
    assert back.keys() == expected | zeros | buffers
    assert not any(back[key].any() for key in zeros)
    assert all(any(rule.covers(key) for rule in layout.ignored) for key in buffers)
    assert export(source, publisher, tmp_path).path == done.path  # once more changes nothing


def test_every_layout_of_a_publisher_says_so():
    for layout in LAYOUTS.values():
        for publisher in ("hf", "timm"):
            if layout.name.endswith(f"_{publisher}"):
                assert layout.publishers == (publisher,)
        assert set(layout.publishers) <= {"original", "hf", "timm"}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    spec = BACKBONES["deit_nano"]
    tensors = random_tensors(LAYOUTS["deit"], spec.arch)
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, folder / "a.pth")
    arguments = ["deit_nano", "--checkpoint", str(folder / "a.pth"), "--out", str(folder)]
    assert main(arguments) == 0
    return folder / "deit_nano.custom.safetensors"


def refusal(capsys, status, *arguments):
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == status
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_refusals_leave_nothing(native, tmp_path, capsys):
    out = tmp_path / "out"
    rest = ("--out", out)
    of = ("--checkpoint", native, "--export")
    said = refusal(capsys, 2, "deit_nano", *of, "hff", *rest)
    assert "unknown publisher of deit_nano 'hff'. Did you mean 'hf'?" in said
    said = refusal(capsys, 1, "deit_tiny", *of, "hf", *rest)
    assert "weights of deit_nano, not of deit_tiny" in said
    said = refusal(
        capsys, 1, "deit_nano", "--checkpoint", native.with_name("a.pth"), "--export", "hf", *rest
    )
    assert "expected a file that this converter wrote, or the folder of a run" in said
    said = refusal(capsys, 1, "deit_nano", "--checkpoint", tmp_path, "--export", "hf", *rest)
    assert str(tmp_path) in said
    said = refusal(capsys, 2, "deit_nano", *of, "hf", "--stacked", *rest)
    assert "--export takes a --checkpoint, not --stacked" in said
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(native.read_bytes()[:-9])
    said = refusal(capsys, 1, "deit_nano", "--checkpoint", cut, "--export", "hf", *rest)
    assert "cut or damaged" in said
    assert not out.exists()


def test_another_file_is_not_written_over(native, tmp_path, capsys):
    target = tmp_path / "deit_nano.custom.timm.safetensors"
    target.write_bytes(b"mine")
    arguments = ("--checkpoint", native, "--export", "timm", "--out", tmp_path)
    assert "there is another file of this name" in refusal(capsys, 1, "deit_nano", *arguments)
    assert target.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_run_left_out_comes_from_the_weights_it_started_from(tmp_path):
    """The neck of SAM, which no feature depends on; positions are for the size of the run."""
    arch, path = TINY["sam"].arch, tmp_path / "sam.safetensors"
    held = parameters(fill(create_abstract(SAM, arch, Execution()), seed=1))
    provenance = Provenance(
        backbone="tiny",
        tag="t",
        source="",
        source_sha256="",
        layout="sam",
        licence="unknown",
        converter="",
    )
    save_backbone(path, held, arch, provenance)
    of_run = dataclasses.replace(arch.sized(25, 25), rel_pos_resize="nearest").truncated(2)

    def run_of(backbone):
        model = LinearClassifier(backbone, 2, eval_mode=False, rngs=nnx.Rngs(3))
        return types.SimpleNamespace(
            config=ExperimentConfig(image_size=25),
            assembly=types.SimpleNamespace(
                fit=BARE,
                spec=spec_of(SAM, arch),
                arch=backbone.arch,
                weights=path,
                partition=partition(model, lambda name: True),
            ),
            arrays=named_values(model),
        )

    backbone = fill(create_abstract(SAM, of_run, Execution()), seed=2)
    learned = parameters(backbone)
    whole, params = whole_backbone(run_of(backbone))
    assert (whole.grid, whole.neck_width, whole.rel_pos_resize) == ((5, 5), 13, "nearest")
    assert params.keys() == held.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(value, learned.get(name, held[name]))
    cut = fill(create_abstract(SAM, of_run.truncated(1), Execution()))
    whole, params = whole_backbone(run_of(cut))
    assert whole == of_run.truncated(1)
    assert not [name for name in params if name.startswith("neck.")]


def test_an_image_size_that_a_publisher_cannot_take_is_refused(tmp_path):
    """Buffers of Microsoft's Swin are for one size; a run may have any."""
    arch = TINY["swin"].arch
    params = {n: np.zeros(v.shape, v.dtype) for n, v in native_of(Swin, arch).items()}
    source = Source(spec=spec_of(Swin, arch), tag="t", arch=arch, image_size=48, params=params)
    with pytest.raises(UserError, match=r"cannot be built for images of 48 pixels: .* 16x16"):
        export(source, "original", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(source, "timm", tmp_path).path.is_file()


def test_an_arch_that_a_layout_cannot_express_is_refused(tmp_path):
    layout = next(layout for layout in LAYOUTS.values() if layout.name == "dinov2_timm")
    arch = next(v.values[1] for v in VARIANTS if v.values[0] is layout)
    params = {n: np.zeros(v.shape, v.dtype) for n, v in native_of(layout.family, arch).items()}
    source = Source(
        spec=spec_of(layout.family, arch),
        tag="t",
        arch=arch,
        image_size=1,
        params=params | {"gate.kernel": np.zeros(3, np.float32)},
    )
    with pytest.raises(UserError, match=r"dinov2_timm cannot express this arch: .* gate\.kernel"):
        export(source, "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
