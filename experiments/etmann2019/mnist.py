"""Etmann 2019 on MNIST: alignment and robustness of classifiers trained by double backpropagation.

    python -m experiments.etmann2019.mnist --preset demo|reduced|paper

demo: scikit-learn's digits, no download, minutes on two cores; shows the pipeline, not the study.
reduced: real MNIST, the paper's range of lambda, a twentieth of its epochs, a shorter search in
the Carlini-Wagner attack. paper: the published settings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import reference_models
from experiments.common import checks
from experiments.common.experiment import Experiment, execute
from experiments.etmann2019 import published
from experiments.etmann2019.page import report
from experiments.etmann2019.results import COMPLETE
from experiments.etmann2019.study import (
    Study,
    Training,
    check_common_settings,
    members_of,
    steps,
)
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

    dataset: str
    """Data set, a name of `tfrobust.data.load`."""
    lambdas: tuple[float, ...]
    """Weights of the double-backpropagation penalty, one classifier each."""
    epochs: int
    """Passes over the training set."""
    learning_rate: float
    """Of SGD, at the start."""
    epochs_per_decay: int
    """Epochs after which the learning rate is multiplied by `decay`."""
    evaluated: int
    """Test images that are measured and attacked."""
    carlini_wagner_steps: int
    """Adam steps in each of the attack's binary searches."""
    carlini_wagner_stepsize: float
    """Adam's learning rate in the attack."""
    decay: float = published.DECAY
    """Factor of the learning rate."""
    penalty_scale: str = "batch_mean"
    """Meaning of lambda: "batch_mean" as in the released code, "per_example" as printed."""
    batch_size: int = published.BATCH_SIZE
    """Training examples per step, over all devices."""
    momentum: float = published.MOMENTUM
    """Of SGD."""
    weight_decay: float = published.WEIGHT_DECAY
    """Times the sum of squares of all weights."""
    carlini_wagner_searches: int = published.CARLINI_WAGNER["binary_search_steps"]
    """Binary search steps of the attack."""
    carlini_wagner_constant: float = published.CARLINI_WAGNER["initial_const"]
    """Initial constant of the attack."""
    evaluation_batch: int = 500
    """Images per call in measuring and attacking."""
    seed: int = 0
    """Of weights, dropout and the order of examples; the same for every classifier."""
    precision: Precision = "float32"
    """Of training: "float32", "mixed_bfloat16" or "mixed_float16"; measured in float32."""
    jit: bool = False
    """Compile training steps with XLA."""


PRESETS = {
    "demo": Settings(
        dataset="digits",
        lambdas=(10.0, 1000.0, 10_000.0, 100_000.0),
        epochs=22,
        learning_rate=2e-2,
        epochs_per_decay=18,
        evaluated=100,
        carlini_wagner_steps=30,
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


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    check_common_settings(settings)
    checks.one_of(settings, ("digits", "mnist"), "dataset")
    checks.positive(settings, "decay")


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
        attacks={
            "gradient": {},
            "basic_iterative": {},
            "carlini_wagner": {
                "binary_search_steps": settings.carlini_wagner_searches,
                "steps": settings.carlini_wagner_steps,
                "stepsize": settings.carlini_wagner_stepsize,
                "initial_const": settings.carlini_wagner_constant,
            },
        },
        measure={},
        attacked=len(images),
        batch_size=settings.evaluation_batch,
        seed=settings.seed,
    )


EXPERIMENT = Experiment(
    name="etmann2019-mnist",
    presets=PRESETS,
    about=SCALE,
    check_settings=check_settings,
    load=load,
    members=members_of,
    steps=steps,
    complete=COMPLETE,
    report=functools.partial(report, saturates=True),
)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line; the page's path."""
    return execute(EXPERIMENT, arguments)


if __name__ == "__main__":
    # workers of a cluster import what this module defines
    from experiments.etmann2019.mnist import main as imported_main

    run(imported_main)
