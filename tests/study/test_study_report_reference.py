"""Rows against a study's reference, beside digitised numbers."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from html_page import Page
from study_trees import Images, cells, finish, setting

from fmi_jax.cli import main
from fmi_jax.study.planned import FORMAT, PlannedStudy, read_plan
from fmi_jax.study.report.numbers import numbers_of
from fmi_jax.study.report.outcomes import Outcomes
from fmi_jax.tasks.intervals import holm

SKILLS = {"imagenet": 1.0, "swav": 2.5, "moco": 1.1, "few": 3.0}
KAPPA = "quadratic_kappa"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    settings = []
    for i, (init, skill) in enumerate(SKILLS.items()):
        planned = cells(init, seeds=4)
        for seed, one in enumerate(planned[: 2 if init == "few" else 4]):
            images = Images(metric=KAPPA)
            folder = root / "cells" / one["id"]
            finish(folder, images=images, skill=skill, seed=10 * i + seed, val=0.7)
        made = setting({"dataset": "aptos2019", "init": init}, planned, published=0.4)
        made |= {"shows": "score", "label": ""}
        if init == "swav":
            made["published"] |= {"std": None, "digitised": 0.0003}
        settings.append(made)
    plan = {
        **{"format": FORMAT, "name": "mine", "title": "A study", "note": "", "rows": ["init"]},
        **{"figure": None, "rates": [1e-3], "seeds": 4, "product": False, "changed": {}},
        **{"settings": settings, "reference": {"init": "imagenet"}},
    }
    (root / "mine.json").write_text(json.dumps(plan))
    assert main(["report", "--root", str(root)]) == 0
    return root


def _planned(root: Path) -> PlannedStudy:
    return read_plan(root / "mine.json")


def test_every_row_with_enough_runs_is_tested_against_the_reference(root: Path) -> None:
    of = {n.setting.at["init"]: n.values for n in numbers_of(_planned(root), Outcomes(root))}
    rows = list(csv.DictReader((root / "report" / "against.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["swav", "moco"]  # not what has two runs
    expected = [
        scipy.stats.ttest_ind(of[name], of["imagenet"], equal_var=True).pvalue
        for name in ("swav", "moco")
    ]
    np.testing.assert_allclose([float(row["t_p"]) for row in rows], expected)
    np.testing.assert_allclose([float(row["t_p_adjusted"]) for row in rows], holm(expected))
    for row in rows:
        assert (row["runs"], row["reference_runs"], row["metric"]) == ("4", "4", KAPPA)
        assert float(row["paired_p"]) <= float(row["paired_p_adjusted"]) <= 1
        assert float(row["difference"]) == of[row["row"]].mean() - of["imagenet"].mean()


def test_the_report_shows_both_tests_and_marks_what_was_digitised(root: Path) -> None:
    text = (root / "report" / "report.md").read_text()
    assert "## Against init imagenet" in text
    assert "| aptos2019 | swav | +" in text
    assert text.count("(digitised, ±0.0003)") == 1
    assert "Digitised: the published number was read off a figure" in text
    page = (root / "report" / "report.html").read_text()
    Page(page)
    assert "Against init imagenet" in page
    assert page.count("(digitised, ±0.0003)") == 1
    rows = list(csv.DictReader((root / "report" / "numbers.csv").read_text().splitlines()))
    assert [row["published_digitised"] for row in rows] == ["", "0.0003", "", ""]


def test_a_plan_of_format_2_has_no_reference(root: Path, tmp_path: Path) -> None:
    values = json.loads((root / "mine.json").read_text())
    del values["reference"]
    (tmp_path / "mine.json").write_text(json.dumps(values | {"format": 2}))
    read = read_plan(tmp_path / "mine.json")
    assert read.reference == {}
    again = dataclasses.replace(_planned(root), reference={})
    assert [one.cells for one in read.settings] == [one.cells for one in again.settings]
