"""The compiled steps of training, on whatever `tf.distribute` strategy is in scope."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust.data import Share, Stream
from tfrobust.distribution import host, hosts, replicas
from tfrobust.errors import TfrobustError
from tfrobust.objectives import Objective
from tfrobust.training.precision import SMALLEST, LossScale, needs_loss_scale

__all__ = ["Loop", "NonFiniteLossError", "WorkerLostError", "worker_losses"]

# between looks at the loss, in one graph
STEPS_PER_CALL = 20


class NonFiniteLossError(TfrobustError, ArithmeticError):
    """The objective became infinite or NaN."""


class WorkerLostError(TfrobustError, RuntimeError):
    """Another host of a multi-host run is gone."""


@contextlib.contextmanager
def worker_losses() -> Iterator[None]:
    """Say what to do when a host is lost, instead of what a collective operation says."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if hosts() == 1:
            raise
        first = str(error).strip().splitlines()[-1][:300]
        raise WorkerLostError(
            f"a worker of {hosts()} was lost while host {host()} was training ({first}). Start all "
            "workers again with the same command: they go on after the last finished epoch."
        ) from error


class Loop:
    """The compiled steps of one call of `fit`.

    Args:
        model: its trainable weights are updated.
        logits: view of it that returns logits.
        objective: what is minimised.
        optimizer: built here, for the model's weights.
        data: what is read.
        batch_size: examples a step, over all replicas.
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
        self.model = model
        self.logits = logits
        self.objective = objective
        self.optimizer = optimizer
        self.data = data
        self.batch_size = batch_size
        self.share = Share.of(batch_size, replicas(), hosts(), host())
        self.seed = seed
        self.steps = data.examples // batch_size
        self.strategy = tf.distribute.get_strategy()
        self.loss_scale = LossScale() if needs_loss_scale(logits) else None
        optimizer.build(model.trainable_variables)
        self.run = self._compile(self._gradients(jit))

    def _gradients(self, jit: bool) -> Callable[..., Any]:
        """Gradients of one replica's share of a step, and the parts of the objective."""
        objective, logits = self.objective, self.logits
        variables = logits.trainable_variables
        # the optimizer sums over replicas
        count = replicas()

        def gradients(
            x: tf.Tensor, labels: tf.Tensor, scale: tf.Tensor
        ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
            scaled = None if self.loss_scale is None else scale
            with tf.GradientTape() as tape:
                batch = objective.forward(
                    logits, {"images": x, "labels": labels}, training=True, gradient_scale=scaled
                )
                parts = objective.parts(batch)
                total = tf.add_n(list(parts.values())) / count
                if scaled is not None:
                    total *= scale
            values = tape.gradient(total, variables)
            if scaled is not None:
                values = [None if value is None else value / scale for value in values]
            hits = tf.argmax(batch.logits, axis=1, output_type=tf.int32) == labels
            return values, {**parts, "accuracy": tf.reduce_mean(tf.cast(hits, tf.float32))}

        return tf.function(gradients, jit_compile=True) if jit else gradients

    def _compile(self, gradients: Callable[..., Any]) -> Callable[..., Any]:
        strategy, variables = self.strategy, self.logits.trainable_variables
        optimizer, loss_scale = self.optimizer, self.loss_scale
        names = [*(term.name for term in self.objective.terms), "accuracy"]

        def update(values: list[tf.Tensor]) -> None:
            optimizer.apply_gradients(zip(values, variables, strict=True))

        def step(x: tf.Tensor, labels: tf.Tensor, scale: tf.Tensor) -> dict[str, tf.Tensor]:
            values, parts = gradients(x, labels, scale)
            update(values)
            return parts

        def all_finite(values: list[tf.Tensor], parts: dict[str, tf.Tensor]) -> tf.Tensor:
            flat = [value for value in (*values, *parts.values()) if value is not None]
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in flat])
            return tf.cast(finite, tf.float32)

        def mean(each: dict[str, Any]) -> dict[str, tf.Tensor]:
            return {name: strategy.reduce("MEAN", each[name], axis=None) for name in names}

        @tf.function
        def run(iterator: Any, count: tf.Tensor, scale: tf.Tensor, good: tf.Tensor) -> Any:
            totals = {name: tf.constant(0.0) for name in names}
            done = tf.constant(0)
            finite = tf.constant(True)
            while tf.logical_and(done < count, finite):
                x, labels = next(iterator)
                parts = mean(strategy.run(step, args=(x, labels, scale)))
                finite = tf.math.is_finite(tf.add_n([parts[name] for name in names]))
                totals = {name: totals[name] + parts[name] for name in names}
                done += 1
            return totals, done, done, scale, good

        @tf.function
        def run_scaled(iterator: Any, count: tf.Tensor, scale: tf.Tensor, good: tf.Tensor) -> Any:
            totals = {name: tf.constant(0.0) for name in names}
            done, used = tf.constant(0), tf.constant(0)
            while tf.logical_and(done < count, scale >= SMALLEST):
                x, labels = next(iterator)
                values, each = strategy.run(gradients, args=(x, labels, scale))
                flags = strategy.run(all_finite, args=(values, each))
                # all devices update, or none
                finite = strategy.reduce("MEAN", flags, axis=None) == 1.0
                parts = mean(each)
                if finite:
                    strategy.run(update, args=(values,))
                    totals = {name: totals[name] + parts[name] for name in names}
                    used += 1
                scale, good = loss_scale.after(scale, good, finite)
                done += 1
            return totals, done, used, scale, good

        return run if loss_scale is None else run_scaled

    def _batches(self, epoch: int) -> Iterable[Any]:
        def mine() -> tf.data.Dataset:
            return self.data.training_batches(
                self.batch_size, self.share, seed=self.seed, epoch=epoch
            )

        if replicas() > 1:
            return self.strategy.distribute_datasets_from_function(lambda _: mine())
        return mine()

    def epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """One pass; the mean of each part over its steps.

        Raises:
            NonFiniteLossError: the objective is infinite or NaN.
            WorkerLostError: another host is gone.
        """
        iterator = iter(self._batches(epoch))
        sums: dict[str, float] = {}
        finished = updates = 0
        scale = self.loss_scale
        while finished < self.steps:
            count = tf.constant(min(STEPS_PER_CALL, self.steps - finished))
            state = (scale.value, scale.good_steps) if scale else (1.0, 0)
            with self.data.errors(), worker_losses():
                totals, done, used, *after = self.run(
                    iterator, count, tf.constant(state[0]), tf.constant(state[1])
                )
            totals = {name: float(value) for name, value in totals.items()}
            done, used = int(done), int(used)
            finished, updates = finished + done, updates + used
            if scale:
                scale.value, scale.good_steps = float(after[0]), int(after[1])
                if scale.value < SMALLEST:
                    raise NonFiniteLossError(self._message(epoch, finished, {"loss": math.nan}))
            if not all(map(math.isfinite, totals.values())):
                raise NonFiniteLossError(self._message(epoch, finished, totals))
            for name, value in totals.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update(done)
            bar.set_postfix({name: f"{value / max(used, 1):.3g}" for name, value in totals.items()})
        for variable in self.model.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise NonFiniteLossError(self._message(epoch, finished, {variable.path: math.nan}))
        record = {name: value / max(updates, 1) for name, value in sums.items()}
        if scale:
            record |= {"loss_scale": scale.value, "skipped_steps": finished - updates}
        return record

    def _message(self, epoch: int, step: int, parts: dict[str, float]) -> str:
        bad = ", ".join(name for name, value in parts.items() if not math.isfinite(value))
        return (
            f"{bad} is not finite in epoch {epoch + 1}, step {step} of {self.steps}. "
            f"Learning rate {float(keras.ops.convert_to_numpy(self.optimizer.learning_rate)):g}, "
            f"objective {self.objective.describe()}. Lower the rate or the weights of the "
            "penalties; checkpoints of earlier epochs are kept."
        )
