"""The command `fmi-jax report`: tables, figures and statistics of studies, finished or not."""

import argparse
import sys
from pathlib import Path

from fmi_jax.arguments import place
from fmi_jax.paths import check_output_folder

_EXAMPLES = """\
examples:
  fmi-jax report
  fmi-jax report table1 table2 --root studies --out reports/tables

It may be given at any time, while cells are running too: what is not there yet is shown as missing.
"""


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fmi-jax report` to a parser."""
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "studies",
        nargs="*",
        metavar="STUDY",
        help="names, as of <root>/<study>.json (default: all that are there)",
    )
    parser.add_argument(
        "--root",
        type=place,
        default=Path("studies"),
        help="that of `fmi-jax study run` (default: %(default)s)",
    )
    parser.add_argument("--out", type=place, help="folder of the report (default: ROOT/report)")


def run_report(values: argparse.Namespace) -> None:
    """Write the report and print where it is.

    Raises:
      UserError: there is no such study.
    """
    from fmi_jax.study.report.write import write_reports

    out = values.root / "report" if values.out is None else values.out
    check_output_folder(out)
    reports = write_reports(values.root, values.studies, out)
    for report in reports:
        print(f"{report.study.name}: {report.standing}")
        for problem in (*report.provenance.warnings, *report.problems):
            print(f"warning: {report.study.name}: {problem}", file=sys.stderr)
    figures = sum(len(report.all_figures) for report in reports)
    print(
        f"{out / 'report.html'}\n{out / 'report.md'}\n"
        f"{out / 'numbers.csv'}\n{out / 'comparisons.csv'}\n"
        f"{out / 'figures'}: {figures} figures, as PNG and as PDF"
    )
