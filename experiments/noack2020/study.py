"""What the experiments on Noack 2020 share: data, networks, objectives, training."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np

import reference_models
from experiments.common.checks import Count, NotNegative, Positive, Rule, Seed
from experiments.common.experiment import Task
from experiments.common.train import load_model, save_model, train_or_load
from experiments.noack2020.rows import Row, threat_model
from experiments.noack2020.selection import BestEpoch
from experiments.noack2020.targets import ROBUST, reference_targets, targets_of
from tfrobust import (
    AdversarialTraining,
    CrossEntropy,
    InterpretationRegularization,
    JacobianRegularization,
    WeightDecay,
    data,
)
from tfrobust.data import Arrays
from tfrobust.objectives import Objective
from tfrobust.training import Cosine, Precision

__all__ = [
    "ABOUT",
    "CIFAR10",
    "DIGITS",
    "MNIST",
    "REDUCED_MNIST",
    "SCALES",
    "TrainingSettings",
    "folder_of",
    "load_splits",
    "network",
    "objective_of",
    "robust_targets",
    "targets",
    "trained",
]

SCALES = {
    "demo": "Demonstration on bundled data, far smaller than the study.",
    "reduced": "Scaled-down run for two cores.",
    "paper": "The paper's scale, with what only its released code says.",
}
ABOUT = (
    "Pixels lie in [0, 1]. Networks are those of the epoch with the best validation accuracy among "
    "the second half."
)


def _between_0_and_1(value: float) -> str | None:
    return None if 0 <= value < 1 else f"must be at least 0 and less than 1, got {value:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Data, networks, objectives and their training."""

    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """digits stands for MNIST where that is not at hand."""
    train_examples: Count | None = None
    """The first of the training set; None for all."""
    test_examples: Count | None = None
    """The first of the test set, for accuracies and attacks; None for all."""
    filters: tuple[Count, Count] = (32, 64)
    """Of the convolutions of the MNIST network."""
    dense: Count = 1024
    """Units of its dense layer."""
    depth: Count = 28
    """Of the wide residual network."""
    widen: Count = 10
    """Its factor."""
    variant: Literal["text", "released"] = "text"
    """Of the wide residual network: as in the literature, or as the released code builds it."""
    through_softmax: bool = False
    """Loss, gradients and attacks act on the wide residual network's probabilities, as in the
    released code."""
    dropout: Annotated[float, Rule(_between_0_and_1)] = 0.5
    """.5 for MNIST, .3 for CIFAR-10."""
    epochs: Count = 100
    """100 for MNIST, 200 for CIFAR-10."""
    batch_size: Count = 50
    """50 for MNIST, 128 for CIFAR-10."""
    learning_rate: Positive = 0.01
    """Of SGD with Nesterov momentum .9, falling to 0 with the cosine of the epoch."""
    weight_decay: NotNegative = 1e-5
    """As PyTorch counts it; 1e-5 in the released code for MNIST, 5e-4 for CIFAR-10."""
    augmentation: Literal["crop4_flip"] | None = None
    """Of training images and their maps, on CIFAR-10."""
    training_steps: Count = 40
    """Of the attack in adversarial training: 40 for MNIST, 7 for CIFAR-10."""
    lambda_d: NotNegative = 3.0
    """Of the direction: 3 for MNIST, .75 for CIFAR-10."""
    lambda_m: NotNegative = 0.15
    """Of the magnitude: .15 for MNIST, .005 or .02 for CIFAR-10."""
    norm_scale: Literal["batch", "per_example"] = "batch"
    """Of the magnitude: the whole batch's norm, as in the code that the quoted lambdas are of, or
    the mean of norms, as printed."""
    lambda_j: NotNegative = 0.32
    """Of the Jacobian: .32 for MNIST, .1 or .03 for CIFAR-10."""
    jr_divisor: Count = 1
    """Of batch size and learning rate in Jacobian Regularization; 8 in the released code on
    CIFAR-10."""
    sigma: Positive = 0.15
    """SmoothGrad's noise."""
    samples: Count = 50
    """SmoothGrad's."""
    smoothgrad: Literal["text", "released"] = "text"
    """released: noisy images are clipped to the pixels' range, and the image itself counts as one
    more sample."""
    phi: NotNegative = 1.0
    """Values of a map within mean +- phi * std are set to zero."""
    threshold_after: bool = False
    """Threshold after the augmentation, where padding counts, as in the released code."""
    robust: str = "at-1.5"
    """The row whose network supplies the robust maps ("R")."""
    step_sizes: tuple[tuple[str, Positive], ...] = ()
    """Of attacks, by name ("l2-1.5"), and of training ("train l2-1.5"); others 2.5 * epsilon /
    steps."""
    precision: Precision = "float32"
    """Of training."""
    seeds: tuple[Seed, ...] = (0,)
    """Of weights, dropout and the order of examples."""

    def step_size(self, name: str) -> float | None:
        """Of an attack; None for the default."""
        return dict(self.step_sizes).get(name)

    @property
    def floor(self) -> float:
        """advertorch's: 1e-6 on the norm of the batch mean's gradient."""
        return 1e-6 * self.batch_size


_STEPS = (
    ("l2-1.5", 0.5),
    ("l2-2.5", 1.2),
    ("train l2-1.5", 0.5),
    ("train l2-2.5", 1.2),
)
DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "filters": (8, 8),
    "dense": 64,
    "epochs": 6,
    "learning_rate": 0.02,
    "training_steps": 3,
    "samples": 10,
    "test_examples": 100,
    # 1.5 is more than so small a network learns against
    "robust": "at-0.7",
}
REDUCED_MNIST: dict[str, Any] = {
    "dataset": "mnist",
    "train_examples": 10_000,
    "test_examples": 500,
    "epochs": 10,
    "training_steps": 10,
    # step sizes of training are the default's for 10 steps
    "step_sizes": _STEPS[:2],
    "seeds": (0, 1, 2),
}
MNIST: dict[str, Any] = {"dataset": "mnist", "step_sizes": _STEPS, "seeds": (0, 1, 2)}
CIFAR10: dict[str, Any] = {
    "dataset": "cifar10",
    "dropout": 0.3,
    "epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "augmentation": "crop4_flip",
    "training_steps": 7,
    "lambda_d": 0.75,
    "step_sizes": (
        ("train l2-80/255", 0.1),
        ("l2-80/255", 0.04),
        ("l2-320/255", 0.16),
        ("linf-4/255", 1 / 255),
        ("linf-8/255", 2 / 255),
    ),
}


def folder_of(name: str, seed: int | None = None) -> str:
    """Of a network's files in the run folder."""
    name = name.replace("/", "_of_")
    return name if seed is None else f"{name}/seed-{seed}"


def load_splits(
    settings: TrainingSettings, preset: str, data_dir: Path | None
) -> dict[str, data.Dataset]:
    """Training, validation and test images in [0, 1]."""
    splits = {
        name: data.load(settings.dataset, name, data_dir=data_dir)
        for name in ("train", "validation", "test")
    }
    for name, count in (("train", settings.train_examples), ("test", settings.test_examples)):
        if count is not None:
            splits[name] = splits[name].take(min(count, len(splits[name])))
    return splits


def network(settings: TrainingSettings, shape: tuple[int, ...], classes: int) -> keras.Model:
    """An untrained network of the study."""
    if settings.dataset == "cifar10":
        return reference_models.build(
            "wide_resnet_28_10",
            input_shape=shape,
            classes=classes,
            depth=settings.depth,
            widen=settings.widen,
            dropout=settings.dropout,
            variant=settings.variant,
            through_softmax=settings.through_softmax,
        )
    return reference_models.build(
        "noack_mnist_cnn",
        input_shape=shape,
        classes=classes,
        filters=settings.filters,
        dense=settings.dense,
        dropout=settings.dropout,
    )


def objective_of(settings: TrainingSettings, row: Row) -> Objective:
    """What a row minimises."""
    # PyTorch's weight decay w adds w * theta to the gradient
    objective = CrossEntropy() + WeightDecay(settings.weight_decay / 2)
    if row.kind == "at":
        name = row.name.removeprefix("at-")
        name = f"train {name}" if row.norm != 2 else f"train l2-{name}"
        threat = threat_model(
            row.norm,
            row.epsilon,
            steps=settings.training_steps,
            step_size=settings.step_size(name),
            floor=settings.floor,
        )
        return objective + AdversarialTraining(threat, mode="training", update_statistics=True)
    if row.kind == "jr":
        return objective + JacobianRegularization(
            settings.lambda_j, projections=1, form="half_square"
        )
    if row.kind == "ir":
        return objective + InterpretationRegularization(
            settings.lambda_d,
            settings.lambda_m,
            norm_scale=settings.norm_scale,
            threshold=settings.phi if settings.threshold_after else None,
        )
    return objective


def trained(
    task: Task,
    row: Row,
    seed: int,
    *,
    folder: str | None = None,
    permuted: float | None = None,
    settings: TrainingSettings | None = None,
) -> keras.Model:
    """A row's network of one seed: trained if it is not there yet, with its teacher.

    Args:
        task: of the experiment.
        row: how it is trained.
        seed: of weights, dropout, the order of examples and the permutation of maps.
        folder: in the run folder; default: by row and seed.
        permuted: share of each map's values that are shuffled; default: the row's, all or none.
        settings: default: the task's.
    """
    settings = task.settings if settings is None else settings
    folder = folder_of(row.name, seed) if folder is None else folder
    train: data.Dataset = task.data["train"]
    shape, classes = train.images.shape[1:], train.classes
    build = functools.partial(network, settings, shape, classes)
    if row.kind == "random":
        return _untrained(task, folder, build, seed)
    tensors: dict[str, Any] = {"images": train.images, "labels": train.labels}
    provenance: dict[str, Any] = {"data": dataclasses.asdict(train.provenance), "row": row.name}
    if row.kind == "ir" and not task.run.has(f"{folder}/model.keras"):
        tensors["targets"] = targets(task, row, seed, permuted=permuted)
        provenance["permuted"] = row.permuted if permuted is None else permuted
    divisor = settings.jr_divisor if row.kind == "jr" else 1
    rate = settings.learning_rate / divisor
    best = BestEpoch(
        task.run,
        folder,
        settings.epochs,
        task.data["test"],
    )
    return train_or_load(
        task.run,
        folder,
        build,
        Arrays(tensors, classes, augmentation=settings.augmentation),
        objective_of(settings, row),
        name=f"{row.label}, seed {seed}",
        optimizer=keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        schedule=Cosine(rate),
        epochs=settings.epochs,
        batch_size=settings.batch_size // divisor,
        seed=seed,
        validation=task.data["validation"].arrays,
        provenance=provenance,
        precision=settings.precision,
        callbacks=(best,),
        finish=best.restore,
    )


def _untrained(task: Task, folder: str, build: Any, seed: int) -> keras.Model:
    file = f"{folder}/model.keras"
    if not task.run.has(file):
        keras.utils.set_random_seed(seed)
        save_model(task.run, file, build(), {"row": "random"})
    return load_model(task.run, file)


def targets(task: Task, row: Row, seed: int, *, permuted: float | None = None) -> np.ndarray:
    """A row's target maps, (count, *input), as its networks are trained on them.

    Args:
        task: of the experiment.
        row: of Interpretation Regularization.
        seed: of the permutation.
        permuted: as in `trained`.
    """
    share = float(row.permuted) if permuted is None else permuted
    return targets_of(task, row, permuted=share, seed=seed, trained=trained)


def robust_targets(task: Task) -> np.ndarray:
    """The thresholded SmoothGrad maps of the robust network, (count, *input)."""
    return reference_targets(task, ROBUST, trained=trained)
