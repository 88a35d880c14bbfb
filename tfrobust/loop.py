"""The compiled steps of training, on whatever `tf.distribute` strategy is in scope."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust.differentiate import logits_model
from tfrobust.objectives import Objective

__all__ = ["Loop", "NonFiniteLossError"]

# between looks at the loss, in one graph
STEPS_PER_CALL = 20


class NonFiniteLossError(ArithmeticError):
    """The objective became infinite or NaN."""


class Loop:
    """The compiled steps of one call of `fit`.

    Args:
        model: its trainable weights are updated.
        objective: what is minimised.
        optimizer: built here, for the model's weights.
        images: (count, *input) float32, checked already.
        labels: (count,) int32.
        batch_size: examples a step, over all replicas.
        seed: of the order of examples.
    """

    def __init__(
        self,
        model: keras.Model,
        objective: Objective,
        optimizer: keras.optimizers.Optimizer,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
    ):
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.images, self.labels = tf.constant(images), tf.constant(labels)
        self.batch_size = batch_size
        self.seed = seed
        self.steps = len(images) // batch_size
        self.strategy = tf.distribute.get_strategy()
        optimizer.build(model.trainable_variables)
        self.run = self._compile(logits_model(model, images), optimizer)

    def _compile(
        self, logits: keras.Model, optimizer: keras.optimizers.Optimizer
    ) -> Callable[..., Any]:
        objective, strategy, variables = self.objective, self.strategy, logits.trainable_variables
        replicas = strategy.num_replicas_in_sync
        names = [*(term.name for term in objective.terms), "accuracy"]

        def step(x: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.GradientTape() as tape:
                batch = objective.forward(logits, x, labels, training=True)
                parts = objective.parts(batch)
                # the optimizer sums over replicas
                total = tf.add_n(list(parts.values())) / replicas
            optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
            hits = tf.argmax(batch.logits, axis=1, output_type=tf.int32) == labels
            return {**parts, "accuracy": tf.reduce_mean(tf.cast(hits, tf.float32))}

        @tf.function
        def run(iterator: Any, count: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            totals = {name: tf.constant(0.0) for name in names}
            done = tf.constant(0)
            finite = tf.constant(True)
            while tf.logical_and(done < count, finite):
                x, labels = next(iterator)
                each = strategy.run(step, args=(x, labels))
                parts = {name: strategy.reduce("MEAN", each[name], axis=None) for name in names}
                finite = tf.math.is_finite(tf.add_n([parts[name] for name in names]))
                totals = {name: totals[name] + parts[name] for name in names}
                done += 1
            return totals, done

        return run

    def _batches(self, epoch: int) -> Iterable[Any]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        batches = (
            tf.data.Dataset.from_tensor_slices(order)
            .batch(self.batch_size, drop_remainder=True)
            .map(lambda rows: (tf.gather(self.images, rows), tf.gather(self.labels, rows)))
            .prefetch(2)
        )
        if self.strategy.num_replicas_in_sync > 1:
            return self.strategy.experimental_distribute_dataset(batches)
        return batches

    def epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """One pass; the mean of each part over its steps."""
        iterator = iter(self._batches(epoch))
        sums: dict[str, float] = {}
        finished = 0
        while finished < self.steps:
            totals, done = self.run(
                iterator, tf.constant(min(STEPS_PER_CALL, self.steps - finished))
            )
            totals = {name: float(value) for name, value in totals.items()}
            finished += int(done)
            if not all(map(math.isfinite, totals.values())):
                raise NonFiniteLossError(self._message(epoch, finished, totals))
            for name, value in totals.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update(int(done))
            bar.set_postfix({name: f"{value / int(done):.3g}" for name, value in totals.items()})
        for variable in self.model.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise NonFiniteLossError(self._message(epoch, finished, {variable.path: math.nan}))
        return {name: value / self.steps for name, value in sums.items()}

    def _message(self, epoch: int, step: int, parts: dict[str, float]) -> str:
        bad = ", ".join(name for name, value in parts.items() if not math.isfinite(value))
        return (
            f"{bad} is not finite in epoch {epoch + 1}, step {step} of {self.steps}. "
            f"Learning rate {float(keras.ops.convert_to_numpy(self.optimizer.learning_rate)):g}, "
            f"objective {self.objective.describe()}. Lower the rate or the weights of the "
            "penalties; checkpoints of earlier epochs are kept."
        )
