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


def test_a_mask_that_is_missing_and_names_that_cannot_be_are_listed(raw):
    (raw / "ManualMask" / "leftMask" / NAME).unlink()
    (raw / "CXR_png" / "MCUCXR_0002_0.png").rename(raw / "CXR_png" / "copy.png")
    with pytest.raises(UserError) as caught:
        MONTGOMERY.read(raw)
    assert f"mask file is missing (1): ManualMask/leftMask/{NAME}" in str(caught.value)
    assert "not named MCUCXR_<four digits>_<0 or 1>.png (1): CXR_png/copy.png" in str(caught.value)


def test_a_mask_of_another_size_is_named(raw):
    Image.new("1", (3, 5)).save(raw / "ManualMask" / "leftMask" / NAME)
    (problem,) = check(MONTGOMERY, raw, processes=1).problems
    assert f"mask {NAME}: 3 x 5 pixels; expected those of its image" in problem


def test_a_folder_without_images_says_what_was_expected(raw, tmp_path):
    with pytest.raises(UserError, match=r"has no folder CXR_png; expected a folder with Montgom"):
        MONTGOMERY.read(tmp_path)
