"""`tfrobust rank`'s steps: checks of the models, then three measures of each, computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

import reference_models
from tfrobust import alignment, attacks, bounds, data
from tfrobust.attacks import prepare
from tfrobust.classifier import as_images, model_input_shape, predict_logits
from tfrobust.commands.rank.page import write_page
from tfrobust.commands.rank.ranking import ranking
from tfrobust.commands.rank.settings import Command, Identified, Settings
from tfrobust.commands.terminal import concerning
from tfrobust.errors import InexactDecompositionWarning, InputError
from tfrobust.report import Run
from tfrobust.training import evaluate

__all__ = ["is_table", "measured", "rank"]


def rank(command: Command) -> Path:
    """Run all checks, then all steps; returns the page's path."""
    names, models = _models(command.models)
    test = data.load(command.data, "test", data_dir=command.data_dir)
    test = test.take(min(command.images, len(test)))
    attack = command.attack or ("deepfool" if is_table(test) else "carlini_wagner")
    for name, model in zip(names, models, strict=True):
        with concerning(f"model {name}"):
            _check_model(model, test, attack)
    fields = {f.name: getattr(command, f.name) for f in dataclasses.fields(Settings)}
    digests = tuple(_digest(model) for model in models)
    settings = Identified(**{**fields, "attack": attack}, sha256=digests)
    run = Run(command.out or Path("runs") / f"rank-{command.data}", settings)
    tables = {
        name: measured(run, name, model, test, settings)
        for name, model in zip(names, models, strict=True)
    }
    accuracy = run.json_step("accuracy.json", lambda: _accuracies(names, models, test, settings))
    table = ranking(tables, accuracy)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    return write_page(run, settings, test, tables, table, given=command.attack is not None)


def is_table(test: data.Dataset) -> bool:
    """Whether the examples are rows of a table, not images."""
    return test.images.ndim == 2


def _models(paths: tuple[str, ...]) -> tuple[list[str], list[keras.Model]]:
    names = [Path(path).stem for path in paths]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:  # cohorts have files of the same name in several folders
        names = [f"{Path(path).resolve().parent.name}-{Path(path).stem}" for path in paths]
        duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(
            f"two of the models have the same name and folder name, {', '.join(duplicates)}, which "
            "distinguish models: rename one of the files, or put it into a folder of another name"
        )
    return names, [reference_models.load(path) for path in paths]


def _check_model(model: keras.Model, test: data.Dataset, attack: str) -> None:
    """Raises: TfrobustError if a step would fail on the model."""
    for variable in model.variables:
        if not np.isfinite(variable.numpy()).all():
            raise InputError(f"{variable.path} holds NaN or infinite values")
    with concerning(f"it does not go with {test.provenance.name}"):
        rows = as_images(model, test.images[:1])
        classes = predict_logits(model, rows).shape[1]
    if classes != test.classes:
        raise InputError(
            f"it has {classes} classes, {test.provenance.name} has {test.classes} (input "
            f"{model_input_shape(model)})"
        )
    bounds.robustness(model, rows, tighten=False)  # is there a rule for every layer?
    prepare(attack, model, rows, value_range=test.value_range, norm=2, settings={})


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256(model.to_json().encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _accuracies(
    names: list[str], models: list[keras.Model], test: data.Dataset, settings: Settings
) -> dict[str, float]:
    batches = {"batch_size": settings.batch_size}
    return {
        name: evaluate(model, *test.arrays, **batches)["accuracy"]
        for name, model in zip(names, models, strict=True)
    }


def measured(
    run: Run, name: str, model: keras.Model, test: data.Dataset, settings: Settings
) -> pd.DataFrame:
    """One row per example: the three measures of one model, all in l2, each a separate step.

    Distances are infinite where the attack failed, bounds where nothing can change the class.
    """
    x, size = test.images, settings.batch_size

    def bounded() -> dict[str, np.ndarray]:
        result = bounds.robustness(model, x, batch_size=size)
        return {
            "label": test.labels,
            "predicted": result.predicted,
            "certified_bound": result.bound.astype(np.float64),
            "tightened": np.full(len(x), result.tightened),
        }

    def linearized() -> dict[str, np.ndarray]:
        with warnings.catch_warnings():
            if is_table(test):  # Peck's MLPs: Theorem 1 of Etmann 2019 is not used here
                warnings.simplefilter("ignore", InexactDecompositionWarning)
            result = alignment.measure(model, x, batch_size=size)
        return {"linearized_robustness": result.linearized_robustness.astype(np.float64)}

    def attacked() -> dict[str, np.ndarray]:
        result = attacks.minimal(
            model, x, settings.attack, value_range=test.value_range, batch_size=size
        )
        return {"attack_distance": result.distance.astype(np.float64)}

    steps: dict[str, tuple[str, Callable[[], dict[str, np.ndarray]]]] = {
        "bounds": ("certified bounds", bounded),
        "linearized": ("linearized robustness", linearized),
        "attack": (f"attack {settings.attack}", attacked),
    }
    parts = []
    for step, (title, compute) in steps.items():

        def announced(title: str = title, compute: Callable[[], Any] = compute) -> pd.DataFrame:
            print(f"{name}: {title}", flush=True)
            return pd.DataFrame(compute())

        parts.append(run.frame_step(f"{name}/{step}.parquet", announced))
    return pd.concat(parts, axis=1)
