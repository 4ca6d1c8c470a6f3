"""Study: a set of settings, each to be run with several learning rates and seeds."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.planned import Figure
from fmi_jax.study.published import Published

RATES = (1e-5, 4.6e-5, 2.2e-4, 1e-3)
"""Learning rates of a search: four at even distances on a logarithmic scale. The paper searched
four between 1e-5 and 1e-3 and does not print them."""

SEEDS = 5
"""Number of runs behind a number of the paper."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One number of a table, or one point, panel or line of a figure.

    Attributes:
      at: coordinates: {"dataset": "aptos2019", "model": "dinov2", "head": "linear"}.
      config: experiment before a learning rate and a seed are chosen; None: it cannot be run, for
        the reason `why_not`.
      published: published number, if there is one.
      after: setting whose chosen network this one analyses (`config.cka.run`) or starts from
        (`config.backbone.run`), with rates and seeds of its own. Where that setting has several
        seeds and chose no rate (a pre-training), each seed starts from the run of the same seed.
      rates: learning rates to try in place of the study's; empty: that of the config.
      seeds: number of runs in place of the study's. With it a protocol that draws nothing by
        itself has a run for each seed, too, which may draw the weights it judges.
      why_not: reason why it cannot be run, in a sentence.
    """

    at: Mapping[str, str]
    config: ExperimentConfig | None
    published: Published | None = None
    after: Self | None = None
    rates: tuple[float, ...] | None = None
    seeds: int | None = None
    why_not: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A table or a figure as a grid of experiments.

    Attributes:
      name: name on the command line.
      title: title, one line.
      settings: function that makes all settings, in the order of the rows.
      rows: coordinates that make a row of the table; the columns are data sets.
      figure: figure of the study; None: only a table.
      rates: learning rates to try; the one that is best on validation is reported.
      seeds: number of runs with the reported rate.
      note: remark for the reader about the published numbers.
      reference: one coordinate of the rows that all others are tested against, run by run:
        {"init": "imagenet"}; empty: there is no such test.
      publication: name in `published.PUBLICATIONS` that it is from; empty: none.
      place: table or figure of that publication, for a study whose title does not say so.
    """

    name: str
    title: str
    settings: Callable[[], tuple[Setting, ...]]
    rows: tuple[str, ...]
    figure: Figure | None = None
    rates: tuple[float, ...] = RATES
    seeds: int = SEEDS
    note: str = ""
    reference: Mapping[str, str] = dataclasses.field(default_factory=dict)
    publication: str = ""
    place: str = ""
