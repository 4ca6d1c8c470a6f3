"""Samples: how a number varies with the test images and with the seeds of its runs.

Every run is measured on resamples of the test images. All runs on a data set share the same
resamples, which follow from the checksum of its split. If the data name patients, whole patients
are drawn. What takes long is kept in a cache between reports.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fmi_jax import atomic
from fmi_jax.cores import available_cores
from fmi_jax.errors import UserError
from fmi_jax.study.report.numbers import Number, Run
from fmi_jax.study.report.outcomes import Outcome
from fmi_jax.study.report.statistics import reliability, two_level
from fmi_jax.tasks.base import Measured, Task, members
from fmi_jax.tasks.calibration import BINS
from fmi_jax.tasks.intervals import scaled
from fmi_jax.tasks.registry import TASKS, describe
from fmi_jax.tasks.weighted import resample
from fmi_jax.types import Rows

RESAMPLES = 2000
"""Resamples of the test images: enough for p below 0.05 among 28 pairs of 8 models after Holm."""

Reader = Callable[[Run], tuple[Task, Measured, Rows]]

_VERSION = 3  # version of the cached values; raise it when their computation changes
_TOLERANCE = 0.005  # tolerance of a metric: probabilities have 9 digits, which can make ties


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Values of a number under resampling, and its calibration.

    Attributes:
      values: metric on each resample, averaged over seeds drawn with replacement, `[r]`.
      interval: 95% interval of the number, from the spread of `values`; NaN where they give none.
      redrawn: largest number of a run's resamples that lacked a class and were drawn again.
      images: hash of the test images, labels and groups; samples with the same hash are paired.
      unit: kind of draw: "image" or "group".
      ece: expected calibration error, the mean over runs and classes; NaN without probabilities.
      confidence, frequency: axes of the reliability diagram, a line for each run and class,
        `[l, b]`; NaN where a bin is empty.
    """

    values: np.ndarray
    interval: tuple[float, float]
    redrawn: int
    images: str
    unit: str
    ece: float
    confidence: np.ndarray
    frequency: np.ndarray


class Cache:
    """Cache folder with one file for each result.

    A file's name includes a hash of everything the result was computed from, so it is never out of
    date. Threads may share a cache.

    Args:
      folder: folder of the files; created if it is missing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._locks: dict[Path, threading.Lock] = {}

    def get(
        self, title: str, made_of: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Return the result of `compute`, from the cache if it is there.

        Args:
          title: a word or two for the file name.
          made_of: everything that decides the result.
          compute: function that returns arrays by name.
        """
        digits = hashlib.sha256(made_of.encode()).hexdigest()[:20]
        path = self._folder / f"{title}-{digits}.npz"
        with self._locks.setdefault(path, threading.Lock()):  # several settings may need it
            try:
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            except (OSError, EOFError, ValueError, zipfile.BadZipFile):  # missing or damaged
                found = dict(compute())
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic.whole_file(path) as draft, draft.open("wb") as file:
                np.savez(file, allow_pickle=False, **found)  # type: ignore[arg-type]
            return found


class Sampler:
    """Computes the samples of numbers.

    Args:
      cache: cache of computed values.
      resamples: number of resamples.
    """

    def __init__(self, cache: Cache, resamples: int = RESAMPLES):
        self._cache = cache
        self._resamples = resamples

    def samples(self, numbers: Sequence[Number]) -> tuple[dict[Number, Sample], dict[Number, str]]:
        """Compute the samples of those numbers that have runs, on all cores.

        Returns:
          The samples; and for each number with runs but no sample, what is wrong with its
          predictions.
        """
        with_runs = [number for number in numbers if number.runs]
        with concurrent.futures.ThreadPoolExecutor(len(available_cores())) as pool:
            found = list(zip(with_runs, pool.map(self._sample, with_runs), strict=True))
        samples = {number: one for number, one in found if isinstance(one, Sample)}
        return samples, {number: one for number, one in found if isinstance(one, str)}

    def contradicted(self, numbers: Sequence[Number]) -> dict[Outcome, str]:
        """Find the cells whose result their own predictions contradict, and say how."""
        with concurrent.futures.ThreadPoolExecutor(len(available_cores())) as pool:
            found = [*pool.map(self._contradicted, [n for n in numbers if n.runs])]
        return {outcome: words for each in found for outcome, words in each.items()}

    def _contradicted(self, number: Number) -> dict[Outcome, str]:
        found = {}
        for run in number.runs:
            try:
                run.outcome.finished.check_table(run.predictions)
            except UserError as error:
                found[run.outcome] = f"{error} The cell counts as missing"
                continue
            try:
                value = float(self._of_run(number, run, _read)["point"])
            except (OSError, UserError):  # `samples` says it
                continue
            if abs(value - run.value) > _TOLERANCE:
                found[run.outcome] = (
                    f"{run.predictions} gives {number.metric} {value:.4f}, and the result beside it"
                    f" {run.value:.4f}: they are not of one run, and the cell counts as missing."
                    " Delete its folder to run it again"
                )
        return found

    def _sample(self, number: Number) -> Sample | str:
        read = functools.cache(_read)  # reads each file once, and only if something is not cached
        try:
            parts = [self._of_run(number, run, read) for run in number.runs]
            pooled = self._reliability(number, read)
        except (OSError, UserError) as error:
            return str(error)
        images = {str(part["images"]) for part in parts}
        if len(images) > 1:
            return "its runs were tested on different images"
        each = np.stack([part["resampled"] for part in parts])
        values = two_level(each, integer(number.setting.cells[0].id))
        task = number.result.test.task
        low, high, _ = scaled(
            number.mean, float(values.std()), describe(number.metric, task).bounds
        )
        return Sample(
            values=values,
            interval=(low, high),
            redrawn=max(int(part["redrawn"]) for part in parts),
            images=images.pop(),
            unit=str(parts[0]["unit"]),
            ece=float(pooled["ece"]),
            confidence=pooled["confidence"],
            frequency=pooled["frequency"],
        )

    def _of_run(self, number: Number, run: Run, read: Reader) -> dict[str, np.ndarray]:
        result, metric = number.result, number.metric
        split = str(result.dataset["split_sha256"])
        made_of = f"{_VERSION} {atomic.sha256(run.predictions)} {metric} {split} {self._resamples}"
        return self._cache.get(
            f"{run.outcome.id}-{run.predictions.stem}",
            made_of,
            lambda: _resampled(*read(run), metric, split, self._resamples),
        )

    def _reliability(self, number: Number, read: Reader) -> dict[str, np.ndarray]:
        def compute() -> dict[str, np.ndarray]:
            lines = [
                reliability(p[known], true[known])
                for task, measured, _ in (read(run) for run in number.runs)
                for p, true in zip(*(part.T for part in task.outcomes(measured)), strict=True)
                for known in [~np.isnan(p)]
                if known.any()
            ]
            axes = np.full((2, len(lines), BINS), np.nan)
            for i, line in enumerate(lines):
                axes[0, i, : len(line.confidence)] = line.confidence
                axes[1, i, : len(line.frequency)] = line.frequency
            ece = np.mean([line.ece for line in lines]) if lines else math.nan
            return {"confidence": axes[0], "frequency": axes[1], "ece": np.asarray(ece)}

        digests = [atomic.sha256(run.predictions) for run in number.runs]
        return self._cache.get(
            f"{number.runs[0].outcome.id}-reliability",
            f"{_VERSION} {' '.join(digests)}",
            compute,
        )


def _read(run: Run) -> tuple[Task, Measured, Rows]:
    result = run.outcome.finished
    task = TASKS[result.test.task](result.test.classes, result.dataset.get("class_groups", {}))
    return (task, *task.read(run.predictions))


def _resampled(
    task: Task, measured: Measured, rows: Rows, metric: str, split: str, resamples: int
) -> Mapping[str, np.ndarray]:
    count = len(rows.ids)
    if not count:
        raise UserError("there are no predictions in it.")
    member = members(rows.groups, count)
    found, redrawn = [], 0
    for block, anew in resample(task.kinds(measured), member, resamples, integer(split)):
        found.append(task.resampled(measured, metric, member, block))
        redrawn += anew
    (point,) = task.resampled(measured, metric, member, np.ones((1, int(member.max()) + 1)))
    truth = task.truth(measured).tolist()
    images = hashlib.sha256(repr((list(rows.ids), truth, rows.groups)).encode())
    return {
        "resampled": np.concatenate(found),
        "redrawn": np.asarray(redrawn),
        "point": np.asarray(point),
        "images": np.asarray(images.hexdigest()),
        "unit": np.asarray("image" if rows.groups is None else "group"),
    }


def integer(text: str) -> int:
    """Seed that follows from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def covered(numbers: Iterable[Number]) -> str:
    """Say what the intervals of numbers cover: "test images and seeds", or the images alone."""
    several = {len(number.runs) > 1 for number in numbers if number.runs}
    if several == {True}:
        return "test images and seeds"
    return "test images, and seeds where n > 1" if True in several else "test images only"


def bounds(sample: Sample | None) -> tuple[float, float]:
    """Interval of a sample; NaN if there is no sample."""
    return (math.nan, math.nan) if sample is None else sample.interval
