"""What all experiments on Peck 2017 share: their steps, and how their results are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, Positive, Seed
from experiments.common.experiment import Experiment, Task
from experiments.common.members import Member, Progress
from experiments.common.page import Report, Table
from experiments.common.train import train_or_load
from experiments.peck2017 import published
from experiments.peck2017.comparison import BOUNDS, FGS, compare, violations
from tfrobust import data, evaluate
from tfrobust.objectives import CrossEntropy, Objective

__all__ = [
    "ABOUT",
    "ADAM_ITERATIONS",
    "BOUNDED",
    "CELLS",
    "LBFGS",
    "REACH",
    "SCALES",
    "TESTED",
    "WIDE",
    "MLPSettings",
    "Result",
    "bound_attack_and_test",
    "cells",
    "class_changes",
    "concatenated",
    "define",
    "define_random",
    "frame_of",
    "load_splits",
    "read_results",
    "report_of",
    "splits",
    "table_of_networks",
    "trained",
    "trained_mlp",
]

SCALES = {
    "demo": "Demonstration on bundled data, far smaller than the study.",
    "reduced": "Scaled-down run.",
    "paper": "The study's own settings; what it does not state is ours.",
}
# of random inputs: wide enough not to bind attacks that stay inside
WIDE = (-1e3, 1e3)
ABOUT = (
    "l2 norms in the networks' input units; FGS by Algorithm 2.1, without clipping, away from the "
    "model's own prediction; failed attacks are left out. A violation is an example that some "
    "attack changed with less than the bound."
)
CELLS = (
    "Every printed cell beside ours, where the data are the thesis's. The ratio is ours over the "
    "thesis's; uncertain: lost or merged in the thesis's text as it is at hand."
)
BOUNDED, TESTED, LBFGS = "compared.parquet", "test.json", "lbfgs.parquet"
# section 5.4.1; stated for the networks of Table 5.3 only
ADAM_ITERATIONS = 10_000
# of Algorithm 2.1: epsilon up to 100 for pixels in [0, 255]
REACH = 100 / 255


Splits = dict[str, data.Dataset]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPSettings:
    """Training of the thesis's MLPs on tables, and what is done with them."""

    seeds: Annotated[tuple[Seed, ...], DISTINCT] = (0, 1, 2)
    """Of weights and the order of examples: one network of each kind per seed."""
    epochs: Count
    """Of Adam, batches of 10."""
    learning_rate: Positive = 5e-3
    """Of Adam."""
    max_epsilon: Positive = 1.0
    """M of Algorithm 2.1; "100 instead of 1" for images implies 1 for tables."""


def define(
    name: str,
    presets: Mapping[str, Any],
    load: Callable[[Any, str, Path | None], Any],
    members: Callable[[Any], Sequence[Member]],
    steps: Callable[[Task, Member], Iterator[None]],
    report: Callable[[Task, Progress], Report],
    *,
    complete: Sequence[str] = (BOUNDED, TESTED),
    **options: Any,
) -> Experiment:
    """An experiment on Peck 2017: small, and on one device; arguments as for `Experiment`."""
    name = f"peck2017-{name}"
    single = {"distributed": False, **options}
    return Experiment(name, presets, SCALES, load, members, steps, complete, report, **single)


def load_splits(settings: Any, preset: str, data_dir: Path | None) -> Splits:
    """The training and test set of `settings.dataset`."""
    return splits(settings.dataset, data_dir, "train")


def splits(
    dataset: str,
    data_dir: Path | None,
    *training: str,
    weights: str | None = None,
    pixels: float = 1.0,
) -> Splits:
    """The test split, and those for training unless a file of weights is given.

    Args:
        pixels: the largest pixel of images, which are rescaled to [0, pixels].
    """
    names = ("test", *(name for name in training if name != "test" and weights is None))
    loaded = {name: data.load(dataset, name, data_dir=data_dir) for name in names}
    if pixels == 1:
        return loaded
    return {name: each.rescaled(0, pixels) for name, each in loaded.items()}


def class_changes(frame: pd.DataFrame, classes: int) -> np.ndarray:
    """How many examples of each class before FGS (rows) have each class after it, of its successes.

    Returns:
        (classes, classes) of whole numbers.
    """
    found = frame[frame[FGS].notna()]
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (found["predicted"].to_numpy(), found["becomes"].to_numpy()), 1)
    return counts


def define_random(
    name: str,
    presets: Mapping[str, Any],
    members: Callable[[Any], Sequence[Member]],
    compared: Callable[..., pd.DataFrame],
    report: Callable[[Task, Progress], Report],
) -> Experiment:
    """An experiment on random networks and inputs, of one step per member.

    Args:
        compared: (settings, **member.settings) to `compare`'s results.
        name, presets, members, report: as for `Experiment`.
    """

    def steps(task: Task, member: Member) -> Iterator[None]:
        file = f"{member.folder}/{BOUNDED}"
        task.run.frame_step(file, lambda: compared(task.settings, **member.settings))
        yield

    return define(name, presets, lambda *_: None, members, steps, report, complete=(BOUNDED,))


def trained(
    task: Task,
    member: Member,
    build: Callable[[], keras.Model],
    train: data.Dataset | None,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float = 1e-3,
    objective: Objective | None = None,
    weights: str | None = None,
    **options: Any,
) -> keras.Model:
    """A network trained with Adam, or loaded: `weights` names a file of a trained one.

    Iterations are rounded up to whole epochs; `options` are those of `train_or_load`.
    """
    if weights is not None:
        return reference_models.load(weights)
    return train_or_load(
        task.run,
        member.folder,
        build,
        train.arrays,
        objective or Objective((CrossEntropy(),)),
        name=member.name,
        optimizer=keras.optimizers.Adam(learning_rate),
        epochs=math.ceil(iterations / max(len(train) // batch_size, 1)),
        batch_size=batch_size,
        provenance={"iterations": iterations, "data": dataclasses.asdict(train.provenance)},
        **options,
    )


def trained_mlp(
    task: Task, member: Member, dataset: str, train: data.Dataset, **options: Any
) -> keras.Model:
    """The thesis's MLP for a table, trained as the `MLPSettings` say; options as of `trained`."""
    settings = task.settings
    return trained(
        task,
        member,
        partial(reference_models.build, f"{dataset}_mlp"),
        train,
        iterations=settings.epochs * (len(train) // 10),
        batch_size=10,
        learning_rate=settings.learning_rate,
        seed=member.settings["seed"],
        **options,
    )


def bound_attack_and_test(
    task: Task,
    member: Member,
    model: keras.Model,
    x: np.ndarray,
    test: data.Dataset,
    attacks: Mapping[str, Mapping[str, Any]],
    **options: Any,
) -> Iterator[None]:
    """The steps behind training: `compare` on `x`, and accuracy on the test set."""
    task.run.frame_step(
        f"{member.folder}/{BOUNDED}",
        lambda: compare(model, x, test.value_range, attacks, **options),
    )
    yield
    task.run.json_step(f"{member.folder}/{TESTED}", lambda: evaluate(model, *test.arrays))
    yield


@dataclasses.dataclass(frozen=True)
class Result:
    """What is known of a finished network."""

    settings: Mapping[str, Any]
    accuracy: float
    """On the test set."""
    frame: pd.DataFrame
    """`compare`'s."""


def frame_of(task: Task, member: Member) -> pd.DataFrame:
    """`compare`'s results for a finished member."""
    return task.run.read_frame(f"{member.folder}/{BOUNDED}")


def read_results(task: Task, progress: Progress) -> list[Result]:
    """Results of the finished networks, in the cohort's order."""
    results = []
    for member in progress.finished:
        test = task.run.read_json(f"{member.folder}/{TESTED}")
        results.append(Result(member.settings, test["accuracy"], frame_of(task, member)))
    return results


def cells(table: str, ours: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every printed cell of a table of the thesis beside ours, by row and column."""
    frame = published.cells(table, ours)
    return Table(f"Table {table}, cell by cell", CELLS, frame, file=f"table_{table}_cells")


def concatenated(results: Sequence[Result], by: Callable[[Result], str]) -> dict[str, pd.DataFrame]:
    """The examples of all networks of a kind, by the kind's name; column network: a number."""
    kinds: dict[str, list[pd.DataFrame]] = {}
    for number, result in enumerate(results):
        kinds.setdefault(by(result), []).append(result.frame.assign(network=number))
    return {kind: pd.concat(frames, ignore_index=True) for kind, frames in kinds.items()}


def table_of_networks(results: Sequence[Result]) -> Table:
    """One row per network: what tells it from the others, accuracy, medians, violations."""
    rows = [
        {
            **result.settings,
            "test accuracy": result.accuracy,
            "FGS, median": result.frame[FGS].median(),
            "rate": result.frame[FGS].notna().mean(),
            **{f"{name}, median": result.frame[key].median() for key, name in BOUNDS.items()},
            **{f"violations, {key}": violations(result.frame, key) for key in BOUNDS},
        }
        for result in results
    ]
    return Table("Every network", "Medians over examples.", pd.DataFrame(rows))


def report_of(task: Task, *, title: str, lead: str, **content: Any) -> Report:
    """A report under the thesis's name, which says how its preset compares."""
    return Report(f"Peck 2017: {title}", f"{SCALES[task.preset]} {lead}", **content)
