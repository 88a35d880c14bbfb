"""The steps of an epoch: batches in, running sums of the epoch's record out."""

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

# in one graph, between looks at the loss
STEPS_PER_CALL = 20


class NonFiniteLossError(TfrobustError, ArithmeticError):
    """The objective became infinite or NaN."""


class WorkerLostError(TfrobustError, RuntimeError):
    """Another worker of a multi-worker run is gone."""


@contextlib.contextmanager
def worker_losses() -> Iterator[None]:
    """Say what to do when a worker is lost, instead of what a collective operation says."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if worker_count() == 1:
            raise
        first = str(error).strip().splitlines()[-1][:300]
        raise WorkerLostError(
            f"a worker of {worker_count()} was lost while worker {worker_index()} was training "
            f"({first}). Start all workers again with the same command: training is resumed from "
            "the last checkpoint."
        ) from error


@dataclasses.dataclass
class Progress:
    """How far an epoch has come, with the running sums of its record: plain numbers."""

    epoch: int
    """Counted from 0."""
    steps: int = 0
    """Steps taken."""
    updates: int = 0
    """Of these, the steps that updated the weights."""
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of each part of the objective and the accuracy, over whole groups of `STEPS_PER_CALL`."""
    group: dict[str, float] = dataclasses.field(default_factory=dict)
    """The same over the steps of the group that is not whole; single precision, as in the graph."""
    seconds: float = 0.0
    """Spent on the epoch before it was resumed."""

    def means(self) -> dict[str, float]:
        """Over the updates."""
        return {
            name: (self.sums.get(name, 0.0) + value) / max(self.updates, 1)
            for name, value in self.group.items()
        }


class Loop:
    """The steps of one call of `fit`.

    Args:
        model: its trainable weights are updated.
        logits: view of it that returns logits.
        objective: what is minimised.
        optimizer: built here, for the model's weights.
        data: what is read.
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
        self._parts = [*(term.name for term in objective.terms), "accuracy"]
        optimizer.build(model.trainable_variables)
        self._run = compile_steps(logits, objective, optimizer, self.loss_scale, jit=jit)

    def batches(self, progress: Progress) -> Iterator[Any]:
        """The batches of an epoch that are still to come."""

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
            WorkerLostError: another worker is gone.
        """
        while progress.steps < stop:
            before = progress.steps
            group_end = (before // STEPS_PER_CALL + 1) * STEPS_PER_CALL
            self._call(batches, progress, min(stop, group_end) - before)
            bar.update(progress.steps - before)
            bar.set_postfix({name: f"{mean:.3g}" for name, mean in progress.means().items()})
        for variable in self._model.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise NonFiniteLossError(self._message(progress, [variable.path]))

    def _call(self, batches: Iterator[Any], progress: Progress, count: int) -> None:
        scale = self.loss_scale
        scale_state = (scale.value, scale.good_steps) if scale else (1.0, 0)
        totals = {name: tf.constant(progress.group.get(name, 0.0)) for name in self._parts}
        with self._data.errors(), worker_losses():
            totals, done, updates, *after = self._run(
                batches, tf.constant(count), totals, *map(tf.constant, scale_state)
            )
        progress.group = {name: float(totals[name]) for name in self._parts}
        progress.steps += int(done)
        progress.updates += int(updates)
        if scale:
            scale.value, scale.good_steps = float(after[0]), int(after[1])
            if scale.value < SMALLEST:
                raise NonFiniteLossError(self._message(progress, ["loss"]))
        bad = [name for name, value in progress.group.items() if not math.isfinite(value)]
        if bad:
            raise NonFiniteLossError(self._message(progress, bad))
        if progress.steps % STEPS_PER_CALL == 0 or progress.steps == self.steps:
            for name, value in progress.group.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
                progress.group[name] = 0.0

    def record(self, progress: Progress) -> dict[str, float]:
        """Means over a finished epoch, and what became of the loss scale."""
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
