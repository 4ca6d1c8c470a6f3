"""Writes the files of a report, each atomically."""

from collections.abc import Sequence
from pathlib import Path

from fmi_jax import atomic
from fmi_jax.study.planned import read_studies
from fmi_jax.study.report.cache import Cache
from fmi_jax.study.report.comparisons import comparisons_csv
from fmi_jax.study.report.markdown import markdown
from fmi_jax.study.report.numbers_csv import numbers_csv
from fmi_jax.study.report.outcomes import Outcomes
from fmi_jax.study.report.page import page
from fmi_jax.study.report.samples import Sampler
from fmi_jax.study.report.study_report import StudyReport, make_report


def write_reports(root: Path, names: Sequence[str], out: Path) -> list[StudyReport]:
    """Make reports from the cells as they are now, and write them into a folder.

    Writes `report.html`, `report.md`, `numbers.csv`, `comparisons.csv`, and every figure as PNG and
    PDF in `figures`. Slow computations are cached in `cache`, which may be deleted.

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
    compared = {report.study.name: report.comparisons for report in reports}
    atomic.write_bytes(out / "comparisons.csv", comparisons_csv(compared))
    atomic.write_bytes(out / "numbers.csv", numbers_csv(reports, out))
    atomic.write_bytes(out / "report.md", markdown(reports, out))
    atomic.write_bytes(out / "report.html", page(reports, out))
    return reports
