"""HTML page of one or several studies, self-contained in one file."""

import functools
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import jinja2

from fmi_jax.drawing.style import short
from fmi_jax.drawing.template import duration, percent, png_uri
from fmi_jax.study.report import wording
from fmi_jax.study.report.comparisons import LEVEL
from fmi_jax.study.report.numbers import Status
from fmi_jax.study.report.samples import RESAMPLES, bounds
from fmi_jax.study.report.study_report import StudyReport

FILE_NAME = "report.html"

_SHOWN_PAIRS = 120  # most pairs in a table; comparisons.csv has all


def page(reports: Sequence[StudyReport], out: Path) -> bytes:
    """Render the page; names are escaped, links are relative to the folder `out`."""
    template = _environment().get_template("page.html")
    return template.render(
        reports=reports,
        link=lambda path: link(path, out),
        status=Status,
        resamples=RESAMPLES,
        level=LEVEL,
        shown_pairs=_SHOWN_PAIRS,
    ).encode()


def link(path: Path, out: Path) -> str:
    """Relative link to a file as seen from `out`."""
    return urllib.parse.quote(Path(os.path.relpath(path, out)).as_posix())


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PrefixLoader({"drawing": jinja2.PackageLoader("fmi_jax", "drawing")}),
                jinja2.PackageLoader("fmi_jax.study", "report"),
            ]
        ),
        autoescape=True,  # names of classes, models and data sets come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "signed": wording.signed,
        "between": wording.between,
        "p_value": wording.p_value,
        "sentence": wording.sentence,
        "duration": duration,
        "percent": percent,
        "short": short,
        "png_uri": png_uri,
    }
    environment.globals |= {"spread": wording.spread, "bounds": bounds, "count": wording.count}
    return environment
