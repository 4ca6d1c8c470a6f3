import numpy as np
import pytest
from PIL import Image

from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.drive import DRIVE
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    DRIVE.draw(tmp_path / "raw")
    return tmp_path / "raw"


def test_the_test_images_are_the_official_ones_and_validation_is_drawn(raw):
    examples = DRIVE.read(raw).examples
    name, rows = assign(DRIVE, "", examples)
    assert (name, {split: len(found) for split, found in rows.items()}) == (
        "official",
        {"train": 17, "val": 3, "test": 20},
    )
    assert [examples[i].id for i in rows["test"]] == [f"{i:02}_test" for i in range(1, 21)]
    assert {examples[i].id[2:] for i in (*rows["train"], *rows["val"])} == {"_training"}


def test_gif_masks_and_the_layout_of_the_study_mean_the_same(raw, tmp_path):
    first = prepare(DRIVE, raw, tmp_path / "first", size=73)
    study = tmp_path / "study"
    for path in (raw / "training").rglob("*.*"):
        part = "validate" if path.name[:2] in ("23", "37") else "train"
        kind = "images" if path.suffix == ".tif" else "labels"
        (study / part / kind).mkdir(parents=True, exist_ok=True)
        Image.open(path).save(study / part / kind / f"{path.stem}.png")
    (raw / "test").rename(study / "test")
    second = prepare(DRIVE, study, tmp_path / "second", size=73)
    assert second.ids("val") == ["23_training", "37_training"]
    rows = [
        {
            name: dataset.split(split)[i][1]
            for split in ("train", "val", "test")
            for i, name in enumerate(dataset.ids(split))
        }
        for dataset in (first, second)
    ]
    assert rows[0].keys() == rows[1].keys()
    for name, mask in rows[0].items():
        np.testing.assert_array_equal(mask, rows[1][name])
        assert 0.02 < mask.mean() < 0.5


def test_masks_that_are_missing_double_or_of_another_size_are_named(raw):
    masks = raw / "training" / "1st_manual"
    Image.new("L", (3, 5)).save(masks / "23_manual1.gif")
    (masks / "21_manual1.gif").unlink()
    missing, small = check(DRIVE, raw, processes=1).problems
    assert "mask 21_manual1.gif: file is missing" in missing
    assert "mask 23_manual1.gif: 3 x 5 pixels; expected those of its image" in small
    assert "71 x 73" in small
    Image.new("L", (71, 73)).save(masks / "22_manual1.png")
    (raw / "test" / "images" / "01_test.tif").rename(raw / "test" / "images" / "one.tif")
    with pytest.raises(UserError) as caught:
        DRIVE.read(raw)
    for line in (
        "more than one mask of an image (1): training/1st_manual/22_manual1.gif and training/1st_m",
        "not named <number>_<any>.tif or .png (1): test/images/one.tif",
    ):
        assert line in str(caught.value)


def test_a_part_that_is_missing_says_what_was_expected(raw):
    (raw / "test").rename(raw / "tests")
    with pytest.raises(UserError, match=r"has training of its parts; expected a folder with train"):
        DRIVE.read(raw)
