"""The report of a run: what is written, that it can be read back, and that it is safe to open."""

import csv
import dataclasses
import io
import json
import math

import matplotlib
import numpy as np
import pytest
from html_page import Page
from hypothesis import given, settings, strategies as st
from measuring import evaluate
from PIL import Image
from rich.console import Console

from fmi_jax.artifacts.history import read_history, series
from fmi_jax.artifacts.result import Best, Finding, Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import Label
from fmi_jax.errors import UserError
from fmi_jax.fields import as_dict
from fmi_jax.report import charts as history_figures
from fmi_jax.report.console import console_table
from fmi_jax.report.page import write_report
from fmi_jax.tasks import figures
from fmi_jax.tasks.base import Resampling
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.examples import confident_mistakes, example, typical_rows
from fmi_jax.tasks.operating import Rule
from fmi_jax.tasks.predictions import Predictions, read_predictions
from fmi_jax.tasks.subgroups import subgroups

HOSTILE = (
    "<script>alert(1)</script>",
    '"x" onerror="y',
    "$\\frac$",
    "[red]a, b[/red]",
    "Ünï\ncode",
)


def make_run(folder, task=Multiclass, classes=HOSTILE, n=47, absent=None, history=True):
    """The files of a finished run with made-up logits."""
    k, rng = len(classes), np.random.default_rng(7)
    labels = rng.integers(2, size=(n, k)) if task is Multilabel else np.arange(n) % k
    if absent is not None:
        labels = np.where(labels == absent, (absent + 1) % k, labels)
    truth = labels if task is Multilabel else np.eye(k)[labels]
    logits = rng.normal(size=(n, k)) + 2 * truth
    metric = "mAP" if task is Multilabel else "quadratic_kappa"
    test = evaluate(task, logits, labels, classes)
    measured = {"logits": logits, "labels": labels}
    on_set, rule = task(tuple(classes)), Rule("specificity", target=0.8, prevalence=0.02)
    test = on_set.bounded(test, measured, Resampling(50, 0))
    choices = on_set.chosen(measured, rule)
    test = on_set.assessed(test, measured, choices, rule, Resampling(50, 0))
    columns = {"sex": ["f" if i < n // 2 else "m" for i in range(n)]}
    by = subgroups(on_set, measured, columns, metric, Resampling(50, 0))
    test = dataclasses.replace(test, subgroups=by)
    config = ExperimentConfig()
    config.operating.name, config.operating.target = rule.name, rule.target
    config.operating.prevalence = rule.prevalence
    result = Result(
        config=as_dict(config),
        protocol="finetune",
        backbone={
            "name": "<b>tiny</b>", "params": 1_234_567, "trained_params": 1_234_567,
            "weights": "", "weights_sha256": None,
        },
        dataset={
            "name": "drawn & made up", "split": "upstream", "split_sha256": "c0ffee" * 10,
            "counts": {"train": 211, "val": 43, "test": n}, "synthetic": True,
        },
        seed=3,
        steps=120,
        best=Best(metric=metric, value=math.nan, step=80, epoch=1.5, seconds=61.0),
        findings=[
            Finding(judge="finetune", evaluations={"val": test, "test": test}, resampled="patient")
        ],
        seconds={"train": 100.0, "evaluate": 7300.0},
        device={"platform": "cpu"},
        versions={"jax": "0.10.2"},
        notes=("One class <i>has</i> few images.",),
        started="2024-02-03T04:05:06+00:00",
        finished="2024-02-03T04:10:06+00:00",
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    result.write(folder)
    predictions = Predictions(
        label=task.label,
        classes=tuple(classes),
        ids=[f"img {i}" for i in range(n)],
        probabilities=task().probabilities(logits),
        labels=labels,
    )
    predictions.write(folder / "predictions.csv")
    if history:
        rows = [
            {"step": s, "train/loss": 1 / s, "train/learning_rate": 1e-3} for s in range(1, 121)
        ]
        rows += [{"step": s, f"val/{metric}": s / 150, "val/loss": 0.5} for s in (40, 80, 120)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
    return result, predictions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    result, predictions = make_run(folder)
    shown = []

    def image_of(row):
        shown.append(row)
        return np.full((37, 53, 3), row, np.uint8)

    write_report(folder, image_of)
    return folder, result, predictions, shown


def test_page_is_self_contained_and_runs_nothing(run):
    text = (run[0] / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.handlers == []
    assert "b" in page.tags  # ours; those of the names are text:
    assert "<b>tiny</b> on drawn & made up" in page.text
    for name in HOSTILE:
        assert name in page.text
    assert "One class <i>has</i> few images." in page.text
    assert page.loads
    assert all(link.startswith("data:image/") for link in page.loads)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_page_says_what_was_run_and_how_sure_it_is(run):
    folder, result, _, shown = run
    page = Page((folder / "report.html").read_text())
    words = " ".join(page.text.split())
    value = result.test.values["quadratic_kappa"]
    low, high = result.test.intervals["quadratic_kappa"]
    for part in (
        "Synthetic data.", f"{value:.3f}", f"95% interval {low:.3f} to {high:.3f}",
        "Finetune; images of 224", "seed 3", "random initialisation, 1.2 million parameters",
        "were trained for 120 steps on 211 images",
        "step 80", "drawn by patient", "bootstrap, logit scale",
        "Wilson for Precision, Recall, Specificity", "DeLong, logit scale for AUROC",
        "c0ffee", "optim.learning_rate", "2 h 2 min", "jax",
    ):  # fmt: skip
        assert part in words, part
    assert page.tags.count("img") == 4 + len(shown)
    assert len(shown) > 14  # typical images and mistakes


def test_real_data_carry_no_synthetic_banner(tmp_path):
    result, _ = make_run(tmp_path, classes=("a", "b", "c"), history=False)
    dataclasses.replace(result, dataset=result.dataset | {"synthetic": False}).write(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "Synthetic data" not in page
    assert page.count("<img") == 3  # no history, no images: confusion matrix and two curves


def test_only_what_validation_chose_has_a_test_score_on_the_page(tmp_path):
    result, _ = make_run(tmp_path, classes=("a", "b", "c"), history=False)

    def scores(val, test):
        return {"val": {"quadratic_kappa": val}, "test": {"quadratic_kappa": test}}

    rates = (0.001, 0.8124, 0.7124), (0.01, None, 0.9137)
    heads = [
        {"learning_rate": rate, "seed": 0, "best_step": 5, **scores(val, test)}
        for rate, val, test in rates
    ]
    grid = {"chosen": {"learning_rate": 0.001, "seed": 0}, "heads": heads}
    tried = [
        {"k": k, **scores(val, test)} for k, (_, val, test) in zip((5, 20), rates, strict=True)
    ]
    searched = {"metric": "quadratic_kappa", "chosen": {"k": 5}, "tried": tried}
    for values, heading in ((grid, "Every head"), (searched, "Every setting that was tried")):
        finding = dataclasses.replace(result.finding, values=values)
        dataclasses.replace(result, findings=[finding]).write(tmp_path)
        page = Page(write_report(tmp_path).read_text()).text
        _, section = page.split(heading)
        assert "0.812" in section
        assert "0.712" in section
        assert "0.914" not in page
        kept = json.loads((tmp_path / "result.json").read_text())["findings"][0]["values"]
        assert kept["heads" if values is grid else "tried"][1]["test"]["quadratic_kappa"] == 0.9137


def test_report_leaves_its_files_and_no_drafts(run):
    written = {path.name for path in run[0].iterdir()}
    assert written == {
        "result.json", "predictions.csv", "metrics.jsonl", "report.html", "confusion.png",
        "roc.png", "precision_recall.png", "curves.png",
    }  # fmt: skip
    for name in ("confusion", "roc", "precision_recall", "curves"):
        with Image.open(run[0] / f"{name}.png") as image:
            image.verify()
            assert min(image.size) > 300


@pytest.mark.parametrize(
    ("task", "classes", "absent"),
    [
        (Binary, ("benign", "malignant"), None),
        (Multilabel, ("edema", "effusion", "no finding"), None),
        (Multiclass, ("a", "b", "c"), 1),
    ],
)
def test_every_task_and_an_absent_class(tmp_path, task, classes, absent):
    result, _ = make_run(tmp_path, task, classes, absent=absent)
    words = Page(write_report(tmp_path).read_text()).text
    assert (tmp_path / "confusion.png").exists() is (task is not Multilabel)
    assert ("Undefined on these images: recall[b]" in words) is (absent is not None)
    assert all(name in words for name in result.test.per_class)
    assert "Calibration error" in words
    assert "By sex" in words
    assert ("would have detected" in words) is (task is Binary)  # the others have few images
    assert ("specificity of at least 0.8" in words) is (task is not Multiclass)
    assert ("at 2.0% prevalence" in words) is (task is not Multiclass)
    assert ("Macro F1" in words) is (task is not Binary)  # which shows predictive values


def test_result_survives_strict_json(run):
    folder, result, *_ = run

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    assert values["best"]["value"] is None
    assert (
        values["findings"][0]["evaluations"]["test"]["values"]["accuracy"]
        == result.test.values["accuracy"]
    )
    back = Result.read(folder)
    assert math.isnan(back.best.value)
    assert back.to_json() == result.to_json()


def test_folder_that_is_no_finished_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no result\.json: expected the folder of a finish"):
        write_report(tmp_path)
    make_run(tmp_path)
    (tmp_path / "predictions.csv").unlink()
    with pytest.raises(UserError, match=r"predictions\.csv does not exist"):
        write_report(tmp_path)
    assert not list(tmp_path.glob("*.png"))
    (tmp_path / "result.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match="not the result of a run"):
        Result.read(tmp_path)


_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    classes=st.lists(_TEXT, min_size=2, max_size=4, unique=True),
    ids=st.lists(_TEXT, min_size=1, max_size=5, unique=True),
    multilabel=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_predictions_come_back_as_they_were(tmp_path_factory, classes, ids, multilabel, seed):
    rng, n, k = np.random.default_rng(seed), len(ids), len(classes)
    label = Label.VECTOR if multilabel else Label.INDEX
    before = Predictions(
        label=label,
        classes=tuple(classes),
        ids=ids,
        probabilities=rng.random((n, k), dtype=np.float32),
        labels=rng.integers(2, size=(n, k)) if multilabel else rng.integers(k, size=n),
    )
    path = tmp_path_factory.getbasetemp() / "predictions.csv"
    before.write(path)
    after = read_predictions(path, label, classes)
    assert list(after.ids) == ids
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.probabilities.astype(np.float32), before.probabilities)


def test_predictions_name_the_classes(tmp_path):
    predictions = Predictions(
        label=Label.INDEX,
        classes=("mild, early", "severe"),
        ids=["a", 'b "2"'],
        probabilities=np.array([[0.25, 0.75], [0.9, 0.1]]),
        labels=np.array([1, 1]),
    )
    predictions.write(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "label", "predicted", "p_mild, early", "p_severe"],
            ["a", "severe", "severe", "0.25", "0.75"],
            ['b "2"', "severe", "mild, early", "0.9", "0.1"],
        ]
    dataclasses.replace(predictions, labels=None).write(tmp_path / "new.csv")
    assert (tmp_path / "new.csv").read_text().startswith("id,predicted,")
    with pytest.raises(UserError, match="not the prediction table of classes one, two"):
        read_predictions(tmp_path / "p.csv", Label.INDEX, ("one", "two"))


def test_figures_repeat_and_leave_no_trace(run):
    folder, result, *_ = run
    before = dict(matplotlib.rcParams)
    again = figures.confusion(result.test)
    assert again == (folder / "confusion.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 5, "train/loss": 0.5}],
        [{"step": 5, "val/roc_auc": 0.5}, {"step": 9, "val/roc_auc": None}],
        [{"step": 1, "train/learning_rate": 0.0}, {"step": 300, "train/loss": 1e9}],
    ],
)
def test_curves_draw_whatever_there_is(rows):
    png = history_figures.curves(series(rows), "AUROC", "roc_auc", best_step=5)
    with Image.open(io.BytesIO(png)) as image:
        assert image.size[0] > 300


def test_confusion_of_many_classes_and_long_names():
    labels = np.arange(23 * 3) % 23
    names = [f"a very long name of the diagnosis number {c}" for c in range(23)]
    evaluation = evaluate(Multiclass, np.eye(23)[labels], labels, names)
    with Image.open(io.BytesIO(figures.confusion(evaluation))) as image:
        assert max(image.size) < 4000


def test_many_classes_have_a_panel_each():
    rng = np.random.default_rng(0)
    labels, names = rng.integers(2, size=(31, 13)), [f"finding {c}" for c in range(13)]
    logits = rng.normal(size=(31, 13)) + labels
    evaluation = evaluate(Multilabel, logits, labels, names)
    p = Multilabel().probabilities(logits)
    for draw in (figures.roc, figures.precision_recall):
        size = []
        for k in (13, 3):
            part = evaluate(Multilabel, logits[:, :k], labels[:, :k], names[:k])
            with Image.open(io.BytesIO(draw(part, labels[:, :k], p[:, :k]))) as image:
                size.append(image.size[0])
        assert size[0] > 2 * size[1]
    assert len(evaluation.classes) == 13


def test_history_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == {}
    path.write_text(
        '{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": null}\n{"step": 3, "tr'
    )
    steps, loss = read_history(path)["train/loss"]
    assert (steps.tolist(), loss.tolist()) == ([1], [2.0])


def test_examples_cover_the_classes_and_mistakes_are_sorted(run):
    _, _, predictions, _ = run
    typical = typical_rows(predictions, 7)
    assert len(typical) == len(set(typical)) == 7
    assert set(predictions.labels[typical]) == set(range(5))
    assert sorted(predictions.labels[typical]) == list(predictions.labels[typical])
    rows = confident_mistakes(predictions, 100)
    predicted = predictions.probabilities.argmax(1)
    assert set(rows) == set(np.flatnonzero(predicted != predictions.labels))
    certainty = predictions.probabilities.max(1)[rows]
    assert (np.diff(certainty) <= 0).all()
    shown = example(predictions, rows[0], lambda row: np.zeros((5, 3, 1), np.uint8))
    assert not shown.correct
    assert shown.label == HOSTILE[predictions.labels[rows[0]]]
    assert shown.predicted == HOSTILE[predicted[rows[0]]]


def test_multilabel_mistakes_are_sorted_by_the_worst_class():
    predictions = Predictions(
        label=Label.VECTOR,
        classes=("a", "b"),
        ids=["right", "mildly wrong", "badly wrong"],
        probabilities=np.array([[0.9, 0.1], [0.6, 0.99], [0.51, 0.02]]),
        labels=np.array([[1, 0], [0, 1], [1, 1]]),
    )
    assert confident_mistakes(predictions, 5) == [2, 1]
    shown = example(predictions, 2, lambda row: np.zeros((3, 3, 3), np.uint8))
    assert (shown.label, shown.predicted, shown.certainty) == ("a, b", "a", 0.98)


def test_console_table_is_plain_where_there_is_no_terminal(run):
    _, result, *_ = run
    low, high = result.test.intervals["quadratic_kappa"]
    plain, styled = io.StringIO(), io.StringIO()
    console_table(result.test, "Test set", Console(file=plain))
    console_table(result.test, "Test set", Console(file=styled, force_terminal=True, width=160))
    for text in (plain.getvalue(), styled.getvalue()):
        assert f"{result.test.values['quadratic_kappa']:.3f}" in text
        assert f"{low:.3f} to {high:.3f}" in text
        assert "[red]a, b[/red]" in text  # a name, not markup
        for label in ("Quadratic weighted kappa", "Balanced accuracy", "Macro F1", "AUROC"):
            assert label in text
    assert "\x1b" in styled.getvalue()
    assert "\x1b" not in plain.getvalue()
    assert plain.getvalue().replace("Ünï", "").isascii()
