"""A cohort of classifiers that differ in lambda: the steps of one, and what all share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from experiments.common.experiment import Experiment, Task
from experiments.common.members import Member, grid
from experiments.common.train import say, train_or_load
from experiments.etmann2019.page import report
from experiments.etmann2019.results import ATTACK_NAMES, COMPLETE, summarize
from tfrobust import alignment, attacks, training
from tfrobust.data import Provenance
from tfrobust.objectives import CrossEntropy, DoubleBackprop, WeightDecay
from tfrobust.saliency import input_gradient
from tfrobust.training import Precision, Schedule

__all__ = ["Study", "Training", "attacks_of", "define", "members_of", "steps"]


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
    precision: Precision = "float32"
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
    """Images per call in measuring and attacking."""
    seed: int
    """Of weights, dropout and the order of examples; the same for every member."""


members_of = functools.partial(
    grid, "lambda {lambda:g}", "models/lambda-{lambda:g}", **{"lambda": "lambdas"}
)


def define(
    data: str,
    presets: Mapping[str, Any],
    about: Mapping[str, str],
    load: Callable[[Any, str, Path | None], Study],
    *,
    saturates: bool,
    **options: Any,
) -> Experiment:
    """One half of the study; arguments as for `Experiment`, `saturates` as for `claims.judge`."""
    name, page = f"etmann2019-{data}", functools.partial(report, saturates=saturates)
    return Experiment(name, presets, about, load, members_of, steps, COMPLETE, page, **options)


def attacks_of(settings: Any, **basic_iterative: int) -> dict[str, dict[str, Any]]:
    """Settings of the paper's three attacks, by name."""
    return {
        "gradient": {},
        "basic_iterative": basic_iterative,
        "carlini_wagner": {
            "binary_search_steps": settings.carlini_wagner_searches,
            "steps": settings.carlini_wagner_steps,
            "stepsize": settings.carlini_wagner_stepsize,
            "initial_const": settings.carlini_wagner_constant,
        },
    }


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, measure, attack: each leaves a file, and one that is there is not made again."""
    run, study, folder = task.run, task.data, member.folder
    _write_shared(task)
    model = _trained(task, member)
    data = study.test if isinstance(study.test, tuple) else (study.test,)
    test = run.json_step(
        f"{folder}/test.json",
        lambda: training.evaluate(model, *data, batch_size=study.batch_size),
    )
    yield

    def measured() -> Any:
        say(f"{member.name}: alignment of {len(study.images)} images")
        result = alignment.measure(
            model, study.images, batch_size=study.batch_size, **study.measure
        )
        return result.to_frame()

    table = run.frame_step(f"{folder}/alignment.parquet", measured)
    yield
    distances = {}
    for attack, settings in study.attacks.items():

        def attacked(attack: str = attack, settings: dict[str, Any] = settings) -> Any:
            say(f"{member.name}: {ATTACK_NAMES.get(attack, attack)}, {study.attacked} images")
            result = attacks.minimal(
                model,
                study.images[: study.attacked],
                attack,
                value_range=study.value_range,
                batch_size=study.batch_size,
                **settings,
            )
            return result.to_frame()

        distances[attack] = run.frame_step(f"{folder}/attack-{attack}.parquet", attacked)
        yield

    def saliency() -> dict[str, np.ndarray]:
        some = study.images[: len(study.pictures)]
        return {"gradients": input_gradient(model, some, batch_size=study.batch_size)}

    run.arrays_step(f"{folder}/gradients.npz", saliency)

    summary = {
        **member.settings,
        **summarize(test, table, distances),
        "classes": study.classes,
        "attacked": study.attacked,
        "decomposition_relative_error": float(table["decomposition_error"].max()),
    }
    run.json_step(f"{folder}/summary.json", lambda: summary)
    yield


def _write_shared(task: Task) -> None:
    """What `results.read` needs beside the members' files."""
    names = [dataclasses.asdict(member) for member in members_of(task.settings)]
    shared = {"name": task.data.name, "lead": task.data.lead, "members": names}
    task.run.write_json("cohort.json", shared)
    task.run.arrays_step("pictures.npz", lambda: {"pictures": task.data.pictures})


def _trained(task: Task, member: Member) -> keras.Model:
    study, how = task.data, task.data.training
    penalty = DoubleBackprop(
        member.settings["lambda"],
        penalty_scale=how.penalty_scale,
        examples_per_mean=how.examples_per_mean,
    )
    return train_or_load(
        task.run,
        member.folder,
        study.build,
        study.train,
        CrossEntropy() + penalty + WeightDecay(how.weight_decay),
        name=member.name,
        optimizer=keras.optimizers.SGD(how.learning_rate, momentum=how.momentum),
        epochs=how.epochs,
        batch_size=how.batch_size,
        schedule=how.schedule,
        validation=study.validation,
        seed=study.seed,
        precision=how.precision,
        jit=how.jit,
        provenance={"data": dataclasses.asdict(study.source)},
    )
