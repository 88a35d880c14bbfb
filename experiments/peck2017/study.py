"""What all experiments on Peck 2017 share: their steps, and how their results are read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from experiments.common.experiment import Experiment, Task
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.common.train import train_or_load
from experiments.peck2017.comparison import compare
from tfrobust import data, evaluate
from tfrobust.objectives import CrossEntropy, Objective
from tfrobust.report import Claim

__all__ = [
    "ABOUT",
    "BOUNDED",
    "SCALES",
    "TESTED",
    "Result",
    "bound_attack_and_test",
    "concatenated",
    "define",
    "frame_of",
    "load_nothing",
    "read_results",
    "report_of",
    "trained",
]

SCALES = {
    "demo": "Demonstration on bundled data, far smaller than the study.",
    "reduced": "Scaled-down run.",
    "paper": "The study's own settings, as far as they are known.",
}
ABOUT = (
    "l2 norms in the networks' input units; attacks leave the model's own prediction; failed "
    "attacks are left out. A violation is an example that some attack changed with less than the "
    "bound. Published figures were not at hand (experiments/peck2017/published.py)."
)
BOUNDED, TESTED = "compared.parquet", "test.json"


def define(
    name: str,
    presets: Mapping[str, Any],
    *,
    check_settings: Callable[[Any, Path | None], None],
    members: Callable[[Any], Sequence[Member]],
    steps: Callable[[Task, Member], Iterator[None]],
    report: Callable[[Task, Progress], Report],
    load: Callable[[Any, str, Path | None], Any] | None = None,
    complete: Sequence[str] = (BOUNDED, TESTED),
    files: Sequence[str] = (),
) -> Experiment:
    """An experiment on Peck 2017: small, and on one device."""
    return Experiment(
        name=f"peck2017-{name}",
        presets=presets,
        about=SCALES,
        check_settings=check_settings,
        load=load or load_nothing,
        members=members,
        steps=steps,
        complete=complete,
        report=report,
        files=files,
        distributed=False,
    )


def load_nothing(settings: Any, preset: str, data_dir: Path | None) -> None:
    """For experiments on random inputs."""


def trained(
    task: Task,
    member: Member,
    build: Callable[[], keras.Model],
    train: data.Dataset,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    objective: Objective | None = None,
    validation: data.Dataset | None = None,
) -> keras.Model:
    """A network trained with Adam, or loaded; iterations are rounded up to whole epochs."""
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
        validation=None if validation is None else validation.arrays,
        seed=seed,
        provenance={"iterations": iterations, "data": dataclasses.asdict(train.provenance)},
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
    return pd.read_parquet(task.run.folder / member.folder / BOUNDED)


def read_results(task: Task, progress: Progress) -> list[Result]:
    """Results of the finished networks, in the cohort's order."""
    results = []
    for member in progress.finished:
        test = json.loads((task.run.folder / member.folder / TESTED).read_text())
        results.append(Result(member.settings, test["accuracy"], frame_of(task, member)))
    return results


def concatenated(results: Sequence[Result], by: Callable[[Result], str]) -> dict[str, pd.DataFrame]:
    """The examples of all networks of a kind, by the kind's name."""
    kinds: dict[str, list[pd.DataFrame]] = {}
    for result in results:
        kinds.setdefault(by(result), []).append(result.frame)
    return {kind: pd.concat(frames, ignore_index=True) for kind, frames in kinds.items()}


def report_of(
    task: Task,
    *,
    title: str,
    lead: str,
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    claims: Sequence[Claim],
) -> Report:
    """A report under the thesis's name, which says how its preset compares."""
    return Report(f"Peck 2017: {title}", f"{SCALES[task.preset]} {lead}", tables, drawings, claims)
