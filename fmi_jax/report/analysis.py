"""The report of an analysis: one HTML page with its figures, its table and how to repeat it."""

import json
from pathlib import Path

from fmi_jax import atomic
from fmi_jax.artifacts.result import FILE_NAME as RESULT
from fmi_jax.errors import UserError
from fmi_jax.report.template import png_uri, render

FILE_NAME = "report.html"


def write_analysis_report(workdir: Path) -> Path:
    """Write `report.html` from `result.json` and the figures that it names; returns its path.

    Raises:
      UserError: `workdir` holds no result of an analysis, or a figure is missing.
    """
    try:
        found = json.loads((workdir / RESULT).read_text(encoding="utf-8"))
        figures = [
            (png_uri((workdir / name).read_bytes()), caption)
            for name, caption in found["figures"].items()
        ]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{workdir} holds no result of an analysis ({type(error).__name__}: {error});"
            " expected the folder of a finished run of one."
        ) from error
    path = workdir / FILE_NAME
    atomic.write_bytes(path, render("analysis.html", r=found, figures=figures))
    return path
