"""Grids over the weights of both penalties, judged on validation images (Sections 4.2 and 4.3).

python -m experiments.noack2020.search --preset demo

The paper tunes lambda_d and lambda_m on the robust network's simple gradients, and lambda_J, and
wants validation losses comparable with those of adversarial training; it does not say how. Here
the most robust network is chosen among those whose validation loss is at most `--tolerance` above
the robust network's. At equal standard accuracy the two penalties are compared as well, which the
paper does not do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from experiments.common.checks import DISTINCT, Count, NotNegative
from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.noack2020 import claims, evaluation, figures, study, teachers
from experiments.noack2020.evaluation import ATTACKED, TESTED
from experiments.noack2020.rows import Row
from tfrobust.commands import run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(study.TrainingSettings, evaluation.EvaluationSettings):
    """Weights of the penalties."""

    directions: Annotated[tuple[NotNegative, ...], DISTINCT]
    """lambda_d."""
    magnitudes: Annotated[tuple[NotNegative, ...], DISTINCT]
    """lambda_m."""
    jacobian_weights: Annotated[tuple[NotNegative, ...], DISTINCT]
    """lambda_J."""
    tolerance: NotNegative = 0.1
    """Validation loss above the robust network's that is still comparable."""
    attacked_examples: Count = 500
    """The first of the validation images, which are attacked."""
    teachers: str | None = None
    """Folder of a run of `mnist` with the same training settings, whose robust network is taken;
    None to train it here."""


PRESETS = {
    "demo": Settings(
        **study.DIGITS,
        directions=(3.0,),
        magnitudes=(0.05, 0.15),
        jacobian_weights=(0.03, 0.3),
        attacks=("linf-0.1",),
        attack_steps=5,
        restarts=1,
        floors=("none",),
        attacked_examples=100,
    ),
    "reduced": Settings(
        **{**study.REDUCED_MNIST, "seeds": (0,)},
        directions=(1.0, 3.0, 9.0),
        magnitudes=(0.05, 0.15, 0.45),
        jacobian_weights=(0.03, 0.1, 0.32, 1.0),
        attacks=("linf-0.2",),
        floors=("none",),
    ),
    "paper": Settings(
        **study.MNIST,
        directions=(0.3, 1.0, 3.0, 10.0),
        magnitudes=(0.015, 0.05, 0.15, 0.5),
        jacobian_weights=(0.03, 0.1, 0.32, 1.0),
        attacks=("linf-0.2",),
        smoothgrad="released",
        stop="last",
        floors=("none",),
        attacked_examples=5000,
    ),
}
# tuned on it, as in the paper
_TUNED = "ir-r-simp"


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """The robust network is there, if it is taken from another run."""
    teachers.check(settings.teachers, settings.robust, settings.seeds[0])


def members(settings: Settings) -> list[Member]:
    """The robust network, then one network per weights and seed."""
    first = {"row": settings.robust, "seed": settings.seeds[0], "weights": {}}
    found = [Member(settings.robust, study.folder_of(settings.robust, settings.seeds[0]), first)]
    grid: list[tuple[str, str, dict[str, float]]] = [
        (_TUNED, f"ir {d:g}, {m:g}", {"lambda_d": d, "lambda_m": m})
        for d in settings.directions
        for m in settings.magnitudes
    ]
    grid += [("jr", f"jr {weight:g}", {"lambda_j": weight}) for weight in settings.jacobian_weights]
    for row, name, weights in grid:
        for seed in settings.seeds:
            folder = f"{name.replace(', ', '-').replace(' ', '-')}/seed-{seed}"
            place = {"row": row, "seed": seed, "weights": weights}
            found.append(Member(f"{name}, seed {seed}", folder, place))
    return found


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, Any]:
    """The splits; networks are attacked on validation images, never on test images."""
    splits = study.load_splits(settings, preset, data_dir)
    validation = splits["validation"]
    count = min(settings.attacked_examples, len(validation))
    return {**splits, "attacked": validation.take(count)}


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train with the member's weights; validate; attack."""
    settings, place, folder = task.settings, member.settings, member.folder
    teachers.take(task, settings.teachers, settings.robust, settings.seeds[0])
    weighted = dataclasses.replace(settings, **place["weights"])
    model = study.trained(
        task, Row.of(place["row"]), place["seed"], folder=folder, settings=weighted
    )
    yield
    task.run.json_step(f"{folder}/{TESTED}", lambda: evaluation.tested(task, model, folder))
    on_validation = dataclasses.replace(task, data={"test": task.data["attacked"]})
    task.run.frame_step(
        f"{folder}/{ATTACKED}", lambda: evaluation.attacked(on_validation, model, place["seed"])
    )
    yield


def report(task: Task, progress: Progress) -> Report:
    """The grid, what the rule chooses, and the trade-off."""
    frame = pd.DataFrame([_row(task, member) for member in progress.finished])
    content = {
        "title": f"Noack 2020: weights of the penalties, {task.settings.dataset}",
        "lead": f"{study.SCALES[task.preset]} {study.ABOUT}",
    }
    if frame.empty:
        return Report(**content, tables=[], drawings=[], claims=[])
    penalised = frame[frame["kind"].isin(["ir", "jr"])]
    tables = [Table("Networks", "On validation images, in per cent.", frame)]
    chosen = _chosen(frame, task.settings.tolerance)
    if len(chosen):
        text = (
            "The most robust network of each kind whose validation loss is at most "
            f"{task.settings.tolerance:g} above the robust network's."
        )
        tables.append(Table("Chosen", text, chosen))
    drawings = []
    if len(penalised):
        text = "Numbers: lambda_d, lambda_m of IR; lambda_J of JR."
        drawings = [Drawing("Trade-off", text, "trade_off", partial(figures.trade_off, penalised))]
    return Report(**content, tables=tables, drawings=drawings, claims=claims.trade_off(penalised))


def _row(task: Task, member: Member) -> dict[str, Any]:
    tested = task.run.read_json(f"{member.folder}/{TESTED}")
    first = task.run.frame_step(f"{member.folder}/{ATTACKED}", pd.DataFrame).iloc[0]
    place = member.settings
    return {
        "kind": Row.of(place["row"]).kind,
        "weights": ", ".join(f"{weight:g}" for weight in place["weights"].values()),
        "seed": place["seed"],
        "accuracy": 100 * tested["validation_accuracy"],
        "loss": tested["validation_loss"],
        "attacked": 100 * first["mean"],
        "worst": 100 * first["worst"],
    }


def _chosen(frame: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """By the rule, per kind of penalty."""
    robust = frame[frame["kind"] == "at"]
    if robust.empty:
        return pd.DataFrame()
    limit = robust["loss"].mean() + tolerance
    means = frame.groupby(["kind", "weights"], as_index=False, sort=False).mean()
    near = means[(means["loss"] <= limit) & means["kind"].isin(["ir", "jr"])]
    best = near.sort_values("attacked", ascending=False).drop_duplicates("kind")
    return best.drop(columns="seed")


EXPERIMENT = Experiment(
    "noack2020-search",
    PRESETS,
    study.SCALES,
    load,
    members,
    steps,
    (TESTED, ATTACKED),
    report,
    check_settings,
    distributed=False,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
