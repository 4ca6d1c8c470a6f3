import hashlib
import shutil

import pytest
from raw_sets import locate_images

from fmi_jax.data.raw.isic2019 import CLASSES, CODES, ISIC2019
from fmi_jax.data.raw.spec import SPLITS, RawExample
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UsageError, UserError

TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "isic2019"
    ISIC2019.draw(folder)
    return folder


@pytest.fixture
def raw(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "isic2019")


def truth(folder, *rows):
    (folder / TRUTH).write_text(HEADER + "".join(f"{row}\n" for row in rows))


def one_hot(position):
    return ",".join("1.0" if k == position else "0.0" for k in range(9))


def test_upstream_split_is_the_study_s_own():
    examples = [RawExample(id=str(i), path="", label=0) for i in range(25331)]
    name, rows = assign(ISIC2019, "", examples)
    assert name == "upstream"
    assert [len(rows[name]) for name in SPLITS] == [20265, 2533, 2533]
    assert rows["train"][:4] == [24759, 20750, 18920, 19761]
    assert rows["val"][:4] == [19993, 22352, 7, 6495]
    assert rows["test"][:4] == [10529, 9719, 8588, 10447]
    digests = {
        name: hashlib.sha256(",".join(map(str, rows[name])).encode()).hexdigest()[:16]
        for name in SPLITS
    }
    assert digests == {
        "train": "28ab89d618406fcd",
        "val": "3b37132dd137a955",
        "test": "6d343cec6e90ed44",
    }


def test_the_class_is_the_column_of_the_one_in_the_study_s_order(tmp_path):
    truth(tmp_path, *(f"ISIC_{k},{one_hot(k)}" for k in (7, 0, 4, 1)))
    (tmp_path / "train").mkdir()
    raw = ISIC2019.read(tmp_path)
    assert [example.label for example in raw.examples] == [7, 0, 4, 1]
    assert (raw.classes[0], raw.classes[4], raw.classes[7]) == (
        *("Melanoma", "Benign keratosis", "Squamous cell carcinoma"),
    )
    assert (len(raw.classes), len(CODES)) == (len(CLASSES), 8)
    assert [example.group for example in raw.examples] == [None] * 4


@pytest.mark.parametrize(
    "folder",
    ["train", "ISIC_2019_Training_Input", "ISIC_2019_Training_Input/ISIC_2019_Training_Input"],
)
def test_images_are_found_in_the_challenge_s_and_the_study_s_folder(raw, folder):
    (raw / "ISIC_2019_Training_Input").rename(raw / "moved")
    (raw / folder).parent.mkdir(exist_ok=True)
    (raw / "moved").rename(raw / folder)
    read = ISIC2019.read(raw)
    assert read.image_root == raw / folder
    assert all(path.is_file() for path in locate_images(read))


def test_images_of_one_lesion_are_a_group_and_others_are_their_own(drawn):
    examples = ISIC2019.read(drawn).examples
    groups = [example.group for example in examples]
    named = [group for group in groups if group.startswith("HAM_")]
    assert len(set(named)) < len(named) < len(groups)
    assert all(e.group == e.id for e in examples if not e.group.startswith("HAM_"))


def test_without_metadata_only_the_grouped_split_is_refused(raw):
    (raw / METADATA).unlink()
    examples = ISIC2019.read(raw).examples
    assert assign(ISIC2019, "", examples)[0] == "upstream"
    with pytest.raises(UsageError, match="needs the group of every row; 56 have none"):
        assign(ISIC2019, "grouped", examples)


def test_metadata_that_do_not_fit_are_refused(raw):
    lines = (raw / METADATA).read_text().splitlines()
    lost, twice = (line.split(",")[0] for line in (lines[4], lines[9]))
    (raw / METADATA).write_text("\n".join([*lines[:4], *lines[5:], lines[9]]) + "\n")
    match = rf"(?s)more than once \(1\): row 57 \('{twice}'\).*no row for .*\(1\): '{lost}'"
    with pytest.raises(UserError, match=match):
        ISIC2019.read(raw)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"b,{one_hot(8)}", r"class UNK, .*remove the row \(1\): row 3 \('b'\)"),
        ("b,1,1,0,0,0,0,0,0,0", r"not one 1 and else 0 .* row 3 \('b'\): 1\|1\|0\|0"),
        (f"b,{one_hot(9)}", r"not one 1 and else 0 .* row 3"),
        ("b,.5,.5,0,0,0,0,0,0,0", r"not one 1 and else 0 .* row 3 \('b'\): 0\.5\|0\.5"),
        ("b,-1,1,1,0,0,0,0,0,0", r"outside 0 to 1 \(1\): row 3, MEL: '-1'"),
        ("b,yes,0,0,0,0,0,0,0,0", r"outside 0 to 1 \(1\): row 3, MEL: 'yes'"),
        ("b,1,0,0", r"without exactly 10 fields \(1\): row 3 has 4"),
    ],
)
def test_a_row_without_exactly_one_of_the_eight_classes_is_named(tmp_path, row, message):
    truth(tmp_path, f"a,{one_hot(0)}", row)
    with pytest.raises(UserError, match=message):
        ISIC2019.read(tmp_path)
