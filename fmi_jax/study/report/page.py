"""HTML page of one or several studies, self-contained in one file."""

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from fmi_jax.drawing.style import short
from fmi_jax.drawing.template import png_uri, render
from fmi_jax.study.report import wording
from fmi_jax.study.report.comparisons import LEVEL
from fmi_jax.study.report.numbers import Status
from fmi_jax.study.report.samples import RESAMPLES, bounds
from fmi_jax.study.report.study_report import StudyReport

_SHOWN_PAIRS = 120  # most pairs in a table; comparisons.csv has all


def page(reports: Sequence[StudyReport], out: Path) -> bytes:
    """Render the page; names are escaped, links are relative to the folder `out`."""
    return render(
        "fmi_jax.study.report",
        "page.html",
        reports=reports,
        link=lambda path: link(path, out),
        bounds=bounds,
        short=short,
        png_uri=png_uri,
        wording=wording,
        status=Status,
        resamples=RESAMPLES,
        level=LEVEL,
        shown_pairs=_SHOWN_PAIRS,
    )


def link(path: Path, out: Path) -> str:
    """Relative link to a file as seen from `out`."""
    return urllib.parse.quote(Path(os.path.relpath(path, out)).as_posix())
