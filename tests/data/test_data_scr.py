import shutil

import numpy as np
import pytest
from PIL import Image

from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.images import read_image
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.scr import SCR, SCR_CLAVICLE, SCR_HEART
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UserError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    SCR_HEART.draw(folder := tmp_path_factory.mktemp("scr") / "drawn")
    return folder


@pytest.fixture
def raw(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "raw")


def rows_of(dataset):
    return {
        name: dataset.split(split)[row]
        for split in ("train", "val", "test")
        for row, name in enumerate(dataset.ids(split))
    }


def test_raw_images_are_big_endian_12_bit_and_inverted(tmp_path):
    values = np.array([[0, 15, 16], [4095, 4080, 4079], [2048, 256, 1]], ">u2")
    path = tmp_path / "JPCLN001.IMG"
    path.write_bytes(values.tobytes())
    image = read_image(path, channels=1).image
    np.testing.assert_array_equal(np.asarray(image), [[255, 255, 254], [0, 0, 1], [127, 239, 255]])
    assert read_image(path, channels=3).image.mode == "RGB"
    for data, fault in (
        (values.tobytes()[:-1], "17 bytes, cut short or no raw image of JSRT"),
        (b"", "0 bytes, cut short"),
        (np.full((3, 3), 4096, ">u2").tobytes(), "value 4096; expected 12 bits"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=fault):
            read_image(path, channels=1)


def test_the_folds_are_training_and_test_and_may_be_swapped(raw):
    examples = SCR_HEART.read(raw).examples
    fold = {e.id: e.masks[0].split("/")[1] for e in examples}
    for name, train, test in (("official", "fold1", "fold2"), ("swapped", "fold2", "fold1")):
        found, rows = assign(SCR_HEART, name, examples)
        assert (found, [len(rows[split]) for split in rows]) == (name, [18, 3, 21])
        assert {fold[examples[i].id] for i in (*rows["train"], *rows["val"])} == {train}
        assert {fold[examples[i].id] for i in rows["test"]} == {test}
    assert assign(SCR_HEART, "", examples)[0] == "official"
    assert {e.columns["nodule"] for e in examples if e.id.startswith("JPCLN")} == {"yes"}
    (raw / "scratch" / "fold1").rename(raw / "fold1")
    (raw / "scratch" / "fold2").rename(raw / "fold2")
    (raw / "scratch").rmdir()
    assert [e.id for e in SCR_HEART.read(raw).examples] == [e.id for e in examples]


def test_masks_at_half_the_size_lie_over_their_images(raw, tmp_path):
    """The heart lies below the clavicles; both clavicles are one class, and brighter than lungs."""
    hearts = rows_of(prepare(SCR_HEART, raw, tmp_path / "heart", size=31))
    clavicles = rows_of(prepare(SCR_CLAVICLE, raw, tmp_path / "clavicle", size=31))
    assert hearts.keys() == clavicles.keys()
    for name, (image, heart) in hearts.items():
        clavicle = clavicles[name][1]
        assert np.argwhere(heart)[:, 0].min() > np.argwhere(clavicle)[:, 0].mean()
        assert clavicle[:, :12].any()
        assert clavicle[:, 20:].any()
        lung = (image[..., 0] < 100) & (heart == 0) & (clavicle == 0)
        assert image[heart == 1].mean() > image[lung].mean() + 40


def test_all_parts_at_once_overlap_and_are_those_of_each_alone(raw, tmp_path):
    whole = prepare(SCR, raw, tmp_path / "all", size=31)
    assert (whole.info.classes, whole.info.task) == (
        ("lung", "heart", "clavicle"),
        "multilabel_segmentation",
    )
    hearts = rows_of(prepare(SCR_HEART, raw, tmp_path / "heart", size=31))
    clavicles = rows_of(prepare(SCR_CLAVICLE, raw, tmp_path / "clavicle", size=31))
    for name, (_, mask) in rows_of(whole).items():
        lung, heart, clavicle = ((mask >> c) & 1 for c in range(3))
        np.testing.assert_array_equal(heart, hearts[name][1])
        np.testing.assert_array_equal(clavicle, clavicles[name][1])
        assert (lung & heart).any()
        assert (heart & ~lung).any()


def test_files_that_are_missing_cut_short_or_of_another_size_are_named(raw):
    masks = raw / "scratch" / "fold1" / "masks"
    Image.new("L", (61, 61)).save(masks / "left clavicle" / "JPCLN001.gif")
    (masks / "right clavicle" / "JPCLN003.gif").unlink()
    small, missing = check(SCR_CLAVICLE, raw, processes=1).problems
    assert "mask JPCLN001.gif: 61 x 61 pixels; expected" in small
    assert "all masks of its data set), 1024 x 1024" in small
    assert "mask JPCLN003.gif: file is missing" in missing

    (masks / "heart" / "JPCLN001.gif").unlink()
    twice = raw / "scratch" / "fold2" / "masks" / "heart" / "JPCLN002.gif"
    (masks / "heart" / "JPCLN002.gif").write_bytes(twice.read_bytes())
    cut = raw / "All247images" / "JPCLN004.IMG"
    cut.write_bytes(cut.read_bytes()[: 2 * 31 * 31])  # a square again
    with pytest.raises(UserError) as caught:
        SCR_HEART.read(raw)
    for line in (
        "heart mask in neither, expected one fold (1): JPCLN001.IMG",
        "heart mask in fold1 and fold2, expected one fold (1): JPCLN002.IMG",
        "not 7442 bytes like the others, cut short (1): JPCLN004.IMG (1922)",
    ):
        assert line in str(caught.value)


def test_a_folder_without_images_or_folds_says_what_was_expected(raw, tmp_path):
    with pytest.raises(UserError, match=r"All247images is not a folder; expected a folder with"):
        SCR_HEART.read(tmp_path)
    (raw / "scratch" / "fold2").rename(raw / "scratch" / "fold3")
    with pytest.raises(UserError, match=r"fold2/masks/heart is not a folder; expected"):
        SCR_HEART.read(raw)
