"""Report of one study, before it is laid out on a page."""

import dataclasses
from collections.abc import Mapping, Sequence

from fmi_jax.study.planned import PlannedStudy
from fmi_jax.study.report import drawing, findings
from fmi_jax.study.report.choices import Made, choices_of
from fmi_jax.study.report.comparisons import (
    Agreement,
    Comparison,
    agreements,
    compare,
    compared_coordinate,
    differences,
    untested,
)
from fmi_jax.study.report.cost import Cost, cost_of
from fmi_jax.study.report.drawing import Drawn, Look
from fmi_jax.study.report.figures import (
    curves,
    dots,
    gain,
    layers,
    published,
    reliability,
    significance,
    time,
)
from fmi_jax.study.report.more_seeds import MoreSeeds, more_seeds
from fmi_jax.study.report.numbers import Number, numbers_of
from fmi_jax.study.report.outcomes import Outcome, Outcomes
from fmi_jax.study.report.provenance import Provenance, provenance_of
from fmi_jax.study.report.reference import Against, against_reference
from fmi_jax.study.report.relative import BASELINE, gains, iterations, latencies
from fmi_jax.study.report.samples import RESAMPLES, Sample, Sampler, covered
from fmi_jax.study.report.table import Table, make_table
from fmi_jax.study.state import State


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StudyReport:
    """All contents of the report on one study.

    Attributes:
      study: study as it was planned.
      numbers: numbers of all settings.
      table: table of the numbers.
      samples: sample of each number; those whose predictions cannot be used have none.
      standing: progress of the study, in words.
      findings: sentences, the most important first.
      figures: the study's own figure, then the comparison with the published numbers.
      calibration: figure of the calibration; None if there is nothing to show.
      significance: figure of the tests between models; None if there are none.
      comparisons: paired tests.
      against: tests of all rows against the study's reference; empty without one.
      more_seeds: numbers that lack seeds for a test; None if none does.
      agreements: agreement with the published numbers, by data set.
      differences: 95% interval of our number less the published one.
      cost, provenance, choices: cost, provenance and choices of the cells.
      problems: files that cannot be used, a sentence each.
    """

    study: PlannedStudy
    numbers: tuple[Number, ...]
    table: Table
    samples: Mapping[Number, Sample]
    standing: str
    findings: tuple[str, ...]
    figures: tuple[Drawn, ...]
    calibration: Drawn | None
    significance: Drawn | None
    comparisons: tuple[Comparison, ...]
    against: tuple[Against, ...]
    more_seeds: MoreSeeds | None
    agreements: tuple[Agreement, ...]
    differences: Mapping[Number, tuple[float, float]]
    cost: Cost
    provenance: Provenance
    choices: tuple[Made, ...]
    problems: tuple[str, ...]

    @property
    def synthetic(self) -> list[str]:
        """Names of the data sets that were drawn by a program."""
        return list(dict.fromkeys(d.name for d in self.provenance.datasets if d.synthetic))

    @property
    def all_figures(self) -> list[Drawn]:
        """All figures of the report."""
        extra = [self.significance, self.calibration]
        return [*self.figures, *(figure for figure in extra if figure is not None)]

    @property
    def steps(self) -> dict[Number, str]:
        """Steps to `NEAR` of the best validation value and, in brackets, to that value."""
        return {
            number: f"{number.near_steps:,.0f} ({number.best_steps:,.0f})"
            for number in self.numbers
            if number.near_steps == number.near_steps
        }

    @property
    def axes(self) -> dict[str, list[Comparison]]:
        """Comparisons by the coordinate that they compare."""
        axes: dict[str, list[Comparison]] = {}
        for comparison in self.comparisons:
            axes.setdefault(comparison.axis, []).append(comparison)
        return axes

    @property
    def reference(self) -> str:
        """Reference of the study in words: "init imagenet"; empty without one."""
        return ", ".join(f"{name} {value}" for name, value in self.study.reference.items())

    @property
    def reading(self) -> tuple[str, ...]:
        """Sentences that say how to read the table of results."""
        published = [n.setting.published for n in self.differences]
        counts = {len(number.runs) for number in self.samples}
        one, several = 1 in counts, counts - {1}
        searched = any(len(number.rates) > 1 for number in self.samples)
        median = any(number.statistic == "median" for number in self.samples)
        centre = "Median" if median else "Mean"
        what = (
            f"{centre} ± standard deviation over n seeds" if several else "Test metric of one run"
        )
        of_mean = "the 95% interval of the mean" if median else "its 95% interval"
        both = "" if one else ", each with the seeds drawn anew, so that it covers both"
        others = ", here and among the published numbers" if self.table.is_published else ""
        sentences = {
            f"{what}{' at the learning rate that is best on validation' if searched else ''}, and"
            f" {of_mean} over {covered(self.samples)}: bootstrap, logit scale,"
            f" {RESAMPLES:,} resamples of the test images ({self.unit}){both}.": bool(counts),
            self._redrawn: True,
            "With one seed it covers the choice of test images and not that of the seed.": one,
            "The spread between few seeds is understated (its variance by half with 2, by a fifth"
            " with 5).": bool(several),
            "★ and bold: the row that the validation mean chooses. △: the highest test mean of its"
            f" column{others}.": True,
            "The search seed chose the learning rate and is counted among the n, so the mean is"
            " slightly too high.": any(n.search_seed is not None for n in self.samples),
            "Differences from published numbers: 95% interval over our"
            f" {covered(self.differences)} and over the published runs (Student's t).": bool(
                published
            ),
            "Digitised: the published number was read off a figure, with the largest error beside"
            " it.": any(
                (n.setting.published is not None and n.setting.published.digitised is not None)
                for n in self.table.numbers
            ),
            "Where no spread was published, the published number counts as exact.": any(
                each is not None and not each.has_spread for each in published
            ),
        }
        return tuple(text for text, holds in sentences.items() if text and holds)

    @property
    def _redrawn(self) -> str:
        """Sentence about the resamples that lacked a class; empty if none did."""
        most = max((sample.redrawn for sample in self.samples.values()), default=0)
        if not most:
            return ""
        return f"Up to {most:,} of the resamples lacked a class and were drawn again."

    @property
    def failed(self) -> list[Outcome]:
        """Cells that failed."""
        cells = {o.id: o for n in self.numbers for o in n.outcomes if o.state is State.FAILED}
        return list(cells.values())

    @property
    def unit(self) -> str:
        """Description of how the test images are drawn."""
        units = {sample.unit for sample in self.samples.values()}
        if units == {"image"}:
            return "drawn one by one"
        where = "" if units == {"group"} else ", where the data name them, else one by one"
        return f"drawn by whole groups such as patients{where}"


def make_report(study: PlannedStudy, outcomes: Outcomes, sampler: Sampler) -> StudyReport:
    """Make the report of a study from all its cells as they are now."""
    numbers = _sound_numbers(study, outcomes, sampler)
    samples, wrong = sampler.samples(numbers)
    table = make_table(study, numbers)
    comparisons = compare(study, numbers, samples)
    of_models = [c for c in comparisons if c.axis == compared_coordinate(study)]
    found = agreements(table.numbers, samples, compared_coordinate(study))
    lines = study.figure.lines if study.figure else compared_coordinate(study) or ""
    looks = drawing.looks(n.setting.at[lines] for n in numbers if lines in n.setting.at)
    own, sentences = _own(study, table, numbers, samples, looks, lines)
    if found:
        fills = next((name for name in study.rows if name != lines), None)
        own.append(published.draw(table.numbers, samples, found, looks, lines, fills))
    damaged = [
        outcome.reason
        for setting in study.settings
        for cell in setting.cells
        for name in (cell.id, cell.of)
        if name is not None and (outcome := outcomes[name]).state is State.DAMAGED
    ]
    unsure = [
        f"no interval of {table.title(number)} on {number.setting.dataset}: {reason}"
        for number, reason in wrong.items()
    ]
    return StudyReport(
        study=study,
        numbers=tuple(numbers),
        table=table,
        samples=samples,
        standing=findings.standing(numbers),
        findings=(
            *sentences,
            *findings.best_of_columns(table, samples, comparisons),
            *findings.at_an_end(numbers),
            *findings.beside_published(found),
        ),
        figures=tuple(own),
        calibration=reliability.draw(table, samples)
        if any(len(sample.confidence) for sample in samples.values())
        else None,
        significance=significance.draw(of_models) if of_models else None,
        comparisons=tuple(comparisons),
        against=tuple(against_reference(study, numbers, samples)),
        more_seeds=more_seeds(study, table, untested(study, numbers, samples), outcomes.root),
        agreements=tuple(found),
        differences=differences(table.numbers, samples),
        cost=cost_of(study, numbers),
        provenance=provenance_of(numbers),
        choices=tuple(choices_of(numbers)),
        problems=tuple(dict.fromkeys([*damaged, *unsure])),
    )


def _sound_numbers(study: PlannedStudy, outcomes: Outcomes, sampler: Sampler) -> list[Number]:
    """Compute the numbers without the cells that their own predictions contradict.

    Without one of these another learning rate may be the best, whose cells are then looked at too.
    """
    while True:
        numbers = numbers_of(study, outcomes)
        if not (contradicted := sampler.contradicted(numbers)):
            return numbers
        for outcome, reason in contradicted.items():
            outcomes.leave_out(outcome, reason)


def _own(
    study: PlannedStudy,
    table: Table,
    numbers: Sequence[Number],
    samples: Mapping[Number, Sample],
    looks: Mapping[str, Look],
    lines: str,
) -> tuple[list[Drawn], list[str]]:
    """Draw the figure that the study asks for and list its findings; empty without any number."""
    kind = study.figure.kind if study.figure else "dots"
    analysed = any(number.analysis is not None for number in numbers)
    valued = any(number.runs for number in numbers)
    if kind == "layers" and analysed:
        return [layers.draw_layers(table)], findings.of_layers(table)
    if kind == "models" and analysed:
        return [layers.draw_models(table)], findings.of_models(numbers)
    if kind == "time" and (analysed or valued):
        trained, timed = iterations(table), latencies(numbers)
        if not trained and not timed:
            return [], []
        return [time.draw(trained, timed, looks, lines)], findings.of_speed(trained, timed)
    if kind == "gain":
        found = gains(table, samples)
        shown = any(row.datasets or row.published_datasets for row in found)
        drawn = [gain.draw(found, looks, lines, BASELINE)] if shown else []
        return drawn, findings.of_gains(found, BASELINE)
    if kind == "curves" and valued and study.figure:
        return [curves.draw(study.figure, numbers, samples, looks)], []
    if kind == "dots" and (valued or table.is_published):
        return [dots.draw(table, samples, looks, lines)], []
    return [], []
