"""Plan: a study as the user asks for it, its cells, and the file that the report reads."""

import copy
import dataclasses
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fmi_jax import atomic
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.registry import DATASETS
from fmi_jax.errors import UsageError, UserError, unknown_name
from fmi_jax.flags import assign
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.registry import protocol_of, resolved
from fmi_jax.protocols.spec import PretrainedNetwork
from fmi_jax.rules import validate
from fmi_jax.run.assembly import find_weights
from fmi_jax.run.origin import finished_run
from fmi_jax.study.cells import Cell, candidates, due
from fmi_jax.study.planned import PlannedCell, PlannedSetting, PlannedStudy, read_plan
from fmi_jax.study.spec import Setting, Study
from fmi_jax.study.state import Score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A study with the user's choices, ready to run.

    Attributes:
      study: study to run.
      settings: all settings of the study, with the changed values set.
      rates: learning rates to try; empty: that of each config.
      seeds: number of runs per rate.
      product: True if every rate gets every seed.
      changed: config fields that differ from the study's, by dotted name.
    """

    study: Study
    settings: tuple[Setting, ...]
    rates: tuple[float, ...]
    seeds: int
    product: bool
    changed: Mapping[str, str]

    def candidates(self, setting: Setting) -> tuple[Cell, ...]:
        """List every cell that the number of a setting could need."""
        return () if setting.config is None else candidates(setting, self.rates, self.seeds)

    def due(
        self, settings: Iterable[Setting], scores: Mapping[str, Score | None]
    ) -> dict[str, Cell]:
        """Cells of `settings` that are known to be needed, by id, in order."""
        return {
            cell.id: cell
            for setting in settings
            if setting.config is not None
            for cell in due(setting, self.rates, self.seeds, product=self.product, scores=scores)
        }

    def all_cells(self, settings: Iterable[Setting]) -> dict[str, Cell]:
        """Every cell whose outcome decides which cells are due, by id."""
        cells = {}
        for setting in settings:
            while setting is not None:
                cells |= {cell.id: cell for cell in self.candidates(setting)}
                setting = setting.after
        return cells

    def count(self, settings: Iterable[Setting]) -> int:
        """Count the cells that will have been run in the end, if none fails."""
        return len(self.in_the_end(settings, {}))

    def in_the_end(
        self, settings: Iterable[Setting], scores: Mapping[str, Score | None]
    ) -> dict[str, Cell]:
        """Cells that will have been run in the end, by id, if none fails that has no score yet.

        The first rate of those without a score counts as the best; the choice of a rate changes
        neither the number of cells nor what they take.
        """
        settings = list(settings)
        assumed = dict.fromkeys(self.all_cells(settings), Score("accuracy", 1.0))
        return self.due(settings, {**assumed, **scores})

    def write(self, root: Path) -> None:
        """Write `<root>/<study>.json`, which the report reads beside the results.

        Raises:
          UsageError: it is there already, of the same study with other values set.
          UserError: what is there is damaged, or a later version's.
        """
        path = root / f"{self.study.name}.json"
        if path.is_file():
            there = read_plan(path).changed
            if there != self.changed:
                raise UsageError(
                    f"{path} was planned with {_named(there)}; now asked for it with"
                    f" {_named(self.changed)}: its cells would be left out of the report. Use"
                    " another --root, or delete that file."
                )
        atomic.write_json(path, self.planned().to_json(), indent=1, ensure_ascii=False)

    def planned(self) -> PlannedStudy:
        """The study and every cell that it could need, as the report reads them."""
        study = self.study
        return PlannedStudy(
            name=study.name,
            title=study.title,
            note=study.note,
            rows=study.rows,
            figure=study.figure,
            rates=self.rates,
            seeds=self.seeds,
            product=self.product,
            changed=self.changed,
            settings=tuple(map(self._setting, self.settings)),
            reference=study.reference,
        )

    def _setting(self, setting: Setting) -> PlannedSetting:
        protocol = None if setting.config is None else protocol_of(setting.config)
        return PlannedSetting(
            at=setting.at,
            protocol=None if protocol is None else protocol.name,
            shows="score" if protocol is None else protocol.own.shows,
            label="" if protocol is None else protocol.own.label,
            published=setting.published,
            why_not=setting.why_not if protocol is None else "",
            cells=tuple(
                PlannedCell(
                    id=cell.id,
                    learning_rate=cell.learning_rate,
                    seed=cell.seed,
                    of=None if cell.parent is None else cell.parent.id,
                )
                for cell in self.candidates(setting)
            ),
        )


def _named(changed: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changed.items()) or "nothing changed"


def make_plan(
    study: Study,
    *,
    rates: Sequence[float] | None = None,
    seeds: int | None = None,
    product: bool = False,
    changed: Mapping[str, str] | None = None,
    free: Mapping[str, str] | None = None,
) -> Plan:
    """Make the plan of a study.

    Args:
      study: study to run.
      rates, seeds: values to use instead of the study's own, and instead of those that a setting
        has of its own; but a setting of one seed keeps it.
      product: True to run every rate with every seed.
      changed: config fields by dotted name, set in every experiment; part of the plan's file.
      free: more fields to set, which change no number (`data.data_dir`).

    Raises:
      UsageError: a field does not exist or a value is invalid.
    """
    values = {**(changed or {}), **(free or {})}
    given, rates = rates is not None, study.rates if rates is None else tuple(rates)
    fewer, seeds = seeds is not None, study.seeds if seeds is None else seeds
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: expected 1 or more.")
    if any(rate <= 0 for rate in rates) or len({*rates}) < len(rates):
        raise UsageError(f"--rates {rates}: expected different numbers above 0.")

    def changed_setting(setting: Setting) -> Setting:
        config = copy.deepcopy(setting.config)
        if config is not None:
            for name, text in values.items():
                assign(config, name, text)
            validate(copy.deepcopy(config))  # a copy: names of cells hash the numbers unchanged
            config = resolved(config)
        after = None if setting.after is None else changed_setting(setting.after)
        own = None if given else setting.rates
        repeats = seeds if fewer and setting.seeds not in (None, 1) else setting.seeds
        return dataclasses.replace(setting, config=config, after=after, rates=own, seeds=repeats)

    return Plan(
        study=study,
        settings=tuple(changed_setting(setting) for setting in study.settings()),
        rates=rates,
        seeds=seeds,
        product=product,
        changed=dict(changed or {}),
    )


def select(
    settings: Sequence[Setting], slices: Mapping[str, Sequence[str]], shard: tuple[int, int]
) -> list[Setting]:
    """Select the settings of a slice and a shard.

    Args:
      settings: settings of a plan.
      slices: wanted values by coordinate ("dataset", "model", ...); settings without that
        coordinate are left out.
      shard: (i, n): the i-th of n parts, from 1 on. Settings that need a common cell are in the
        same part.

    Raises:
      UsageError: no setting has a coordinate or a value, or there is no such part.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise UsageError(f"--shard={index}/{count}: expected i/n with i from 1 to n.")
    for name, wanted in slices.items():
        valid = list(dict.fromkeys(value for s in settings for value in [s.at.get(name)] if value))
        if not valid:
            raise unknown_name("coordinate for --slice", name, {n for s in settings for n in s.at})
        for value in wanted:
            if value not in valid:
                raise unknown_name(f"{name} for --slice", value, valid)

    def part(setting: Setting) -> int:
        first = setting
        while first.after is not None:
            first = first.after
        return zlib.crc32(json.dumps(sorted(first.at.items())).encode()) % count

    return [
        setting
        for setting in settings
        if all(setting.at.get(name) in wanted for name, wanted in slices.items())
        and part(setting) == index - 1
    ]


class Missing:
    """Finds missing weights and data of experiments; looks up each once."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def of(self, config: ExperimentConfig) -> list[str]:
        """List the weights or prepared data that an experiment lacks, one message each."""
        backbone = config.backbone
        networks = (
            PretrainedNetwork("backbone.weights", backbone.name, backbone.weights),
            *protocol_of(config).networks(config),
        )
        key = repr((backbone, config.data, networks))
        if key not in self._found:
            self._found[key] = list(_missing(config, networks))
        return self._found[key]


def _missing(config: ExperimentConfig, networks: Sequence[PretrainedNetwork]) -> Iterator[str]:
    backbone, data = config.backbone, config.data
    for network in networks:
        try:
            spec = BACKBONES[network.backbone]
            find_weights(network.weights, backbone.weights_dir, spec, network.field)
        except UserError as error:
            yield str(error)
    if backbone.run:
        try:
            finished_run(Path(backbone.run), step=backbone.run_step)
        except UserError as error:
            yield f"backbone.run: {error}"
    if not (data.name in DATASETS and DATASETS[data.name].synthetic):
        try:
            open_dataset(Path(data.data_dir), data.name, data.prepared_size, data.split)
        except UserError as error:
            yield str(error)
