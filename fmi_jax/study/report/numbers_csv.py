"""CSV table `numbers.csv`: every setting of every study as a row."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from fmi_jax import atomic
from fmi_jax.study.planned import DATASET
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import bounds
from fmi_jax.study.report.study_report import StudyReport


def numbers_csv(reports: Sequence[StudyReport], out: Path) -> bytes:
    """Write the table, in UTF-8 (RFC 4180).

    Empty cells are unknown; "nan" is a metric that the images do not define. `results` has the
    paths of the `result.json` files behind a number, relative to `out`, separated by ";".

    Args:
      reports: reports of the studies.
      out: folder that the table will be in.
    """
    names = (name for report in reports for name in report.study.coordinates)
    coordinates = list(dict.fromkeys([DATASET, *names]))
    rows = [
        [
            *("study", *coordinates, "metric", "mean", "std", "seeds", "ci_low", "ci_high"),
            *("learning_rate", "published_metric", "published_mean", "published_std"),
            *("published_runs", "status", "reason", "seconds", "ece", "results"),
        ]
    ]
    for report in reports:
        for number in report.numbers:
            where = [number.setting.at.get(name, "") for name in coordinates]
            rows.append([report.study.name, *where, *_values(report, number, out)])
    return atomic.csv_bytes(rows)


def _values(report: StudyReport, number: Number, out: Path) -> list[str]:
    sample = report.samples.get(number)
    published = number.setting.published
    metric, mean = "", ""
    if number.runs:
        metric, mean = number.metric, repr(number.mean)
    elif (headline := number.headline) is not None and headline.value is not None:
        metric, mean = headline.name, repr(headline.value)
    rate = number.learning_rate
    printed = ("", "", "", "")
    if published is not None:
        std = "" if published.std is None else repr(published.std)
        printed = (published.metric, repr(published.mean), std, str(published.runs))
    return [
        metric,
        mean,
        _or_empty(number.std),
        str(len(number.runs)),
        *map(_or_empty, bounds(sample)),
        "" if rate is None else repr(rate),
        *printed,
        str(number.status),
        number.reason,
        repr(round(number.seconds, 3)),
        "" if sample is None or math.isnan(sample.ece) else repr(sample.ece),
        ";".join(os.path.relpath(outcome.written, out) for outcome in number.used),
    ]


def _or_empty(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
