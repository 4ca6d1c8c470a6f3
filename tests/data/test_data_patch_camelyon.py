"""PatchCamelyon: six HDF5 files listed without reading an image."""

import csv
import itertools
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from fmi_jax.data.preparing.images import read_image
from fmi_jax.data.raw.drawn.patch_camelyon import draw
from fmi_jax.data.raw.patch_camelyon import PATCH_CAMELYON
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UsageError, UserError

PARTS = {"train": "train", "valid": "val", "test": "test"}


def name(part: str, kind: str) -> str:
    return f"camelyonpatch_level_2_split_{part}_{kind}"


def values(folder: Path, part: str, key: str) -> np.ndarray:
    with h5py.File(folder / name(part, f"{key}.h5")) as file:
        return file[key][()]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pcam") / "raw"
    draw(folder)
    return folder


@pytest.fixture
def raw(drawn, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(drawn, tmp_path / "raw")


def replace(folder: Path, part: str, key: str, data: np.ndarray, stored_as: str = "") -> None:
    with h5py.File(folder / name(part, f"{key}.h5"), "w") as file:
        file[stored_as or key] = data


def test_patches_have_the_label_slide_and_split_of_their_place_in_the_files(drawn):
    data = PATCH_CAMELYON.read(drawn)
    assert data.classes == ("Normal", "Tumor")
    examples = iter(data.examples)
    for part, split in PARTS.items():
        with open(drawn / name(part, "meta.csv"), newline="") as file:
            slides = [row["wsi"] for row in csv.DictReader(file)]
        labels = values(drawn, part, "y")
        assert labels.shape == (len(slides), 1, 1, 1)
        for i, example in enumerate(itertools.islice(examples, len(slides))):
            assert (example.id, example.path) == (f"{part}_{i}", name(part, "x.h5"))
            assert (example.item, example.split, example.group) == (i, split, slides[i])
            assert example.label == labels[i, 0, 0, 0]
    assert next(examples, None) is None


def test_the_image_of_a_row_is_that_of_its_index(drawn):
    example = PATCH_CAMELYON.read(drawn).examples[-3]
    image = read_image(drawn / example.path, channels=3, item=example.item).image
    assert image.size == (96, 96)
    np.testing.assert_array_equal(image, values(drawn, "test", "x")[-3])


def test_official_is_the_default_and_slides_stay_together_where_they_are_known(raw):
    examples = PATCH_CAMELYON.read(raw).examples
    split, parts = assign(PATCH_CAMELYON, "", examples)
    assert (split, {key: len(rows) for key, rows in parts.items()}) == (
        "official",
        {"train": 36, "val": 12, "test": 12},
    )
    _, parts = assign(PATCH_CAMELYON, "grouped", examples)
    slides = [{examples[i].group for i in rows} for rows in parts.values()]
    assert sum(map(len, slides)) == len(set.union(*slides))
    (raw / name("valid", "meta.csv")).unlink()
    examples = PATCH_CAMELYON.read(raw).examples
    with pytest.raises(UsageError, match="needs the group of every row; 12 have none: 'valid_0'"):
        assign(PATCH_CAMELYON, "grouped", examples)


def test_no_image_is_read_to_list_them(drawn, monkeypatch):
    read = []
    get = h5py.Dataset.__getitem__

    def record(self, key):
        read.append(self.name)
        return get(self, key)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", record)
    PATCH_CAMELYON.read(drawn)
    assert read == ["/y"] * 3


def test_missing_and_compressed_files_are_all_named(raw):
    path = raw / name("train", "x.h5")
    path.rename(f"{path}.gz")
    (raw / name("test", "y.h5")).unlink()
    with pytest.raises(UserError) as error:
        PATCH_CAMELYON.read(raw)
    assert f"still compressed, run gunzip on it (1): {path.name}.gz" in str(error.value)
    assert f"file is missing (1): {name('test', 'y.h5')}" in str(error.value)


def test_labels_other_than_0_and_1_are_named_by_index(raw):
    labels = values(raw, "valid", "y")
    labels[[2, 7]] = 3
    replace(raw, "valid", "y", labels)
    with pytest.raises(UserError, match=r"expected 0 or 1 \(2\): .*valid_y.h5\[2\]: 3; .*\[7\]: 3"):
        PATCH_CAMELYON.read(raw)


def test_files_that_do_not_belong_together_are_refused(raw):
    replace(raw, "train", "y", values(raw, "train", "y")[:-1])
    with pytest.raises(UserError, match=r"images and labels differ in number \(1\): train: 36 and"):
        PATCH_CAMELYON.read(raw)
    shutil.copy(raw / name("test", "meta.csv"), raw / name("train", "meta.csv"))
    with pytest.raises(UserError, match=r"rows of the table .* \(1\): train: 12 and 35"):
        PATCH_CAMELYON.read(raw)


@pytest.mark.parametrize(
    ("key", "data", "stored_as", "message"),
    [
        ("x", np.zeros((2, 7, 7, 3), np.float32), "", r"x.h5: images of shape .* type float32;"),
        ("x", np.zeros((2, 7, 7), np.uint8), "", r"images of shape \(2, 7, 7\) .*\(n, 96, 96, 3\)"),
        ("x", np.zeros((2, 7, 7, 3), np.uint8), "images", "no data set 'x'; it holds images"),
        ("y", np.zeros((2, 5), np.uint8), "", r"y.h5: labels of shape \(2, 5\); expected"),
    ],
)
def test_files_of_another_form_are_refused(raw, key, data, stored_as, message):
    replace(raw, "train", key, data, stored_as)
    with pytest.raises(UserError, match=message):
        PATCH_CAMELYON.read(raw)


def test_a_file_that_is_cut_short_or_not_hdf5_is_refused(raw):
    path = raw / name("train", "x.h5")
    for data in (path.read_bytes()[: path.stat().st_size // 2], b"text\n", b""):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"train_x.h5 is not a whole HDF5 file"):
            PATCH_CAMELYON.read(raw)
