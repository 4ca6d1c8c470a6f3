"""Checkpoint files from anywhere: read, or refused in one message, and never run."""

import argparse
import contextlib
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.numpy import save_file

from fmi_jax.errors import UserError
from weights_convert.read import read_checkpoint

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.count": np.array(7, dtype=np.int64),
}
TENSORS = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}


class Holder(torch.nn.Module):
    def forward(self):
        return 0


def scripted(tensors: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript module whose state dict is `tensors`."""
    root = Holder()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Holder())
            module = module._modules[part]
        module.register_buffer(last, tensor)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return torch.jit.script(root)


def write(folder: Path, name: str) -> Path:
    """The tensors as a file of that kind."""
    path = folder / name
    if name == "legacy.pth":
        torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    elif name == "script.pt":
        scripted(TENSORS).save(str(path))
    elif name.endswith((".pth", ".bin")):
        torch.save(TENSORS, path)
    elif name.endswith(".npz"):
        np.savez(path, **ARRAYS)
    else:
        save_file(ARRAYS, path)
    return path


KINDS = (
    "new.pth",
    "script.pt",
    "legacy.pth",
    "pytorch_model.bin",
    "model.safetensors",
    "arrays.npz",
)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_arrays(tmp_path, name):
    # Its first bytes say what it is, whatever it is called.
    path = write(tmp_path, name).rename(tmp_path / "renamed")
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.groups) == [""]
    assert checkpoint.groups[""].keys() == ARRAYS.keys()
    for key, array in checkpoint.groups[""].items():
        np.testing.assert_array_equal(array, ARRAYS[key], strict=True)


def test_wrappers_and_what_training_scripts_store_beside_them(tmp_path):
    content = {
        "model": TENSORS,
        "ema": {"a": TENSORS["a.weight"].bfloat16()},
        "args": argparse.Namespace(lr=0.1, name="run"),
        "best": np.float64(0.81),
        "epoch": 300,
        "optimizer": {"state": {0: {"step": torch.tensor(3)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content, tmp_path / "full.pth")
    checkpoint = read_checkpoint(tmp_path / "full.pth")
    assert set(checkpoint.groups) == {"model", "ema"}
    assert checkpoint.groups["ema"]["a"].dtype == ml_dtypes.bfloat16
    assert checkpoint.others == ("args", "best", "epoch", "optimizer")


class Payload:
    """Unpickling this writes a file."""

    def __reduce__(self):
        return os.mkdir, (str(Payload.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    Payload.target = tmp_path / "it_ran"
    path = tmp_path / "evil.pth"
    torch.save({**TENSORS, "x": Payload()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"refused: .*mkdir"):
        read_checkpoint(path)
    assert not Payload.target.exists()


@pytest.mark.parametrize("name", [b"os mkdir", b"torch.jit mkdir", b"builtins eval"])
def test_a_script_that_names_anything_but_tensors_is_refused(tmp_path, name):
    path, evil = write(tmp_path, "script.pt"), tmp_path / "evil.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for entry in source.namelist():
            content = source.read(entry)
            if entry.endswith("/data.pkl"):
                old = b"ctorch._utils\n_rebuild_tensor_v2\n"
                assert old in content
                content = content.replace(old, b"c" + name.replace(b" ", b"\n") + b"\n")
            target.writestr(entry, content)
    with pytest.raises(UserError, match=rf"refused: GLOBAL {name.decode().replace(' ', '.')}"):
        read_checkpoint(evil)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused(tmp_path):
    Payload.target = tmp_path / "it_ran"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "evil.pkl")
    assert not Payload.target.exists()


@pytest.mark.parametrize("name", ["new.pth", "arrays.npz"])
def test_a_compressed_archive_is_refused(tmp_path, name):
    packed = tmp_path / "packed"
    with (
        zipfile.ZipFile(write(tmp_path, name)) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    with pytest.raises(UserError, match="compressed archive"):
        read_checkpoint(packed)


def test_an_archive_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = write(tmp_path, "new.pth")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # of the directory: sizes are at 20 and 24
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"oversized archive|cut or damaged"):
        read_checkpoint(path)


def test_objects_in_npz_are_refused(tmp_path):
    Payload.target = tmp_path / "it_ran"
    np.savez(tmp_path / "evil.npz", x=np.array([Payload()], dtype=object))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "evil.npz")
    assert not Payload.target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint: expected a PyTorch file"),
        (b'{"version": 1}', "not a checkpoint: expected a PyTorch file"),
        (b"<html>quota exceeded</html>", "not a checkpoint: expected a PyTorch file"),
        (b"PK\x03\x04", "cut or damaged archive"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, message):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


def test_a_refusal_does_not_quote_the_advice_to_open_the_file_unchecked(tmp_path):
    torch.save({"a": np.array([None, {}], dtype=object)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="refused: ") as refused:
        read_checkpoint(tmp_path / "model.pth")
    assert "weights_only" not in str(refused.value)


def test_files_without_tensors_and_missing_files(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match=r"no tensors .* entries are epoch"):
        read_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(UserError, match=r"no such file\. .* holds empty\.pth"):
        read_checkpoint(tmp_path / "emtpy.pth")


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_file_is_refused(tmp_path, name):
    path = write(tmp_path, name)
    content = path.read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 23)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            read_checkpoint(path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(write(folder, name).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    path = folder / f"damaged-{name}"
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # and no other exception
        read_checkpoint(path)
