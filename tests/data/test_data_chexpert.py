"""CheXpert: the study's split to the row, and what becomes of uncertain findings."""

import dataclasses
import hashlib
import io
import itertools
import json
import random
import re
import shutil
import types

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import disagree
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.chexpert import (
    CHEXPERT,
    CHEXPERT_SMOOTH,
    CHEXPERT_U_IGNORE,
    CHEXPERT_U_ONES,
    CLASSES,
    COMPETITION,
    upstream,
)
from fmi_jax.data.raw.spec import SPLITS, RawExample
from fmi_jax.data.raw.splits import class_counts
from fmi_jax.data.remarks import few_images, remarks_on
from fmi_jax.data.subset import fraction_rows, training_subset
from fmi_jax.errors import UsageError, UserError
from fmi_jax.protocols.registry import check
from fmi_jax.report.console import console_table
from fmi_jax.run.conclusion import common_notes
from fmi_jax.tasks.base import Resampling
from fmi_jax.tasks.registry import task_of

POLICIES = (CHEXPERT, CHEXPERT_U_ONES, CHEXPERT_SMOOTH, CHEXPERT_U_IGNORE)
TREATMENTS = ("absent.", "present.", "present (in", "not known (left out of every metric).")
HEADER = ",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CLASSES))

# Rows of each split and the start of the SHA-256 of the three lists of row numbers as JSON, as
# pandas 3.1 gives them: `df = DataFrame({"Path": paths(n, seed)}).sort_values("Path")`, then the
# study's slices of `df.loc`. On the published table of 223,414 rows the lists are equal too.
PANDAS = {
    (37, 0): ((10, 17, 12), "344f1451cbcbfccd"),
    (53, 1): ((32, 9, 14), "a11219b61ecc9611"),
    (61, 2): ((46, 9, 8), "f9c4b1e1d1f75b3b"),
    (101, 3): ((63, 15, 25), "77f73a59347b0561"),
    (499, 0): ((383, 57, 61), "00919307728e976d"),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chexpert") / "CheXpert-v1.0-small"
    CHEXPERT.draw(folder)
    return folder


def paths(n, seed):
    """Paths of `n` images whose order is not that of the alphabet."""
    rng, found, patient = random.Random(seed), [], 0
    while len(found) < n:
        patient += 1
        for study in range(1, rng.randint(1, 12) + 1):
            found.append(f"train/patient{patient:05}/study{study}/view1_frontal.jpg")
    found = found[:n]
    for start in range(0, n, 7):
        part = found[start : start + 7]
        rng.shuffle(part)
        found[start : start + 7] = part
    return found


def examples(paths):
    return [RawExample(id=p, path=p, label=(0.0,) * 14, split="train") for p in paths]


def write(folder, *labels, **other):
    """A raw set with one row for each list of 14 labels, and a `valid.csv`."""
    folder.mkdir(exist_ok=True)
    tables = {"train": labels, "valid": [["1.0", *["0.0"] * 13]], **other}
    for part, rows in tables.items():
        lines = [
            f"CheXpert-v1.0-small/{part}/patient{i:05}/study1/view1_frontal.jpg,Male,{i},Frontal,AP,"
            + ",".join(row)
            for i, row in enumerate(rows, start=1)
        ]
        (folder / f"{part}.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder


@pytest.mark.parametrize(("n", "seed"), PANDAS)
def test_upstream_is_the_split_of_the_study_to_the_row(n, seed):
    rows = upstream(examples(paths(n, seed)))
    parts = [rows[name] for name in SPLITS]
    sizes, digest = PANDAS[n, seed]
    assert tuple(map(len, parts)) == sizes
    assert hashlib.sha256(json.dumps(parts).encode()).hexdigest().startswith(digest)


def test_upstream_shares_a_row_of_train_and_one_of_validation_with_test():
    rows = {name: set(part) for name, part in upstream(examples(paths(101, 5))).items()}
    assert len(rows["train"] & (rows["val"] | rows["test"])) == 1
    assert len(rows["val"] & rows["test"]) == 1
    assert set.union(*rows.values()) == set(range(101))


def test_upstream_refuses_what_pandas_cannot_slice_either():
    shuffled = paths(23, 1)
    random.Random(1).shuffle(shuffled)
    for table in (shuffled, shuffled[:11]):
        with pytest.raises(UsageError, match=r"'upstream' cannot cut .* Other splits: official"):
            upstream(examples(table))


def test_uncertain_findings_under_each_policy(tmp_path):
    uncertain = ["", "", "-1.0", "1.0", "0.0", "-1.0", *[""] * 8]
    only_uncertain = ["", "-1.0", *[""] * 12]
    nothing = [""] * 14
    folder = write(tmp_path / "raw", uncertain, only_uncertain, nothing)

    def labels(spec):
        return np.array([e.label for e in spec.read(folder).examples if e.split == "train"])

    zeros, ones, smooth, ignore = map(labels, POLICIES)
    no_finding = [1.0] + [0.0] * 13
    assert zeros.tolist() == [[0, 0, 0, 1] + [0] * 10, no_finding, no_finding]
    assert ones.tolist() == [[0, 0, 1, 1, 0, 1] + [0] * 8, [0, 1] + [0] * 12, no_finding]
    soft = (ones == 1) & (zeros == 0)
    assert soft.sum() == 3
    assert (smooth[~soft] == ones[~soft]).all()
    assert ((smooth[soft] >= 0.55) & (smooth[soft] <= 0.85)).all()
    assert len(set(smooth[soft])) == 3
    assert (labels(CHEXPERT_SMOOTH) == smooth).all()
    assert (np.isnan(ignore[:, 1:]) == soft[:, 1:]).all()
    np.testing.assert_array_equal(np.where(soft, 0, ignore)[:, 1:], zeros[:, 1:])
    # Whether an image with nothing but an uncertain finding is without any is not known.
    np.testing.assert_array_equal(ignore[:, 0], [0, np.nan, 1])


def test_smoothed_labels_fill_their_range_evenly(tmp_path):
    folder = write(tmp_path / "raw", *[["", *["-1.0"] * 13]] * 97)
    labels = np.array([e.label[1:] for e in CHEXPERT_SMOOTH.read(folder).examples[:97]])
    share = np.histogram(labels, bins=6, range=(0.55, 0.85))[0] / labels.size
    np.testing.assert_allclose(share, 1 / 6, atol=0.05)
    assert abs(np.corrcoef(labels[:, 0], labels[:, 1])[0, 1]) < 0.3


def test_group_is_the_patient_and_valid_csv_is_the_official_test(drawn):
    raw = CHEXPERT.read(drawn)
    rows = CHEXPERT.splits["official"](raw.examples)
    assert all(e.group == re.search(r"patient\d+", e.path)[0] for e in raw.examples)
    assert [raw.examples[i].path.split("/")[0] for i in rows["test"]] == ["valid"] * len(
        (drawn / "valid.csv").read_text().splitlines()[1:]
    )
    assert sorted(itertools.chain(*rows.values())) == list(range(len(raw.examples)))
    for name in ("official", "grouped"):
        rows = CHEXPERT.splits[name](raw.examples)
        patients = [{raw.examples[i].group for i in rows[part]} for part in SPLITS]
        assert all(patients)
        assert not patients[0] & patients[1]
        assert not (patients[0] | patients[1]) & patients[2]


@pytest.mark.parametrize("split", CHEXPERT.splits)
def test_a_split_is_the_same_whatever_becomes_of_uncertain_findings(drawn, split):
    rows = [spec.splits[split](spec.read(drawn).examples) for spec in POLICIES]
    assert rows[0] == rows[1] == rows[2] == rows[3]


@pytest.mark.parametrize(
    ("spec", "treatment"),
    [*zip(POLICIES, TREATMENTS, strict=True)],
)
def test_a_result_says_that_its_test_labels_depend_on_the_policy(spec, treatment):
    def notes(split):
        part = types.SimpleNamespace
        session = part(
            assembly=part(weights=None, partition=part(frozen=()), transformer=None),
            config=part(backbone=part(run="")),
            info=part(name=spec.name, split=split, channels=1),
            dataset=part(train_rows=None),
            origin=part(notes=()),
            fitted=None,
        )
        return [*common_notes(session)]

    for split in ("upstream", "grouped", "grouped-limit90"):
        (note,) = notes(split)
        assert f"their uncertain findings count as {treatment}" in note
        assert "cannot be compared with these" in note
    assert notes("official") == []  # its test labels are those of radiologists


def test_the_folder_around_it_and_the_full_size_release_will_do(drawn, tmp_path):
    raw = CHEXPERT.read(drawn)
    assert CHEXPERT.read(drawn.parent) == raw
    full = shutil.copytree(drawn, tmp_path / "CheXpert-v1.0")
    for table in full.glob("*.csv"):
        table.write_text(table.read_text().replace("CheXpert-v1.0-small/", "CheXpert-v1.0/"))
    assert CHEXPERT.read(tmp_path).examples == raw.examples
    shutil.copytree(drawn, tmp_path / "CheXpert-v1.0-small")
    with pytest.raises(UserError, match=r"CheXpert-v1\.0, CheXpert-v1\.0-small; expected one"):
        CHEXPERT.read(tmp_path)


def test_faults_of_a_table_are_named_with_row_and_path(tmp_path):
    fine = ["1.0", *[""] * 13]
    folder = write(tmp_path / "raw", fine, ["", "2", "nan", *["0.0"] * 11], fine)
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace("small/train/patient00003/", "small/"))
    with pytest.raises(UserError) as error:
        CHEXPERT.read(folder)
    message = str(error.value)
    assert "train.csv cannot be used" in message
    where = "row 3 ('train/patient00002/study1/view1_frontal.jpg')"
    assert f"{where}, Enlarged Cardiomediastinum: '2'; {where}, Cardiomegaly: 'nan'" in message
    assert "path without a patient" in message
    assert "row 4: 'CheXpert-v1.0-small/study1/view1_frontal.jpg'" in message

    write(folder, fine)
    table = (folder / "valid.csv").read_text()
    (folder / "valid.csv").write_text(table.replace(",Pleural Other", ""))
    with pytest.raises(UserError, match=r"valid\.csv has no column 'Pleural Other'"):
        CHEXPERT.read(folder)
    (folder / "valid.csv").unlink()
    with pytest.raises(UserError, match=r"valid\.csv is not a file"):
        CHEXPERT.read(folder)


@pytest.fixture(scope="module")
def prepared(drawn, tmp_path_factory):
    return prepare(
        CHEXPERT_SMOOTH, drawn, tmp_path_factory.mktemp("data"), size=7, split="upstream"
    )


def test_rows_in_two_splits_are_prepared_and_reported(drawn, prepared):
    rows = upstream(CHEXPERT.read(drawn).examples)
    assert prepared.info.split == "upstream"
    assert dict(prepared.info.counts) == {name: len(rows[name]) for name in SPLITS}
    reported = [
        {(image["split"], image["id"]) for image in same}
        for same in prepared.manifest["duplicates_across_splits"]
    ]
    ids = {name: set(prepared.ids(name)) for name in SPLITS}
    (twice,) = ids["val"] & ids["test"]
    assert {("val", twice), ("test", twice)} in reported
    assert len(reported) == 2


@pytest.fixture(scope="module")
def partly_known(drawn, tmp_path_factory):
    return prepare(
        CHEXPERT_U_IGNORE, drawn, tmp_path_factory.mktemp("data"), size=7, split="grouped"
    )


def test_labels_that_are_not_known_are_prepared_and_not_counted(partly_known):
    info = partly_known.info
    unknown = {split: np.isnan(partly_known.labels(split)) for split in SPLITS}
    assert all(part.any() for part in unknown.values())
    for split, part in unknown.items():
        labels = partly_known.labels(split)
        assert info.class_counts[split] == tuple((labels == 1).sum(axis=0))
        assert info.unknown_counts[split] == tuple(part.sum(axis=0))
        np.testing.assert_array_equal(info.known_counts(split), (~part).sum(axis=0))
        records = [partly_known.split(split)[row][1] for row in range(len(labels))]
        np.testing.assert_array_equal(records, labels)
    assert "NaN" not in (partly_known.folder / "index.csv").read_text()
    assert type(info).from_json(info.to_json()) == info


def test_remarks_and_subsets_leave_out_what_is_not_known(partly_known, prepared):
    half = training_subset(partly_known, fraction=0.5)
    labels = half.labels("train")
    assert half.info.class_counts["train"] == tuple((labels == 1).sum(axis=0))
    assert half.info.unknown_counts["train"] == tuple(np.isnan(labels).sum(axis=0))
    assert not any("nan" in remark.lower() for remark in remarks_on(partly_known))
    n, k = partly_known.info.counts["val"], len(CLASSES)
    # Absent in 9 images and not known in the others: few are without it, all that are known.
    few = dataclasses.replace(
        partly_known.info,
        class_counts={"val": (20.0,) * k},
        counts={"val": 29 + n},
        unknown_counts={"val": (float(n),) * k},
    )
    assert "Fewer than 10 images with it, or without it, in val: No Finding (9)" in few_images(
        few, "val"
    )
    assert "unknown_counts" not in prepared.info.to_json()


def test_combinations_that_are_not_known_are_one_stratum():
    ids, nan = [str(i) for i in range(40)], float("nan")
    labels = np.array([[nan, 1.0], [0.0, 1.0]] * 20, np.float32)
    for fraction in (0.2, 0.5, 0.8):  # as strata of one image each they would all come at once
        rows = fraction_rows(ids, labels, fraction, seed=0)
        assert np.isnan(labels[rows, 0]).sum() == pytest.approx(20 * fraction, abs=1)


def test_labels_disagree_only_where_both_are_known():
    nan = float("nan")
    assert not disagree([(1.0, nan), (1.0, 0.0), (nan, nan)])
    assert disagree([(1.0, nan), (nan, 0.0), (0.0, nan)])
    assert disagree([1, 2])
    assert not disagree([2, 2])


def test_a_drawn_split_is_balanced_by_the_labels_that_are_known():
    nan = float("nan")
    labels = {"a": (1.0, nan), "b": (nan, 0.0)}
    rows = [RawExample(id=name, path=name, label=label) for name, label in labels.items()]
    np.testing.assert_array_equal(class_counts(rows, np.array([0, 0]), 1), [[1, 0, 2]])


@pytest.mark.parametrize("judge", ["knn", "logistic"])
def test_judges_that_need_every_training_label_refuse_the_set(partly_known, prepared, judge):
    config = ExperimentConfig(protocol=judge)
    config.knn.k = (1,)
    check(config, prepared.info)
    with pytest.raises(UsageError, match=rf"judge '{judge}' needs every label"):
        check(config, partly_known.info)


def test_an_evaluation_adds_the_auroc_of_the_competition(prepared):
    """Logits that are the labels plus noise, through the evaluation that a run makes."""
    labels = prepared.labels("train")
    assert ((labels > 0) & (labels < 1)).any()
    logits = labels + np.random.default_rng(0).normal(0, 0.7, labels.shape)
    task, measured = task_of(prepared.info), {"logits": logits, "labels": labels}
    ours = task.evaluate(measured)
    ours = task.bounded(ours, measured, Resampling(50, 0))
    auc = [ours.per_class[name]["roc_auc"] for name in COMPETITION]
    assert ours.values["roc_auc_competition"] == pytest.approx(np.mean(auc))
    assert ours.values["roc_auc_competition"] != ours.values["roc_auc"]
    low, high = ours.intervals["roc_auc_competition"]
    assert low < ours.values["roc_auc_competition"] < high
    console_table(ours, "Test set", Console(file=(text := io.StringIO())))
    assert f"AUROC (macro, competition classes) | {np.mean(auc):.3f} " in text.getvalue()


def test_findings_are_drawn_so_that_they_can_be_learnt(tmp_path):
    CHEXPERT.draw(tmp_path / "raw", count=240, seed=1)
    rows = CHEXPERT.read(tmp_path / "raw").examples
    pixels = np.array(
        [
            np.asarray(Image.open(tmp_path / "raw" / e.path).resize((16, 16))).ravel() / 255
            for e in rows
        ]
    )
    found = np.array([e.label for e in rows])[:, CLASSES.index("Pleural Effusion")]
    model = LogisticRegression(max_iter=500).fit(pixels[::2], found[::2])
    assert roc_auc_score(found[1::2], model.decision_function(pixels[1::2])) > 0.75
