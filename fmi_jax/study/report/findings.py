"""Findings: sentences about the numbers of a study."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fmi_jax.drawing.wording import between, count, listed, number, signed
from fmi_jax.study.report.comparisons import LEVEL, Agreement, Comparison
from fmi_jax.study.report.numbers import Number, Status
from fmi_jax.study.report.relative import Gain, Iterations, Latency
from fmi_jax.study.report.samples import Sample, bounds
from fmi_jax.study.report.statistics import optimism
from fmi_jax.study.report.table import Table
from fmi_jax.study.state import State
from fmi_jax.tasks.registry import describe


def standing(numbers: Sequence[Number]) -> str:
    """Say how much of a study is done."""
    states = [str(n.status) for n in numbers]
    parts = [f"{states.count(status)} {status}" for status in Status if status in states]
    outcomes = {o.id: o for n in numbers for o in (*n.outcomes, *n.followed)}.values()
    done = sum(outcome.state is State.DONE for outcome in outcomes)
    failed = sum(outcome.state is State.FAILED for outcome in outcomes)
    cells = f"{count(done, 'cell')} finished" + (f", {failed} failed" if failed else "")
    return f"Of {count(len(numbers), 'setting')}: {', '.join(parts)}. {cells}."


def best_of_columns(
    table: Table, samples: Mapping[Number, Sample], comparisons: Sequence[Comparison]
) -> list[str]:
    """Name the row that validation chooses on each data set, with its test score and its tests
    against the others, and the row that is highest on test."""
    return [
        sentence
        for dataset in table.columns
        for cell in table.column(dataset)
        if cell.chosen
        for sentence in (
            _chosen(table, dataset, cell.number, samples, comparisons),
            *_highest(table, dataset, cell.number, samples),
        )
    ]


def _chosen(
    table: Table,
    dataset: str,
    chosen: Number,
    samples: Mapping[Number, Sample],
    comparisons: Sequence[Comparison],
) -> str:
    details = [
        between(bounds(samples.get(chosen))),
        count(len(chosen.runs), "seed"),
        f"validation {number(chosen.val)}",
    ]
    text = (
        f"Best on {dataset} by the validation {_within(table.columns[dataset])}:"
        f" {table.title(chosen)}, test {number(chosen.mean)} ({'; '.join(filter(None, details))})"
    )
    cells = [cell for cell in table.column(dataset) if cell.number.setting.shows == "score"]
    if missing := sum(not cell.number.runs for cell in cells):
        text += f", of the {len(cells) - missing} of {len(cells)} rows that have a number"
    for comparison in comparisons:
        if chosen in comparison.numbers.values():
            text += f". {_against(comparison, chosen, table.coordinates, comparisons)}"
    return text + "."


def _highest(
    table: Table, dataset: str, chosen: Number, samples: Mapping[Number, Sample]
) -> Iterator[str]:
    """Say which row is highest on test, and how much of that the choice alone explains."""
    cells = table.column(dataset)
    highest = next((cell.number for cell in cells if cell.best), None)
    valued = [cell.number for cell in cells if cell.number.runs]
    if highest is not None and len(valued) > 1:
        same = "the same row" if highest is chosen else f"{table.title(highest)},"
        text = f"Highest on the test images of {dataset}: {same} {number(highest.mean)}"
        sampled = [samples[n] for n in valued if n in samples]
        if len(sampled) > 1 and len({sample.images for sample in sampled}) == 1:
            sign = 1 if describe(highest.metric).higher_is_better else -1
            excess = optimism(np.stack([sign * sample.values for sample in sampled]))
            error = float(np.median([np.nanstd(sample.values) for sample in sampled]))
            text += (
                f". Were all {len(sampled)} rows equally good, the highest would still look"
                f" {number(excess)} better than it is (standard error of a row: {number(error)}),"
                " so a row is not to be chosen by its test score"
            )
        yield text + "."
    printed = next((cell.number for cell in cells if cell.published_best), None)
    if printed is not None and printed.setting.published is not None:
        value = number(printed.setting.published.mean)
        yield f"Highest published test score on {dataset}: {table.title(printed)}, {value}."


def _against(
    comparison: Comparison,
    chosen: Number,
    coordinates: Sequence[str],
    comparisons: Sequence[Comparison],
) -> str:
    name = next(name for name, n in comparison.numbers.items() if n is chosen)
    varying = {
        coordinate
        for coordinate in coordinates
        if len({other.at.get(coordinate) for other in comparisons}) > 1
    }
    others = [value for axis, value in comparison.at.items() if axis in varying and value]
    where = f" ({', '.join(others)})" if others else ""
    sides = comparison.against(name)
    below, above = f"p < {LEVEL:g} after Holm", f"p \N{GREATER-THAN OR EQUAL TO} {LEVEL:g}"
    words = (
        ("better than", "every", below),
        ("worse than", "every", below),
        ("not told apart from", "any", above),
    )
    others_tested = len(comparison.numbers) - 1
    parts = [
        f"{text} {f'{each} other tested' if len(side) == others_tested > 1 else listed(side)} ({p})"
        for (text, each, p), side in zip(words, sides, strict=True)
        if side
    ]
    return f"By {comparison.axis}{where} it is {'; '.join(parts)}"


def _within(label: str) -> str:
    """Write a metric as inside a sentence: "quadratic weighted kappa", but "AUROC"."""
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


def at_an_end(numbers: Sequence[Number]) -> list[str]:
    """Say for how many settings the chosen learning rate is the lowest or highest of the search.

    A run that tries all of them by itself says so in its own notes.
    """
    ends, searches = 0, 0
    for n in numbers:
        tried = {cell.learning_rate for cell in n.setting.cells} - {None}
        if n.learning_rate in tried and len(tried) > 1:
            searches += 1
            ends += n.learning_rate in (min(tried), max(tried))  # type: ignore[type-var]
    if not ends:
        return []
    return [
        f"Of {count(searches, 'chosen learning rate')}, {ends} {'is' if ends == 1 else 'are'} the"
        " lowest or the highest that was tried: others may be better."
    ]


def beside_published(found: Sequence[Agreement]) -> list[str]:
    """Say how far the numbers are from the published ones."""
    if not found:
        return []
    n = sum(agreement.n for agreement in found)
    mean = sum(agreement.mean_difference * agreement.n for agreement in found) / n
    apart = sum(agreement.apart for agreement in found)
    farthest = max(found, key=lambda agreement: abs(agreement.largest))
    return [
        f"Of {count(n, 'number')} that {'has' if n == 1 else 'have'} a published one, the mean"
        f" difference is {signed(mean)}, the largest {signed(farthest.largest)}"
        f" ({farthest.dataset}); {apart} of the 95% intervals of these differences"
        f" {'leaves' if apart == 1 else 'leave'} zero out."
    ]


def of_gains(found: Sequence[Gain], baseline: str) -> list[str]:
    """Say which row gains most over the baseline, here and as published."""
    texts = []
    if ours := [gain for gain in found if not math.isnan(gain.ours)]:
        best = max(ours, key=lambda gain: gain.ours)
        details = [between(best.interval, 1), count(len(best.datasets), "data set")]
        texts.append(
            f"Largest mean gain over {baseline}: {' '.join(filter(None, best.row))},"
            f" {signed(best.ours, 1)} % ({'; '.join(filter(None, details))})."
        )
    if printed := [gain for gain in found if not math.isnan(gain.published)]:
        best = max(printed, key=lambda gain: gain.published)
        printed_details = [
            between(best.published_interval, 1),
            count(len(best.published_datasets), "data set"),
        ]
        texts.append(
            f"By the published numbers: {' '.join(filter(None, best.row))},"
            f" {signed(best.published, 1)} % ({'; '.join(filter(None, printed_details))})."
        )
    return texts


def of_speed(trained: Sequence[Iterations], timed: Sequence[Latency]) -> list[str]:
    """Say which is fastest and slowest, in training and at inference."""
    texts = []
    if len(trained) > 1:
        least, most = (pick(trained, key=lambda row: row.relative) for pick in (min, max))
        texts.append(
            f"Fewest iterations to the best score: {' '.join(filter(None, least.row))},"
            f" {least.relative:.2g} times the reference; most:"
            f" {' '.join(filter(None, most.row))}, {most.relative:.2g} times."
        )
    if len(timed) > 1:
        least, most = (pick(timed, key=lambda row: row.speed.median) for pick in (min, max))
        texts.append(
            f"Fastest at inference: {least.row[1]} ({least.row[0]}), {least.speed.median:.2g} times"
            f" {least.speed.reference}; slowest: {most.row[1]} ({most.row[0]}),"
            f" {most.speed.median:.2g} times."
        )
    return texts


def of_layers(table: Table) -> list[str]:
    """Say whose last layer training changed least and most, by data set."""
    texts = []
    for dataset in table.columns:
        found = {
            table.title(cell.number): headline.value
            for cell in table.column(dataset)
            if (headline := cell.number.headline) is not None and headline.value is not None
        }
        if len(found) > 1:
            least, most = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
            texts.append(
                f"On {dataset} training changed the last layer of {most} most (CKA"
                f" {number(found[most], 2)}) and that of {least} least"
                f" ({number(found[least], 2)})."
            )
    return texts


def of_models(numbers: Sequence[Number]) -> list[str]:
    """Say which two models are most and least alike in their last layers, by data set."""
    texts = []
    for n in numbers:
        names = n.found.get("networks", ())
        if len(names) < 3:
            continue
        matrix = np.array(n.found["last_layers"], float)
        rows, columns = np.triu_indices(len(names), 1)
        above = matrix[rows, columns]
        if np.isnan(above).all():
            continue
        most, least = int(np.nanargmax(above)), int(np.nanargmin(above))
        texts.append(
            f"On {n.setting.dataset} the last layers of {names[rows[most]]} and"
            f" {names[columns[most]]} are most alike (CKA {number(float(above[most]), 2)}), those"
            f" of {names[rows[least]]} and {names[columns[least]]} least"
            f" ({number(float(above[least]), 2)})."
        )
    return texts
