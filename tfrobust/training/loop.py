"""The steps of an epoch: from batches to running sums of the epoch's record."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust.data import Share, Stream
from tfrobust.distribution import replica_count, worker_count, worker_index
from tfrobust.errors import TfrobustError
from tfrobust.objectives import Objective
from tfrobust.training.precision import SMALLEST, LossScale, needs_loss_scale
from tfrobust.training.steps import compile_steps

__all__ = ["Loop", "NonFiniteLossError", "Progress", "WorkerLostError", "worker_losses"]

# steps per call of the graph, after each of which the loss is checked
STEPS_PER_CALL = 20


class NonFiniteLossError(TfrobustError, ArithmeticError):
    """The objective became infinite or NaN."""


class WorkerLostError(TfrobustError, RuntimeError):
    """Another worker of a multi-worker run has terminated."""


@contextlib.contextmanager
def worker_losses() -> Iterator[None]:
    """In the block, replace errors of collective operations by one that says what to do."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if worker_count() == 1:
            raise
        reason = str(error).strip().splitlines()[-1][:300]
        raise WorkerLostError(
            f"a worker of {worker_count()} was lost while worker {worker_index()} was training "
            f"({reason}). Start all workers again with the same command: training resumes from "
            "the last checkpoint."
        ) from error


@dataclasses.dataclass
class Progress:
    """Progress within an epoch, with the running sums of its record: plain numbers."""

    epoch: int
    """Counted from 0."""
    steps: int = 0
    """Steps taken."""
    updates: int = 0
    """Number of these steps that updated the weights."""
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of each part of the objective and the accuracy, over complete groups of `STEPS_PER_CALL`."""
    group: dict[str, float] = dataclasses.field(default_factory=dict)
    """The same over the steps of the incomplete group; single precision, as in the graph."""
    seconds: float = 0.0
    """Time spent on the epoch before it was resumed."""
    learning_rate: float | None = None
    """At the start of the epoch; None before it."""

    def means(self) -> dict[str, float]:
        """Means over the steps that updated the weights."""
        return {
            name: (self.sums.get(name, 0.0) + value) / max(self.updates, 1)
            for name, value in self.group.items()
        }


class Loop:
    """The steps of one call of `fit`.

    Args:
        model: its trainable weights are updated.
        logits: its view that returns logits.
        objective: to be minimised.
        optimizer: built here, for the model's weights.
        data: the training data.
        batch_size: examples per step, over all replicas.
        seed: of the order of examples.
        jit: compile gradients with XLA.
    """

    def __init__(
        self,
        model: keras.Model,
        logits: keras.Model,
        objective: Objective,
        optimizer: keras.optimizers.Optimizer,
        data: Stream,
        batch_size: int,
        seed: int,
        jit: bool = False,
    ):
        self.steps = data.examples // batch_size
        self.loss_scale = LossScale() if needs_loss_scale(logits) else None
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._share = Share.of(batch_size, replica_count(), worker_count(), worker_index())
        self._parts = [*objective.names, *objective.measured_names, *objective.accuracy_names]
        optimizer.build(model.trainable_variables)
        self._run = compile_steps(logits, objective, optimizer, self.loss_scale, seed=seed, jit=jit)

    def batches(self, progress: Progress) -> Iterator[Any]:
        """The remaining batches of an epoch."""

        def dataset() -> tf.data.Dataset:
            return self._data.training_batches(
                self._batch_size,
                self._share,
                seed=self._seed,
                epoch=progress.epoch,
                first_step=progress.steps,
            )

        batches: Iterable[Any] = dataset()
        if replica_count() > 1:
            strategy = tf.distribute.get_strategy()
            batches = strategy.distribute_datasets_from_function(lambda _: dataset())
        return iter(batches)

    def advance(self, batches: Iterator[Any], progress: Progress, stop: int, bar: tqdm) -> None:
        """Take the steps of an epoch up to step `stop`; `progress` is updated.

        Raises:
            NonFiniteLossError: the objective or a weight is infinite or NaN.
            WorkerLostError: another worker has terminated.
        """
        while progress.steps < stop:
            first_step = progress.steps
            group_end = (first_step // STEPS_PER_CALL + 1) * STEPS_PER_CALL
            self._call(batches, progress, min(stop, group_end) - first_step)
            bar.update(progress.steps - first_step)
            bar.set_postfix({name: f"{mean:.3g}" for name, mean in progress.means().items()})
        for variable in self._model.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise NonFiniteLossError(self._message(progress, [variable.path]))

    def _call(self, batches: Iterator[Any], progress: Progress, count: int) -> None:
        scale = self.loss_scale
        scale_state = (scale.value, scale.good_steps) if scale else (1.0, 0)
        totals = {name: tf.constant(progress.group.get(name, 0.0)) for name in self._parts}
        with self._data.errors(), worker_losses():
            totals, steps_taken, updates, *new_scale_state = self._run(
                batches, tf.constant(count), totals, *map(tf.constant, scale_state)
            )
        progress.group = {name: float(totals[name]) for name in self._parts}
        progress.steps += int(steps_taken)
        progress.updates += int(updates)
        if scale:
            scale.value, scale.good_steps = float(new_scale_state[0]), int(new_scale_state[1])
            if scale.value < SMALLEST:
                raise NonFiniteLossError(self._message(progress, ["loss"]))
        not_finite = [name for name, value in progress.group.items() if not math.isfinite(value)]
        if not_finite:
            raise NonFiniteLossError(self._message(progress, not_finite))
        if progress.steps % STEPS_PER_CALL == 0 or progress.steps == self.steps:
            for name, value in progress.group.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
                progress.group[name] = 0.0

    def record(self, progress: Progress) -> dict[str, float]:
        """Means over a finished epoch, with the loss scale and the number of skipped steps."""
        record = progress.means()
        if self.loss_scale:
            skipped = progress.steps - progress.updates
            record |= {"loss_scale": self.loss_scale.value, "skipped_steps": skipped}
        return record

    def _message(self, progress: Progress, names: list[str]) -> str:
        rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        return (
            f"{', '.join(names)} is not finite in epoch {progress.epoch + 1}, step "
            f"{progress.steps} of {self.steps}. Learning rate {rate:g}, objective "
            f"{self._objective.describe()}. Lower the rate or the weights of the penalties; "
            "earlier checkpoints are kept."
        )
