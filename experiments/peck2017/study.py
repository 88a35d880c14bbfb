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
from experiments.peck2017.checks import SecondAttack
from experiments.peck2017.comparison import BOUNDS, compare, violations
from tfrobust import data, evaluate
from tfrobust.objectives import CrossEntropy, Objective

__all__ = [
    "ABOUT",
    "BOUNDED",
    "SCALES",
    "TESTED",
    "WIDE",
    "MLPSettings",
    "Result",
    "bound_attack_and_test",
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
    "paper": "The study's own settings, as far as they are known.",
}
# of random inputs: wide enough not to bind
WIDE = (-50.0, 50.0)
ABOUT = (
    "l2 norms in the networks' input units; attacks leave the model's own prediction; failed "
    "attacks are left out. A violation is an example that some attack changed with less than the "
    "bound. Published figures were not at hand (experiments/peck2017/published.py)."
)
BOUNDED, TESTED = "compared.parquet", "test.json"


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
    inputs: Count
    """Examples that are bounded and attacked, test set first."""
    attack: SecondAttack
    """A second attack beside FGS; Carlini-Wagner is coarse in a box as wide as these."""


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
    dataset: str, data_dir: Path | None, *training: str, weights: str | None = None
) -> Splits:
    """The test split, and those for training unless a file of weights is given."""
    names = ("test", *(training if weights is None else ()))
    return {name: data.load(dataset, name, data_dir=data_dir) for name in names}


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


def concatenated(results: Sequence[Result], by: Callable[[Result], str]) -> dict[str, pd.DataFrame]:
    """The examples of all networks of a kind, by the kind's name."""
    kinds: dict[str, list[pd.DataFrame]] = {}
    for result in results:
        kinds.setdefault(by(result), []).append(result.frame)
    return {kind: pd.concat(frames, ignore_index=True) for kind, frames in kinds.items()}


def table_of_networks(results: Sequence[Result]) -> Table:
    """One row per network: what tells it from the others, accuracy, medians, violations."""
    rows = [
        {
            **result.settings,
            "test accuracy": result.accuracy,
            "FGS, median": result.frame["fast_gradient_sign"].median(),
            **{f"{name}, median": result.frame[key].median() for key, name in BOUNDS.items()},
            **{f"violations, {key}": violations(result.frame, key) for key in BOUNDS},
        }
        for result in results
    ]
    return Table("Every network", "Medians over examples.", pd.DataFrame(rows))


def report_of(task: Task, *, title: str, lead: str, **content: Any) -> Report:
    """A report under the thesis's name, which says how its preset compares."""
    return Report(f"Peck 2017: {title}", f"{SCALES[task.preset]} {lead}", **content)
