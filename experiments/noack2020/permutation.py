"""Target maps whose values are shuffled more and more (Section 4.4, Figures 2 and 3).

python -m experiments.noack2020.permutation --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from experiments.common.checks import DISTINCT, Rule
from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.noack2020 import claims, evaluation, figures, study, teachers
from experiments.noack2020.rows import Row
from experiments.noack2020.targets import ROBUST, raw_maps
from tfrobust import saliency
from tfrobust.commands import run

ATTACKED, MEASURED, TESTED = evaluation.ATTACKED, evaluation.MEASURED, evaluation.TESTED
_SHOWN = (0.1, 0.5, 1.0)
_EXAMPLES = 4


def _probability(value: float) -> str | None:
    return None if 0 <= value <= 1 else f"must lie between 0 and 1, got {value:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(study.TrainingSettings, evaluation.EvaluationSettings):
    """Shares of permuted values, and networks trained on such maps."""

    probabilities: Annotated[tuple[Annotated[float, Rule(_probability)], ...], DISTINCT]
    """Shares of a map's values that are shuffled among themselves."""
    teachers: str | None = None
    """Folder of a run of `mnist` with the same training settings, whose robust network is taken;
    None to train it here."""


_SHARES = tuple(k / 10 for k in range(1, 11))
PRESETS = {
    "demo": Settings(
        **study.DIGITS,
        probabilities=(0.0, 0.5, 1.0),
        attacks=("linf-0.1",),
        attack_steps=5,
        restarts=1,
        floors=("code",),
        jacobians=200,
    ),
    "reduced": Settings(
        **study.REDUCED_MNIST,
        probabilities=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        attacks=("linf-0.2",),
        floors=("code",),
    ),
    "paper": Settings(
        **study.MNIST,
        probabilities=_SHARES,
        attacks=("linf-0.2",),
        smoothgrad="released",
        stop="last",
        floors=("code",),
        jacobians=55_000,
    ),
}


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """The robust network is there, if it is taken from another run."""
    teachers.check(settings.teachers, settings.robust, settings.seeds[0])


def members(settings: Settings) -> list[Member]:
    """Networks by share and seed."""
    return [
        Member(
            f"permuted {share:g}, seed {seed}",
            f"permuted-{share:g}/seed-{seed}",
            {"probability": share, "seed": seed},
        )
        for share in settings.probabilities
        for seed in settings.seeds
    ]


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train on permuted maps; test; measure; attack."""
    share, seed, folder = member.settings["probability"], member.settings["seed"], member.folder
    teachers.take(task, task.settings.teachers, task.settings.robust, task.settings.seeds[0])
    model = study.trained(task, Row.of(ROBUST), seed, folder=folder, permuted=share)
    yield
    task.run.json_step(f"{folder}/{TESTED}", lambda: evaluation.tested(task, model, folder))

    def measured() -> dict[str, float]:
        own = study.targets(task, Row.of(ROBUST), seed, permuted=share)
        count = min(task.settings.jacobians, len(own))
        cosine = evaluation.cosines(task, model, own, count)
        return {**evaluation.measured(task, model), "own_cosine": cosine}

    task.run.json_step(f"{folder}/{MEASURED}", measured)
    yield
    task.run.frame_step(f"{folder}/{ATTACKED}", lambda: evaluation.attacked(task, model, seed))
    yield


def report(task: Task, progress: Progress) -> Report:
    """Figures 2 and 3."""
    frame = pd.DataFrame([_row(task, member) for member in progress.finished])
    drawings = []
    if len(frame):
        text = (
            "Means and 95 % t-intervals over networks; attack: "
            f"{task.settings.attacks[0]}, {task.settings.attack_steps} steps."
        )
        drawings = [
            Drawing(
                "Figure 2",
                "Training images and the robust network's SmoothGrad maps, shuffled.",
                "figure2",
                partial(_maps, task),
            ),
            Drawing("Figure 3", text, "figure3", partial(figures.permutation, frame)),
        ]
    return Report(
        title=f"Noack 2020: permuted target maps, {task.settings.dataset}",
        lead=f"{study.SCALES[task.preset]} {study.ABOUT}",
        tables=[Table("Networks", _ABOUT, _table(frame))] if len(frame) else [],
        drawings=drawings,
        claims=claims.permutation(frame),
    )


_ABOUT = (
    "Means over seeds, with half the 95 % t-interval. Cosine: of J_c with the network's own target "
    "maps, over training images."
)
_COLUMNS = ("accuracy", "attacked", "worst", "label", "cosine")


def _row(task: Task, member: Member) -> dict[str, Any]:
    tested = task.run.read_json(f"{member.folder}/{TESTED}")
    measured = task.run.read_json(f"{member.folder}/{MEASURED}")
    attacks = task.run.frame_step(f"{member.folder}/{ATTACKED}", pd.DataFrame)
    first = attacks.iloc[0]  # of the first attack, the first floor
    return {
        **member.settings,
        "accuracy": 100 * tested["accuracy"],
        "attacked": 100 * first["mean"],
        "worst": 100 * first["worst"],
        "label": measured["label"],
        "cosine": measured["own_cosine"],
    }


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    groups = frame.groupby("probability")
    columns: dict[str, Any] = {"networks": groups.size()}
    for name in _COLUMNS:
        columns[name] = groups[name].mean()
        columns[f"{name}, +-"] = groups[name].apply(figures.interval)
    return pd.DataFrame(columns).reset_index().dropna(axis=1, how="all")


def _maps(task: Task) -> object:
    train, seed = task.data["train"], task.settings.seeds[0]
    maps = np.asarray(raw_maps(task, Row.of(ROBUST), study.trained)[:_EXAMPLES])
    shown = {f"{share:g}": saliency.permute(maps, share, seed) for share in (0.0, *_SHOWN)}
    return figures.target_maps(train.images[:_EXAMPLES], shown)


EXPERIMENT = Experiment(
    "noack2020-permutation",
    PRESETS,
    study.SCALES,
    study.load_splits,
    members,
    steps,
    (TESTED, MEASURED, ATTACKED),
    report,
    check_settings,
    distributed=False,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
