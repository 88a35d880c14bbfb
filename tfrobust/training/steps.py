"""The compiled steps of training, on whatever `tf.distribute` strategy is in scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
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
    jit: bool,
) -> Callable[..., Any]:
    """A graph function that takes several steps: `run(iterator, count, totals, scale, good)`.

    Args of `run`:
        iterator: gives batches of named tensors.
        count: steps to take, () int32; fewer are taken where the objective is not finite, or
            where the loss scale falls below `SMALLEST`.
        totals: of each part of the objective and the accuracy so far, () float32.
        scale: the loss scale, () float32; 1 where there is none.
        good: finite steps since it changed, () int32.

    Returns of `run`:
        totals, steps taken, steps that updated the weights, scale and good steps afterwards.
    """
    gradients = _gradients(logits, objective, scaled=loss_scale is not None)
    if jit:
        gradients = tf.function(gradients, jit_compile=True, autograph=False)
    variables = logits.trainable_variables

    def update(values: list[tf.Tensor]) -> None:
        optimizer.apply_gradients(zip(values, variables, strict=True))

    # not AutoGraph, which gives the errors of a user's own term another type
    if loss_scale is None:
        return tf.function(_plain(gradients, update), autograph=False)
    return tf.function(_scaled(gradients, update, loss_scale), autograph=False)


def _gradients(logits: keras.Model, objective: Objective, *, scaled: bool) -> Gradients:
    """Gradients of one replica's share of a step, and the parts of the objective."""
    variables = logits.trainable_variables
    # the optimizer sums over replicas
    count = replica_count()

    def gradients(tensors: Tensors, scale: tf.Tensor) -> tuple[list[tf.Tensor], Tensors]:
        with tf.GradientTape() as tape:
            batch = objective.forward(
                logits, tensors, training=True, gradient_scale=scale if scaled else None
            )
            parts = objective.parts(batch)
            total = tf.add_n(list(parts.values())) / count
            if scaled:
                total *= scale
        values = tape.gradient(total, variables)
        if scaled:
            values = [None if value is None else value / scale for value in values]
        hits = tf.argmax(batch.logits, axis=1, output_type=tf.int32) == batch.labels
        return values, {**parts, "accuracy": tf.reduce_mean(tf.cast(hits, tf.float32))}

    return gradients


def _plain(gradients: Gradients, update: Callable[..., None]) -> Callable[..., Any]:
    """Steps without a loss scale."""
    strategy = tf.distribute.get_strategy()

    def step(tensors: Tensors) -> Tensors:
        values, parts = gradients(tensors, tf.constant(1.0))
        update(values)
        return parts

    def run(
        iterator: Any, count: tf.Tensor, totals: Tensors, scale: tf.Tensor, good: tf.Tensor
    ) -> Any:
        def unfinished(done: tf.Tensor, totals: Tensors, finite: tf.Tensor) -> tf.Tensor:
            return tf.logical_and(done < count, finite)

        def one(done: tf.Tensor, totals: Tensors, finite: tf.Tensor) -> tuple[Any, ...]:
            parts = _mean(strategy.run(step, args=(next(iterator),)))
            finite = tf.math.is_finite(tf.add_n(list(parts.values())))
            return done + 1, {name: totals[name] + parts[name] for name in totals}, finite

        start = tf.constant(0), totals, tf.constant(True)
        done, totals, _ = tf.while_loop(unfinished, one, start)
        return totals, done, done, scale, good

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
        iterator: Any, count: tf.Tensor, totals: Tensors, scale: tf.Tensor, good: tf.Tensor
    ) -> Any:
        def unfinished(
            done: tf.Tensor, used: tf.Tensor, totals: Tensors, scale: tf.Tensor, good: tf.Tensor
        ) -> tf.Tensor:
            return tf.logical_and(done < count, scale >= SMALLEST)

        def one(
            done: tf.Tensor, used: tf.Tensor, totals: Tensors, scale: tf.Tensor, good: tf.Tensor
        ) -> tuple[Any, ...]:
            values, each = strategy.run(gradients, args=(next(iterator), scale))
            flags = strategy.run(all_finite, args=(values, each))
            # all devices update, or none
            finite = strategy.reduce("MEAN", flags, axis=None) == 1.0
            parts = _mean(each)

            def updated() -> tuple[Tensors, tf.Tensor]:
                strategy.run(update, args=(values,))
                return {name: totals[name] + parts[name] for name in totals}, used + 1

            sums, updates = tf.cond(finite, updated, lambda: (totals, used))
            return done + 1, updates, sums, *loss_scale.after(scale, good, finite)

        start = tf.constant(0), tf.constant(0), totals, scale, good
        done, used, totals, scale, good = tf.while_loop(unfinished, one, start)
        return totals, done, used, scale, good

    return run


def _mean(each: Tensors) -> Tensors:
    """Means over all replicas of what each of them computed."""
    strategy = tf.distribute.get_strategy()
    return {name: strategy.reduce("MEAN", value, axis=None) for name, value in each.items()}
