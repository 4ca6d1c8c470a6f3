import shutil

import pytest
from PIL import Image

from fmi_jax.data.preparing.check import check
from fmi_jax.data.raw.isic2018_lesions import ISIC2018_LESIONS
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    ISIC2018_LESIONS.draw(tmp_path / "raw")
    return tmp_path / "raw"


def split_of(raw):
    name, rows = assign(ISIC2018_LESIONS, "", ISIC2018_LESIONS.read(raw).examples)
    return name, [len(rows[split]) for split in ("train", "val", "test")]


def test_the_split_is_the_challenge_s_as_far_as_its_parts_are_there(raw):
    assert split_of(raw) == ("official", [27, 5, 10])
    shutil.rmtree(raw / "ISIC2018_Task1_Validation_GroundTruth")  # not yet downloaded
    assert split_of(raw) == ("official", [23, 4, 10])
    shutil.rmtree(raw / "ISIC2018_Task1-2_Test_Input")
    assert split_of(raw) == ("stratified", [19, 4, 4])


def test_masks_that_are_missing_or_of_another_size_are_named(raw):
    masks = raw / "ISIC2018_Task1_Training_GroundTruth"
    Image.new("L", (3, 5)).save(masks / "ISIC_0000001_segmentation.png")
    (masks / "ISIC_0000002_segmentation.png").unlink()
    small, missing = check(ISIC2018_LESIONS, raw, processes=1).problems
    assert "mask ISIC_0000001_segmentation.png: 3 x 5 pixels; expected those of its" in small
    assert "mask ISIC_0000002_segmentation.png: file is missing" in missing


def test_a_folder_without_training_masks_says_what_was_expected(raw):
    shutil.rmtree(raw / "ISIC2018_Task1_Training_GroundTruth")
    with pytest.raises(UserError, match=r"no training images with masks; expected a folder with"):
        ISIC2018_LESIONS.read(raw)
