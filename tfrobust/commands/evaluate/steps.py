"""`tfrobust evaluate`'s examples, from a data set or a folder, and its results."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np

import reference_models
from tfrobust import data
from tfrobust.classifier import as_images, classes_of
from tfrobust.commands.evaluate.page import write_page
from tfrobust.commands.evaluate.settings import Command, Identified, Settings
from tfrobust.commands.subject import digest, load_subject
from tfrobust.data import image_files
from tfrobust.errors import InputError
from tfrobust.evaluation import Benchmark, benchmark
from tfrobust.report import Run

__all__ = ["evaluate"]


@dataclasses.dataclass(frozen=True)
class _Examples:
    """A model with labelled examples for it."""

    model: keras.Model
    x: np.ndarray
    labels: np.ndarray
    value_range: tuple[float, float]
    source: str
    files: tuple[str, ...] | None
    weights_sha256: str
    examples_sha256: str


def evaluate(command: Command) -> tuple[dict[str, Any], Path | None]:
    """The summary as plain data, and the page's path where a folder was given."""
    examples = _of_data(command) if command.data is not None else _of_images(command)

    @functools.cache  # used for both files
    def result() -> Benchmark:
        return benchmark(
            examples.model,
            examples.x,
            examples.labels,
            epsilon=command.epsilon,
            attacks=command.attacks,
            value_range=examples.value_range,
            norm=float(command.norm),
            seed=command.seed,
            batch_size=command.batch_size,
        )

    if command.out is None:
        return _plain(result().summary()), None
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(Settings)}
    settings = Identified(
        **given,
        weights_sha256=examples.weights_sha256,
        examples_sha256=examples.examples_sha256,
    )
    run = Run(command.out, settings)
    table = run.frame_step("examples.parquet", lambda: result().to_frame())
    if examples.files is not None:
        table.insert(0, "file", examples.files)
    summary = run.json_step("summary.json", lambda: _plain(result().summary()))
    title = f"{Path(command.model).stem} on {len(table):,} examples of {examples.source}"
    return summary, write_page(run, title, summary, table)


def _of_data(command: Command) -> _Examples:
    test = data.load(command.data, "test", data_dir=command.data_dir)
    test = test.take(min(command.limit, len(test)))
    model = reference_models.load(command.model)
    x = as_images(model, test.images)
    _check_classes(model, x, test.classes, command.data)
    return _Examples(
        model=model,
        x=x,
        labels=test.labels,
        value_range=test.value_range,
        source=f"{command.data}, test split",
        files=None,
        weights_sha256=digest(*model.get_weights()),
        examples_sha256=test.provenance.sha256,
    )


def _of_images(command: Command) -> _Examples:
    folder = Path(command.images)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [path for path, _ in image_files(folder)]
    unlabelled = [path.name for path in paths if path.parent == folder]
    if unlabelled:
        raise InputError(
            f"{unlabelled[0]} lies in {folder} itself: images are labelled by the folder that they "
            "are in, one per class, in the order of the model's classes"
        )
    chosen = np.linspace(0, len(paths) - 1, min(command.limit, len(paths))).round().astype(int)
    subject = load_subject(command, [paths[index] for index in chosen])
    _check_classes(subject.model, subject.x, len(classes), f"{folder} (one folder per class)")
    files = tuple(Path(name).relative_to(folder).as_posix() for name in subject.files)
    return _Examples(
        model=subject.model,
        x=subject.x,
        labels=np.array([classes.index(name.split("/")[0]) for name in files], np.int32),
        value_range=subject.preprocessing.value_range,
        source=f"{len(classes)} classes in {folder}",
        files=files,
        weights_sha256=subject.weights_sha256,
        examples_sha256=subject.images_sha256,
    )


def _check_classes(model: keras.Model, x: np.ndarray, classes: int, source: str) -> None:
    if classes_of(model, x) != classes:
        raise InputError(
            f"the model has {classes_of(model, x)} classes, {source} has {classes}: every label "
            "would mean another class"
        )


def _plain(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary as valid JSON: "inf" for infinite, None for undefined."""

    def plain(value: Any) -> Any:
        if not isinstance(value, float) or math.isfinite(value):
            return value
        return None if math.isnan(value) else "inf"

    return {name: plain(value) for name, value in summary.items()}
