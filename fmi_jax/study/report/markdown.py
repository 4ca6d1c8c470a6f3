"""Report in Markdown, with its figures as files beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from fmi_jax.drawing.template import duration
from fmi_jax.drawing.wording import (
    between,
    count,
    link,
    number,
    p_value,
    sentence,
    signed,
    spread,
)
from fmi_jax.study.report.comparisons import LEVEL, Comparison
from fmi_jax.study.report.numbers import Number, Status
from fmi_jax.study.report.samples import bounds
from fmi_jax.study.report.study_report import StudyReport
from fmi_jax.study.report.table import Cell


def markdown(reports: Sequence[StudyReport], out: Path) -> bytes:
    """Write the report as text; names are escaped, links are relative to the folder `out`."""
    return "\n\n".join(part for r in reports for part in _study(r, out)).encode() + b"\n"


def escaped(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", " ".join(text.split()))


def _study(r: StudyReport, out: Path) -> list[str]:
    parts = [f"# {escaped(r.study.title)}"]
    if r.synthetic:
        parts.append(
            f"> **Synthetic data: {escaped(', '.join(r.synthetic))}.** These images were drawn by a"
            " program. The numbers say nothing about patients."
        )
    parts += [f"> **Warning.** {escaped(warning)}" for warning in r.provenance.warnings]
    parts += [f"> **Cannot be used.** {escaped(sentence(problem))}" for problem in r.problems]
    if r.study.note:
        parts.append(escaped(r.study.note))
    parts += ["## Summary", escaped(r.standing)]
    parts.append("\n".join(f"* {escaped(finding)}" for finding in r.findings))
    if r.table.rows:
        parts += ["## Results", _results(r, out)]
    if r.samples:
        parts.append(escaped(" ".join(r.reading)))
    for dataset, notes in r.provenance.notes.items():
        parts.append(f"### What to know of the numbers on {escaped(dataset)}")
        parts.append("\n".join(f"* {escaped(n)} ({count(k, 'cell')})" for n, k in notes.items()))
    parts += [
        f"![{escaped(drawn.caption)}](figures/{r.study.name}-{drawn.name}.png)"
        for drawn in r.all_figures
    ]
    for axis, comparisons in r.axes.items():
        parts += [f"## Which {escaped(axis)} differs", _comparisons(comparisons)]
    if r.against:
        parts += [f"## Against {escaped(r.reference)}", _against(r)]
    if r.more_seeds is not None:
        parts += [escaped(r.more_seeds.sentence), f"```sh\n{r.more_seeds.command}\n```"]
    if r.agreements:
        parts += ["## Order of the rows beside the published one", _agreements(r)]
    if r.cost.cells:
        parts += ["## What it took", _cost(r)]
        parts += ["## Where it comes from", _datasets(r), _choices(r)]
    return [part for part in parts if part]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table from cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _results(r: StudyReport, out: Path) -> str:
    head = [escaped(name) for name in r.table.coordinates]
    for dataset, metric in r.table.columns.items():
        head.append(escaped(f"{dataset} ({metric})"))
        if r.table.is_published:
            head += ["published", "difference"]
    rows = []
    for row in r.table.rows:
        cells = [escaped(name) for name in row.names]
        for cell in row.cells:
            cells.append("" if cell is None else _ours(r, cell, out))
            if r.table.is_published:
                cells += ["", ""] if cell is None else [_theirs(cell), _difference(r, cell.number)]
        rows.append(cells)
    return _rows(head, rows)


def _ours(r: StudyReport, cell: Cell, out: Path) -> str:
    n = cell.number
    if n.analysis is not None:
        return f"[{n.summary}]({link(n.analysis.written, out)})"
    if not n.runs:
        return f"{n.status}: {escaped(n.reason)}" if n.reason else str(n.status)
    text = f"[{spread(n.centre, n.std)}]({link(n.runs[0].outcome.written, out)})"
    text = f"**{text}** ★" if cell.chosen else text
    text += " △" if cell.best else ""
    inside = between(bounds(r.samples.get(n)))
    seeds = f"n = {len(n.runs)}" + (f" of {n.expected}" if len(n.runs) < n.expected else "")
    seeds += "".join(f"; {escaped(remark)}" for remark in n.remarks)
    partial = f"; partial: {escaped(n.reason)}" if n.status is Status.PARTIAL else ""
    shown = f"[{inside}] " if inside else ""
    return f"{text} {shown}(validation {number(n.val)}; {seeds}{partial})"


def _theirs(cell: Cell) -> str:
    published = cell.number.setting.published
    if published is None:
        return ""
    text = spread(published.mean, published.std)
    if published.digitised is not None:
        text += f" (digitised, ±{published.digitised:g})"
    return f"{text} △" if cell.published_best else text


def _difference(r: StudyReport, n: Number) -> str:
    if n.difference != n.difference:
        return ""
    inside = between(r.differences[n]) if n in r.differences else ""
    return signed(n.difference) + (f" [{inside}]" if inside else "")


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    """List the pairs that differ; `comparisons.csv` has all pairs."""
    pairs = [(c, pair) for c in comparisons for pair in c.pairs]
    differing = [
        [
            escaped(c.title),
            f"{escaped(pair.first)} {signed(pair.difference)} {escaped(pair.second)}",
            p_value(pair.adjusted),
        ]
        for c, pair in pairs
        if pair.differ
    ]
    text = (
        f"{len(differing)} of {count(len(pairs), 'pair')} differ with p < {LEVEL:g} (bootstrap"
        " test on the same resamples, after Holm over the pairs of each of"
        f" {count(len(comparisons), 'comparison')}); all pairs:"
        " comparisons.csv."
    )
    return text + ("\n\n" + _rows(["where", "pair", "adjusted"], differing) if differing else "")


def _against(r: StudyReport) -> str:
    head = ["where", "row", "difference", "runs", "t-test", "adjusted", "paired", "adjusted"]
    rows = [
        [
            *map(escaped, (one.title, one.name)),
            *(signed(one.difference), one.runs),
            *map(p_value, (one.t_p, one.t_adjusted, one.paired_p, one.paired_adjusted)),
        ]
        for one in r.against
    ]
    text = (
        "t-test: Student's, of two independent samples of runs with equal variances, as published;"
        " it takes the test images as given. Paired: bootstrap test on the same resamples of the"
        " images and the seeds. Both adjusted by Holm over the rows of one place; all: against.csv."
    )
    return f"{text}\n\n{_rows(head, rows)}"


def _agreements(r: StudyReport) -> str:
    rows = []
    for a in r.agreements:
        ranks = ["too few models" if a.too_few else "all equal on one side", ""]
        if a.ranks is not None:
            ranks = [
                f"{number(a.ranks.tau, 2)} ({p_value(a.ranks.tau_p)})",
                f"{number(a.ranks.rho, 2)} ({p_value(a.ranks.rho_p)})",
            ]
        mean = f"{signed(a.mean_difference)} [{between(a.interval)}]"
        rows.append([escaped(a.dataset), str(a.n), mean, str(a.apart), str(a.models), *ranks])
    head = [
        "data set",
        "rows",
        "mean difference [95% interval]",
        "intervals without zero",
        "models",
    ]
    text = "Rank correlations are between the means over the rows of each model, since rows of one"
    table = _rows([*head, "Kendall's tau-b", "Spearman's rho"], rows)
    return f"{table}\n\n{text} model are not independent."


def _cost(r: StudyReport) -> str:
    head = [*map(escaped, r.table.coordinates), "cells", *map(escaped, r.cost.phases), "total"]
    rows = [
        [
            *map(escaped, row.names),
            str(row.cells),
            *(duration(row.seconds[phase]) for phase in r.cost.phases),
            duration(row.total),
        ]
        for row in r.cost.rows
    ]
    return _rows(head, rows) + f"\n\nIn all {duration(r.cost.everything.total)}."


def _datasets(r: StudyReport) -> str:
    rows = [
        [escaped(d.name), escaped(d.split), escaped(d.counts), escaped(d.sha256), str(n)]
        for d, n in r.provenance.datasets.items()
    ]
    versions = "; ".join(
        f"{escaped(name)} {escaped(', '.join(of))}" for name, of in r.provenance.versions.items()
    )
    devices = escaped(", ".join(r.provenance.devices))
    head = ["data set", "split", "images", "checksum of the split", "cells"]
    remarks = "".join(
        f"\n\nWorth knowing about {escaped(name)}: {escaped(' '.join(found))}"
        for name, found in r.provenance.remarks.items()
    )
    return _rows(head, rows) + remarks + f"\n\nVersions: {versions}. Devices: {devices}."


def _choices(r: StudyReport) -> str:
    rows = [
        [
            escaped(made.choice.finding),
            f"`{made.choice.field}`",
            escaped("; ".join(made.values)),
            escaped(made.choice.theirs),
        ]
        for made in r.choices
    ]
    return "Choices where the study's code is wrong or unclear (docs/protocols.md):\n\n" + _rows(
        ["finding", "field", "here", "in the study's code"], rows
    )
