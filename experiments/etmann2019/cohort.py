"""A cohort of classifiers that differ in lambda only: train, measure, attack, each step once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd

import reference_models
from experiments.etmann2019.results import (
    ATTACK_NAMES,
    Cohort,
    CohortError,
    Member,
    place_of,
    read,
)
from tfrobust import alignment, attacks, training
from tfrobust.alignment import decomposition
from tfrobust.classifier import input_gradient
from tfrobust.data import Provenance
from tfrobust.distribution import is_chief
from tfrobust.objectives import CrossEntropy, DoubleBackprop, WeightDecay
from tfrobust.report import Run
from tfrobust.training import Schedule, computing_in

__all__ = [
    "ATTACK_NAMES",
    "Cohort",
    "CohortError",
    "Member",
    "Study",
    "Training",
    "begin",
    "make",
    "read",
    "trained",
]


@dataclasses.dataclass(frozen=True)
class Training:
    """How every member is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    schedule: Schedule
    weight_decay: float
    penalty_scale: str
    examples_per_mean: int | None = None
    precision: str = "float32"
    jit: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """What all members of a cohort share: data, network, settings."""

    name: str
    """Of the data, as figures and pages call it."""
    lead: str
    """What is run on what, in a sentence or two."""
    build: Callable[[], keras.Model]
    """A fresh classifier; called with the same seed for every member."""
    training: Training
    train: Any
    """Arrays or a stream, as `fit` takes them."""
    validation: Any
    test: Any
    """What accuracy is taken on."""
    source: Provenance
    """Of the training data."""
    classes: int
    images: np.ndarray
    """(count, *input), measured and attacked."""
    pictures: np.ndarray
    """The first of them as RGB or grey in [0, 1]; their saliency maps are kept."""
    value_range: tuple[float, float]
    attacks: Mapping[str, dict[str, Any]]
    """Settings of each attack, by name."""
    measure: Mapping[str, Any]
    """Settings of `alignment.measure`."""
    attacked: int
    """How many of the images are attacked."""
    batch_size: int
    """Images a call in measuring and attacking."""
    seed: int
    """Of weights, dropout and the order of examples; the same for every member."""


def begin(run: Run, study: Study) -> None:
    """Note in the run folder what its members share."""
    run.json_step("cohort.json", lambda: {"name": study.name, "lead": study.lead})
    run.arrays_step("pictures.npz", lambda: {"pictures": study.pictures})


def make(run: Run, study: Study, weight: float) -> None:
    """One member's files in the run folder; steps that are finished are left as they are.

    Args:
        run: the run folder.
        study: what all members share.
        weight: lambda.
    """
    place = place_of(weight)
    model = trained(run, study, weight)
    images = study.images

    def measured() -> pd.DataFrame:
        _say(f"lambda {weight:g}: alignment of {len(images)} images")
        return alignment.measure(
            model, images, batch_size=study.batch_size, **study.measure
        ).to_frame()

    table = run.frame_step(f"{place}/alignment.parquet", measured)
    distances = {}
    for attack, settings in study.attacks.items():

        def attacked(attack: str = attack, settings: dict[str, Any] = settings) -> pd.DataFrame:
            name = ATTACK_NAMES.get(attack, attack)
            _say(f"lambda {weight:g}: {name}, {study.attacked} images")
            found = attacks.minimal(
                model,
                images[: study.attacked],
                attack,
                value_range=study.value_range,
                batch_size=study.batch_size,
                **settings,
            )
            return found.to_frame()

        distances[attack] = run.frame_step(f"{place}/attack-{attack}.parquet", attacked)

    def pictured() -> dict[str, np.ndarray]:
        some = images[: len(study.pictures)]
        return {"gradients": input_gradient(model, some, batch_size=study.batch_size)}

    run.arrays_step(f"{place}/gradients.npz", pictured)
    run.json_step(f"{place}/summary.json", lambda: _summary(model, study, weight, table, distances))


def _say(words: str) -> None:
    if is_chief():
        print(words, flush=True)


def trained(run: Run, study: Study, weight: float) -> keras.Model:
    """The trained classifier, loaded where it is finished, else trained from where it stopped."""
    place, how = place_of(weight), study.training
    path = run.folder / place / "model.keras"
    if run.has(f"{place}/model.keras"):
        return reference_models.load(path)
    _say(f"lambda {weight:g}: training for {how.epochs} epochs")
    keras.utils.set_random_seed(study.seed)
    with computing_in(how.precision):
        model = study.build()
    objective = (
        CrossEntropy()
        + DoubleBackprop(
            weight, penalty_scale=how.penalty_scale, examples_per_mean=how.examples_per_mean
        )
        + WeightDecay(how.weight_decay)
    )
    history = training.fit(
        model,
        study.train,
        objective,
        optimizer=keras.optimizers.SGD(how.learning_rate, momentum=how.momentum),
        epochs=how.epochs,
        batch_size=how.batch_size,
        schedule=how.schedule,
        validation=study.validation,
        folder=run.folder / place / "training",
        seed=study.seed,
        jit=how.jit,
    )
    if how.precision != "float32":  # measured in full precision, whatever it was trained in
        whole = study.build()
        whole.set_weights(model.get_weights())
        model = whole
    run.write_json(f"{place}/history.json", list(history.records))
    described = {
        "objective": objective.describe(),
        "training": {**dataclasses.asdict(how), "schedule": repr(how.schedule)},
        "seed": study.seed,
        "data": dataclasses.asdict(study.source),
    }
    if is_chief():
        reference_models.save(model, path, provenance=described)
    return model


def _summary(
    model: keras.Model,
    study: Study,
    weight: float,
    table: pd.DataFrame,
    distances: dict[str, pd.DataFrame],
) -> dict[str, float]:
    data = study.test if isinstance(study.test, tuple) else (study.test,)
    test = training.evaluate(model, *data, batch_size=study.batch_size)
    columns = {name: table[name].to_numpy() for name in table.columns}
    measures = alignment.Alignment(**columns)
    parts = decomposition.decompose(model, study.images, batch_size=study.batch_size)
    summary = {
        "lambda": weight,
        "classes": study.classes,
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "evaluated": len(table),
        "attacked": study.attacked,
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
