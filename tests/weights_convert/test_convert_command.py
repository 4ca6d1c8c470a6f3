"""`python -m weights_convert`: one command from a public file to a native one, or one message."""

import errno
import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from fmi_jax import atomic
from fmi_jax.artifacts import weights
from fmi_jax.artifacts.weights import load_backbone
from fmi_jax.errors import UserError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.registry import BACKBONES
from weights_convert import engine
from weights_convert.cli import main
from weights_convert.engine import plan, source_shapes
from weights_convert.layouts.registry import LAYOUTS

SPEC = BACKBONES["deit_nano"]


def tensors(name="deit_nano", layout="deit"):
    spec = BACKBONES[name]
    native = parameters(create_abstract(spec.family, spec.arch, Execution()))
    shapes = source_shapes(plan(LAYOUTS[layout], native), native)
    rng = np.random.default_rng(23)
    return {k: rng.normal(size=s.shape).astype(np.float32) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as Facebook Research publishes one."""
    path = tmp_path_factory.mktemp("published") / "deit_nano.pth"
    state = {key: torch.from_numpy(value) for key, value in tensors().items()}
    torch.save({"model": state | {"head.bias": torch.zeros(7)}}, path)
    return path


def test_convert_inspect_and_verify(published, tmp_path, capsys):
    out = tmp_path / "new" / "weights"
    assert main(["deit_nano", "--checkpoint", str(published), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "layout deit (DeiT and DINO as published, and in timm, in the entry 'model')" in said
    file = out / "deit_nano.custom.safetensors"
    assert sorted(out.iterdir()) == [out / "deit_nano.custom.md", file]
    params = load_backbone(file, SPEC, SPEC.arch)
    source = tensors()
    np.testing.assert_array_equal(
        params["blocks.2.attn.qkv.kernel"], source["blocks.2.attn.qkv.weight"].T
    )
    card = (out / "deit_nano.custom.md").read_text()
    assert f"{SPEC.num_params:,} parameters" in card
    assert "unknown" in card

    assert main(["inspect", str(published)]) == 0
    assert "fits deit_nano: layout deit" in capsys.readouterr().out
    assert main(["inspect", str(file)]) == 0
    assert "converted weights of deit_nano, tag custom" in capsys.readouterr().out
    assert main(["verify", str(file)]) == 0
    assert "sound" in capsys.readouterr().out

    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)
    assert main(["verify", str(file)]) == 1
    assert "1 of 42 tensors differ" in capsys.readouterr().err
    file.write_bytes(content[:-5])
    assert main(["verify", str(file)]) == 1
    assert "cut or damaged" in capsys.readouterr().err


def test_a_published_file_gets_its_tag_and_licence(tmp_path, capsys):
    # DINO publishes no checksum: its file is known by name.
    state = {k: torch.from_numpy(v) for k, v in tensors("dino_vits16").items()}
    torch.save(state, tmp_path / "dino_deitsmall16_pretrain.pth")
    file = str(tmp_path / "dino_deitsmall16_pretrain.pth")
    assert main(["dino_vits16", "--checkpoint", file, "--out", str(tmp_path)]) == 0
    assert "dino_vits16.dino_in1k.safetensors" in capsys.readouterr().out
    assert "Apache-2.0" in (tmp_path / "dino_vits16.dino_in1k.md").read_text()


def test_a_published_name_without_its_checksum_is_refused(tmp_path, capsys):
    spoilt = tmp_path / "deit_small_patch16_224-cd65a155.pth"
    state = {k: torch.from_numpy(v) for k, v in tensors("deit_small").items()}
    torch.save({"model": state}, spoilt)
    other = tmp_path / "other.pth"
    other.write_bytes(spoilt.read_bytes())
    out = tmp_path / "out"
    for file, options in ((spoilt, []), (other, ["--tag", "in1k"])):
        arguments = ["deit_small", "--checkpoint", str(file), "--out", str(out), *options]
        assert main(arguments) == 1
        assert "that of the published deit_small_patch16_224-cd65a155.pth begins with cd65a155" in (
            capsys.readouterr().err
        )
        assert not out.exists()
    assert main(["inspect", str(spoilt)]) == 0
    assert "fits deit_small, under the name of a published file but with another checksum" in (
        capsys.readouterr().out
    )
    arguments = ["deit_small", "--checkpoint", str(spoilt), "--out", str(out), "--tag", "mine"]
    assert main(arguments) == 0
    assert "unknown" in (out / "deit_small.mine.md").read_text()


def _write(path, change):
    content = tensors()
    change(content)
    save_file(content, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("cls_token"), "1 missing: cls_token"),
        (lambda t: t.update(mystery=np.zeros(3, np.float32)), "1 not expected: mystery"),
        (lambda t: t.update(cls_token=t["cls_token"][..., :5]), "cls_token is [1, 1, 5]"),
        (lambda t: t.update(cls_token=t["cls_token"] * np.nan), "with NaN or infinity: cls_token"),
    ],
)
def test_a_file_that_does_not_fit_leaves_nothing(tmp_path, capsys, change, message):
    _write(tmp_path / "model.safetensors", change)
    out = tmp_path / "out"
    file = str(tmp_path / "model.safetensors")
    assert main(["deit_nano", "--checkpoint", file, "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_file_of_another_backbone_is_recognised(published, tmp_path, capsys):
    arguments = ["dinov2_vits14", "--checkpoint", str(published), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "is not dinov2_vits14" in said
    assert said.endswith("It fits deit_nano.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["deit_bass", "--checkpoint", "x", "--out", "y"], 2, "Did you mean 'deit_base'"),
        (["deit_base", "--checkpoint", "nowhere.pth", "--out", "y"], 1, "there is no such file"),
        (["deit_base", "--out", "y"], 2, "one of the arguments --checkpoint --download"),
        (["deit_base", "--checkpiont", "x", "--out", "y"], 2, "--help"),
        (["deit_base", "--checkpoint", "x", "--out", "y", "--tag", "../z"], 2, "letters, digits"),
        (["deit_nano", "--download", "--out", "y"], 2, "no published weights"),
        (["deit_base", "--download", "--tag", "in22k", "--out", "y"], 2, "Valid: in1k"),
        (["inspect"], 2, "FILE"),
        (["inspect", "nowhere.pth"], 1, "there is no such file"),
        (["verify", "nowhere.safetensors"], 1, "expected a file that this converter wrote"),
    ],
)
def test_wrong_use_gives_one_message(tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_and_card_get_the_mode_of_the_umask_and_come_together(
    published, tmp_path, capsys, monkeypatch
):
    arguments = ["deit_nano", "--checkpoint", str(published), "--out", str(tmp_path)]
    assert main(arguments) == 0
    file, card = (tmp_path / f"deit_nano.custom.{kind}" for kind in ("safetensors", "md"))
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert {path.stat().st_mode for path in (file, card)} == {fresh.stat().st_mode}
    before = file.read_bytes(), card.read_bytes()
    # The same checkpoint in another file: another card, another header.
    other = published.with_name("other.pth")
    other.write_bytes(published.read_bytes())
    arguments[2] = str(other)

    def full(path, tensors, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(weights, "write_tensors", full)
        assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert said.count("\n") == 1
    assert (file.read_bytes(), card.read_bytes()) == before
    assert {*tmp_path.iterdir()} == {file, card, fresh}

    replace = os.replace

    def killed(draft, path):
        replace(draft, path)
        if path == file:
            raise SystemExit(9)  # the weights have their name, the card not yet

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "replace", killed)
        assert main(arguments) == 9
    assert file.read_bytes() != before[0]
    assert not card.exists()  # none, rather than that of other weights
    assert main(arguments) == 0
    assert "other.pth" in card.read_text()
    assert {*tmp_path.iterdir()} == {file, card, fresh}


@pytest.mark.parametrize("publisher", ["original", "timm"])
def test_an_export_to_a_full_disk_is_one_message(published, tmp_path, capsys, publisher):
    assert main(["deit_nano", "--checkpoint", str(published), "--out", str(tmp_path)]) == 0
    file, out = tmp_path / "deit_nano.custom.safetensors", tmp_path / "out"
    capsys.readouterr()
    arguments = ["deit_nano", "--checkpoint", str(file), "--export", publisher, "--out", str(out)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        code = main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (1, 1), said
    assert "the disk is full" in said
    assert list(out.iterdir()) == []


def test_a_conversion_does_not_replace_its_own_input(published, tmp_path, capsys):
    mine = tmp_path / "deit_nano.custom.safetensors"
    save_file(tensors(), mine)
    before = mine.read_bytes()
    assert main(["deit_nano", "--checkpoint", str(mine), "--out", str(tmp_path)]) == 1
    assert "is one of the inputs" in capsys.readouterr().err
    assert mine.read_bytes() == before
    assert main(["deit_nano", "--checkpoint", str(mine), "--out", str(mine)]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_a_tensor_that_claims_a_terabyte_is_judged_by_its_shape(tmp_path, capsys):
    state = {key: torch.from_numpy(value) for key, value in tensors().items()}
    state["cls_token"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(state, tmp_path / "bomb.pth")
    arguments = ["deit_nano", "--checkpoint", str(tmp_path / "bomb.pth"), "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "cls_token is [1000000, 1000000] (expected [1, 1," in capsys.readouterr().err


def resealed(file, change):
    """The file with another header, under its seal."""
    with safe_open(file, framework="numpy") as opened:
        header = json.loads(opened.metadata()[weights.ENTRY])
        params = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    del header["seal"]
    change(header)
    sealed = json.dumps(header | {"seal": atomic.json_sha256(header)})
    save_file(params, file, metadata={weights.ENTRY: sealed})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("arch"), "lacks its arch, origin or checksums"),
        (lambda h: h.update(arch=[1]), "lacks its arch, origin or checksums"),
        (lambda h: h["provenance"].pop("tag"), "lacks its arch, origin or checksums"),
        (lambda h: h["provenance"].update(tag=3), "lacks its arch, origin or checksums"),
        (lambda h: h.pop("sha256"), "lacks its arch, origin or checksums"),
        (lambda h: h["arch"].update(in_channels=0), "in_channels is 0 (expected 3)"),
        (lambda h: h["arch"].update(in_channels="3"), "in_channels is '3' (expected 3)"),
        (lambda h: h["arch"].update(in_channels=None), "in_channels is None (expected 3)"),
        (lambda h: h["arch"].update(grid=7), "grid is 7 (expected"),
    ],
)
def test_a_header_that_lies_under_its_seal(published, tmp_path, capsys, change, message):
    arguments = ["deit_nano", "--checkpoint", str(published), "--out", str(tmp_path)]
    assert main(arguments) == 0
    file = tmp_path / "deit_nano.custom.safetensors"
    resealed(file, change)
    capsys.readouterr()
    assert main(["verify", str(file)]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(UserError):
        load_backbone(file, SPEC, SPEC.arch)


def test_a_file_of_a_backbone_that_is_none_is_one_message(published, tmp_path, capsys):
    assert main(["deit_nano", "--checkpoint", str(published), "--out", str(tmp_path)]) == 0
    file = tmp_path / "deit_nano.custom.safetensors"
    resealed(file, lambda header: header["provenance"].update(backbone="deit_nanu"))
    capsys.readouterr()
    assert main(["verify", str(file)]) == 1
    said = capsys.readouterr().err
    assert (
        "weights of 'deit_nanu', which this version does not have. Did you mean 'deit_nano'" in said
    )


def test_of_many_keys_that_are_not_expected_some_are_named(monkeypatch):
    """100,000 of them take seconds, and not half a minute: expressions are compiled once."""
    compiled, compile = [], re.compile
    monkeypatch.setattr(re, "compile", lambda *args: compiled.append(args) or compile(*args))
    engine._compile.cache_clear()
    extra = {f"extra.{chr(97 + i % 26)}{i}x": np.zeros(0) for i in range(5000)}
    native = parameters(create_abstract(SPEC.family, SPEC.arch, Execution()))
    found = engine.match({"": tensors() | extra}, native, [LAYOUTS["deit"]])[0]
    assert found.extra == [*extra]
    [problem] = found.problems()
    assert problem.startswith("5000 not expected: extra.a0x, extra.b1x, ")
    assert problem.endswith("x, and 4800 more")
    assert len(compiled) < 500


def test_what_is_no_file_is_named_and_no_name_reaches_the_terminal_raw(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.pth")
    for path, words in ((tmp_path / "pipe.pth", "is a pipe"), (tmp_path, "is a folder")):
        assert main(["inspect", str(path)]) == 1
        assert words in capsys.readouterr().err
        assert main(["verify", str(path)]) == 1
        capsys.readouterr()
    save_file({"\x1b[31mred": np.ones(3, np.float32)}, tmp_path / "red.safetensors")
    torch.save({"\x1b[31m": {"a": torch.ones(3)}, "\x9b1m": 3}, tmp_path / "red.pth")
    for name in ("red.safetensors", "red.pth"):
        main(["inspect", str(tmp_path / name)])
        main(["deit_nano", "--checkpoint", str(tmp_path / name), "--out", str(tmp_path / "out")])
        said = "".join(capsys.readouterr())
        assert "red" in said
        assert not {"\x1b", "\x9b"} & {*said}


def test_the_command_itself(published, tmp_path):
    run = [sys.executable, "-m", "weights_convert"]
    done = subprocess.run([*run, "--help"], capture_output=True, text=True, check=True)
    assert "inspect FILE" in done.stdout
    assert "dinov2_vitg14_reg" in done.stdout
    (tmp_path / "cut.pth").write_bytes(published.read_bytes()[:-1000])
    done = subprocess.run(
        [*run, "deit_nano", "--checkpoint", tmp_path / "cut.pth", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_metadata_tells_the_whole_story(published, tmp_path):
    main(["deit_nano", "--checkpoint", str(published), "--out", str(tmp_path), "--tag", "mine"])
    content = (tmp_path / "deit_nano.mine.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["fmi_jax"])
    provenance = metadata["provenance"]
    assert provenance["layout"] == "deit"
    assert provenance["tag"] == "mine"
    assert len(provenance["source_sha256"]) == 64
    assert metadata["arch"]["width"] == SPEC.arch.width
    assert len(metadata["sha256"]) == 42
