"""What the experiments on Kim 2019 share: data, classifiers, their training."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import reference_models
from experiments.common.checks import Count, NotNegative, Positive, Seed
from experiments.common.experiment import Task
from experiments.common.members import Member
from experiments.common.train import load_model, train_or_load
from experiments.kim2019.adversaries import Adversary, objective_of, threat_model
from tfrobust import ThreatModel, data, predict_logits
from tfrobust.training import Precision

__all__ = [
    "ABOUT",
    "DIGITS",
    "MNIST",
    "REDUCED_MNIST",
    "SCALES",
    "ImageData",
    "TrainingSettings",
    "classifier",
    "finished_classifier",
    "load_splits",
    "load_training",
    "predicted",
    "threat_of",
]

SCALES = {
    "demo": "Demonstration on bundled data, far smaller than the study.",
    "reduced": "Scaled-down run for two cores.",
    "paper": "The paper's scale, with what only its released code says.",
}
ABOUT = "Pixels lie in [-1, 1]; attacks start at the image and take every step, as the paper's do."
ImageData = Literal["digits", "mnist", "fashion_mnist", "cifar10"]
# training and validation split together, as the paper trains
_ALL_TRAINING = ("train", "validation")


# of classifiers, by preset, so that experiments can share them
DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "filters": (16, 16),
    "dense": 128,
    "epochs": 5,
    "training_steps": 5,
}
REDUCED_MNIST: dict[str, Any] = {
    "dataset": "mnist",
    "train_examples": 10_000,
    "epochs": 3,
    "training_steps": 10,
}
MNIST: dict[str, Any] = {"dataset": "mnist", "train_examples": 55_000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Data, networks and their training."""

    dataset: ImageData = "digits"
    """digits stands for MNIST where that is not at hand."""
    train_examples: Count | None = None
    """The first of the training set; the released code has 55,000 of MNIST; None for all."""
    variant: Literal["text", "released"] = "text"
    """Filters and dense units as the text tables them, or as the released code has them."""
    filters: tuple[Count, ...] | None = None
    """Of the convolutions; None for the variant's."""
    dense: Count | None = None
    """Units of the dense layer; None for the variant's."""
    epochs: Count = 5
    """5 for MNIST and Fashion-MNIST, 20 for CIFAR-10."""
    batch_size: Count = 100
    """Examples per step of training."""
    learning_rate: Positive = 1e-3
    """Of Adam, whose epsilon is 1e-8 as in TensorFlow 1."""
    training_steps: Count = 40
    """Steps of the attack in training."""
    l2_step: Positive = 2.0
    """Step size of l2 attacks."""
    linf_step: Positive = 0.02
    """Step size of l-infinity attacks."""
    floor: NotNegative = 1e-8
    """The l2 gradient is divided by no less, as in the released code; 0: no underflow."""
    precision: Precision = "float32"
    """Of training."""
    seed: Seed = 0
    """Of weights and the order of examples."""

    @property
    def step_sizes(self) -> dict[str, float]:
        """By norm."""
        return {"l2": self.l2_step, "linf": self.linf_step}


Splits = dict[str, data.Dataset]


def load_splits(settings: TrainingSettings, preset: str, data_dir: Path | None) -> Splits:
    """Training and test images in [-1, 1]."""
    test = data.load(settings.dataset, "test", data_dir=data_dir)
    return {
        "train": load_training(settings.dataset, settings.train_examples, data_dir),
        "test": test.rescaled(-1.0, 1.0),
    }


def load_training(name: str, count: int | None, data_dir: Path | None) -> data.Dataset:
    """The first `count` images of training and validation split together, in [-1, 1]."""
    whole = data.joined([data.load(name, split, data_dir=data_dir) for split in _ALL_TRAINING])
    return (whole if count is None else whole.take(min(count, len(whole)))).rescaled(-1.0, 1.0)


def threat_of(settings: TrainingSettings, name: str, *, steps: int) -> ThreatModel | None:
    """The attack of an adversary's name; None for standard training."""
    adversary = Adversary.of(name)
    if adversary.norm is None:
        return None
    return threat_model(
        adversary.norm,
        adversary.epsilon,
        adversary.objective,
        steps=steps,
        step_sizes=settings.step_sizes,
        floor=settings.floor,
    )


def network(settings: TrainingSettings, shape: tuple[int, ...], classes: int) -> keras.Model:
    """An untrained classifier of the study."""
    options: dict[str, Any] = {"filters": settings.filters, "dense": settings.dense}
    name = "kim_cifar_cnn" if shape[-1] == 3 else "kim_mnist_cnn"
    return reference_models.build(
        name,
        input_shape=shape,
        classes=classes,
        variant=settings.variant,
        **{key: value for key, value in options.items() if value is not None},
    )


def classifier(task: Task, member: Member, adversary: str) -> keras.Model:
    """The trained classifier of a member; trained if it is not there yet."""
    settings: TrainingSettings = task.settings
    train: data.Dataset = task.data["train"]
    threat = threat_of(settings, adversary, steps=settings.training_steps)
    return train_or_load(
        task.run,
        member.folder,
        functools.partial(network, settings, train.images.shape[1:], train.classes),
        train.arrays,
        objective_of(threat),
        name=member.name,
        optimizer=keras.optimizers.Adam(settings.learning_rate, epsilon=1e-8),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        provenance={"data": dataclasses.asdict(train.provenance), "adversary": adversary},
        precision=settings.precision,
    )


def finished_classifier(task: Task, name: str) -> keras.Model:
    """A classifier of the run that is finished.

    Raises:
        ModelFileError: it is not there, since its training failed.
    """
    return load_model(task.run, f"{name}/model.keras")


def predicted(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Classes, (count,) int32."""
    return predict_logits(model, images, batch_size=500).argmax(axis=1).astype(np.int32)
