"""Rows of training, each with several seeds, trained, attacked and measured: Tables 1 and 2.

`mnist` and `cifar10` are this experiment with settings and pages of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from experiments.common.checks import DISTINCT, Count
from experiments.common.experiment import Task
from experiments.common.members import Member, Progress
from experiments.noack2020 import evaluation, study
from experiments.noack2020.evaluation import ATTACKED, MEASURED, TESTED
from experiments.noack2020.rows import ROW, Row
from experiments.noack2020.targets import teacher_of
from tfrobust.errors import InputError

__all__ = ["COMPLETE", "Results", "TableSettings", "check_settings", "members", "results", "steps"]

COMPLETE = (TESTED, ATTACKED, MEASURED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings(study.TrainingSettings, evaluation.EvaluationSettings):
    """Rows of a table."""

    rows: Annotated[tuple[Annotated[str, ROW], ...], DISTINCT]
    """How networks are trained: standard, at-1.5 (l2) or at-linf-0.3, jr, and ir-TEACHER-METHOD:
    teacher r (the robust one), nr (the standard one), random, or the name of a row; method simp or
    smg; -perm for shuffled maps."""
    at_seeds: Count = 1
    """Seeds of adversarial training, which costs most: the first of --seeds."""


def check_settings(settings: TableSettings, data_dir: Path | None) -> None:
    """Teachers are among the rows."""
    if settings.robust not in settings.rows:
        raise InputError(f"--rows lacks the robust network {settings.robust} (--robust)")
    for name in settings.rows:
        row = Row.of(name)
        teacher = teacher_of(settings, row) if row.kind == "ir" else settings.robust
        if teacher not in (*settings.rows, "random"):
            raise InputError(f"--rows has {name}, but not its teacher {teacher}")


def members(settings: TableSettings) -> list[Member]:
    """Networks by row and seed, teachers first."""
    names = sorted(settings.rows, key=lambda name: _turn(settings, name))
    found = []
    for name in names:
        seeds = settings.seeds
        if Row.of(name).kind == "at":
            seeds = seeds[: settings.at_seeds]
        for seed in seeds:
            label = f"{Row.of(name).label}, seed {seed}"
            found.append(Member(label, study.folder_of(name, seed), {"row": name, "seed": seed}))
    return found


def _turn(settings: TableSettings, name: str) -> int:
    """The robust network first, then other networks that can be teachers, then the rest."""
    if name == settings.robust:
        return 0
    return 1 if Row.of(name).kind in ("standard", "at") else 2


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train; test; attack; measure."""
    row, seed = Row.of(member.settings["row"]), member.settings["seed"]
    folder = member.folder
    model = study.trained(task, row, seed, folder=folder)
    yield
    task.run.json_step(f"{folder}/{TESTED}", lambda: evaluation.tested(task, model, folder))
    task.run.json_step(f"{folder}/{MEASURED}", lambda: evaluation.measured(task, model))
    yield
    task.run.frame_step(f"{folder}/{ATTACKED}", lambda: evaluation.attacked(task, model, seed))
    yield


@dataclasses.dataclass(frozen=True)
class Results:
    """What the finished networks gave, one row each.

    Attributes:
        networks: row, seed, accuracy, validation_accuracy, validation_loss, epoch, code_epoch,
            code_accuracy (of the released code's rule), label, others, whole, cosine.
        attacks: row, seed, attack, floor, mean, spread, worst, zero_gradient.
    """

    networks: pd.DataFrame
    attacks: pd.DataFrame


def results(task: Task, progress: Progress) -> Results:
    """The results of the finished networks."""
    networks, attacks = [], []
    for member in progress.finished:
        place = {"row": member.settings["row"], "seed": member.settings["seed"]}
        tested: dict[str, Any] = task.run.read_json(f"{member.folder}/{TESTED}")
        chosen = tested.pop("chosen")
        networks.append(
            {
                **place,
                **tested,
                "epoch": chosen["validation"]["epoch"],
                "code_epoch": chosen["test"]["epoch"],
                "code_accuracy": chosen["test"]["test_accuracy"],
                **task.run.read_json(f"{member.folder}/{MEASURED}"),
            }
        )
        frame = task.run.frame_step(f"{member.folder}/{ATTACKED}", pd.DataFrame)
        attacks.append(frame.assign(**place))
    return Results(
        pd.DataFrame(networks),
        pd.concat(attacks, ignore_index=True) if attacks else pd.DataFrame(),
    )
