"""The cost of Noack 2020's penalties and maps, and WRN-28-10 on this machine.

    python -m benchmarks.interpretation

A training step with a penalty over a plain step, SmoothGrad over as many plain gradients, both on
the MNIST network; seconds and peak memory of a training step and of a measurement of WRN-28-10.
Exits with status 1 if a ratio exceeds its limit.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tyro

import reference_models
from benchmarks.speed import Comparison, compare, print_table
from tfrobust import (
    CrossEntropy,
    InterpretationRegularization,
    JacobianRegularization,
    fit,
    measure,
    saliency,
)
from tfrobust.classifier import logits_model
from tfrobust.commands import run
from tfrobust.objectives import Objective
from tfrobust.report import versions

BATCH, STEPS, SAMPLES = 50, 3, 10


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed."""

    wide_resnet: bool = True
    """Also a training step and a measurement of WRN-28-10, 36 million parameters."""
    wide_batch: int = 4
    """Images per step of WRN-28-10."""


def main(arguments: list[str] | None = None) -> None:
    """Print every ratio and figure.

    Args:
        arguments: the command line; sys.argv where None.

    Raises:
        SystemExit: status 1 where a limit is missed.
    """
    settings = tyro.cli(Settings, prog="benchmarks.interpretation", args=arguments)
    print(versions()["machine"], "- TensorFlow", tf.__version__)
    comparisons = [*penalties(), smoothing()]
    print_table(comparisons)
    if settings.wide_resnet:
        wide_resnet(settings.wide_batch)
    failed = [item.name for item in comparisons if item.limit and item.ratio > item.limit]
    if failed:
        sys.exit(f"\nOVER THE LIMIT: {', '.join(failed)}")
    print("\nwithin all limits")


def penalties() -> list[Comparison]:
    """Training steps on one batch, each compiled once."""
    rng = np.random.default_rng(0)
    tensors = {
        "images": tf.constant(rng.random((BATCH, 28, 28, 1), dtype="float32")),
        "labels": tf.constant(rng.integers(0, 10, BATCH).astype("int32")),
        "targets": tf.constant(rng.normal(size=(BATCH, 28, 28, 1)).astype("float32")),
    }
    plain = _step(Objective((CrossEntropy(),)), tensors)
    one = JacobianRegularization(0.32, projections=1, form="half_square")
    cases: dict[str, tuple[Any, float | None]] = {
        "IR step / plain step": (InterpretationRegularization(3.0, 0.15), 3.0),
        "JR step, one projection / plain step": (one, 3.0),
        "JR step, exact / plain step": (JacobianRegularization(0.32), None),
    }
    return [
        compare(name, _step(CrossEntropy() + term, tensors), plain, limit)
        for name, (term, limit) in cases.items()
    ]


def _step(objective: Objective, tensors: dict[str, tf.Tensor]) -> Callable[[], None]:
    """Several steps of the MNIST network of Noack 2020."""
    keras.utils.set_random_seed(0)
    model = reference_models.build("noack_mnist_cnn")
    logits, variables = logits_model(model), model.trainable_variables
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            batch = objective.forward(logits, tensors, training=True)
            total = tf.add_n(list(objective.parts(batch).values()))
        optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
        return total

    def steps() -> None:
        for _ in range(STEPS):
            total = step(tensors)
        float(total)

    return steps


def smoothing() -> Comparison:
    """SmoothGrad over as many plain gradients."""
    keras.utils.set_random_seed(0)
    model = reference_models.build("noack_mnist_cnn")
    rng = np.random.default_rng(0)
    images = rng.random((4 * BATCH, 28, 28, 1), dtype="float32")
    labels = rng.integers(0, 10, len(images))

    def gradients() -> None:
        for _ in range(SAMPLES):
            saliency.gradient(model, images, labels)

    def smoothed() -> None:
        saliency.smoothgrad(model, images, labels, samples=SAMPLES)

    return compare("SmoothGrad / plain gradients", smoothed, gradients, 1 / 0.8)


def wide_resnet(batch: int) -> None:
    """Seconds and peak memory of WRN-28-10, built, trained for two steps and measured."""
    rng = np.random.default_rng(0)
    images = rng.random((2 * batch, 32, 32, 3), dtype="float32")
    targets = rng.normal(size=images.shape).astype("float32")
    labels = rng.integers(0, 10, len(images))
    start = time.perf_counter()
    model = reference_models.build("wide_resnet_28_10")
    _print(f"WRN-28-10, {model.count_params():,} values: built", start)
    start = time.perf_counter()
    history = fit(
        model,
        (images, labels, targets),
        CrossEntropy() + InterpretationRegularization(0.75, 0.005),
        optimizer=keras.optimizers.SGD(1e-3),
        epochs=2,
        batch_size=batch,
        progress=False,
    )
    _print(f"two epochs of two IR steps of {batch} images", start)
    print(f"  of these a later step: {history.records[-1]['seconds'] / 2:.1f} s")
    start = time.perf_counter()
    measure(model, images[:batch], search="exact")
    _print(f"alignment and linearized robustness of {batch} images", start)


def _print(what: str, start: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{what}: {time.perf_counter() - start:.1f} s, peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    run(main)
