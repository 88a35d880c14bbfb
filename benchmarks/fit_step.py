"""What `fit` adds to a training step: its seconds per step over those of a bare compiled step.

    python -m benchmarks.fit_step

The bare step is a `tf.function` of the same network, objective and optimizer, written without the
library, over batches of the same images that lie ready in memory. Every epoch of `fit` is followed
by as many bare steps in the same process, so that drifts of the machine affect both; the first
epochs are not counted. Ratios hold for the machine that it runs on, while that does nothing else.
Exits with status 1 if a median ratio exceeds the limit.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import reference_models
from tfrobust import CrossEntropy, DoubleBackprop, fit

LIMIT = 1.1
BATCH, STEPS = 100, 20
EPOCHS, WARM_UP = 24, 4
# of the penalty in the released code's scale, which divides by the square of the batch size
WEIGHT = 1e4


def fresh() -> tuple[keras.Model, keras.optimizers.Optimizer]:
    """The MNIST network from fixed seeds, and its optimizer."""
    keras.utils.set_random_seed(0)
    return reference_models.build("mnist_cnn"), keras.optimizers.SGD(1e-3, momentum=0.9)


def bare_step(penalty: bool) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """One compiled step of training, of images and labels; returns the loss."""
    model, optimizer = fresh()
    variables = model.trainable_variables
    optimizer.build(variables)

    def losses(x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = model(x, training=True)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

    @tf.function
    def step(x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            if penalty:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    each = losses(x, labels)
                squares = tf.reduce_sum(tf.square(inner.gradient(each, x)), axis=[1, 2, 3])
                total = tf.reduce_mean(each) + WEIGHT / BATCH**2 * tf.reduce_mean(squares)
            else:
                total = tf.reduce_mean(losses(x, labels))
        optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
        return total

    return step


def pairs(objective: Any, penalty: bool) -> list[tuple[float, float]]:
    """Seconds of an epoch of `fit` and of as many bare steps, for each epoch after the warm-up."""
    rng = np.random.default_rng(0)
    images = rng.random((STEPS * BATCH, 28, 28, 1), dtype="float32")
    labels = rng.integers(0, 10, STEPS * BATCH).astype("int32")
    batches = [
        (tf.constant(images[start : start + BATCH]), tf.constant(labels[start : start + BATCH]))
        for start in range(0, STEPS * BATCH, BATCH)
    ]
    step = bare_step(penalty)
    seconds = []

    def bare_epoch(record: dict[str, float], _: keras.Model) -> None:
        start = time.perf_counter()
        for x, classes in batches:
            loss = step(x, classes)
        float(loss)
        seconds.append((record["seconds"], time.perf_counter() - start))

    model, optimizer = fresh()
    fit(
        model,
        (images, labels),
        objective,
        optimizer=optimizer,
        epochs=EPOCHS,
        batch_size=BATCH,
        callbacks=[bare_epoch],
        progress=False,
    )
    return seconds[WARM_UP:]


def main() -> int:
    """Print both ratios with their spread over pairs; 1 if a median exceeds the limit."""
    print(
        f"this machine: {platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}"
    )
    print(f"{EPOCHS - WARM_UP} pairs of {STEPS} steps of {BATCH} images; limit {LIMIT}")
    print(f"{'':38} {'fit ms':>8} {'bare ms':>8} {'ratio':>6} {'quartiles':>12} {'range':>12}")
    plain = CrossEntropy()
    double = plain + DoubleBackprop(WEIGHT, penalty_scale="batch_mean")
    worst = 0.0
    for name, objective in (("cross-entropy", plain), ("with double backpropagation", double)):
        seconds = pairs(objective, penalty=objective is double)
        ratios = sorted(ours / bare for ours, bare in seconds)
        low, median, high = statistics.quantiles(ratios, n=4)
        ours, bare = (
            1e3 * statistics.median(column) / STEPS for column in zip(*seconds, strict=True)
        )
        print(
            f"{name:38} {ours:8.2f} {bare:8.2f} {median:6.3f} {low:6.2f}..{high:.2f} "
            f"{ratios[0]:6.2f}..{ratios[-1]:.2f}"
        )
        worst = max(worst, median)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
