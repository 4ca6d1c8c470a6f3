import pytest

from fmi_jax.data.raw.splits import assign
from fmi_jax.data.raw.vindr_cxr import CLASSES, VINDR_CXR
from fmi_jax.errors import UserError

HEADER = ",".join(("image_id", "rad_id", "Edema", *CLASSES))


@pytest.fixture
def raw(tmp_path):
    VINDR_CXR.draw(tmp_path / "raw")
    return tmp_path / "raw"


def write(raw, part, *rows, header=HEADER):
    table = raw / "annotations" / f"image_labels_{part}.csv"
    table.write_text("\n".join([header, *rows]) + "\n")


def test_a_label_is_the_vote_of_more_than_half_of_the_readers(raw):
    write(
        raw,
        "train",
        "a,R1,1,1,0,1,0,0,0",
        "b,R9,0,0,0,0,1,0,0",
        "a,R2,1,1,0,0,0,1,0",
        "a,R3,1,0,0,0,0,0,1",
        "b,R3,0,0,0,0,0,0,1",
    )
    a, b, *test = VINDR_CXR.read(raw).examples
    assert (a.id, a.label, a.row) == ("a", (1, 0, 0, 0, 0, 0), 2)
    assert (b.id, b.label, b.row) == ("b", (0, 0, 0, 0, 0, 0), 3)  # one of two is no majority
    assert len(test) == 16
    assert any(example.label[4] for example in test)  # "Other disease", as that table spells it
    assert {example.split for example in test} == {"test"}


def test_the_test_images_are_the_official_ones_and_validation_is_drawn(raw):
    examples = VINDR_CXR.read(raw).examples
    name, rows = assign(VINDR_CXR, "", examples)
    assert (name, [len(rows[split]) for split in rows]) == ("official", [27, 5, 16])
    assert {examples[i].path.split("/")[0] for i in rows["test"]} == {"test"}
    assert all((raw / example.path).is_file() for example in examples)


def test_images_of_another_format_are_found_by_their_name(raw):
    example = VINDR_CXR.read(raw).examples[0]
    (raw / example.path).rename(raw / "train" / f"{example.id}.jpeg")
    assert VINDR_CXR.read(raw).examples[0].path == f"train/{example.id}.jpeg"
    (raw / "annotations" / "image_labels_train.csv").rename(raw / "image_labels_train.csv")
    (raw / "annotations" / "image_labels_test.csv").rename(raw / "image_labels_test.csv")
    (raw / "annotations").rmdir()
    assert len(VINDR_CXR.read(raw).examples) == 48


def test_tables_that_cannot_be_are_refused_with_the_row(raw):
    write(raw, "train", "a,R1,0,1,0,0,0,0,0", "a,R1,0,1,0,0,0,0,0")
    with pytest.raises(UserError, match=r"second row of a reader .*\(1\): row 3 \('a'\)"):
        VINDR_CXR.read(raw)
    write(raw, "train", "a,R1,0,1,0,0,0,,0")
    with pytest.raises(UserError, match=r"label outside 0 to 1 \(1\): row 2, Other diseases: ''"):
        VINDR_CXR.read(raw)
    write(raw, "train", "a,R1,0", header="image_id,rad_id,Pneumonia")
    match = "has no column 'Pleural effusion', 'Lung tumor', 'Tuberculosis', 'Other diseases'"
    with pytest.raises(UserError, match=match):
        VINDR_CXR.read(raw)
    (raw / "annotations" / "image_labels_test.csv").unlink()
    write(raw, "train", "a,R1,0,1,0,0,0,0,0")
    with pytest.raises(UserError, match=r"image_labels_test\.csv is not a file; expected a CSV"):
        VINDR_CXR.read(raw)
