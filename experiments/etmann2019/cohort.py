"""A cohort of classifiers that differ in lambda only: train, measure, attack, each step once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd

import reference_models
from tfrobust import alignment, attacks, data, decomposition, training
from tfrobust.differentiate import input_gradient
from tfrobust.objectives import CrossEntropy, DoubleBackprop, WeightDecay
from tfrobust.runs import Run
from tfrobust.schedules import StepDecay

ATTACK_NAMES = {
    "gradient": "gradient attack",
    "basic_iterative": "l2 basic iterative",
    "carlini_wagner": "Carlini-Wagner l2",
}


@dataclasses.dataclass(frozen=True)
class Training:
    """How every member is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    epochs_per_decay: int
    decay: float
    weight_decay: float
    penalty_scale: str


@dataclasses.dataclass(frozen=True)
class Member:
    """One classifier of a cohort with everything measured on it."""

    weight: float
    """lambda of double backpropagation."""
    summary: dict[str, float]
    """Accuracies, medians of all measures and of the attacks' distances."""
    alignment: pd.DataFrame
    """`Alignment.to_frame()`, one row an evaluated image."""
    distances: dict[str, pd.DataFrame]
    """`MinimalPerturbation.to_frame()` by attack, rows as in `alignment`."""
    gradients: np.ndarray
    """Saliency maps of the first evaluated images, (count, *input)."""

    @property
    def degenerate(self) -> bool:
        """Whether the classifier is at most three times better than guessing."""
        return self.summary["test_accuracy"] < 3 / self.summary["classes"]

    def distance(self, attack: str) -> np.ndarray:
        """Distances of an attack, NaN where it found nothing or the distance is 0."""
        values = self.distances[attack]["distance"].to_numpy(float)
        return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def member(
    run: Run,
    weight: float,
    how: Training,
    sets: Mapping[str, data.Dataset],
    attack_settings: Mapping[str, dict[str, Any]],
    *,
    architecture: str,
    evaluated: int,
    pictured: int,
    batch_size: int,
    seed: int,
) -> Member:
    """One member, from the run folder where finished, else made and written there step by step.

    Args:
        run: the run folder.
        weight: lambda.
        how: training settings.
        sets: "train", "validation" and "test".
        attack_settings: settings of each attack, by name.
        architecture: name for `reference_models.build`.
        evaluated: test images that are measured and attacked.
        pictured: of these, how many saliency maps to keep.
        batch_size: images a call in measuring and attacking.
        seed: of weights, dropout and the order of examples; the same for every member.
    """
    place = f"models/lambda-{weight:g}"
    model = trained(run, place, weight, how, sets, architecture, seed)
    images = sets["test"].take(evaluated).images
    value_range = sets["test"].value_range

    def measured() -> pd.DataFrame:
        print(f"lambda {weight:g}: alignment of {len(images)} images")
        return alignment.measure(model, images, batch_size=batch_size).to_frame()

    table = run.frame_step(f"{place}/alignment.parquet", measured)
    distances = {}
    for attack, settings in attack_settings.items():

        def attacked(attack: str = attack, settings: dict[str, Any] = settings) -> pd.DataFrame:
            print(f"lambda {weight:g}: {ATTACK_NAMES.get(attack, attack)}, {len(images)} images")
            found = attacks.minimal(
                model,
                images,
                attack,
                value_range=value_range,
                batch_size=batch_size,
                **settings,
            )
            return found.to_frame()

        distances[attack] = run.frame_step(f"{place}/attack-{attack}.parquet", attacked)

    def summarised() -> dict[str, float]:
        return _summary(model, weight, sets, images, table, distances, batch_size)

    return Member(
        weight=weight,
        summary=run.json_step(f"{place}/summary.json", summarised),
        alignment=table,
        distances=distances,
        gradients=input_gradient(model, images[:pictured], of="logit"),
    )


def trained(
    run: Run,
    place: str,
    weight: float,
    how: Training,
    sets: Mapping[str, data.Dataset],
    architecture: str,
    seed: int,
) -> keras.Model:
    """The trained classifier, loaded where it is finished, else trained from where it stopped."""
    path = run.folder / place / "model.keras"
    if path.exists():
        return reference_models.load(path)
    print(f"lambda {weight:g}: training for {how.epochs} epochs")
    keras.utils.set_random_seed(seed)
    train = sets["train"]
    model = reference_models.build(
        architecture, input_shape=train.images.shape[1:], classes=train.classes
    )
    objective = (
        CrossEntropy()
        + DoubleBackprop(weight, penalty_scale=how.penalty_scale)
        + WeightDecay(how.weight_decay)
    )
    history = training.fit(
        model,
        train.arrays,
        objective,
        optimizer=keras.optimizers.SGD(how.learning_rate, momentum=how.momentum),
        epochs=how.epochs,
        batch_size=how.batch_size,
        schedule=StepDecay(how.learning_rate, every=how.epochs_per_decay, factor=how.decay),
        validation=sets["validation"].arrays,
        folder=run.folder / place / "training",
        seed=seed,
    )
    run.write_json(f"{place}/history.json", list(history.records))
    described = {
        "objective": objective.describe(),
        "training": dataclasses.asdict(how),
        "seed": seed,
        "data": dataclasses.asdict(train.provenance),
    }
    reference_models.save(model, path, provenance=described)
    return model


def _summary(
    model: keras.Model,
    weight: float,
    sets: Mapping[str, data.Dataset],
    images: np.ndarray,
    table: pd.DataFrame,
    distances: dict[str, pd.DataFrame],
    batch_size: int,
) -> dict[str, float]:
    test = training.evaluate(model, *sets["test"].arrays, batch_size=batch_size)
    columns = {name: table[name].to_numpy() for name in table.columns}
    measures = alignment.Alignment(**columns)
    parts = decomposition.decompose(model, images, batch_size=batch_size)
    summary = {
        "lambda": weight,
        "classes": sets["test"].classes,
        "test_accuracy": test["validation_accuracy"],
        "test_loss": test["validation_loss"],
        "evaluated": len(table),
        "undefined_rows": measures.undefined,
        "decomposition_relative_error": float(parts.relative_error.max()),
        **{f"median_{name}": value for name, value in measures.medians().items()},
    }
    for attack, frame in distances.items():
        values = frame["distance"].to_numpy(float)
        found = np.isfinite(values) & (values > 0)
        summary[f"median_{attack}"] = float(np.median(values[found])) if found.any() else None
        summary[f"success_{attack}"] = float(np.isfinite(values).mean())
    return summary
