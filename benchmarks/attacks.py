"""The speed of projected gradient descent, beside Foolbox's (and ART's, where installed).

    python -m benchmarks.attacks --data mnist

Ratios of medians on a trained classifier, each pair timed in turn, A B A B; what a step of
adversarial training and a later retrain cost. `benchmarks.robustness` compares the strength of
attacks. Exits with status 1 if a limit is missed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import foolbox
import keras
import numpy as np
import tensorflow as tf
import tyro

import reference_models
from benchmarks.speed import Comparison, compare, print_table
from tfrobust import (
    AdversarialTraining,
    CrossEntropy,
    ThreatModel,
    data,
    fit,
    pgd,
    robust_accuracy,
)
from tfrobust.classifier import logits_model
from tfrobust.commands import run
from tfrobust.report import versions
from tfrobust.training import RepeatedFit, computing_in

BATCH, STEPS = 100, 40
EPSILON = {2: 1.5, math.inf: 0.1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is attacked."""

    data: Literal["digits", "mnist"] = "digits"
    """MNIST has to be prepared."""
    train_examples: int = 5000
    """Of the training set, at most."""
    attacked: int = 500
    """Test images whose robust accuracy is compared."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A figure with its limit."""

    name: str
    figure: str
    held: bool


def trained(threat: ThreatModel | None, train: data.Dataset) -> keras.Model:
    """A classifier of the released MNIST architecture of Etmann 2019."""
    keras.utils.set_random_seed(0)
    model = reference_models.build("mnist_cnn")
    objective: Any = CrossEntropy()
    if threat is not None:
        objective += AdversarialTraining(threat)
    fit(
        model,
        train.arrays,
        objective,
        optimizer=keras.optimizers.Adam(1e-3),
        epochs=5 if len(train) > 2000 else 12,
        progress=False,
    )
    return model


def foolbox_model(model: keras.Model) -> foolbox.TensorFlowModel:
    """The logits in inference mode, as Foolbox takes them."""
    logits = logits_model(model)
    return foolbox.TensorFlowModel(lambda x: logits(x, training=False), bounds=(0, 1))


def foolbox_pgd(norm: float, steps: int) -> Any:
    """Foolbox's attack with the step size and start of ours."""
    attack = foolbox.attacks.L2PGD if norm == 2 else foolbox.attacks.LinfPGD
    return attack(abs_stepsize=2.5 * EPSILON[norm] / steps, steps=steps, random_start=False)


def speed(model: keras.Model, half: keras.Model, x: np.ndarray, y: np.ndarray) -> list[Comparison]:
    """PGD-40 in l2 on one batch."""
    options: dict[str, Any] = {"norm": 2, "epsilon": EPSILON[2], "steps": STEPS, "stop": "last"}
    theirs, theirs_model = foolbox_pgd(2, STEPS), foolbox_model(model)
    images, labels = tf.constant(x), tf.constant(y, tf.int64)
    logits = logits_model(model)
    forward = tf.function(lambda rows: logits(rows, training=False))

    def ours() -> None:
        pgd(model, x, y, **options)

    def passes() -> None:
        for _ in range(2 * STEPS):
            result = forward(images)
        result.numpy()

    found = [
        compare(
            "PGD-40 l2 / Foolbox",
            ours,
            lambda: theirs(theirs_model, images, labels, epsilons=EPSILON[2]),
            limit=1 / 2.3,
        ),
        compare("PGD-40 l2 / 80 forward passes", ours, passes, limit=1.8),
        compare("PGD-40 l2 in bfloat16 / float32", lambda: pgd(half, x, y, **options), ours),
        compare(
            "worst case / every restart (three)",
            lambda: _worst_case(model, x, y, every_restart=False),
            lambda: _worst_case(model, x, y, every_restart=True),
            limit=0.5,
        ),
    ]
    if importlib.util.find_spec("art") is not None:
        found.append(compare("PGD-40 l2 / ART", ours, _art(model, x, y), limit=1 / 2.3))
    return found


def _worst_case(model: keras.Model, x: np.ndarray, y: np.ndarray, *, every_restart: bool) -> Any:
    # large enough for a standard model to fail nearly everywhere
    threat = ThreatModel(norm=2, epsilon=2 * EPSILON[2], steps=STEPS, random_start="ball")
    return robust_accuracy(model, (x, y), threat, every_restart=every_restart, stop="last")


def _art(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """The same attack by the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    logits = logits_model(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier = TensorFlowV2Classifier(
        logits, nb_classes=10, input_shape=x.shape[1:], loss_object=loss, clip_values=(0, 1)
    )
    attack = ProjectedGradientDescentTensorFlowV2(
        classifier,
        norm=2,
        eps=EPSILON[2],
        eps_step=2.5 * EPSILON[2] / STEPS,
        max_iter=STEPS,
        batch_size=len(x),
        verbose=False,
    )
    return lambda: attack.generate(x, y)


def adversarial_epoch(train: data.Dataset) -> Check:
    """Seconds per step of adversarial training against its passes: steps, and a plain step."""
    few = train.take(min(len(train), 10 * BATCH))
    seconds = {}
    for steps in (0, 5, 10):
        keras.utils.set_random_seed(0)
        objective: Any = CrossEntropy()
        if steps:
            objective += AdversarialTraining(ThreatModel(norm=2, epsilon=1.5, steps=steps))
        history = fit(
            reference_models.build("mnist_cnn"),
            few.arrays,
            objective,
            optimizer=keras.optimizers.SGD(1e-3),
            epochs=5,
            progress=False,
        )
        times = [record["seconds"] for record in history.records[1:]]
        seconds[steps] = float(np.median(times)) / (len(few) // BATCH)
    slope = (seconds[10] - seconds[5]) / 5
    predicted = seconds[0] + 10 * slope
    figure = (
        f"plain {1e3 * seconds[0]:.0f} ms, one attack step {1e3 * slope:.0f} ms, PGD-10 step "
        f"{1e3 * seconds[10]:.0f} ms, sum of its passes {1e3 * predicted:.0f} ms"
    )
    return Check("adversarial step = its passes", figure, seconds[10] < 1.15 * predicted)


def retrain_start(train: data.Dataset) -> Check:
    """Seconds before the first step of a second retrain."""
    few = train.take(2 * BATCH)
    stream = data.Arrays({"images": few.images, "labels": few.labels}, few.classes)
    repeated = RepeatedFit(
        lambda: reference_models.build("mnist_cnn"),
        CrossEntropy(),
        optimizer=lambda: keras.optimizers.Adam(1e-3),
        epochs=1,
    )
    times = []
    for seed in range(4):
        start = time.perf_counter()
        repeated.train(stream, seed=seed, progress=False)
        times.append(time.perf_counter() - start)
    later = float(np.median(times[1:]))
    figure = f"first {times[0]:.2f} s, later ones {later:.2f} s, two steps included"
    return Check("a later retrain starts in .2 s", figure, later < 0.2)


def prepared(settings: Settings) -> tuple[data.Dataset, data.Dataset]:
    """Training images, and test images to attack; prints what they are.

    Raises:
        DataNotFoundError: MNIST is not prepared.
    """
    train = data.load(settings.data, "train")
    train = train.take(min(settings.train_examples, len(train)))
    test = data.load(settings.data, "test")
    test = test.take(min(settings.attacked, len(test)))
    print(versions()["machine"], "- TensorFlow", tf.__version__)
    print(f"{settings.data}: {len(train)} training images, {len(test)} attacked")
    return train, test


def in_bfloat16(model: keras.Model) -> keras.Model:
    """The same weights in layers that compute in bfloat16."""
    with computing_in("mixed_bfloat16"):
        half = reference_models.build("mnist_cnn")
    half.set_weights(model.get_weights())
    return half


def finish(failed: list[str], checks: list[Check]) -> None:
    """Print the checks, and exit with status 1 where one, or a limit, is missed."""
    for check in checks:
        print(f"{'' if check.held else 'NOT HELD '}{check.name}: {check.figure}")
    failed = failed + [check.name for check in checks if not check.held]
    if failed:
        sys.exit(f"\nOVER THE LIMIT: {', '.join(failed)}")
    print("\nwithin all limits")


def main(arguments: list[str] | None = None) -> None:
    """Print every ratio and figure.

    Args:
        arguments: the command line; sys.argv where None.

    Raises:
        SystemExit: status 1 where a limit is missed.
        DataNotFoundError: MNIST is not prepared.
    """
    settings = tyro.cli(Settings, prog="benchmarks.attacks", args=arguments)
    train, test = prepared(settings)
    plain = trained(None, train)
    half = in_bfloat16(plain)
    comparisons = speed(plain, half, test.images[:BATCH], test.labels[:BATCH])
    checks = [adversarial_epoch(train), retrain_start(train)]
    print_table(comparisons)
    print()
    finish([item.name for item in comparisons if item.limit and item.ratio > item.limit], checks)


if __name__ == "__main__":
    run(main)
