"""Etmann 2019 on ImageNet: ResNet50 trained by double backpropagation, measured and attacked.

    python -m experiments.etmann2019.imagenet --preset sample|paper|released --data-dir FOLDER

sample: one image of each class, small crops, from random weights, minutes on two cores; shows the
pipeline, not the study. paper: the published settings, from Keras Applications' weights. released:
the settings file of the released code, which differ from the printed ones.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

import reference_models
from experiments.common.checks import DISTINCT, Count, Index, NotNegative, Positive, Seed, at_least
from experiments.common.experiment import execute
from experiments.etmann2019 import published
from experiments.etmann2019.study import Study, Training, attacks_of, define
from tfrobust import imagenet
from tfrobust.commands import run
from tfrobust.data import Stream
from tfrobust.errors import InputError, MissingFileError
from tfrobust.training import Plateau, Precision, StepDecay

PICTURED = 8
SCALE = {
    "sample": "A demonstration on one image of each class, not the study: small crops, a network "
    "from random weights that sees each image once, with a smaller λ than the paper's, and is then "
    "measured and attacked on images that it was trained on, fewer of them, with weaker attacks.",
    "paper": "The published settings, one seed.",
    "released": "The settings of the released code, one seed.",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the ImageNet half of Etmann 2019."""

    lambdas: Annotated[tuple[NotNegative, ...], DISTINCT]
    """Weights of the double-backpropagation penalty, one classifier each."""
    epochs: Count
    """Passes over the training set."""
    learning_rate: Positive
    """Of SGD, at the start."""
    momentum: NotNegative
    """Of SGD."""
    epochs_per_decay: Count | None = None
    """Epochs after which the rate is divided by 10; unset: on a plateau of the validation loss."""
    plateau_patience: Count = 3
    """Epochs without improvement that make a plateau (the paper gives no number)."""
    model: str = "resnet50"
    """A constructor of Keras Applications."""
    weights: str = "imagenet"
    """"imagenet", the path of a weight file, or "random"."""
    statistics: Literal["batch", "frozen", "synchronized"] = "batch"
    """Batch normalisation's in training: each device's own, the moving ones, or all devices'."""
    bn_momentum: NotNegative = published.IMAGENET_BN_MOMENTUM
    """Of batch normalisation's moving averages."""
    train_split: Literal["train", "validation"] = "train"
    """What is trained on."""
    classes: Annotated[int, at_least(2)] = 1000
    """Classes that the data set must have."""
    size: Count = published.IMAGENET_CROP
    """Height and width of the crops."""
    shorter_side: tuple[Count, Count] = published.IMAGENET_SHORTER_SIDE
    """Training scales the shorter side to a length between these."""
    validation_side: Count = published.IMAGENET_CROP
    """Evaluation scales it to this length, and takes the centre."""
    examples: Count | None = None
    """Use this many training images only."""
    max_corrupt: Index = 10
    """Corrupt images that are skipped before it is an error."""
    batch_size: Count = published.IMAGENET_BATCH
    """Training examples per step, over all devices."""
    penalty_scale: Literal["batch_mean", "per_example"] = "batch_mean"
    """Meaning of lambda: "batch_mean" as in the released code, "per_example" as printed."""
    examples_per_mean: Count = published.IMAGENET_BATCH_PER_GPU
    """N of "batch_mean"."""
    weight_decay: NotNegative = published.IMAGENET_WEIGHT_DECAY
    """Times the sum of squares of all weights."""
    evaluated: Count = published.IMAGENET_IMAGES
    """Validation images that are measured."""
    attacked: Count = published.IMAGENET_IMAGES
    """Of these, how many are attacked."""
    search: Literal["sketch", "exact"] = "sketch"
    """How the runner-up of eq. (9) is found among the classes."""
    directions: Count = 64
    """Random directions of the sketch."""
    iterative_bisections: Count = 20
    """Halvings of the radius of the l2 basic iterative attack."""
    carlini_wagner_searches: Count = published.CARLINI_WAGNER["binary_search_steps"]
    """Binary search steps of the attack."""
    carlini_wagner_steps: Count = published.CARLINI_WAGNER["steps"]
    """Adam steps in each of them."""
    carlini_wagner_stepsize: Positive = published.CARLINI_WAGNER["stepsize"]
    """Adam's learning rate in the attack."""
    carlini_wagner_constant: Positive = published.CARLINI_WAGNER["initial_const"]
    """Initial constant of the attack."""
    evaluation_batch: Count = 32
    """Images per call in measuring and attacking."""
    seed: Seed = 0
    """Of weights, augmentation, the order of examples and the choice of evaluated images."""
    precision: Precision = "float32"
    """Of training; measured in float32."""
    jit: bool = False
    """Compile training steps with XLA."""


PRESETS = {
    "sample": Settings(
        # from random weights the paper's larger ones let the weights grow without bound
        lambdas=(1e2, 1e3, 1e4),
        epochs=1,
        learning_rate=1e-4,
        momentum=0.9,
        epochs_per_decay=1,
        weights="random",
        bn_momentum=0.9,
        train_split="validation",
        size=64,
        shorter_side=(66, 128),
        validation_side=64,
        evaluated=32,
        attacked=16,
        iterative_bisections=6,
        carlini_wagner_steps=100,
        carlini_wagner_stepsize=1e-2,
    ),
    "paper": Settings(lambdas=published.IMAGENET_LAMBDAS, **published.IMAGENET_PAPER),
    "released": Settings(lambdas=published.IMAGENET_LAMBDAS, **published.IMAGENET_RELEASED),
}


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for too few images to attack, MissingFileError without the weights."""
    if settings.attacked > settings.evaluated:
        raise InputError(
            f"--attacked {settings.attacked} exceeds --evaluated {settings.evaluated}: attacked "
            "images are of those that are measured"
        )
    if settings.weights not in ("imagenet", "random") and not Path(settings.weights).is_file():
        raise MissingFileError(
            f'--weights takes "imagenet", "random" or a file; there is none at {settings.weights}'
        )


def load(settings: Settings, preset: str, data_dir: Path | None) -> Study:
    """Data, network and settings that all classifiers share."""
    preprocess = reference_models.preprocessing(settings.model)
    read = functools.partial(
        imagenet.load,
        data_dir=data_dir,
        classes=settings.classes,
        size=(settings.size, settings.size),
        shorter_side=settings.shorter_side,
        validation_side=settings.validation_side,
        preprocess=preprocess,
        max_corrupt=settings.max_corrupt,
    )
    train = read(settings.train_split, limit=settings.examples)
    validation = read("validation")
    # files lie class by class: a random choice, the same for every classifier
    images = validation.take(settings.evaluated, seed=settings.seed).images
    return Study(
        name="ImageNet sample" if preset == "sample" else "ImageNet",
        lead=_lead(settings, preset, train, validation, len(images)),
        build=functools.partial(
            reference_models.build,
            settings.model,
            weights=None if settings.weights == "random" else settings.weights,
            input_shape=(settings.size, settings.size, 3),
            classes=settings.classes,
            bn_momentum=settings.bn_momentum,
            statistics=settings.statistics,
        ),
        training=_training(settings),
        train=train,
        validation=validation,
        test=validation,
        source=train.provenance,
        classes=settings.classes,
        images=images,
        pictures=np.clip(preprocess.inverse(images[:PICTURED]) / 255, 0, 1),
        value_range=preprocess.value_range,
        attacks=attacks_of(settings, bisection_steps=settings.iterative_bisections),
        measure={"search": settings.search, "directions": settings.directions},
        attacked=settings.attacked,
        batch_size=settings.evaluation_batch,
        seed=settings.seed,
    )


def _training(settings: Settings) -> Training:
    rate, every = settings.learning_rate, settings.epochs_per_decay
    return Training(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=rate,
        momentum=settings.momentum,
        schedule=StepDecay(rate, every=every)
        if every
        else Plateau(rate, patience=settings.plateau_patience),
        weight_decay=settings.weight_decay,
        penalty_scale=settings.penalty_scale,
        examples_per_mean=settings.examples_per_mean,
        precision=settings.precision,
        jit=settings.jit,
    )


def _lead(
    settings: Settings, preset: str, train: Stream, validation: Stream, evaluated: int
) -> str:
    names = {"random": "random", "imagenet": "Keras Applications'"}
    return (
        f"{SCALE[preset]} {len(settings.lambdas)} {settings.model} classifiers from "
        f"{names.get(settings.weights, Path(settings.weights).name)} weights, trained by double "
        f"backpropagation for "
        f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''} on {train.examples:,} images "
        f"at {settings.size} px ({train.provenance.source}). {evaluated:,} of "
        f"{validation.examples:,} evaluation images are measured (the paper: 1,000), "
        f"{settings.attacked:,} of them attacked. Distances are in pixel units of 0 to 255."
    )


EXPERIMENT = define(
    "imagenet", PRESETS, SCALE, load, saturates=False, check_settings=check_settings
)
main = functools.partial(execute, EXPERIMENT)


if __name__ == "__main__":
    # workers of a cluster import what this module defines
    from experiments.etmann2019.imagenet import main as imported_main

    run(imported_main)
