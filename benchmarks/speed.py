"""Speed and memory of the library's hot paths, as ratios inside one run.

    python -m benchmarks.speed

Ratios hold where absolute times drift with the machine. Each pair is timed in turn, A B A B, and
the medians are compared. Exits with status 1 if a ratio exceeds its limit.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
import tyro

import reference_models
from tfrobust import data
from tfrobust.alignment import measure
from tfrobust.classifier import gradients_at, jacobian, jvp, logits_model, vjp
from tfrobust.commands import run
from tfrobust.objectives import CrossEntropy, DoubleBackprop, Objective
from tfrobust.report import versions
from tfrobust.training import fit

BATCH = 100
REPEATS = 7
# of fit; tracing and the allocator's first large blocks make the first ones slow
EPOCHS, WARM_UP = 9, 4
# per epoch; weight of the penalty
STEPS, PENALTY = 20, 1e4


@dataclasses.dataclass(frozen=True)
class Settings:
    """Speed and memory of the library's hot paths, as ratios inside one run; takes no settings."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two ways timed in turn; times in seconds."""

    name: str
    ours: float
    other: float
    spread: tuple[float, float]
    """Smallest and largest ratio of one pair."""
    limit: float | None

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.ours / self.other


def compare(
    name: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    limit: float | None = None,
    repeats: int = REPEATS,
) -> Comparison:
    """Time two functions in turn, after a warm-up of each."""
    ours()
    other()
    pairs = []
    for _ in range(repeats):
        times = []
        for function in (ours, other):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        pairs.append(times)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    return Comparison(name, first, second, (min(ratios), max(ratios)), limit)


def print_table(comparisons: Sequence[Comparison]) -> None:
    """Times, ratios with their spread, and limits."""
    print(f"\n{'':46} {'ours ms':>9} {'other ms':>9} {'ratio':>6} {'spread':>13} {'limit':>6}")
    for item in comparisons:
        limit = "" if item.limit is None else f"{item.limit:.2f}"
        spread = f"{item.spread[0]:.2f}..{item.spread[1]:.2f}"
        print(
            f"{item.name:46} {1e3 * item.ours:9.1f} {1e3 * item.other:9.1f} {item.ratio:6.2f} "
            f"{spread:>13} {limit:>6}"
        )


def training_steps() -> list[Comparison]:
    """Seconds per step of `fit`, plain and with double backpropagation, and of bare steps."""
    rng = np.random.default_rng(0)
    images = rng.random((STEPS * BATCH, 28, 28, 1), dtype="float32")
    labels = rng.integers(0, 10, STEPS * BATCH).astype("int32")
    objectives = {
        "plain": Objective((CrossEntropy(),)),
        "double backpropagation": CrossEntropy()
        + DoubleBackprop(PENALTY, penalty_scale="batch_mean"),
    }
    times: dict[str, list[float]] = {name: [] for name in (*objectives, *map(_bare, objectives))}
    for _ in range(3):
        for name, objective in objectives.items():
            times[name].append(_fit_step(images, labels, objective))
            penalty = 0.0 if name == "plain" else PENALTY
            times[_bare(name)].append(_bare_step(images, labels, penalty))
    plain, double = objectives
    return [
        _compared("double-backpropagation step / plain step", times[double], times[plain], 2.6),
        *(
            _compared(f"fit, {name} / bare step", times[name], times[_bare(name)], 1.1)
            for name in objectives
        ),
    ]


def _bare(name: str) -> str:
    return f"bare {name}"


def _compared(name: str, ours: list[float], other: list[float], limit: float) -> Comparison:
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    spread = min(ratios), max(ratios)
    return Comparison(name, statistics.median(ours), statistics.median(other), spread, limit)


def _fit_step(images: np.ndarray, labels: np.ndarray, objective: Objective) -> float:
    """Median seconds per step over the epochs of `fit` after the first few."""
    keras.utils.set_random_seed(0)
    history = fit(
        reference_models.build("mnist_cnn"),
        (images, labels),
        objective,
        optimizer=keras.optimizers.SGD(1e-3, momentum=0.9),
        epochs=EPOCHS,
        batch_size=BATCH,
        progress=False,
    )
    return statistics.median(each["seconds"] for each in history.records[WARM_UP:]) / STEPS


def _bare_step(images: np.ndarray, labels: np.ndarray, penalty: float) -> float:
    """The same for a compiled step written by hand, on batches that are tensors already."""
    keras.utils.set_random_seed(0)
    model = reference_models.build("mnist_cnn")
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(model.trainable_variables)
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function
    def step(rows: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as outer:
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(rows)
                values = model(rows, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, values)
                loss = tf.reduce_mean(losses)
            total = loss
            if penalty:
                total += penalty * tf.reduce_sum(tf.square(inner.gradient(loss, rows))) / BATCH
        optimizer.apply(outer.gradient(total, weights), model.trainable_variables)
        return total

    rows = [tf.constant(images[k : k + BATCH]) for k in range(0, len(images), BATCH)]
    classes = [tf.constant(labels[k : k + BATCH]) for k in range(0, len(labels), BATCH)]
    seconds = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for batch in zip(rows, classes, strict=True):
            total = step(*batch)
        total.numpy()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:]) / STEPS


def measures() -> list[Comparison]:
    """`measure` against plain VJP passes, and the alternatives to the library's derivatives."""
    keras.utils.set_random_seed(0)
    model = reference_models.build("mnist_cnn")
    rng = np.random.default_rng(0)
    x = data.load("digits", "train").take(1000).images
    cotangent = rng.normal(size=(1000, 10)).astype("float32")
    few, direction = x[:BATCH], rng.normal(size=x[:BATCH].shape).astype("float32")
    logits = logits_model(model)

    @tf.function
    def batch_jacobian(rows: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(rows)
            values = logits(rows, training=False)
        return tape.batch_jacobian(values, rows)

    @tf.function
    def forward_mode(rows: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        with tf.autodiff.ForwardAccumulator(rows, tangent) as accumulator:
            values = logits(rows, training=False)
        return accumulator.jvp(values)

    @tf.function
    def plain_vjp(rows: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        return gradients_at(logits, rows)[1](vector)

    def ten_vjps() -> None:
        for _ in range(10):
            vjp(model, x, cotangent, batch_size=BATCH)

    def ten_bare_vjps() -> None:
        for _ in range(10):
            for start in range(0, 1000, BATCH):
                rows = slice(start, start + BATCH)
                plain_vjp(tf.constant(x[rows]), tf.constant(cotangent[rows])).numpy()

    constants = tf.constant(few), tf.constant(direction)
    return [
        *(
            compare(
                f"measure, 1,000 images / ten {passes}",
                lambda: measure(model, x, batch_size=BATCH),
                ten_passes,
                limit=1.5,
                repeats=5,
            )
            for passes, ten_passes in (
                ("bare VJP passes", ten_bare_vjps),
                ("calls of vjp", ten_vjps),
            )
        ),
        compare(
            "jacobian, 100 images / tape.batch_jacobian",
            lambda: jacobian(model, few),
            lambda: batch_jacobian(constants[0]).numpy(),
        ),
        compare(
            "jvp, 100 images / ForwardAccumulator",
            lambda: jvp(model, few, direction),
            lambda: forward_mode(*constants).numpy(),
        ),
    ]


_MEMORY = """
import resource, sys
import numpy as np
import reference_models
from tfrobust.alignment import measure
count = int(sys.argv[1])
model = reference_models.build("mnist_cnn")
x = np.random.default_rng(0).random((count, 28, 28, 1), dtype="float32")
measure(model, x[:100], batch_size=100)
measure(model, x, batch_size=100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - x.nbytes / 2**20)
"""


def memory(counts: tuple[int, ...] = (500, 1000, 4000)) -> dict[int, float]:
    """Peak resident memory (MiB) of `measure` in a fresh process, less the images themselves."""
    peaks = {}
    for count in counts:
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(count)], capture_output=True, text=True, check=True
        )
        peaks[count] = float(done.stdout.split()[-1])
    return peaks


def main() -> None:
    """Print every ratio.

    Raises:
        SystemExit: status 1 where a limit is missed.
    """
    tyro.cli(Settings, prog="benchmarks.speed")
    print(versions()["machine"], "- TensorFlow", tf.__version__)
    # first: on Linux a child's peak begins at its parent's
    peaks = memory()
    comparisons = [*training_steps(), *measures()]
    print_table(comparisons)
    growth = max(peaks.values()) / min(peaks.values())
    print("\npeak memory of measure, less the images:", end=" ")
    print(", ".join(f"{count} images {peak:.0f} MiB" for count, peak in peaks.items()))
    print(f"growth {growth:.2f} (limit 1.1)")
    failed = [item.name for item in comparisons if item.limit and item.ratio > item.limit]
    failed += ["memory"] if growth > 1.1 else []
    if failed:
        sys.exit(f"\nOVER THE LIMIT: {', '.join(failed)}")
    print("\nwithin all limits")


if __name__ == "__main__":
    run(main)
