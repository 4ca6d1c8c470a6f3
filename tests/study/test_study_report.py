"""The report of studies: which cells make a number, what is said of others, what is written."""

import argparse
import csv
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from html_page import Page
from sealing import resealed
from study_trees import (
    Images,
    analyse,
    cells,
    fail,
    finish,
    setting,
    single,
    write_plan,
)

from fmi_jax.artifacts.result import Result, tables_in
from fmi_jax.cli import main
from fmi_jax.config import ExperimentConfig
from fmi_jax.drawing.wording import sentence
from fmi_jax.errors import UsageError, UserError
from fmi_jax.fields import as_dict, field_names
from fmi_jax.study.commands import add_study_arguments
from fmi_jax.study.plan import make_plan
from fmi_jax.study.planned import PlannedStudy, read_studies
from fmi_jax.study.published import rows as published_rows
from fmi_jax.study.registry import STUDIES
from fmi_jax.study.report import findings
from fmi_jax.study.report.choices import CHOICES, choices_of
from fmi_jax.study.report.comparisons import Sides, compare, compared_coordinate, untested
from fmi_jax.study.report.cost import cost_of
from fmi_jax.study.report.markdown import escaped
from fmi_jax.study.report.more_seeds import more_seeds
from fmi_jax.study.report.numbers import Number, Status, numbers_of
from fmi_jax.study.report.outcomes import Outcomes
from fmi_jax.study.report.provenance import provenance_of
from fmi_jax.study.report.samples import Cache, Sampler
from fmi_jax.study.report.table import make_table
from fmi_jax.tasks import condense

HOSTILE = "<script>alert(1)</script> | *a* & 'b'\"=1"


def number(root: Path, planned: list[dict], protocol: str = "finetune", **fields) -> Number:
    """The number of one setting with these cells."""
    at = {"dataset": "aptos2019", "model": "one"}
    write_plan(root, [setting(at, planned, protocol, **fields)])
    (found,) = numbers_of(read_studies(root)[0], Outcomes(root))
    return found


def cell(root: Path, name: str) -> Path:
    return root / "cells" / name


# Which cells make a number


def test_the_rate_is_chosen_by_validation_and_not_by_test(tmp_path):
    planned = cells("a", rates=(1e-4, 1e-3), seeds=3)
    finish(cell(tmp_path, "a-0.0001-0"), val=0.9, skill=0.5, seed=0)
    finish(cell(tmp_path, "a-0.001-0"), val=0.8, skill=5.0, seed=0)
    for seed in (1, 2):
        finish(cell(tmp_path, f"a-0.0001-{seed}"), val=0.1, skill=0.5, seed=seed)
    found = number(tmp_path, planned)
    tests = [
        json.loads((cell(tmp_path, f"a-0.0001-{seed}") / "result.json").read_text())
        for seed in range(3)
    ]
    values = [
        test["findings"][0]["evaluations"]["test"]["values"]["quadratic_kappa"] for test in tests
    ]
    assert found.learning_rate == 1e-4
    (said,) = findings.at_an_end([found])
    assert said.startswith("Of 1 chosen learning rate, 1 is the lowest or the highest that was")
    assert not findings.at_an_end([dataclasses.replace(found, learning_rate=None)])
    assert found.status is Status.DONE
    assert [run.seed for run in found.runs] == [0, 1, 2]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))


def test_of_a_loss_the_lowest_rate_is_chosen(tmp_path):
    images = Images(metric="loss")
    finish(cell(tmp_path, "a-0.0001-0"), images=images, val=0.9)
    finish(cell(tmp_path, "a-0.001-0"), images=images, val=0.2)
    assert number(tmp_path, cells("a", rates=(1e-4, 1e-3))).learning_rate == 1e-3


def test_a_failed_rate_is_passed_over_and_named(tmp_path):
    fail(cell(tmp_path, "a-0.0001-0"), "the loss is not finite")
    finish(cell(tmp_path, "a-0.001-0"))
    found = number(tmp_path, cells("a", rates=(1e-4, 1e-3)))
    assert (found.status, found.learning_rate) == (Status.DONE, 1e-3)
    assert found.reason == "1 learning rate failed: the loss is not finite"


def test_a_number_without_all_its_cells_is_partial(tmp_path):
    finish(cell(tmp_path, "a-0.0001-0"))
    finish(cell(tmp_path, "a-0.0001-1"))
    fail(cell(tmp_path, "a-0.0001-2"), "killed")
    found = number(tmp_path, cells("a", rates=(1e-4, 1e-3), seeds=4))
    assert (found.status, len(found.runs), found.expected) == (Status.PARTIAL, 2, 4)
    reasons = ("1 seed failed: killed", "1 seed not run", "1 learning rate not run")
    assert found.reason == "; ".join(reasons)


def test_a_number_without_any_cell(tmp_path):
    planned = cells("a", rates=(1e-4, 1e-3))
    missing = number(tmp_path, planned)
    assert (missing.status, missing.reason) == (Status.MISSING, "2 learning rates not run")
    cell(tmp_path, "a-0.001-0").mkdir(parents=True)
    (cell(tmp_path, "a-0.001-0") / "cell.json").write_text("{}")
    fail(cell(tmp_path, "a-0.0001-0"), "out of memory")
    failed = number(tmp_path, planned)
    assert failed.status is Status.FAILED
    reason = "1 learning rate failed: out of memory; 1 learning rate not finished"
    assert failed.reason == reason
    impossible = number(tmp_path, [], why_not="no such network")
    assert (impossible.status, impossible.reason) == (Status.IMPOSSIBLE, "no such network")


def test_a_grid_holds_its_rates_and_seeds_itself(tmp_path):
    result = finish(cell(tmp_path, "a"), grid={1e-3: 2.0, 1e-2: 0.1}, protocol="probe_grid")
    found = number(tmp_path, single("a"), protocol="probe_grid")
    heads = [head for head in result.finding.values["heads"] if head["learning_rate"] == 1e-3]
    assert found.learning_rate == 1e-3
    assert [run.predictions.name for run in found.runs] == [
        "predictions_seed0.csv",
        "predictions_seed1.csv",
    ]
    assert found.values.tolist() == [head["test"]["quadratic_kappa"] for head in heads]
    (sample,) = Sampler(Cache(tmp_path / "cache"), 50).samples([found])[0].values()
    assert len(sample.values) == 50


def test_frozen_features_have_no_seeds(tmp_path):
    finish(cell(tmp_path, "a"), steps=0, protocol="knn")
    found = number(tmp_path, single("a"), protocol="knn")
    assert (found.status, found.expected, found.learning_rate) == (Status.DONE, 1, None)
    assert [run.seed for run in found.runs] == [None]


def test_an_analysis_is_that_of_the_best_network(tmp_path):
    finish(cell(tmp_path, "net-0.0001-0"), val=0.9)
    finish(cell(tmp_path, "net-0.001-0"), val=0.5)
    pair = {"networks": ["a", "b"], "layers": [["x"], ["x"]], "cka": [[0.25]]}
    values = {"networks": ["a", "b"], "last_layers": [[1, 0.25], [0.25, 1]], "pairs": [pair]}
    analyse(cell(tmp_path, "cka-0.001-0"), "cka", values, of="net")
    planned = cells("cka", rates=(1e-4, 1e-3), of="net")
    found = number(tmp_path, planned, protocol="cka")
    assert (found.status, found.reason) == (Status.MISSING, "1 cell not run")
    analyse(cell(tmp_path, "cka-0.0001-0"), "cka", values, of="net")
    found = number(tmp_path, planned, protocol="cka")
    assert (found.status, found.summary) == (Status.DONE, "CKA 0.250")


def test_an_analysis_beside_test_metrics_says_what_it_is(tmp_path):
    finish(cell(tmp_path, "net-0.001-0"))
    pair = {"networks": ["a", "b"], "layers": [["x"], ["x"]], "cka": [[0.25]]}
    values = {"networks": ["a", "b"], "last_layers": [[1, 0.25], [0.25, 1]], "pairs": [pair]}
    analyse(cell(tmp_path, "layers-0.001-0"), "cka", values, of="net")
    at = {"dataset": "aptos2019", "model": "net"}
    settings = [
        setting({**at, "protocol": "finetune"}, cells("net")),
        setting({**at, "protocol": "cka"}, cells("layers", of="net"), "cka"),
    ]
    write_plan(tmp_path, settings, rows=["protocol", "model"])
    assert main(["report", "--root", str(tmp_path)]) == 0
    for name in ("report.html", "report.md"):
        assert "CKA 0.250" in (tmp_path / "report" / name).read_text()


@pytest.mark.parametrize("damage", ["", "[]", '{"kind": "cka"}', '{"best": {}}'])
def test_a_damaged_result_counts_as_missing_and_is_named(tmp_path, damage):
    finish(cell(tmp_path, "a-0.001-0"))
    path = cell(tmp_path, "a-0.001-1") / "result.json"
    path.parent.mkdir()
    path.write_text(damage)
    found = number(tmp_path, cells("a", seeds=2))
    assert (found.status, len(found.runs)) == (Status.PARTIAL, 1)
    assert str(path) in found.reason
    assert "Delete its folder to run it again" in found.reason


def test_a_cell_that_its_predictions_contradict_is_left_out_and_named(tmp_path, capsys):
    """Of three seeds one, and the best rate: then the second best has its seeds."""
    write_plan(
        tmp_path,
        [setting({"dataset": "aptos2019", "model": "m"}, cells("a", (1e-3, 1e-2), seeds=3))],
    )
    for seed in range(3):
        finish(cell(tmp_path, f"a-0.001-{seed}"), skill=3.0, seed=seed, val=0.5)
    finish(cell(tmp_path, "a-0.01-0"), skill=3.0, val=0.9)
    false = [cell(tmp_path, name) / "predictions.csv" for name in ("a-0.001-1", "a-0.01-0")]
    for path in false:
        Images().predictions(0.1, seed=9).write(path)
    assert main(["report", "--root", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    for path in false:
        assert f"{path} gives quadratic_kappa" in err
    assert err.count("they are not of one run, and the cell counts as missing") == 2
    with (tmp_path / "report" / "numbers.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    sound = [
        Result.read(cell(tmp_path, f"a-0.001-{seed}")).test.values["quadratic_kappa"]
        for seed in (0, 2)
    ]
    assert (row["status"], row["seeds"], row["learning_rate"]) == ("partial", "2", "0.001")
    assert float(row["mean"]) == pytest.approx(np.mean(sound))
    page = (tmp_path / "report" / "report.md").read_text()
    assert page.count("**Cannot be used.**") == 2
    assert sentence("studies/cells/a/predictions.csv gives 0.1") == (
        "studies/cells/a/predictions.csv gives 0.1."  # the path as it is
    )


def test_a_digit_of_a_table_that_has_changed_is_noticed(tmp_path, capsys):
    """One that no metric shows."""
    write_plan(tmp_path, [setting({"dataset": "aptos2019", "model": "m"}, cells("a", seeds=2))])
    for seed in range(2):
        folder = cell(tmp_path, f"a-0.001-{seed}")
        finish(folder, skill=3.0, seed=seed)
        dataclasses.replace(Result.read(folder), tables=tables_in(folder)).write(folder)
    assert main(["report", "--root", str(tmp_path)]) == 0
    assert "predictions.csv" not in capsys.readouterr().err
    table = folder / "predictions.csv"
    content = bytearray(table.read_bytes())
    content[content.rindex(b".") + 1] ^= 1
    table.write_bytes(content)
    assert main(["report", "--root", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert f"{table} has changed since its run wrote it" in err
    assert "The cell counts as missing" in err


def test_a_result_of_another_cell_is_left_out_and_named(tmp_path, capsys):
    """Copied alone, or with everything beside it."""
    write_plan(tmp_path, [setting({"dataset": "aptos2019", "model": "m"}, cells("a", seeds=3))])
    for seed in range(3):
        folder = cell(tmp_path, f"a-0.001-{seed}")
        config = finish(folder, seed=seed).config | {"train": {"seed": seed}}
        with resealed(folder / "result.json") as values:
            values["config"] = config
        cells_own = {"format": 1, "cell": folder.name, "config": config}
        (folder / "cell.json").write_text(json.dumps(cells_own))
    shutil.copy(cell(tmp_path, "a-0.001-0") / "result.json", cell(tmp_path, "a-0.001-1"))
    shutil.copytree(cell(tmp_path, "a-0.001-0"), cell(tmp_path, "a-0.001-2"), dirs_exist_ok=True)
    assert main(["report", "--root", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert f"warning: mine: {cell(tmp_path, 'a-0.001-1')}/result.json is not the result" in err
    assert "it is of another cell: train.seed is 0 there, and 1 in cell.json" in err
    assert f"{cell(tmp_path, 'a-0.001-2')}/cell.json is not the config of a cell" in err
    assert "it is that of a-0.001-0" in err
    with (tmp_path / "report" / "numbers.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["seeds"]) == ("partial", "1")


def test_an_edited_result_is_left_out_and_named(tmp_path, capsys):
    write_plan(tmp_path, [setting({"dataset": "aptos2019", "model": "m"}, cells("a"))])
    finish(cell(tmp_path, "a-0.001-0"), val=0.5)
    path = cell(tmp_path, "a-0.001-0") / "result.json"
    path.write_text(path.read_text().replace('"value": 0.5', '"value": 0.9'))
    assert main(["report", "--root", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert f"{path} is not the result of a run (its checksum differs); its cell counts as" in err


def test_whole_patients_are_drawn_where_the_predictions_name_them(tmp_path, monkeypatch):
    monkeypatch.setattr("fmi_jax.study.report.samples._TOLERANCE", np.inf)  # own predictions
    widths, units = {}, {}
    rows = np.repeat(np.arange(50), 4)  # four images of a patient, all alike
    for name, groups in (("a", None), ("b", [f"patient {row}" for row in rows])):
        finish(cell(tmp_path, f"{name}-0.001-0"))
        of_patients = Images(count=50, metric="quadratic_kappa").predictions(1.0, seed=0)
        assert of_patients.labels is not None
        dataclasses.replace(
            of_patients,
            ids=[str(i) for i in range(200)],
            labels=of_patients.labels[rows],
            probabilities=of_patients.probabilities[rows],
            groups=groups,
        ).write(cell(tmp_path, f"{name}-0.001-0") / "predictions.csv")
        found = number(tmp_path, cells(name))
        (sample,) = Sampler(Cache(tmp_path / "cache"), 500).samples([found])[0].values()
        widths[name] = sample.interval[1] - sample.interval[0]
        units[name] = sample.unit
    assert units == {"a": "image", "b": "group"}
    assert widths["b"] == pytest.approx(2 * widths["a"], rel=0.2)


def test_a_rate_at_an_end_of_its_grid_and_the_search_seed_are_told_at_the_number(tmp_path):
    rates = (1e-4, 1e-3, 1e-2)
    for rate, val in zip(rates, (0.1, 0.5, 0.9), strict=True):
        finish(cell(tmp_path, f"a-{rate:g}-0"), val=val)
    finish(cell(tmp_path, "a-0.01-1"), seed=1)
    found = number(tmp_path, cells("a", rates=rates, seeds=2))
    end = "rate 0.01 at an end of its grid (0.0001 to 0.01)"
    assert found.remarks == [end, "search seed 0 is among the n"]
    assert main(["report", "--root", str(tmp_path)]) == 0
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert all(remark in text for remark in found.remarks)
        assert "validation 0.700" in text
    finish(cell(tmp_path, "a-0.001-0"), val=0.95)
    assert number(tmp_path, cells("a", rates=rates)).remarks == []  # in the middle, one seed
    assert number(tmp_path, cells("a", rates=rates[1:2])).remarks == []  # no choice
    finish(cell(tmp_path, "b"), grid={1e-3: 2.0, 1e-2: 0.1}, protocol="probe_grid")
    (remark,) = number(tmp_path, single("b"), protocol="probe_grid").remarks
    assert remark == "rate 0.001 at an end of its grid (0.001 to 0.01)"


def test_of_the_rates_only_the_chosen_one_has_a_test_score_on_the_page(tmp_path):
    values = {}
    for rate, val, skill in ((1e-4, 0.9, 0.5), (1e-3, 0.1, 3.0)):
        result = finish(cell(tmp_path, f"a-{rate:g}-0"), val=val, skill=skill)
        values[rate] = f"{result.test.values['quadratic_kappa']:.3f}"
    number(tmp_path, cells("a", rates=(1e-4, 1e-3)))
    assert main(["report", "--root", str(tmp_path)]) == 0
    page = Page((tmp_path / "report/report.html").read_text()).text
    assert values[1e-4] in page
    assert values[1e-3] not in page
    assert "0.100" in page  # its validation score is shown


# Comparisons and provenance


@pytest.mark.parametrize(("seeds", "tested"), [(2, False), (3, True)])
def test_a_test_needs_three_seeds_of_what_draws_anything(tmp_path, seeds, tested):
    settings = []
    config = ExperimentConfig()
    config.data.data_dir = "my data"
    for name, skill in (("a", 4.0), ("b", 0.5)):
        for seed in range(seeds):
            made = {"skill": skill, "seed": seed, "config": as_dict(config)}
            finish(cell(tmp_path, f"{name}-0.001-{seed}"), **made)
        settings.append(setting({"dataset": "aptos2019", "model": name}, cells(name, seeds=seeds)))
    write_plan(tmp_path, settings, seeds=seeds, rates=[], changed={"train.epochs": "2"})
    (study,) = read_studies(tmp_path)
    numbers = numbers_of(study, Outcomes(tmp_path))
    samples, _ = Sampler(Cache(tmp_path / "cache"), 400).samples(numbers)
    assert len(compare(study, numbers, samples)) == tested
    assert untested(study, numbers, samples) == ([] if tested else numbers)
    table = make_table(study, numbers)
    found = more_seeds(study, table, untested(study, numbers, samples), tmp_path)
    if tested:
        assert found is None
    else:
        assert found is not None
        assert "2 numbers, a on aptos2019 (2 of 3) and b on aptos2019 (2 of 3)." in found.sentence
        command = f"fmi-jax study run mine --seeds 3 --root {tmp_path} --set train.epochs=2"
        assert found.command == f"{command} --data-dir 'my data'"
        parser = argparse.ArgumentParser()
        add_study_arguments(parser, argparse.ArgumentParser)
        values = parser.parse_args(shlex.split(found.command)[2:])
        assert (values.study, values.seeds, values.data_dir) == ("mine", 3, "my data")


def test_protocols_are_compared_where_nothing_else_differs(tmp_path):
    settings = []
    for protocol, skill in (("knn", 0.5), ("logistic", 4.0)):
        for model in ("a", "b"):
            name = f"{protocol}-{model}"
            finish(cell(tmp_path, name), steps=0, protocol=protocol, skill=skill, seed=3)
            at = {"dataset": "aptos2019", "protocol": protocol, "model": model}
            settings.append(setting(at, single(name), protocol))
    write_plan(tmp_path, settings, rows=["protocol", "model"])
    (study,) = read_studies(tmp_path)
    numbers = numbers_of(study, Outcomes(tmp_path))
    samples, _ = Sampler(Cache(tmp_path / "cache"), 400).samples(numbers)
    found = [(c.axis, c.title, [*c.numbers]) for c in compare(study, numbers, samples)]
    assert found == [
        ("model", "aptos2019, knn", ["a", "b"]),
        ("model", "aptos2019, logistic", ["a", "b"]),
        ("protocol", "aptos2019, a", ["knn", "logistic"]),
        ("protocol", "aptos2019, b", ["knn", "logistic"]),
    ]
    by_protocol = compare(study, numbers, samples)[2]
    assert by_protocol.pair("logistic", "knn").differ
    assert by_protocol.pair("logistic", "knn").difference > 0


@pytest.mark.parametrize(
    ("seeds", "words"),
    [((1, 1), "test images only"), ((2, 2), "test images and seeds"), ((1, 2), "where n > 1")],
)
def test_an_interval_says_what_it_covers(tmp_path, seeds, words):
    settings = []
    for name, count in zip("ab", seeds, strict=True):
        for seed in range(count):
            finish(cell(tmp_path, f"{name}-0.001-{seed}"), seed=seed)
        at = {"dataset": "aptos2019", "model": name}
        settings.append(setting(at, cells(name, seeds=count)))
    write_plan(tmp_path, settings)
    assert main(["report", "--root", str(tmp_path)]) == 0
    for name in ("report.html", "report.md"):
        text = " ".join((tmp_path / "report" / name).read_text().replace("\\", "").split())
        text = text.replace("&gt;", ">")
        assert text.count(words) >= 2  # below the table and under the figure
        assert ("over test images and seeds" in text) is (words == "test images and seeds")
        assert ("covers the choice of test images and not that of the seed" in text) is (1 in seeds)


def test_a_difference_from_a_published_number_has_the_uncertainty_of_both(tmp_path):
    for seed in range(3):
        finish(cell(tmp_path, f"a-0.001-{seed}"), seed=seed)
    published = {"mean": 0.5, "std": 0.2, "runs": 5, "metric": "quadratic_kappa", "source": "x"}
    widths = []
    for std in (None, 0.2):
        at = {"dataset": "aptos2019", "model": "a"}
        one = {**setting(at, cells("a", seeds=3)), "published": {**published, "std": std}}
        write_plan(tmp_path, [one])
        assert main(["report", "--root", str(tmp_path)]) == 0
        (row,) = csv.DictReader((tmp_path / "report/numbers.csv").read_text().splitlines())
        low, high = float(row["difference_low"]), float(row["difference_high"])
        assert low < float(row["mean"]) - 0.5 < high
        widths.append(high - low)
        if std is None:
            ours = float(row["ci_high"]) - float(row["ci_low"])
            assert high - low == pytest.approx(ours)
        for name in ("report.html", "report.md"):
            text = (tmp_path / "report" / name).read_text()
            assert f"{low:.3f} to {high:.3f}".replace("-", "\N{MINUS SIGN}") in text
            assert ("no spread was published" in text) is (std is None)
    # Of five runs with this deviation, the mean has Student's t of 4 degrees of freedom.
    t = 2 * scipy.stats.t.ppf(0.975, 4) * 0.2 / np.sqrt(5)
    assert widths[1] == pytest.approx(np.hypot(widths[0], t), rel=0.15)


def planned_models(root: Path, names, **changes) -> list[Number]:
    """Numbers of finished models in one place; `changes`: of a model's cell, by its name."""
    settings = []
    for name in names:
        finish(cell(root, f"{name}-0.001-0"), seed=1, **changes.get(name, {}))
        at = {"dataset": "aptos2019", "head": "linear", "model": name}
        settings.append(setting(at, cells(name)))
    write_plan(root, settings, rows=["head", "model"])
    return numbers_of(read_studies(root)[0], Outcomes(root))


def test_models_are_compared_on_the_very_same_images_alone(tmp_path):
    changes = {
        "a": {"steps": 0},  # nothing is drawn: one run is enough for a test
        "b": {"steps": 0, "skill": 0.5},
        "c": {"steps": 0, "images": Images(count=61)},
        "d": {"steps": 0, "skill": 4.0},
    }
    numbers = planned_models(tmp_path, "abcd", **changes)
    (study,) = read_studies(tmp_path)
    samples, _ = Sampler(Cache(tmp_path / "cache"), 400).samples(numbers)
    assert compared_coordinate(study) == "model"
    (found,) = compare(study, numbers, samples)  # c is alone on its images
    assert list(found.numbers) == ["a", "b", "d"]
    assert found.at == {"dataset": "aptos2019", "head": "linear"}
    assert found.axis == "model"
    assert found.against("d") == Sides(better=["a", "b"], worse=[], alike=[])
    assert found.against("b").worse == ["a", "d"]
    best, worst = numbers[3], numbers[1]
    pair = found.pair("d", "b")
    assert pair.difference == pytest.approx(best.mean - worst.mean)
    assert pair.differ
    assert pair.p <= pair.adjusted == pytest.approx(3 / 401)
    assert found.pair("b", "d").difference == -pair.difference


@pytest.mark.parametrize(
    ("names", "said"), [("ad", "better than a (p"), ("abd", "better than every other tested")]
)
def test_the_best_is_said_better_than_what_it_was_tested_against(tmp_path, names, said):
    changes = {name: {"steps": 0, "skill": 0.5} for name in names}
    changes["d"] = {"steps": 0, "skill": 4.0, "val": 0.9}
    planned_models(tmp_path, f"{names}e", **changes, e={"skill": 0.4})  # one seed: not tested
    assert main(["report", "--root", str(tmp_path)]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"it is {said}" in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_caption_holds_for_the_seeds_that_there_are(tmp_path, seeds):
    for seed in range(seeds):
        finish(cell(tmp_path, f"a-0.001-{seed}"), seed=seed)
    number(tmp_path, cells("a", seeds=seeds))
    assert main(["report", "--root", str(tmp_path)]) == 0
    for name in ("report.html", "report.md"):
        text = " ".join((tmp_path / "report" / name).read_text().split())
        assert ("Test metric of one run, and its 95% interval" in text) is (seeds == 1)
        assert ("Mean ± standard deviation over n seeds" in text) is (seeds > 1)
        assert ("The spread between few seeds" in text) is (seeds > 1)
        assert ("not that of the seed" in text) is (seeds == 1)
        assert "published" not in text.partition("highest test mean")[2][:60]


def test_two_that_are_alike_are_not_said_to_differ(tmp_path):
    changes = {name: {"steps": 0, "skill": 4.0} for name in "ab"}
    changes["a"]["val"] = 0.9
    planned_models(tmp_path, "ab", **changes)
    assert main(["report", "--root", str(tmp_path)]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "not told apart from b (p \N{GREATER-THAN OR EQUAL TO} 0.05)" in text


def test_what_makes_a_table_incomparable_is_warned_of(tmp_path):
    same = provenance_of(planned_models(tmp_path / "same", "ab"))
    assert not same.warnings
    other = {
        "versions": {"python": "3.11.7", "fmi_jax": "0.2.0", "jax": "0.10.2"},
        "device": {"kind": "H100", "count": 8},
        "backbone": {"weights_sha256": "cd" * 32},
    }
    numbers = planned_models(tmp_path / "other", "ab", b=other)
    with resealed(cell(tmp_path / "other", "b-0.001-0") / "result.json") as values:
        values["dataset"]["split_sha256"] = "another"
    (study,) = read_studies(tmp_path / "other")
    numbers = numbers_of(study, Outcomes(tmp_path / "other"))
    warnings = provenance_of(numbers).warnings
    for words in ("split of data set aptos2019", "weights in1k of tiny", "fmi_jax", "kinds of dev"):
        assert sum(words in warning for warning in warnings) == 1, words
    assert "0.1.0 (1 cell) and 0.2.0 (1 cell)" in " ".join(warnings)


def test_the_choices_are_those_of_the_cells_that_read_them(tmp_path):
    found = {made.choice.field: made.values for made in choices_of(planned_models(tmp_path, "ab"))}
    assert found["backbone.stem"] == {"sum": 2}
    assert found["backbone.readout"] == {"the backbone's own: cls of BLIP": 2}
    assert found["optim.schedule"] == {"constant": 2}
    assert not {"knn.k", "cka.estimator", "probe_grid.learning_rates"} & {*found}
    finish(cell(tmp_path, "c"), protocol="knn", steps=0)
    knn = number(tmp_path, single("c"), "knn")
    found = {made.choice.field: made.values for made in choices_of([knn])}
    assert found["knn.k"] == {"1, 5, 10, 20, 50, 100, 200": 1}
    assert "optim.schedule" not in found


def test_cost_counts_every_finished_cell_once(tmp_path):
    numbers = planned_models(tmp_path, "ab", b={"seconds": {"training": 30.0, "features": 1.0}})
    (study,) = read_studies(tmp_path)
    cost = cost_of(study, [*numbers, numbers[0]])
    assert cost.phases == ("training", "test", "features")
    assert [(row.names, row.total) for row in cost.rows] == [
        (("linear", "a"), 12.0),
        (("linear", "b"), 31.0),
    ]
    assert cost.everything.seconds == {"training": 40.0, "test": 2.0, "features": 1.0}
    assert (cost.everything.cells, cost.everything.to_best) == (2, 3.0)


# The published side, and what the report knows of the rest of the program


@pytest.mark.parametrize(
    ("name", "table"), [("table1", "huix2024_table1"), ("tableb", "huix2024_tableB")]
)
def test_the_published_side_is_that_of_the_file(name, table):
    study = PlannedStudy.from_json(make_plan(STUDIES[name]).planned().to_json())
    found = [s.published for s in study.settings if s.published is not None]
    rows = [row for row in published_rows() if row["table"] == table]
    expected = sorted((row["mean"], row["std"], row["runs"]) for row in rows)
    assert sorted((p.mean, p.std, p.runs) for p in found) == expected


def test_a_published_number_stands_in_its_place():
    study = PlannedStudy.from_json(make_plan(STUDIES["table1"]).planned().to_json())
    at = {"dataset": "aptos2019", "model": "dinov2", "head": "linear", "backbone": "frozen"}
    (found,) = [s.published for s in study.settings if s.at == at]
    assert found is not None
    assert (found.mean, found.std, found.metric) == (0.881, 0.002, "quadratic_kappa")


def test_a_row_gets_the_coordinates_without_which_two_numbers_would_share_a_place(tmp_path):
    settings = [
        setting({"dataset": "d", "model": "m", "shots": shots, "kind": "k"}, cells(shots))
        for shots in ("5", "10")
    ]
    write_plan(tmp_path, settings, rows=["model"])
    assert read_studies(tmp_path)[0].rows == ("model", "shots")


def test_what_is_written_down_twice_agrees():
    assert {choice.field for choice in CHOICES} <= {*field_names(ExperimentConfig)}


# What is written


DATASETS = ("aptos2019", "isic2019")
MODELS = ("one", "two", HOSTILE, "four")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A report of a small study: two data sets, two heads, four models, not all of it there."""
    root = tmp_path_factory.mktemp("root")
    settings = []
    for i, head in enumerate(("linear", "deit")):
        for j, model in enumerate(MODELS):
            for dataset in DATASETS:
                name = f"{dataset}-{head}-{j}"
                at = {"dataset": dataset, "head": head, "model": model}
                published = 0.5 + 0.1 * j if dataset == "aptos2019" else None
                settings.append(setting(at, cells(name, seeds=3), published=published))
                per_group = 2 if dataset == "isic2019" else 0
                images = Images(name=dataset, per_group=per_group, synthetic=bool(per_group))
                for seed in (0, 1, 2):
                    folder = cell(root, f"{name}-0.001-{seed}")
                    if (i, j, seed) == (1, 3, 1):
                        fail(folder, HOSTILE)
                    elif (i, j) != (1, 2):
                        fields = {"skill": 0.5 + 0.6 * j + seed / 9, "val": 0.9 - 0.1 * j}
                        notes = (HOSTILE, f"A note on {dataset}.")
                        finish(folder, images=images, seed=seed, notes=notes, **fields)
    settings.append(
        setting({"dataset": "aptos2019", "head": "none", "model": "x"}, [], why_not="so")
    )
    write_plan(root, settings, rows=["head", "model"], title=HOSTILE, seeds=3)
    assert main(["report", "--root", str(root)]) == 0
    return root / "report"


def test_the_page_needs_nothing_but_itself(written):
    text = (written / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not page.handlers
    assert "default-src 'none'" in text
    images = [load for load in page.loads if load.startswith("data:image/png;base64,")]
    assert len(images) == 4
    assert HOSTILE in page.text
    assert "<script" not in text


def test_every_link_leads_somewhere(written):
    page = Page((written / "report.html").read_text())
    links = [load for load in page.loads if not load.startswith(("data:", "#"))]
    assert len(links) > 30
    for link in links:
        if not link.endswith("log.txt"):  # made-up failures have none
            assert (written / urllib.parse.unquote(link)).is_file(), link
    text = (written / "report.md").read_text()
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(targets) > 10
    for target in targets:
        assert (written / urllib.parse.unquote(target)).is_file(), target


def test_what_is_not_there_is_said(written):
    page = " ".join(Page((written / "report.html").read_text()).text.split())
    assert "Of 17 settings: 12 done, 2 partial, 2 missing, 1 not runnable." in page
    assert "40 cells finished, 2 failed" in page
    assert "n = 2 of 3" in page
    assert "1 seed failed" in page
    assert "not runnableso" in page
    assert "Synthetic data: isic2019." in page
    text = (written / "report.md").read_text()
    assert "Synthetic data: isic2019" in text
    assert "missing: 1 cell not run" in text


def test_what_validation_chooses_is_marked_and_named_with_its_own_test_score(written):
    text = (written / "report.html").read_text()
    page = " ".join(Page(text).text.split())
    found = list(csv.DictReader((written / "numbers.csv").read_text().splitlines()))
    for dataset in DATASETS:
        column = [row for row in found if row["dataset"] == dataset and row["mean"]]
        chosen = max(column, key=lambda row: float(row["val_mean"]))
        best = max(column, key=lambda row: float(row["mean"]))
        assert chosen["model"] == "one"
        assert best["model"] == "four"
        value = f"test {float(chosen['mean']):.3f}"
        name = f"{chosen['head']} one"
        assert (
            f"Best on {dataset} by the validation quadratic weighted kappa: {name}, {value} ("
            in page
        )
        assert f"; 3 seeds; validation {float(chosen['val_mean']):.3f})" in page
        value = f"{float(best['mean']):.3f}"
        highest = f"Highest on the test images of {dataset}: {best['head']} four, {value}."
        assert f"{highest} Were all 7 rows equally good, the highest would still look 0." in page
    assert text.count('class="best"') == len(DATASETS)
    assert text.count("★</span>") == len(DATASETS)
    assert text.count("△</span>") == len(DATASETS)
    assert "published 0.800 ± 0.010 △" in page  # of two that were printed the first
    markdown = (written / "report.md").read_text()
    assert markdown.count("** ★ [") == len(DATASETS)
    assert markdown.count(" △ [") == len(DATASETS)


def test_a_row_that_lacks_seeds_is_not_tested_and_its_command_is_told(written):
    command = (
        f"fmi-jax study run mine --seeds 3 --root {written.parent} --rates 0.001"
        " --slice head=deit --slice model=four --retry-failed"
    )
    for name in ("report.html", "report.md"):
        text = (written / name).read_text()
        words = " ".join((Page(text).text if name.endswith("html") else text).split())
        assert "a test needs 3 seeds of whatever draws anything: 2 numbers, deit four on" in words
        assert command in words
        assert "beyond chance" not in words


def test_notes_stand_beside_their_data_set_and_are_not_folded_away(written):
    text = (written / "report.html").read_text()
    for dataset in DATASETS:
        heading = f"<h3>What to know of the numbers on {dataset}</h3>"
        _, after = text.split(heading)
        section = after.split("</ul>")[0]
        assert section.count(f"A note on {dataset}. (20 cells)") == 1
        assert text.count(f"A note on {dataset}.") == 1
        before = text.split(heading)[0]
        assert before.count("<details") == before.count("</details>")
    lines = (written / "report.md").read_text().splitlines()
    assert lines.count("* A note on aptos2019. (20 cells)") == 1


def test_numbers_csv_holds_what_the_cells_hold(written):
    root = written.parent
    study = read_studies(root)[0]
    rows = list(csv.DictReader((written / "numbers.csv").read_text().splitlines()))
    for row, expected in zip(rows, numbers_of(study, Outcomes(root)), strict=True):
        at = {name: row[name] for name in study.coordinates}
        assert at == expected.setting.at
        assert row["status"] == expected.status
        assert row["reason"] == expected.reason
        assert int(row["seeds"]) == len(expected.runs)
        if expected.runs:
            assert float(row["mean"]) == expected.mean
            assert float(row["ci_low"]) < float(row["mean"]) < float(row["ci_high"])
            assert 0 < float(row["ece"]) < 1
            assert float(row["learning_rate"]) == 1e-3
            assert float(row["seconds"]) == 12 * len(expected.runs)
            for path in row["results"].split(";"):
                assert json.loads((written / path).read_text())["best"]
        else:
            assert row["mean"] == row["ci_low"] == row["results"] == ""
        published = expected.setting.published
        assert row["published_mean"] == ("" if published is None else repr(published.mean))
    pairs = list(csv.DictReader((written / "comparisons.csv").read_text().splitlines()))
    # Four models under one head, two with enough seeds under the other; two models by head.
    assert [pair["compared"] for pair in pairs] == ["model"] * 2 * (6 + 1) + ["head"] * 2 * 2
    assert all(0 < float(row["p"]) <= float(row["p_adjusted"]) <= 1 for row in pairs)


def test_every_figure_is_there_for_the_page_and_for_print(written):
    names = {"dots", "published", "significance", "reliability"}
    files = {path.name for path in (written / "figures").iterdir()}
    assert files == {f"mine-{name}.{kind}" for name in names for kind in ("png", "pdf")}
    for name in names:
        assert (written / f"figures/mine-{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not list(written.rglob("*.tmp"))


def test_a_second_report_measures_nothing_again(written, monkeypatch, capsys):
    before = (written / "numbers.csv").read_bytes()

    def again(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(condense, "values", again)
    monkeypatch.setattr("fmi_jax.tasks.logits.read_predictions", again)
    monkeypatch.setattr("fmi_jax.study.report.drawing.png", lambda draw: lambda: b"\x89PNG" * 9)
    out = written.parent / "again"
    out.mkdir()
    os.symlink(written / "cache", out / "cache")
    assert main(["report", "mine", "--root", str(written.parent), "--out", str(out)]) == 0
    assert (out / "numbers.csv").read_bytes() == before
    assert str(out / "report.html") in capsys.readouterr().out


# What a user gets wrong, and what the command does without


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no study: expected the --root"):
        read_studies(tmp_path)
    write_plan(tmp_path, [], name="table1")
    with pytest.raises(UsageError, match="Did you mean 'table1'"):
        read_studies(tmp_path, ["tabel1"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json is not the plan of a study"):
        read_studies(tmp_path)
    assert [study.name for study in read_studies(tmp_path, ["table1"])] == ["table1"]


def test_a_study_without_any_result_has_a_report(tmp_path, capsys):
    write_plan(tmp_path, [setting({"dataset": "d", "model": "m"}, cells("a"))])
    assert main(["report", "--root", str(tmp_path)]) == 0
    assert "Of 1 setting: 1 missing. 0 cells finished." in capsys.readouterr().out
    assert "1 cell not run" in (tmp_path / "report/report.html").read_text()


def test_a_damaged_result_is_told_on_the_console(tmp_path, capsys):
    write_plan(tmp_path, [setting({"dataset": "d", "model": "m"}, cells("a"))])
    path = cell(tmp_path, "a-0.001-0") / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert main(["report", "--root", str(tmp_path)]) == 0
    assert f"warning: mine: {path} is not the result of a run" in capsys.readouterr().err


def test_markdown_shows_names_as_they_are():
    assert escaped("a|b\n*c* <d>") == r"a\|b \*c\* \<d\>"


def test_the_report_imports_no_jax(tmp_path):
    finish(cell(tmp_path, "a-0.001-0"))
    write_plan(tmp_path, [setting({"dataset": "aptos2019", "model": "m"}, cells("a"))])
    program = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("jax", "jaxlib", "flax"), name
sys.meta_path.insert(0, Refuse())
from fmi_jax.cli import main
sys.exit(main(["report", "--root", sys.argv[1]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report/report.html").is_file()


def test_a_changed_prediction_is_measured_anew(tmp_path):
    finish(cell(tmp_path, "a-0.001-0"), skill=1.0)
    sampler = Sampler(Cache(tmp_path / "cache"), 50)
    first = next(iter(sampler.samples([number(tmp_path, cells("a"))])[0].values()))
    finish(cell(tmp_path, "a-0.001-0"), skill=3.0)
    second = next(iter(sampler.samples([number(tmp_path, cells("a"))])[0].values()))
    assert not np.array_equal(first.values, second.values)
    assert dataclasses.replace(first, images="").images != second.images == first.images
