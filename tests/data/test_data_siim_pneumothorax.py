import csv

import numpy as np
import pytest

from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.masks import fill_runs, resize_mask
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.siim_pneumothorax import SIIM_PNEUMOTHORAX
from fmi_jax.errors import UserError

SIDE = 1024


@pytest.fixture
def raw(tmp_path):
    SIIM_PNEUMOTHORAX.draw(tmp_path / "raw")
    return tmp_path / "raw"


def rows_of(raw):
    with (raw / "train-rle.csv").open(newline="") as file:
        return list(csv.reader(file))


def write(raw, rows):
    with (raw / "train-rle.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_runs_are_relative_and_go_down_the_columns(raw, tmp_path):
    """Gaps count from the end of the run before; several rows of an image are united."""
    _, *rows = rows_of(raw)
    image, other = rows[0][0], rows[-1][0]
    texts = [f"{2 * SIDE + 5} 3 {SIDE - 3} 3", f"{SIDE * SIDE - 1} 1"]
    write(raw, [("ImageId", " EncodedPixels"), *((image, text) for text in texts), (other, " -1")])
    two, none = SIIM_PNEUMOTHORAX.read(raw).examples
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[5:8, 2:4] = expected[-1, -1] = 1
    np.testing.assert_array_equal(fill_runs(two.runs, size=two.mask_size), expected)
    assert (two.label, none.label, none.runs) == (1, 0, ())
    assert two.path == f"dicom-images-train/{image}.1/{image}.2/{image}.dcm"


def test_masks_are_prepared_from_the_table_and_images_without_a_finding_are_empty(raw, tmp_path):
    read = SIIM_PNEUMOTHORAX.read(raw)
    assert len(read.examples) == 42  # a file more is not annotated
    assert len(list(raw.rglob("*.dcm"))) == 43
    dataset = prepare(SIIM_PNEUMOTHORAX, raw, tmp_path / "data", size=31)
    examples = {example.id: example for example in read.examples}
    two = 0
    for split in ("train", "val", "test"):
        for row, name in enumerate(dataset.ids(split)):
            example, mask = examples[name], dataset.split(split)[row][1]
            whole = fill_runs(example.runs, size=(SIDE, SIDE))
            np.testing.assert_array_equal(mask, resize_mask(whole, size=31))
            assert mask.any() == bool(example.label)
            two += mask[:, :15].any() and mask[:, 16:].any()
    assert two
    header, *rows = rows_of(raw)
    i = next(i for i, row in enumerate(rows) if row[1] != " -1")
    rows[i][1] = "0 9"
    write(raw, [header, *rows])
    with pytest.raises(UserError, match="differs in"):
        prepare(SIIM_PNEUMOTHORAX, raw, tmp_path / "data", size=31)


def test_rows_that_cannot_be_are_listed(raw):
    header, *rows = rows_of(raw)
    none = next(row[0] for row in rows if row[1] == " -1")
    for text in ("1 2 3", "-1 5", f"{SIDE * SIDE} 1", "", "mask"):
        write(raw, [header, *rows, ("1.2.3", text)])
        with pytest.raises(UserError, match=rf"not pairs of gap.*\(1\): row {len(rows) + 2} \('1"):
            SIIM_PNEUMOTHORAX.read(raw)
    write(raw, [header, *rows, (none, "5 1")])
    with pytest.raises(UserError, match="both without and with a mask"):
        SIIM_PNEUMOTHORAX.read(raw)
    write(raw, [header, *rows, ("1.2.3", "5 1")])
    (problem,) = check(SIIM_PNEUMOTHORAX, raw, processes=1).problems
    assert "image file is missing (1)" in problem
    assert "1.2.3.dcm" in problem


def test_two_files_of_an_image_and_none_at_all(raw, tmp_path):
    file = next(raw.rglob("*.dcm"))
    (raw / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=rf"two files of one image \(1\): {file.name} and dicom"):
        SIIM_PNEUMOTHORAX.read(raw)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train-rle.csv").write_text("ImageId, EncodedPixels\n1.2, -1\n")
    with pytest.raises(UserError, match=r"has no DICOM files; expected a folder with train-rle"):
        SIIM_PNEUMOTHORAX.read(tmp_path / "empty")
