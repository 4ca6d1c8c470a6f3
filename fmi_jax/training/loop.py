"""The training loop: steps, validation and checkpoints, independent of the protocol."""

import dataclasses
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fmi_jax import parallel
from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.artifacts.scalars import MetricWriter, ProgressReport
from fmi_jax.errors import UserError
from fmi_jax.settings import BaseConfig
from fmi_jax.training import side_by_side
from fmi_jax.training.evaluation import STEPS_AHEAD
from fmi_jax.training.interrupt import Stopped, StopRequest
from fmi_jax.training.kernel_errors import kernel_errors
from fmi_jax.training.optim import warmup_steps
from fmi_jax.training.selection import Selection
from fmi_jax.training.step import Arrays, TrainState
from fmi_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Schedule of a run in steps done: its length, evaluations and checkpoints.

    Attributes:
      total_steps: length of the run.
      steps_per_epoch: training images over batch size; not a whole number in general.
      evaluate_at: steps after which the validation split is measured; includes the last step, or
        empty where nothing is chosen on validation.
      save_at: steps after which a checkpoint is written in any case; includes the last step.
    """

    total_steps: int
    steps_per_epoch: float
    evaluate_at: frozenset[int]
    save_at: frozenset[int]

    @classmethod
    def of(cls, config: BaseConfig, num_train: int, *, validates: bool = True) -> "Plan":
        """Make the plan of an experiment.

        Args:
          config: experiment.
          num_train: number of training images.
          validates: True if validation chooses among the steps.
        """
        train = config.train
        per_epoch = num_train / train.batch_size
        total = max(1, round(train.epochs * per_epoch))
        if train.max_steps:
            total = min(total, train.max_steps)
        interval = max(1.0, train.eval_every_epochs * per_epoch)
        times = range(1, int(total / interval) + 1)
        save_at = frozenset(round(i * interval) for i in times) | {total}
        return cls(
            total_steps=total,
            steps_per_epoch=per_epoch,
            evaluate_at=save_at if validates else frozenset(),
            save_at=save_at,
        )


@dataclasses.dataclass(kw_only=True)
class Loop:
    """The training loop with everything it works on; call `run`.

    Attributes:
      config: experiment config.
      plan: schedule in steps.
      mesh: device mesh.
      train_step: step made by `make_train_step`.
      frozen: arrays that do not learn.
      batches: this process's part of every batch, beginning with the next step; `run` closes it,
        which ends the processes that read for it.
      validate: function that computes validation metrics from all arrays of the model and the steps
        done, one mapping for each head, or for the network.
      watch: function that measures all arrays of the model without validation, given the means of
        the scalars since it last did, and the share of all steps that are done; it raises where the
        training has failed. None: nothing is watched.
      learning_rate: learning rate reached after warm-up, before any drop.
      batch_ids: function that gives the image ids of a step's batch, for messages.
      checkpoints, writer, report: outputs for checkpoints, metrics and console messages.
      selection: validations so far.
    """

    config: BaseConfig
    plan: Plan
    mesh: Mesh
    train_step: Callable[[TrainState, Arrays, Arrays], tuple[TrainState, dict[str, Any]]]
    frozen: Arrays
    batches: Generator[Batch, None, None]
    validate: Callable[[Arrays, int], Sequence[Mapping[str, float]]]
    learning_rate: Any
    batch_ids: Callable[[int], Sequence[str]]
    checkpoints: RunCheckpoints
    writer: MetricWriter
    report: ProgressReport
    selection: Selection
    watch: Callable[[Arrays, Mapping[str, float], float], Mapping[str, float]] | None = None

    def run(self, state: TrainState, start_step: int) -> TrainState:
        """Train from `start_step` to the end of the plan, or until the learning rate is too low.

        Raises:
          Stopped: a signal asked to stop; everything is saved.
          UserError: the loss is no longer finite. No update was made from that step on, and the
            earlier checkpoints are kept.
        """
        pending: list[dict[str, Any]] = []
        recent: list[Mapping[str, Any]] = []  # scalars since the last look
        selection, clock = self.selection, time.monotonic()
        try:
            with StopRequest() as stop:
                for step in range(start_step, self.plan.total_steps):
                    batch = parallel.to_devices(self.mesh, next(self.batches))
                    train = self._first_step if step == start_step else self.train_step
                    state, scalars = train(state, self.frozen, batch)
                    pending.append(scalars)
                    if len(pending) > STEPS_AHEAD:
                        jax.block_until_ready(pending[-1 - STEPS_AHEAD])
                    done = step + 1
                    stopping = stop.requested(done)
                    periodic = self.config.train.checkpoint_every_steps
                    saving = done in self.plan.save_at or stopping
                    saving |= bool(periodic and done % periodic == 0)
                    if saving or done % self.config.train.log_every_steps == 0:
                        recent += self._write(pending, done, state)
                        pending.clear()
                        self.checkpoints.poll()
                        selection.seconds += time.monotonic() - clock
                        clock = time.monotonic()
                    if done in self.plan.evaluate_at:
                        state = self.evaluate(state, done)
                    if done in self.plan.save_at:
                        self._look(state, done, recent)
                        recent.clear()
                    if saving:
                        self.writer.flush()
                        self.checkpoints.save(
                            done, model_arrays(state), counters(state), selection.to_json()
                        )
                        self.report.restart_clock(done)
                        clock = time.monotonic()
                    if selection.ended(self.config):
                        break
                    if stopping and done < self.plan.total_steps:
                        raise Stopped(done)
        finally:
            self.report.close()
            self.writer.flush()
            self.checkpoints.wait()
            self.batches.close()
        return state

    def _first_step(self, state: TrainState, *args: Any) -> tuple[TrainState, dict[str, Any]]:
        with kernel_errors(self.config.backbone):
            return jax.block_until_ready(self.train_step(state, *args))

    def _look(self, state: TrainState, done: int, recent: Sequence[Mapping[str, Any]]) -> None:
        """Measure what is watched, and keep the step if it is the best by what can choose."""
        if self.watch is None:
            return
        means = {name: float(np.mean([row[name] for row in recent])) for name in recent[0]}
        arrays = state.params | state.followers | self.frozen
        values = self.watch(arrays, means, done / self.plan.total_steps)
        self.writer.write_scalars(done, {f"monitor/{name}": v for name, v in values.items()})
        best = bool(self.selection.metric) and self.selection.improve([values], done)[0]
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        self.report.say(
            f"epoch {done / self.plan.steps_per_epoch:.1f}  step {done}  {shown}"
            f"{'  best so far' if best else ''}"
        )

    def _write(
        self, pending: list[dict[str, Any]], done: int, state: TrainState
    ) -> list[dict[str, Any]]:
        """Write the scalars of some steps, and return them from the device."""
        first = done - len(pending) + 1
        values = jax.device_get(pending)
        bad = int(state.bad_step)
        for i, scalars in enumerate(values):
            if bad >= 0 and first + i > bad + 1:
                break
            self.writer.write_scalars(first + i, self.selection.training_row(scalars))
        if bad >= 0:
            raise self._diverged(bad)
        loss = float(np.mean([scalars["loss"] for scalars in values]))
        self.writer.write_speed(
            done, {f"speed/{k}": v for k, v in self.report.update(done, loss).items()}
        )
        return values

    def _diverged(self, step: int) -> UserError:
        ids = list(self.batch_ids(step))
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        best = self.selection.best_step
        kept = f"the best checkpoint (step {best}) is kept" if best else "no checkpoint was lost"
        return UserError(
            f"the loss or its gradient is not finite at step {step + 1}, on the batch of {shown}."
            f" The update was not made and {kept}. Expected a finite loss: lower"
            " optim.learning_rate, lengthen the warm-up, or look at these images."
        )

    def evaluate(self, state: TrainState, done: int) -> TrainState:
        """Measure the validation split; keep the best and lower the learning rate if due."""
        selection = self.selection
        values = self.validate(state.params | state.followers | self.frozen, done)
        self.writer.write_scalars(done, selection.named("val", values))
        improved = selection.improve(values, done)
        if selection.names and improved.any():
            state = dataclasses.replace(
                state, followers=side_by_side.keep(state.params, state.followers, improved)
            )
        optim = self.config.optim
        # During warm-up a validation without improvement does not count.
        warm = done > warmup_steps(optim, self.plan.steps_per_epoch)
        if warm:
            selection.count_stale(improved)
        if optim.schedule == "plateau" and warm and selection.wait(optim, improved):
            scales = np.asarray(selection.lr_scale, np.float32)
            rate = np.asarray(self.learning_rate, np.float32) * scales
            rate = parallel.place(rate, parallel.replicated(self.mesh))
            state = dataclasses.replace(state, learning_rate=rate)
        self.report.say(
            f"epoch {done / self.plan.steps_per_epoch:.1f}  step {done}"
            f"  {selection.line(values, improved)}"
        )
        return state


def model_arrays(state: TrainState) -> dict[str, Arrays]:
    """Part of a train state that a checkpoint stores as the model."""
    return {"params": state.params, "stats": state.followers}


def counters(state: TrainState) -> dict[str, Any]:
    """Part of a train state that a checkpoint stores as `training`."""
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "learning_rate": state.learning_rate,
        "seed": state.seed,
        "bad_step": state.bad_step,
    }
