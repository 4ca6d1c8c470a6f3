"""CBIS-DDSM: which file is the mammogram or the crop, and what each is labelled."""

import csv
import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from fmi_jax.data.preparing.check import check
from fmi_jax.data.raw.cbis_ddsm import CBIS_DDSM, CBIS_DDSM_CROPS, CBIS_DDSM_TYPE
from fmi_jax.data.raw.drawn.cbis_ddsm import draw
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec
from fmi_jax.errors import UserError

ALL = (CBIS_DDSM, CBIS_DDSM_CROPS, CBIS_DDSM_TYPE)
TABLES = tuple(
    f"{kind}_case_description_{split}_set.csv" for kind in ("mass", "calc") for split in SPLITS[::2]
)
LESION = "Mass-Training_P_00001_LEFT_CC_1"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cbis") / "raw"
    draw(folder)
    return folder


@pytest.fixture
def raw(drawn, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(drawn, tmp_path / "raw")


def rows(folder: Path) -> list[dict[str, str]]:
    """Every row of the four tables, with the case that its table gives it."""
    found = []
    for name in TABLES:
        kind, split = name[:4].title(), "Training" if "train" in name else "Test"
        with open(folder / name, newline="") as file:
            for row in csv.DictReader(file):
                case = "_".join(row[c] for c in ("patient_id", "left or right breast"))
                case = f"{kind}-{split}_{case}_{row['image view']}"
                found.append({**row, "case": case, "split": split})
    return found


def edit(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Pass the first row of a table through `change`."""
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    change(table[0])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def pixels(folder: Path, spec: DatasetSpec) -> dict[str, bytes]:
    return {e.id: pydicom.dcmread(folder / e.path).PixelData for e in spec.read(folder).examples}


def test_layout_and_tags_are_those_of_the_download(drawn):
    files = sorted(path.relative_to(drawn).as_posix() for path in drawn.rglob("*.dcm"))
    case = r"(Mass|Calc)-(Training|Test)_P_\d{5}_(LEFT|RIGHT)_(CC|MLO)"
    series = r"07-20-2016-DDSM-NA-\d{5}/1\.000000"
    film = rf"{case}/{series}-full mammogram images-\d{{5}}/1-1\.dcm"
    lesion = rf"{case}_\d/{series}-(cropped|ROI mask) images-\d{{5}}/1-[12]\.dcm"
    assert all(re.fullmatch(f"CBIS-DDSM/({film}|{lesion})", file) for file in files)
    assert len(files) == 41 + 2 * len(rows(drawn))  # one mammogram is stored twice
    header = pydicom.dcmread(drawn / files[0])
    assert header.PatientID == files[0].split("/")[1]
    assert (header.Modality, header.PhotometricInterpretation) == ("MG", "MONOCHROME2")
    with open(drawn / "metadata.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert (drawn / row["File Location"].replace("\\", "/") / "1-1.dcm").is_file()


def test_a_mammogram_counts_once_and_is_malignant_if_anything_on_it_is(drawn, raw):
    def film(case: str) -> str:
        return case.split("_", 1)[1]

    malignant: dict[str, bool] = {}
    for row in rows(drawn):
        assert row["pathology"] in ("BENIGN", "BENIGN_WITHOUT_CALLBACK", "MALIGNANT")
        found = row["pathology"] == "MALIGNANT"
        malignant[film(row["case"])] = malignant.get(film(row["case"]), False) or found
    data = CBIS_DDSM.read(drawn)
    assert data.classes == ("Benign", "Malignant")
    assert {film(e.id): bool(e.label) for e in data.examples} == malignant
    assert len(data.examples) == len(malignant) == 40
    for example in data.examples:
        header = pydicom.dcmread(drawn / example.path, stop_before_pixels=True)
        assert (header.PatientID, header.SeriesDescription) == (example.id, "full mammogram images")

    # The first patient is in a training table for a mass, in a test table for a calcification.
    assert film(rows(drawn)[0]["case"]) == film("Calc-Test_P_00001_LEFT_CC")
    first = data.examples[0]
    assert (first.label, first.split, first.group) == (0, "test", "P_00001")
    edit(raw / "calc_case_description_test_set.csv", lambda row: row.update(pathology="MALIGNANT"))
    assert CBIS_DDSM.read(raw).examples[0].label == 1


def test_a_mammogram_that_is_stored_twice_is_found_where_one_of_them_is_missing(raw):
    shutil.rmtree(raw / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_CC")
    first = CBIS_DDSM.read(raw).examples[0]
    assert first.id == "Calc-Test_P_00001_LEFT_CC"
    assert (raw / first.path).is_file()


@pytest.mark.parametrize("spec", [CBIS_DDSM_CROPS, CBIS_DDSM_TYPE], ids=lambda spec: spec.name)
def test_crops_are_told_from_masks_whatever_their_order_and_description(drawn, spec):
    data = spec.read(drawn)
    names = {Path(e.path).name for e in data.examples}
    series = {Path(e.path).parent.name.split("-")[1] for e in data.examples}
    assert (names, series) == ({"1-1.dcm", "1-2.dcm"}, {"cropped images", "ROI mask images"})
    expected = [
        (f"{row['case']}_{row['abnormality id']}", row["patient_id"], row["split"] == "Test")
        for row in rows(drawn)
    ]
    assert [(e.id, e.group, e.split == "test") for e in data.examples] == expected
    for example, row in zip(data.examples, rows(drawn), strict=True):
        header = pydicom.dcmread(drawn / example.path)
        assert (header.BitsAllocated, header.Rows < 50) == (16, True)
        wanted = "calcification" if spec is CBIS_DDSM_TYPE else "MALIGNANT"
        assert example.label == (wanted in (row["abnormality type"], row["pathology"]))
    assert data.classes[1] == ("Calcification" if spec is CBIS_DDSM_TYPE else "Malignant")


def test_a_crop_as_large_as_the_mammogram_is_not_taken_for_its_mask(raw):
    # The first of these series is the mask.
    example = next(e for e in CBIS_DDSM_TYPE.read(raw).examples if e.id.startswith("Calc"))
    (film,) = (raw / "CBIS-DDSM" / example.id.removesuffix("_1")).rglob("*.dcm")
    shutil.copy(film, raw / example.path)
    assert example in CBIS_DDSM_TYPE.read(raw).examples


def test_every_way_in_which_the_retriever_names_files_gives_the_same_images(raw, tmp_path):
    """Folders by date and description or by UID, in a manifest folder or not."""
    classic = tmp_path / "classic"
    paths = {
        row[f"{kind} file path"].strip()
        for row in rows(raw)
        for kind in ("image", "cropped image", "ROI mask")
    }
    for path in paths:
        case, study, series, file = path.split("/")
        (where,) = (raw / "CBIS-DDSM" / case).glob(f"*-{study[-5:]}/*-{series[-5:]}")
        target = classic / "manifest-1657064287305" / "CBIS-DDSM" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(where / f"1-{int(file[:6]) + 1}.dcm", target)
    for name in TABLES:
        shutil.copy(raw / name, classic)
    for spec in ALL:
        assert pixels(classic, spec) == pixels(raw, spec)


def test_official_is_that_of_the_tables_with_validation_drawn_by_patient(drawn):
    for spec in ALL:
        examples = spec.read(drawn).examples
        parts = spec.splits["official"](examples)
        assert sorted(itertools.chain(*parts.values())) == list(range(len(examples)))
        assert parts["test"] == [i for i, e in enumerate(examples) if e.split == "test"]
        patients = {name: {examples[i].group for i in parts[name]} for name in SPLITS}
        assert not patients["train"] & patients["val"]
        assert 0.1 < len(parts["val"]) / len([e for e in examples if e.split == "train"]) < 0.2
    # Real, so drawn: a patient in training for one view and in test for another.
    assert patients["train"] & patients["test"] == {"P_00001"}


def test_what_is_missing_or_damaged_is_named_and_no_reason_to_stop_reading(raw):
    shutil.rmtree(raw / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_MLO")
    (problem,) = check(CBIS_DDSM, raw).problems
    assert "image file is missing (1): row" in problem
    assert "Mass-Training_P_00001_LEFT_MLO" in problem
    crop = raw / CBIS_DDSM_CROPS.read(raw).examples[0].path
    crop.write_bytes(crop.read_bytes()[:200])
    assert raw / CBIS_DDSM_CROPS.read(raw).examples[0].path == crop
    assert LESION in "\n".join(check(CBIS_DDSM_CROPS, raw).problems)


def test_files_that_leave_a_choice_are_refused(raw):
    crop = raw / CBIS_DDSM_CROPS.read(raw).examples[0].path
    crop.unlink()
    with pytest.raises(UserError, match=rf"expected a crop and a mask \(1\): .*{LESION}/"):
        CBIS_DDSM_CROPS.read(raw)
    film = raw / CBIS_DDSM.read(raw).examples[0].path
    shutil.copy(film, film.with_name("1-2.dcm"))
    with pytest.raises(UserError, match=r"more than one DICOM file of a mammogram \(1\): .*1-2"):
        CBIS_DDSM.read(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pathology": "MALIGN"}, r"label outside .*BENIGN, .* row 3 \('P_00001'\): 'MALIGN'"),
        ({"abnormality type": "calcification"}, r"in a table of mass.* row 3 .*'calcification'"),
        ({"image view": "ML"}, r"not a patient, breast, view .* row 3 .*: P_00001, LEFT, ML, 1"),
        ({"patient_id": "../P_1"}, r"not a patient, breast, view .* row 3"),
    ],
)
def test_a_row_that_cannot_be_meant_is_named_with_its_table(raw, change, message):
    edit(raw / "mass_case_description_train_set.csv", lambda row: row.update(change))
    for spec in ALL:
        with pytest.raises(UserError, match=message) as error:
            spec.read(raw)
        assert "mass_case_description_train_set.csv row 3" in str(error.value)


def test_a_download_without_tables_or_images_is_refused(raw):
    (raw / TABLES[-1]).unlink()
    with pytest.raises(UserError, match=r"calc_case_description_test_set.csv is not a file"):
        CBIS_DDSM.read(raw)
    shutil.rmtree(raw / "CBIS-DDSM")
    with pytest.raises(UserError, match=r"no DICOM files .* expected a folder with"):
        CBIS_DDSM_TYPE.read(raw)
