"""The result of a run: everything a reader needs in order to believe it and to repeat it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from fmi_jax import atomic
from fmi_jax.artifacts import older, sealed
from fmi_jax.artifacts.charts import Chart
from fmi_jax.artifacts.evaluation import Evaluation, or_nan, strict
from fmi_jax.errors import UserError

FILE_NAME = "result.json"
PENDING = ".result.json"
"""Name of that file until everything else that a finished run leaves is there."""

FORMAT = 6
"""Format number of `result.json`. Formats 1 and 2 had one document for runs that classify and
another for analyses; format 1 lacked `unread`, `headline` and `speeds`, format 3 `adapt` and
`head`. Format 4 had percentile intervals, none of single classes, and lacked `methods`, `redrawn`,
`calibration`, `choices`, `decisions` and `subgroups`. Format 5 had no seal."""


POOLED = "test_pooled"
"""Name in `Finding.evaluations` of the test images where those of each group are pooled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The checkpoint that was evaluated: the best in validation.

    Attributes:
      metric: name of the run's metric, which selected it unless the trained loss did.
      value: value of the metric on the whole validation split.
      step: optimizer steps taken until then.
      epoch: passes over the training split until then.
      seconds: training time until then.
    """

    metric: str
    value: float
    step: int
    epoch: float
    seconds: float


Shows = Literal["score", "analysis", "speed"]
"""How a study's report shows a result: as a number in the table, as a figure with a headline
number, or as a speed, which is independent of the data set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """The one number that sums an analysis up.

    Attributes:
      name: identifier in CSV tables ("cka_last_layer").
      unit: word printed before the number ("CKA"), in a column of another metric.
      value: number itself; None if it is undefined.
    """

    name: str
    unit: str
    value: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Latency of one image, relative to a reference backbone.

    Attributes:
      backbone: backbone's name.
      transformer: name of the transformer on top; empty for a linear head.
      median, low, high: latency relative to the reference, over all rounds.
      milliseconds: median latency.
      reference: reference backbone's name.
    """

    backbone: str
    transformer: str
    median: float
    low: float
    high: float
    milliseconds: float
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What a judge found out about a network.

    Attributes:
      judge: judge's name.
      title: heading of its page; empty for the page of a run that classifies.
      evaluations: metrics by split; those of the test split have confidence intervals, and so have
        those of its groups (`POOLED`).
      resampled: unit that the bootstrap draws, "image" or "group"; empty without a bootstrap.
      values: further results as JSON values: every learning rate of a grid, every k of a kNN.
      text: short table for the console.
      headline: single number that summarises `values`; None if there is none.
      speeds: latencies measured, one per network.
      figures: captions of the PNG files in the run's folder, by file name.
      charts: numbers and words to draw into these files, by file name; not part of `result.json`.
      notes: facts about the measurement that a reader must know, one sentence each.
    """

    judge: str
    title: str = ""
    evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)
    resampled: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: str = ""
    headline: Headline | None = None
    speeds: Sequence[Speed] = ()
    figures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    charts: Mapping[str, Chart] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def pooled(self) -> Evaluation | None:
        """Test metrics per group; None where no images were pooled."""
        return self.evaluations.get(POOLED)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "charts"]
        return {name: getattr(self, name) for name in names} | {
            "evaluations": {split: one.to_json() for split, one in self.evaluations.items()},
            "headline": None if self.headline is None else dataclasses.asdict(self.headline),
            "speeds": [dataclasses.asdict(speed) for speed in self.speeds],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        headline = values["headline"]
        parts = {
            "evaluations": {
                split: Evaluation.from_json(one) for split, one in values["evaluations"].items()
            },
            "headline": None if headline is None else Headline(**headline),
            "speeds": [Speed(**speed) for speed in values["speeds"]],
            "notes": tuple(values["notes"]),
        }
        return cls(**{**values, **parts})


def tables_in(workdir: Path) -> dict[str, str]:
    """Checksums of the CSV tables in a folder, for `Result.tables`."""
    return {path.name: atomic.sha256(path) for path in sorted(workdir.glob("*.csv"))}


def current(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Upgrade the content of a `result.json` to the current format.

    Args:
      values: parsed JSON content.
      path: file that was read, for the message.

    Raises:
      UserError: a later version wrote it.
    """
    number = older.format_of(values, FORMAT, path)
    return dict(values) if number == FORMAT else older.result(values, number)


def read_values(path: Path) -> dict[str, Any]:
    """Read the values of a `result.json`, upgraded to the current format; see `sealed.read`."""
    return current(sealed.read(path, FORMAT, since=6), path)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a run did and what came of it. Kept as `result.json` in the run's folder.

    Mappings hold JSON values and are shown as they are; the keys named here have a meaning.

    Attributes:
      config: the resolved config, all defaults filled in.
      protocol: protocol in words.
      backbone: "name"; "params" (its own); "trained_params" (with the head); "weights" (tag,
        file, run or "random initialisation"); "weights_sha256"; where the backbone comes from a
        run, "run" (folder), "run_sha256" (of its network) and "pixels" (the "dataset" whose "mean"
        and "std" normalise the images); where there is a transformer on top,
        "transformer", "transformer_weights" and "transformer_weights_sha256".
      dataset: "name"; "split" (the rule) and "split_sha256"; "counts" (images by split);
        "group_counts" (patients or lesions by split, none where the data name none); "remarks"
        (notes that are about the data); "synthetic" (true for drawn images). Of an external test,
        also "evaluated_split", and the data set that the network was "trained_on".
      seed: number that all randomness of the run follows from.
      steps: optimizer steps of the whole run.
      best: checkpoint or setting that was chosen on validation; None if there was no choice.
      findings: results of the judges; the first is the run's own.
      seconds: wall-clock time by phase.
      device: platform, kind and number of the devices, and number of processes.
      versions: versions of Python and of the libraries that matter.
      notes: facts about the run that a reader must know, one sentence each.
      started, finished: ISO 8601 times.
      unread: dotted names of the config sections and fields that the run did not read.
      adapt, head: names of the adaptation and the head that were trained; empty if nothing was,
        and in results of earlier versions.
      tables: SHA-256 checksum of each CSV table in the run's folder, by file name; none in results
        of earlier versions.
    """

    config: dict[str, Any]
    protocol: str
    backbone: dict[str, Any]
    dataset: dict[str, Any]
    seed: int
    steps: int
    best: Best | None
    findings: Sequence[Finding]
    seconds: dict[str, float]
    device: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...]
    started: str
    finished: str
    unread: tuple[str, ...] = ()
    adapt: str = ""
    head: str = ""
    tables: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def finding(self) -> Finding:
        """The run's own finding."""
        return self.findings[0]

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Notes on the run and on what its judges measured."""
        return (*self.notes, *(note for finding in self.findings for note in finding.notes))

    @property
    def val(self) -> Evaluation:
        """Validation metrics of a run that classifies."""
        return self.finding.evaluations["val"]

    @property
    def test(self) -> Evaluation:
        """Test metrics of a run that classifies."""
        return self.finding.evaluations["test"]

    def check_table(self, path: Path) -> None:
        """Refuse a table of the run that is not what the run wrote.

        Raises:
          UserError: its checksum is another.
        """
        known = self.tables.get(path.name)
        if known is not None and path.is_file() and atomic.sha256(path) != known:
            raise UserError(f"{path} has changed since its run wrote it: {sealed.AS_WRITTEN}.")

    def to_json(self) -> dict[str, Any]:
        """The result as strict JSON values: NaN becomes None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "findings": [finding.to_json() for finding in self.findings],
        }
        return {"format": FORMAT, **strict(values)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, of values of the current format."""
        best = values["best"]
        if best is not None:
            best = Best(**{**best, "value": or_nan(best["value"])})
        parts = {
            "best": best,
            "findings": [Finding.from_json(finding) for finding in values["findings"]],
            "notes": tuple(values["notes"]),
            "unread": tuple(values["unread"]),
        }
        return cls(
            **{name: value for name, value in {**values, **parts}.items() if name != "format"}
        )

    def write(self, workdir: Path, name: str = FILE_NAME) -> None:
        """Write the result into `workdir`, under its name or as `PENDING`."""
        sealed.write(workdir / name, self.to_json(), allow_nan=False, ensure_ascii=False)

    @classmethod
    def read(cls, workdir: Path, name: str = FILE_NAME) -> Self:
        """Read the result of the finished run in `workdir`.

        Raises:
          UserError: there is none, it is damaged or was edited, or a later version wrote it.
        """
        path = workdir / name
        if not path.is_file():
            raise UserError(
                f"{workdir} holds no {FILE_NAME}: expected the folder of a finished run"
                " (the --workdir of run.py)."
            )
        with sealed.reading(path, "the result of a run"):
            return cls.from_json(read_values(path))
