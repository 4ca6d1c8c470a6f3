"""Checkpoints: safetensors from headers and offsets, archives of PyTorch from pickled objects."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
from entering import assert_said
from hypothesis import given, settings, strategies as st

from weights_convert.cli import main

WORDS = st.sampled_from(
    [
        *(
            "cls_token",
            "pos_embed",
            "blocks.0.attn.qkv.weight",
            "model",
            "state_dict",
            "",
            "\x1b[2J",
        ),
        *("__metadata__", "fmi_jax", "teacher", "a" * 300, "optimizer", "\ud7ff", "head.weight"),
    ]
)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 12, 64, 2**31, 2**40, 2**63 - 1, 2**64, 0.5])
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
JSON = st.recursive(
    PLAIN,
    lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(WORDS, x, max_size=3)),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(
            st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3"]), PLAIN
        ),
        "shape": st.one_of(st.lists(NUMBERS, max_size=3), JSON),
        "data_offsets": st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), JSON),
        "other": JSON,
    },
)


def inspected(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert_said(lambda: main(["inspect", str(path)]))


@settings(max_examples=150)
@given(
    header=st.one_of(
        st.dictionaries(WORDS, ENTRIES, max_size=4),
        st.builds(
            lambda entries, told: entries | {"__metadata__": told},
            st.dictionaries(WORDS, ENTRIES, max_size=3),
            st.one_of(
                JSON,
                st.builds(lambda x: {"fmi_jax": json.dumps(x)}, JSON),
                st.fixed_dictionaries({"format": st.sampled_from(["pt", "np", 3])}),
            ),
        ),
    ),
    longer=st.sampled_from([0, 0, 0, 1, -1, 2**40, 2**63]),
    tail=st.sampled_from([0, 4, 12, 48, 64]),
)
def test_safetensors(tmp_path_factory, header: dict, longer: int, tail: int) -> None:
    text = json.dumps(header, ensure_ascii=False).encode()
    size = min(max(len(text) + longer, 0), 2**64 - 1)
    path = tmp_path_factory.getbasetemp() / "one.safetensors"
    inspected(path, struct.pack("<Q", size) + text + bytes(tail))


class Global:
    """Pickled as a reference to something by name."""

    def __init__(self, module: str, name: str, arguments: tuple):
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    """Pickled as a persistent id: a tensor's numbers, in a file of the archive."""

    def __init__(self, *parts: object):
        self.parts = parts


class Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes references to modules that need not be there."""

    def persistent_id(self, value: object) -> object:
        return value.parts if isinstance(value, Storage) else None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if isinstance(value, Global):
            self.write(f"c{value.module}\n{value.name}\n".encode())
            if value.arguments is not None:
                super().save(value.arguments)
                self.write(b"R")
        else:
            super().save(value, save_persistent_id)


GLOBALS = st.sampled_from(
    [
        *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")),
        *(("collections", "OrderedDict"), ("torch", "FloatStorage"), ("torch", "Size")),
        *(("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "load")),
        *(("argparse", "Namespace"), ("numpy", "dtype"), ("numpy.core.multiarray", "scalar")),
        *(("omegaconf.dictconfig", "DictConfig"), ("nowhere", "Nothing")),
    ]
)
STORAGES = st.builds(
    Storage,
    st.sampled_from(["storage", "other", 1]),
    st.builds(
        lambda name: Global("torch", name, None),  # type: ignore[arg-type]
        st.sampled_from(["FloatStorage", "HalfStorage", "LongStorage", "NoStorage"]),
    ),
    st.sampled_from(["0", "1", "../0", ""]),
    st.just("cpu"),
    st.sampled_from([0, 1, 4, 16, 2**40]),
)
SIZES = st.lists(st.sampled_from([0, 1, 2, 4, -1, 2**30]), max_size=3).map(tuple)
TENSORS = st.builds(
    lambda *x: Global("torch._utils", "_rebuild_tensor_v2", (*x, False, OrderedDict())),
    STORAGES,
    st.sampled_from([0, 1, -1, 2**40]),
    SIZES,
    SIZES,
)
OBJECTS = st.recursive(
    st.one_of(PLAIN, TENSORS, STORAGES, st.binary(max_size=4), st.builds(np.float32, st.just(1))),
    lambda x: st.one_of(
        st.lists(x, max_size=3),
        st.dictionaries(WORDS, x, max_size=4),
        st.builds(
            lambda where, what: Global(*where, tuple(what)), GLOBALS, st.lists(x, max_size=3)
        ),
        st.lists(x, max_size=2).map(tuple),
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    value=st.one_of(OBJECTS, st.dictionaries(WORDS, TENSORS, min_size=1, max_size=4)),
    protocol=st.sampled_from([2, 2, 4]),
    files=st.dictionaries(
        st.sampled_from(["a/data/0", "a/data/1", "a/version", "a/byteorder", "../x", "a/data.pkl"]),
        st.sampled_from([b"", b"3\n", b"little", b"big", bytes(16), bytes(64)]),
        max_size=4,
    ),
    cut=st.sampled_from([0, 0, 0, 1, 30]),
)
def test_archives_of_pytorch(
    tmp_path_factory, value: object, protocol: int, files: dict[str, bytes], cut: int
) -> None:
    pickled = io.BytesIO()
    Pickler(pickled, protocol).dump(value)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in {"a/data.pkl": pickled.getvalue(), **files}.items():
            packed.writestr(name, data)
    data = archive.getvalue()
    inspected(tmp_path_factory.getbasetemp() / "one.pth", data[: len(data) - cut])
