"""The compiled steps of training, under the `tf.distribute` strategy in scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.distribution import replica_count
from tfrobust.objectives import Objective
from tfrobust.training.precision import SMALLEST, LossScale

__all__ = ["compile_steps"]

Tensors = dict[str, tf.Tensor]
Gradients = Callable[[Tensors, tf.Tensor], tuple[list[tf.Tensor], Tensors]]


def compile_steps(
    logits: keras.Model,
    objective: Objective,
    optimizer: keras.optimizers.Optimizer,
    loss_scale: LossScale | None,
    *,
    seed: int,
    jit: bool,
) -> Callable[..., Any]:
    """A graph function of several steps: `run(iterator, count, totals, scale, good_steps)`.

    Args of `run`:
        iterator: of batches of named tensors.
        count: steps to take, () int32; fewer are taken where the objective is not finite, or
            where the loss scale falls below `SMALLEST`.
        totals: running sums of each part of the objective and of the accuracy, () float32.
        scale: the loss scale, () float32; 1 without one.
        good_steps: finite steps since it last changed, () int32.

    Returns of `run`:
        totals, steps taken, steps that updated the weights, scale and good steps afterwards.
    """

    first = int(np.random.SeedSequence(seed).generate_state(1)[0].view(np.int32))

    def step_seed() -> tf.Tensor:
        # updates so far: a resumed run draws the same numbers
        return tf.stack([first, tf.cast(optimizer.iterations.value, tf.int32)])

    gradients = _gradients(logits, objective, step_seed, scaled=loss_scale is not None)
    if jit:
        gradients = tf.function(gradients, jit_compile=True, autograph=False)
    variables = logits.trainable_variables

    def update(values: list[tf.Tensor]) -> None:
        optimizer.apply_gradients(zip(values, variables, strict=True))

    # without AutoGraph, which changes the type of errors that a user's term raises
    if loss_scale is None:
        return tf.function(_plain(gradients, update), autograph=False)
    return tf.function(_scaled(gradients, update, loss_scale), autograph=False)


def _gradients(
    logits: keras.Model, objective: Objective, step_seed: Callable[[], tf.Tensor], *, scaled: bool
) -> Gradients:
    """Gradients of one replica's share of a step, and the parts of the objective."""
    variables = logits.trainable_variables
    # the optimizer sums over replicas
    count = replica_count()

    def gradients(tensors: Tensors, scale: tf.Tensor) -> tuple[list[tf.Tensor], Tensors]:
        with tf.GradientTape() as tape:
            batch = objective.forward(
                logits,
                tensors,
                training=True,
                gradient_scale=scale if scaled else None,
                seed=step_seed(),
            )
            parts = objective.parts(batch)
            total = tf.add_n(list(parts.values())) / count
            if scaled:
                total *= scale
        values = tape.gradient(total, variables)
        if scaled:
            values = [None if value is None else value / scale for value in values]
        return values, {**parts, **objective.measured(batch), **objective.accuracies(batch)}

    return gradients


def _plain(gradients: Gradients, update: Callable[..., None]) -> Callable[..., Any]:
    """Steps without a loss scale."""
    strategy = tf.distribute.get_strategy()

    def step(tensors: Tensors) -> Tensors:
        values, parts = gradients(tensors, tf.constant(1.0))
        update(values)
        return parts

    def run(
        iterator: Any, count: tf.Tensor, totals: Tensors, scale: tf.Tensor, good_steps: tf.Tensor
    ) -> Any:
        def unfinished(steps_taken: tf.Tensor, totals: Tensors, finite: tf.Tensor) -> tf.Tensor:
            return tf.logical_and(steps_taken < count, finite)

        def take_step(
            steps_taken: tf.Tensor, totals: Tensors, finite: tf.Tensor
        ) -> tuple[Any, ...]:
            parts = _mean(strategy.run(step, args=(next(iterator),)))
            finite = tf.math.is_finite(tf.add_n(list(parts.values())))
            return steps_taken + 1, {name: totals[name] + parts[name] for name in totals}, finite

        start = tf.constant(0), totals, tf.constant(True)
        steps_taken, totals, _ = tf.while_loop(unfinished, take_step, start)
        return totals, steps_taken, steps_taken, scale, good_steps

    return run


def _scaled(
    gradients: Gradients, update: Callable[..., None], loss_scale: LossScale
) -> Callable[..., Any]:
    """Steps with a dynamic loss scale; a step whose gradients overflow updates nothing."""
    strategy = tf.distribute.get_strategy()

    def all_finite(values: list[tf.Tensor], parts: Tensors) -> tf.Tensor:
        flat = [value for value in (*values, *parts.values()) if value is not None]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in flat])
        return tf.cast(finite, tf.float32)

    def run(
        iterator: Any, count: tf.Tensor, totals: Tensors, scale: tf.Tensor, good_steps: tf.Tensor
    ) -> Any:
        def unfinished(
            steps_taken: tf.Tensor,
            used: tf.Tensor,
            totals: Tensors,
            scale: tf.Tensor,
            good_steps: tf.Tensor,
        ) -> tf.Tensor:
            return tf.logical_and(steps_taken < count, scale >= SMALLEST)

        def take_step(
            steps_taken: tf.Tensor,
            used: tf.Tensor,
            totals: Tensors,
            scale: tf.Tensor,
            good_steps: tf.Tensor,
        ) -> tuple[Any, ...]:
            values, replica_parts = strategy.run(gradients, args=(next(iterator), scale))
            flags = strategy.run(all_finite, args=(values, replica_parts))
            # all devices update, or none
            finite = strategy.reduce("MEAN", flags, axis=None) == 1.0
            parts = _mean(replica_parts)

            def updated() -> tuple[Tensors, tf.Tensor]:
                strategy.run(update, args=(values,))
                return {name: totals[name] + parts[name] for name in totals}, used + 1

            sums, updates = tf.cond(finite, updated, lambda: (totals, used))
            return steps_taken + 1, updates, sums, *loss_scale.after(scale, good_steps, finite)

        start = tf.constant(0), tf.constant(0), totals, scale, good_steps
        steps_taken, used, totals, scale, good_steps = tf.while_loop(unfinished, take_step, start)
        return totals, steps_taken, used, scale, good_steps

    return run


def _mean(replica_tensors: Tensors) -> Tensors:
    """Means of per-replica tensors over all replicas."""
    strategy = tf.distribute.get_strategy()
    return {
        name: strategy.reduce("MEAN", value, axis=None) for name, value in replica_tensors.items()
    }
