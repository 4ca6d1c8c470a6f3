"""DDSM by the study's lists: classes, cases and splits, and lists that cannot be used."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.ddsm import DDSM, DDSM_3CLASS
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.errors import UserError
from fmi_jax.tasks.registry import suitable


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "ddsm"
    DDSM.draw(folder)
    return folder


@pytest.fixture
def raw(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "ddsm")


def write_list(raw, split, text):
    (raw / "ddsm_raw_image_lists" / f"{split}.txt").write_bytes(text.encode())


def test_two_and_three_classes(drawn):
    two, three = DDSM.read(drawn), DDSM_3CLASS.read(drawn)
    assert (suitable(two.label, two.classes).name, two.classes) == (
        "binary",
        ("Normal", "Abnormal"),
    )
    assert (suitable(three.label, three.classes).name, three.classes) == (
        "multiclass",
        ("Normal", "Benign", "Cancer"),
    )
    kinds = ("normal", "benign", "cancer")
    assert {e.id.split("_")[0] for e in three.examples} == set(kinds)
    for a, b in zip(two.examples, three.examples, strict=True):
        assert a.id == b.id
        assert b.label == kinds.index(b.id.split("_")[0])
        assert a.label == min(b.label, 1)


def test_a_recalled_lesion_without_callback_is_benign_and_the_case_is_the_group(raw):
    write_list(
        raw,
        "train",
        "\ufeffbenign_without_callback_01-B_3160_1.LEFT_CC.LJPEG.1.jpg\r\n"
        "benign_07-A_1632_1.RIGHT_MLO.LJPEG.1.jpg\r\n",
    )
    write_list(raw, "val", "normal_12-D_0042_1.LEFT_MLO.LJPEG.1.jpg\n")
    write_list(raw, "test", "cancer_11-A_1632_1.RIGHT_MLO.LJPEG.1.jpg")  # no last line end
    found = DDSM_3CLASS.read(raw).examples
    assert [e.label for e in found] == [1, 1, 0, 2]
    assert [e.group for e in found] == ["B_3160", "A_1632", "D_0042", "A_1632"]
    assert [e.split for e in found] == ["train", "train", "val", "test"]


def test_the_official_split_is_that_of_the_lists_and_shared_cases_are_reported(drawn, tmp_path):
    dataset = prepare(DDSM, drawn, tmp_path, size=7, split="official")
    assert dataset.info.split == "official"
    assert dataset.info.synthetic
    for name in SPLITS:
        lines = (drawn / "ddsm_raw_image_lists" / f"{name}.txt").read_text().split()
        assert dataset.ids(name) == lines
    assert dataset.manifest["groups_across_splits"] == {"B_3000": ["test", "train"]}


def test_the_grouped_split_keeps_a_case_together(drawn):
    rows = DDSM.read(drawn).examples
    parts = DDSM.splits["grouped"](rows)
    cases = [{rows[i].group for i in parts[name]} for name in SPLITS]
    assert not cases[0] & cases[1]
    assert not (cases[0] | cases[1]) & cases[2]
    assert sum(map(len, parts.values())) == len(rows)


def test_everything_wrong_with_the_lists_is_said_at_once(raw):
    image = "normal_01-A_0002_1.LEFT_CC.LJPEG.1.jpg"
    write_list(raw, "train", f"{image}\n\n{image}\nmalign_01-A_0003_1.LEFT_CC.LJPEG.1.jpg\n")
    write_list(raw, "val", f"../{image}\n{image}\n")
    (raw / "ddsm_raw_image_lists" / "test.txt").unlink()
    with pytest.raises(UserError) as error:
        DDSM.read(raw)
    message = str(error.value)
    assert f"{raw} cannot be used" in message
    assert "empty line (1): train.txt, line 2" in message
    assert (
        f"listed more than once (2): train.txt, line 1 and train.txt, line 3: {image};"
        f" train.txt, line 1 and val.txt, line 2: {image}"
    ) in message
    assert "train.txt, line 4: 'malign_01-A_0003_1.LEFT_CC.LJPEG.1.jpg'" in message
    assert f"val.txt, line 1: '../{image}'" in message
    assert "expected ddsm_raw_image_lists/{train,val,test}.txt (1)" in message
    assert "test.txt (No such file or directory)" in message


def test_a_list_that_is_empty_or_not_text(raw):
    write_list(raw, "val", "\n")
    (raw / "ddsm_raw_image_lists" / "test.txt").write_bytes(b"normal_\xff")
    with pytest.raises(UserError) as error:
        DDSM.read(raw)
    assert "list is empty (1)" in str(error.value)
    assert "list is not UTF-8 text (1)" in str(error.value)


def test_masses_are_drawn_so_that_they_can_be_learnt(tmp_path):
    DDSM.draw(tmp_path / "raw", count=240, seed=1)
    rows = DDSM.read(tmp_path / "raw").examples
    images = [Image.open(tmp_path / "raw/ddsm_raw" / e.path) for e in rows]
    features = np.array([np.percentile(np.asarray(image), (50, 90, 97, 99)) for image in images])
    labels = np.array([e.label for e in rows])
    model = LogisticRegression(max_iter=500).fit(features[::2] / 255, labels[::2])
    assert roc_auc_score(labels[1::2], model.decision_function(features[1::2] / 255)) > 0.9
