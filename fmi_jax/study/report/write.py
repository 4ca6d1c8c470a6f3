"""Writes the files of a report, each atomically."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmi_jax import atomic
from fmi_jax.drawing import wording
from fmi_jax.drawing.style import short
from fmi_jax.drawing.template import png_uri, render
from fmi_jax.study.planned import DATASET, read_studies
from fmi_jax.study.report.comparisons import LEVEL, comparisons_csv
from fmi_jax.study.report.markdown import markdown
from fmi_jax.study.report.numbers import NEAR, Number, Status
from fmi_jax.study.report.outcomes import Outcomes
from fmi_jax.study.report.reference import against_csv
from fmi_jax.study.report.samples import RESAMPLES, Cache, Sampler, bounds
from fmi_jax.study.report.study_report import StudyReport, make_report


def write_reports(root: Path, names: Sequence[str], out: Path) -> list[StudyReport]:
    """Make reports from the cells as they are now, and write them into a folder.

    Writes `report.html`, `report.md`, `numbers.csv`, `comparisons.csv`, `against.csv` where a study
    has a reference, and every figure as PNG and PDF in `figures`. Slow computations are cached in
    `cache`, which may be deleted.

    Args:
      root: folder of the studies.
      names: names of the studies; empty: all.
      out: folder of the report; created if it is missing.

    Raises:
      UserError: there is no such study, or its plan is damaged. Damaged results are named in the
        report.
    """
    studies, outcomes = read_studies(root, names), Outcomes(root)
    sampler = Sampler(Cache(out / "cache"))
    reports = [make_report(study, outcomes, sampler) for study in studies]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for report in reports:
        for drawn in report.all_figures:
            name = f"figures/{report.study.name}-{drawn.name}"
            atomic.write_bytes(out / f"{name}.png", drawn.png)
            atomic.write_bytes(out / f"{name}.pdf", drawn.pdf)
    atomic.write_bytes(
        out / "comparisons.csv", comparisons_csv({r.study.name: r.comparisons for r in reports})
    )
    if against := {r.study.name: r.against for r in reports if r.study.reference}:
        atomic.write_bytes(out / "against.csv", against_csv(against))
    atomic.write_bytes(out / "numbers.csv", _numbers_csv(reports, out))
    atomic.write_bytes(out / "report.md", markdown(reports, out))
    atomic.write_bytes(out / "report.html", _page(reports, out))
    return reports


def _page(reports: Sequence[StudyReport], out: Path) -> bytes:
    """Render the page, self-contained in one file; links are relative to the folder `out`."""
    return render(
        "fmi_jax.study.report",
        "page.html",
        reports=reports,
        link=lambda path: wording.link(path, out),
        bounds=bounds,
        short=short,
        png_uri=png_uri,
        wording=wording,
        status=Status,
        resamples=RESAMPLES,
        level=LEVEL,
        near=NEAR,
        shown_pairs=120,  # in a table; comparisons.csv has all
    )


def _numbers_csv(reports: Sequence[StudyReport], out: Path) -> bytes:
    """Make a row of every setting of every study, as CSV in UTF-8 (RFC 4180).

    Empty cells are unknown; "nan" is a metric that the images do not define. `results` has the
    paths of the `result.json` files behind a number, relative to `out`, separated by ";".

    Args:
      reports: reports of the studies.
      out: folder that the table will be in.
    """
    coordinates = list(
        dict.fromkeys([DATASET, *(name for r in reports for name in r.study.coordinates)])
    )
    rows = [
        [
            *("study", *coordinates, "metric", "val_mean", "mean", "median", "std", "seeds"),
            *("ci_low", "ci_high"),
            *("learning_rate", "published_metric", "published_mean", "published_std"),
            *(
                "published_runs",
                "published_digitised",
                "difference_low",
                "difference_high",
                "status",
                "reason",
                "seconds",
                "ece",
                "steps_to_95_percent",
                "steps_to_best",
                "results",
            ),
        ]
    ]
    rows += [
        [
            report.study.name,
            *(number.setting.at.get(name, "") for name in coordinates),
            *_row(report, number, out),
        ]
        for report in reports
        for number in report.numbers
    ]
    return atomic.csv_bytes(rows)


def _row(report: StudyReport, number: Number, out: Path) -> list[str]:
    sample = report.samples.get(number)
    published = number.setting.published
    metric, val, mean = "", "", ""
    if number.runs:
        metric, val, mean = number.metric, repr(number.val), repr(number.mean)
    elif (headline := number.headline) is not None and headline.value is not None:
        metric, mean = headline.name, repr(headline.value)
    printed = ("",) * 5
    if published is not None:
        std = _or_empty(published.std)
        printed = (
            *(published.metric, repr(published.mean), std, str(published.runs)),
            _or_empty(published.digitised),
        )
    return [
        metric,
        val,
        mean,
        repr(float(np.median(number.values))) if number.runs else "",
        _or_empty(number.std),
        str(len(number.runs)),
        *map(_or_empty, bounds(sample)),
        _or_empty(number.learning_rate),
        *printed,
        *map(_or_empty, report.differences.get(number, (math.nan, math.nan))),
        str(number.status),
        number.reason,
        repr(round(number.seconds, 3)),
        _or_empty(None if sample is None else sample.ece),
        _or_empty(number.near_steps),
        _or_empty(number.best_steps),
        ";".join(os.path.relpath(outcome.written, out) for outcome in number.used),
    ]


def _or_empty(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)
