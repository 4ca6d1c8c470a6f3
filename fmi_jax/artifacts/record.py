"""The folder of a run: who owns it, what it was made for."""

import dataclasses
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmi_jax import parallel
from fmi_jax.artifacts import sealed
from fmi_jax.errors import UsageError, UserError
from fmi_jax.fields import as_dict, differences, from_dict, within
from fmi_jax.settings import BaseConfig

FILE_NAME = "run.json"
FORMAT = 2
"""Format number of `run.json`; format 1 had no seal. Tables and logs of a run have no number."""

FREE = {
    "data.data_dir",
    "data.threads",
    "data.workers",
    "data.thumbnails",
    "backbone.weights_dir",
    "backbone.attention",  # beyond rounding; turned off where a kernel fails
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.lost_after_seconds",
}
"""Fields that may differ when a run is resumed: they change no number of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A finished run that a backbone went through before another run started from it.

    Attributes:
      folder: run's folder, as `backbone.run` named it.
      sha256: checksum of its network (`checkpoints.model_sha256`).
      protocol: protocol's name.
      learned: True if any of the backbone learned there.
      dataset: description of its prepared data set, as `DatasetInfo.to_json` gives it.
    """

    folder: str
    sha256: str
    protocol: str
    learned: bool
    dataset: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run was started with; kept as `run.json`.

    Attributes:
      config: the resolved config.
      dataset: description of the prepared data set, as `DatasetInfo.to_json` gives it.
      weights_sha256: checksum of the pretrained weights file, or None.
      transformer_sha256: checksum of the weights file of the transformer on top, or None.
      started: ISO 8601 time of the first start.
      ancestors: runs that the backbone comes from, the latest first; none without `backbone.run`.
    """

    config: BaseConfig
    dataset: dict[str, Any]
    weights_sha256: str | None
    transformer_sha256: str | None
    started: str
    ancestors: tuple[Ancestor, ...] = ()

    def write(self, workdir: Path) -> None:
        """Write `run.json` into `workdir`."""
        values = {
            "format": FORMAT,
            "config": as_dict(self.config),
            "dataset": self.dataset,
            "weights_sha256": self.weights_sha256,
            "transformer_sha256": self.transformer_sha256,
            "started": self.started,
            "ancestors": [dataclasses.asdict(ancestor) for ancestor in self.ancestors],
        }
        sealed.write(workdir / FILE_NAME, values)

    @classmethod
    def read(cls, kind: type[BaseConfig], workdir: Path) -> "RunRecord | None":
        """Read the record in `workdir`; None if no run was started there.

        Args:
          kind: class of its config.
          workdir: run's folder.

        Raises:
          UserError: it is damaged or was edited, or a later version wrote it.
        """
        path = workdir / FILE_NAME
        if not path.is_file():
            return None
        with sealed.reading(path, "the record of a run"):
            values = sealed.read(path, FORMAT, since=2)
            return cls(
                config=from_dict(kind, values["config"]),
                dataset=values["dataset"],
                weights_sha256=values["weights_sha256"],
                transformer_sha256=values["transformer_sha256"],
                started=values["started"],
                ancestors=tuple(Ancestor(**each) for each in values.get("ancestors", ())),
            )

    def check_same(self, other: "RunRecord", workdir: Path, unread: Sequence[str]) -> None:
        """Raise `UsageError` if resuming this run as `other` would change its numbers.

        Args:
          other: settings to resume it with.
          workdir: run's folder.
          unread: sections and fields of the config that the run does not read.
        """
        pairs = {
            name: pair
            for name, pair in differences(self.config, other.config).items()
            if name not in FREE and not within(name, unread)
        }
        for name in ("name", "split_sha256"):
            pairs[f"dataset {name}"] = (self.dataset.get(name), other.dataset.get(name))
        for name in ("weights_sha256", "transformer_sha256"):
            pairs[name.replace("_", " ")] = (getattr(self, name), getattr(other, name))
        changed = [f"{name}: {a!r} there, {b!r} now" for name, (a, b) in pairs.items() if a != b]
        if changed:
            raise UsageError(
                f"{workdir} holds a run with other settings: {'; '.join(changed)}."
                " Use another --workdir, or the same settings to resume it."
            )
        if other.ancestors:
            self.check_parent(other.ancestors[0].sha256, workdir)

    def check_parent(self, found: str, workdir: Path) -> None:
        """Raise `UserError` unless `found` is the network that the run in `workdir` started from.

        Args:
          found: checksum of the network that `backbone.run` holds now.
          workdir: folder of this run.
        """
        expected = self.ancestors[0].sha256 if self.ancestors else None
        if found != expected:
            raise UserError(
                f"backbone.run={self.config.backbone.run} does not hold the network that the run in"
                f" {workdir} started from: its sha256 is {found}, expected {expected}. Put that"
                " run back, or use another --workdir: what a run freezes it does not save."
            )


@contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Make `workdir` and hold it for this run; a second run in it at once is refused."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be used: {error.strerror}.") from error
    try:
        if parallel.is_main():
            _lock(lock, workdir)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, workdir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"another process is running in {workdir}; wait for it or use another --workdir."
        ) from error
