import numpy as np
import pytest
from PIL import Image

from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.busi import BUSI
from fmi_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    BUSI.draw(tmp_path / "busi")
    return tmp_path / "busi" / "Dataset_BUSI_with_GT"


def test_masks_of_an_image_are_united_and_normal_ones_are_empty(raw):
    read = BUSI.read(raw.parent)
    assert read.classes == ("background", "lesion")
    assert BUSI.read(raw).examples == read.examples
    assert len(read.examples) == 42
    for example in read.examples:
        name = example.id.split()[0]
        assert example.columns == {"class": name}
        assert example.label == (name != "normal")
        assert example.path == f"{name}/{example.id}.png"
    masks = {example.id: example.masks for example in read.examples}
    second = ("benign/benign (5)_mask.png", "benign/benign (5)_mask_1.png")
    assert masks["benign (5)"] == second
    dataset = prepare(BUSI, raw, raw.parent.parent, size=61)
    assert dataset.info.synthetic  # also when the folder inside the drawn one is named
    rows = {
        name: dataset.split(split)[row][1]
        for split in ("train", "val", "test")
        for row, name in enumerate(dataset.ids(split))
    }
    both = np.maximum(*(np.asarray(Image.open(raw / file)) for file in second))
    assert rows["benign (5)"].mean() == pytest.approx(both.mean(), abs=0.02)
    assert not rows["normal (1)"].any()
    assert Image.open(raw / "benign" / "benign (7)_mask.png").mode == "RGB"
    assert rows["benign (7)"].any()


def test_files_that_do_not_belong_together_are_listed(raw):
    (raw / "malignant" / "malignant (2).png").unlink()
    (raw / "normal" / "normal (1).png").rename(raw / "normal" / "other.png")
    with pytest.raises(UserError) as caught:
        BUSI.read(raw)
    for line in (
        "mask without its image (2): malignant/malignant (2)_mask.png",
        "not named '<class> (<number>)[_mask].png' (1): normal/other.png",
    ):
        assert line in str(caught.value)


def test_masks_that_are_missing_of_another_size_or_in_colours_are_named(raw):
    (raw / "benign" / "benign (3)_mask.png").unlink()
    Image.new("L", (3, 5)).save(raw / "benign" / "benign (1)_mask.png")
    Image.new("RGB", Image.open(raw / "benign" / "benign (2).png").size, (255, 0, 0)).save(
        raw / "benign" / "benign (2)_mask.png"
    )
    found = " ".join(check(BUSI, raw, processes=1).problems)
    assert "mask benign (1)_mask.png: 3 x 5 pixels; expected those of its image" in found
    assert "mask benign (2)_mask.png: pixels of mode 'RGB'" in found
    assert "mask benign (3)_mask.png: file is missing" in found


def test_a_folder_that_is_missing_says_what_was_expected(raw, tmp_path):
    with pytest.raises(UserError, match=r"has no folder benign; expected a folder with Dataset_B"):
        BUSI.read(tmp_path)
