"""The cells of a setting: which there can be, and which are due now.

A cell is one experiment in a process of its own: a setting with a learning rate and a seed. Its
name is made of everything that decides its numbers, so that studies share the cells they have in
common (Figure 7 looks at networks of Table 2), and one that is changed is another cell.
"""

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

from fmi_jax import metrics
from fmi_jax.config import ExperimentConfig, as_dict
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import GridProtocolSpec, ProtocolSpec
from fmi_jax.study.spec import Setting
from fmi_jax.workdir import FREE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment.

    Attributes:
      id: its name, and that of its folder.
      config: the experiment.
      program: the same for cells that share what is compiled: those of one setting.
      learning_rate, seed: what it was given of the study; None: it has no such choice.
      of: the cell whose network it analyses (`config.cka.run` of a run folder).
    """

    id: str
    config: ExperimentConfig
    program: str
    learning_rate: float | None = None
    seed: int | None = None
    of: "Cell | None" = None


@dataclasses.dataclass(frozen=True)
class Score:
    """How a finished cell did on validation: the metric that selects, and its value."""

    metric: str
    value: float


@functools.cache
def candidates(setting: Setting, rates: tuple[float, ...], seeds: int) -> tuple[Cell, ...]:
    """Every cell that the number of a setting could need, by rate and then by seed.

    Args:
      setting: one that can be run.
      rates: learning rates that are tried; empty: that of the config alone.
      seeds: runs of a rate.
    """
    assert setting.config is not None
    protocol = PROTOCOLS[setting.config.protocol]
    if setting.after is not None:
        analysed = candidates(setting.after, rates, seeds)
        first = analysed[0].seed
        return tuple(_analysis(setting.config, cell) for cell in analysed if cell.seed == first)
    if isinstance(protocol, GridProtocolSpec):  # all rates and seeds in one run
        config = copy.deepcopy(setting.config)
        config.probe_grid.learning_rates = tuple(rates) or config.probe_grid.learning_rates
        config.probe_grid.seeds = seeds
        return (alone(config),)
    if not isinstance(protocol, ProtocolSpec):
        return (alone(setting.config),)
    return tuple(
        _trained(setting.config, rate, seed)
        for rate in rates or (setting.config.optim.learning_rate,)
        for seed in range(seeds)
    )


def alone(config: ExperimentConfig) -> Cell:
    """The cell of an experiment that shares its program with no other."""
    name = cell_id(config)
    return Cell(id=name, config=config, program=name)


def _trained(config: ExperimentConfig, rate: float, seed: int) -> Cell:
    program = cell_id(config)
    config = copy.deepcopy(config)
    config.optim.learning_rate = rate
    config.train.seed += seed
    seed = config.train.seed
    return Cell(id=cell_id(config), config=config, program=program, learning_rate=rate, seed=seed)


def _analysis(config: ExperimentConfig, of: Cell) -> Cell:
    program = cell_id(config)
    config = copy.deepcopy(config)
    config.cka.run = of.id
    return Cell(
        id=cell_id(config),
        config=config,
        program=program,
        learning_rate=of.learning_rate,
        seed=of.seed,
        of=of,
    )


def due(
    setting: Setting,
    rates: tuple[float, ...],
    seeds: int,
    *,
    product: bool,
    scores: Mapping[str, Score | None],
) -> list[Cell]:
    """The cells of a setting that are known to be needed, in the order in which to run them.

    First every learning rate with one seed; when all of these have ended, the other seeds of the
    rate that is best on validation. With `product` every rate with every seed.

    Args:
      setting: one that can be run.
      rates, seeds: as of `candidates`.
      product: do not choose.
      scores: of every cell that has ended, by id; None: it failed.
    """
    if setting.after is not None:
        before = due(setting.after, rates, seeds, product=product, scores=scores)
        best = chosen(before, scores)
        own = candidates(setting, rates, seeds)
        return before + [cell for cell in own if best is not None and _is_of(cell, best)]
    cells = candidates(setting, rates, seeds)
    if product or len({cell.learning_rate for cell in cells}) == 1:
        return list(cells)
    searched = [cell for cell in cells if cell.seed == cells[0].seed]
    best = chosen(searched, scores)
    if best is None:
        return searched
    return searched + [
        cell
        for cell in cells
        if cell.learning_rate == best.learning_rate and cell.seed != best.seed
    ]


def _is_of(cell: Cell, best: Cell) -> bool:
    assert cell.of is not None
    return cell.of.learning_rate == best.learning_rate


def chosen(cells: Sequence[Cell], scores: Mapping[str, Score | None]) -> Cell | None:
    """The cell of the first seed whose rate is best on validation; the first of equal ones.

    None before all rates have ended. One that failed (a rate that is too high, mostly) is not
    chosen.
    """
    first = [cell for cell in cells if cell.seed == cells[0].seed]
    if any(cell.id not in scores for cell in first):
        return None
    sound = [(cell, score) for cell in first if (score := scores[cell.id]) is not None]
    if not sound:
        return None
    best, _ = max(sound, key=lambda pair: metrics.selection_score(pair[1].metric, pair[1].value))
    return best


def cell_id(config: ExperimentConfig) -> str:
    """`<data set>-<backbone>-<protocol>-<digits>`; the digits stand for the whole config."""
    values = as_dict(config)
    for name in FREE:
        section, _, field = name.partition(".")
        del values[section][field]
    digits = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    return f"{config.data.name}-{config.backbone.name}-{config.protocol}-{digits}"
