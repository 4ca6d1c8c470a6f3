import numpy as np
import pytest
from PIL import Image

from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.montgomery import MONTGOMERY
from fmi_jax.errors import UserError

NAME = "MCUCXR_0001_0.png"


@pytest.fixture
def raw(tmp_path):
    MONTGOMERY.draw(tmp_path / "montgomery")
    return tmp_path / "montgomery" / "MontgomerySet"


def mask_of(dataset, name):
    for split in ("train", "val", "test"):
        if name in dataset.ids(split):
            return dataset.split(split)[dataset.ids(split).index(name)][1]
    raise AssertionError(name)


def test_both_lungs_are_united_and_one_merged_mask_means_the_same(raw, tmp_path):
    read = MONTGOMERY.read(raw.parent)
    assert read.classes == ("background", "lung")
    assert [example.columns["class"] for example in read.examples] == [
        "Tuberculosis" if example.id.endswith("_1.png") else "Normal" for example in read.examples
    ]
    assert {example.columns["class"] for example in read.examples} == {"Normal", "Tuberculosis"}
    two = mask_of(prepare(MONTGOMERY, raw, tmp_path / "two", size=31), NAME)
    assert two[:, :15].any()
    assert two[:, 16:].any()

    masks = raw / "ManualMask"
    for example in read.examples:
        left, right = (np.asarray(Image.open(raw / path)) for path in example.masks)
        Image.fromarray(np.uint8(255) * (left | right)).save(masks / example.id)
        for path in example.masks:
            (raw / path).unlink()
    for side in ("leftMask", "rightMask"):
        (masks / side).rmdir()
    one = mask_of(prepare(MONTGOMERY, raw, tmp_path / "one", size=31), NAME)
    np.testing.assert_array_equal(one, two)


def test_masks_that_are_missing_or_of_another_size_and_other_names_are_listed(raw):
    masks = raw / "ManualMask"
    Image.new("1", (3, 5)).save(masks / "leftMask" / NAME)
    (masks / "rightMask" / "MCUCXR_0002_0.png").unlink()
    small, missing = check(MONTGOMERY, raw, processes=1).problems
    assert f"mask {NAME}: 3 x 5 pixels; expected those of its image" in small
    assert "mask MCUCXR_0002_0.png: file is missing" in missing
    (raw / "CXR_png" / NAME).rename(raw / "CXR_png" / "copy.png")
    with pytest.raises(UserError, match=r"not named MCUCXR_.* \(1\): CXR_png/copy\.png"):
        MONTGOMERY.read(raw)


def test_a_folder_without_images_says_what_was_expected(raw, tmp_path):
    with pytest.raises(UserError, match=r"has no folder CXR_png; expected a folder with Montgom"):
        MONTGOMERY.read(tmp_path)
