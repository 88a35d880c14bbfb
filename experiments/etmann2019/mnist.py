"""Etmann 2019 on MNIST: alignment and robustness of classifiers trained by double backpropagation.

    python -m experiments.etmann2019.mnist --preset demo|reduced|paper

demo: scikit-learn's digits, no download, minutes on two cores; shows the pipeline, not the study.
reduced: real MNIST, the paper's range of lambda, a twentieth of its epochs, a shorter search in
the Carlini-Wagner attack. paper: the published settings.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Literal

import reference_models
from experiments.common.checks import DISTINCT, Count, NotNegative, Positive, Seed
from experiments.common.experiment import execute
from experiments.etmann2019 import published
from experiments.etmann2019.study import Study, Training, attacks_of, define
from tfrobust import data
from tfrobust.commands import run
from tfrobust.training import Precision, StepDecay

SCALE = {
    "demo": "A demonstration on scikit-learn's digits, not the study: other data, fewer models, "
    "shorter training and weaker attacks than the paper's.",
    "reduced": "The paper's data, network and range of λ with a twentieth of its epochs at ten "
    "times its learning rate, half its models, one seed, and a shorter Carlini-Wagner search.",
    "paper": "The published settings, one seed.",
}
PICTURED = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the MNIST half of Etmann 2019."""

    dataset: Literal["digits", "mnist"]
    """Data set, a name of `tfrobust.data.load`."""
    lambdas: Annotated[tuple[NotNegative, ...], DISTINCT]
    """Weights of the double-backpropagation penalty, one classifier each."""
    epochs: Count
    """Passes over the training set."""
    learning_rate: Positive
    """Of SGD, at the start."""
    epochs_per_decay: Count
    """Epochs after which the learning rate is multiplied by `decay`."""
    evaluated: Count
    """Test images that are measured and attacked."""
    carlini_wagner_steps: Count
    """Adam steps in each of the attack's binary searches."""
    carlini_wagner_stepsize: Positive
    """Adam's learning rate in the attack."""
    decay: Positive = published.DECAY
    """Factor of the learning rate."""
    penalty_scale: Literal["batch_mean", "per_example"] = "batch_mean"
    """Meaning of lambda: "batch_mean" as in the released code, "per_example" as printed."""
    batch_size: Count = published.BATCH_SIZE
    """Training examples per step, over all devices."""
    momentum: NotNegative = published.MOMENTUM
    """Of SGD."""
    weight_decay: NotNegative = published.WEIGHT_DECAY
    """Times the sum of squares of all weights."""
    carlini_wagner_searches: Count = published.CARLINI_WAGNER["binary_search_steps"]
    """Binary search steps of the attack."""
    carlini_wagner_constant: Positive = published.CARLINI_WAGNER["initial_const"]
    """Initial constant of the attack."""
    evaluation_batch: Count = 500
    """Images per call in measuring and attacking."""
    seed: Seed = 0
    """Of weights, dropout and the order of examples; the same for every classifier."""
    precision: Precision = "float32"
    """Of training: "float32", "mixed_bfloat16" or "mixed_float16"; measured in float32."""
    jit: bool = False
    """Compile training steps with XLA."""


PRESETS = {
    "demo": Settings(
        dataset="digits",
        lambdas=(10.0, 1000.0, 10_000.0, 30_000.0),
        epochs=6,
        learning_rate=3e-2,
        epochs_per_decay=5,
        evaluated=50,
        carlini_wagner_steps=20,
        carlini_wagner_stepsize=1e-1,
    ),
    "reduced": Settings(
        dataset="mnist",
        lambdas=published.lambdas(8),
        epochs=10,
        learning_rate=1e-2,
        epochs_per_decay=8,
        evaluated=published.ATTACKED_IMAGES,
        carlini_wagner_steps=150,
        carlini_wagner_stepsize=3e-2,
    ),
    "paper": Settings(
        dataset="mnist",
        lambdas=published.lambdas(),
        epochs=published.EPOCHS,
        learning_rate=published.LEARNING_RATE,
        epochs_per_decay=published.EPOCHS_PER_DECAY,
        evaluated=published.ATTACKED_IMAGES,
        carlini_wagner_steps=published.CARLINI_WAGNER["steps"],
        carlini_wagner_stepsize=published.CARLINI_WAGNER["stepsize"],
    ),
}


def load(settings: Settings, preset: str, data_dir: Path | None) -> Study:
    """Data, network and settings that all classifiers share."""
    sets = {
        split: data.load(settings.dataset, split, data_dir=data_dir)
        for split in ("train", "validation", "test")
    }
    train, test = sets["train"], sets["test"]
    images = test.take(settings.evaluated).images
    return Study(
        name="MNIST" if settings.dataset == "mnist" else settings.dataset,
        lead=f"{SCALE[preset]} {len(settings.lambdas)} classifiers trained by double "
        f"backpropagation on {len(train):,} images ({train.provenance.source}), measured and "
        f"attacked on the first {len(images):,} test images.",
        build=functools.partial(
            reference_models.build,
            "mnist_cnn",
            input_shape=train.images.shape[1:],
            classes=train.classes,
        ),
        training=Training(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            schedule=StepDecay(
                settings.learning_rate, every=settings.epochs_per_decay, factor=settings.decay
            ),
            weight_decay=settings.weight_decay,
            penalty_scale=settings.penalty_scale,
            precision=settings.precision,
            jit=settings.jit,
        ),
        train=train.arrays,
        validation=sets["validation"].arrays,
        test=test.arrays,
        source=train.provenance,
        classes=test.classes,
        images=images,
        pictures=images[:PICTURED],
        value_range=test.value_range,
        attacks=attacks_of(settings),
        measure={},
        attacked=len(images),
        batch_size=settings.evaluation_batch,
        seed=settings.seed,
    )


EXPERIMENT = define("mnist", PRESETS, SCALE, load, saturates=True)
main = functools.partial(execute, EXPERIMENT)


if __name__ == "__main__":
    # workers of a cluster import what this module defines
    from experiments.etmann2019.mnist import main as imported_main

    run(imported_main)
