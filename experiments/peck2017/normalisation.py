"""Local response normalisation in LeNet-5 (Table 5.3), and batch normalisation.

python -m experiments.peck2017.normalisation --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, cnn_claims, figures, published, study
from experiments.peck2017.checks import Images
from experiments.peck2017.comparison import FGS, fgs_and, quantities, statistics
from tfrobust.commands import run

VARIANTS = ("lenet5", *(f"lenet5_{kind}{n}" for kind in ("lrn", "bn") for n in (1, 2, 3)))
TABLE = "5.3"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Variants, training and attacks."""

    variants: Annotated[tuple[Literal[*VARIANTS], ...], DISTINCT] = VARIANTS
    """Names of `reference_models`: normalisation after the first pool, the second, both."""
    dataset: Images = "mnist"
    """Images."""
    pixels: Literal[255, 1] = 255
    """Pixels in [0, 255], as in the thesis; in [0, 1] this LRN is all but linear."""
    iterations: Count = study.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    images: Count = 1000
    """The first so many test images are bounded and attacked."""
    batch_size: Count = 64
    """Of training: not stated."""
    seeds: Annotated[tuple[Seed, ...], DISTINCT] = (0,)
    """Networks of each variant."""


PRESETS = {
    "demo": Settings(
        variants=("lenet5", "lenet5_lrn1", "lenet5_bn1"),
        dataset="digits",
        iterations=100,
        images=30,
    ),
    "reduced": Settings(
        variants=("lenet5", "lenet5_lrn1", "lenet5_lrn2", "lenet5_lrn3", "lenet5_bn1"),
        iterations=1500,
        seeds=(0, 1),
    ),
    "paper": Settings(images=10_000, seeds=(0, 1, 2, 3, 4)),
}


def load(settings: Settings, preset: str, data_dir: Path | None) -> study.Splits:
    """Training and test images, in the settings' units."""
    return study.splits(settings.dataset, data_dir, "train", pixels=float(settings.pixels))


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, bound, attack."""
    settings, train, test = task.settings, task.data["train"], task.data["test"]
    model = study.trained(
        task,
        member,
        partial(
            reference_models.build,
            member.settings["variant"],
            input_shape=train.images.shape[1:],
            classes=train.classes,
        ),
        train,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        seed=member.settings["seed"],
    )
    yield
    x = test.images[: settings.images]
    attacks = fgs_and("none", max_epsilon=study.REACH * settings.pixels)
    yield from study.bound_attack_and_test(task, member, model, x, test, attacks, tighten=False)


def report(task: Task, progress: Progress) -> Report:
    """Table 5.3."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(results, lambda result: result.settings["variant"])
    scale = 255 / settings.pixels
    networks = pd.DataFrame([_row(result, scale) for result in results])
    ours = {_title(name): _summary(frame, networks, name, scale) for name, frame in frames.items()}
    epsilons = {
        _title(name): (frame["epsilon"].dropna() * scale).to_numpy()
        for name, frame in frames.items()
    }
    return study.report_of(
        task,
        title="normalisation in LeNet-5",
        lead=f"{len(frames)} variants on {settings.dataset}, pixels in [0, {settings.pixels}], "
        f"{settings.iterations:,} Adam iterations, seeds {', '.join(map(str, settings.seeds))}, "
        f"{settings.images} test images. Ours, not stated: batches of {settings.batch_size}, rate "
        "1e-3, LRN's constants (k 2, n 5, alpha 1e-4, beta .75 are AlexNet's). Batch normalisation "
        "is not in the thesis's table.",
        tables=[
            Table(
                "Table 5.3",
                "FGS's epsilon for pixels in [0, 255], over all seeds. The thesis's LeNet-5 is in "
                "its "
                "Table 5.2: its mean and median are larger than those with LRN.",
                _beside(ours),
            ),
            study.cells(TABLE, ours if settings.dataset == "mnist" else {}),
            Table("Every network", "", networks),
            Table("Quantities", study.ABOUT, quantities(frames)),
        ],
        drawings=[
            Drawing(
                "Epsilon by variant",
                "FGS's epsilon, pixels in [0, 255], over all seeds.",
                "table5.3",
                partial(figures.boxplots, epsilons, ylabel="epsilon"),
            )
        ]
        if frames
        else [],
        claims=[
            *claims.bounds_hold(frames, "Theorems 5.6 and 5.9"),
            *cnn_claims.normalisation(networks, frames),
        ],
    )


def _title(variant: str) -> str:
    """As Table 5.3 calls it."""
    return (
        variant.replace("lenet5_", "LeNet-")
        .replace("lenet5", "LeNet-5")
        .replace("-lrn", "-LRN")
        .replace("-bn", "-BN")
    )


def _row(result: study.Result, scale: float) -> dict[str, Any]:
    return {
        **result.settings,
        "accuracy": result.accuracy,
        "rate": float(result.frame[FGS].notna().mean()),
        "least epsilon": float(result.frame["epsilon"].min() * scale),
        "mean epsilon": float(result.frame["epsilon"].mean() * scale),
    }


def _summary(
    frame: pd.DataFrame, networks: pd.DataFrame, variant: str, scale: float
) -> dict[str, float]:
    accuracy = networks.loc[networks["variant"] == variant, "accuracy"].mean()
    rate = float(frame[FGS].notna().mean())
    return {"Accuracy": float(accuracy), **statistics(frame["epsilon"] * scale), "Rate": rate}


def _beside(ours: dict[str, dict[str, float]]) -> pd.DataFrame:
    """One row per variant: ours and the thesis's."""
    rows = []
    for name, found in ours.items():
        row: dict[str, object] = {"network": name}
        for column in ("Accuracy", "Min", "Max", "Mean", "Median", "Std", "Rate"):
            table = "5.2" if name == "LeNet-5" else TABLE
            known = published.value(table, name, column)
            if name == "LeNet-5" and column == "Rate":
                known = published.value("5.1", name, "Rate")
            row |= {column: found[column], f"{column}, thesis": known if known == known else np.nan}
        rows.append(row)
    return pd.DataFrame(rows)


members = partial(
    grid, "{variant}, seed {seed}", "{variant}/seed{seed}", variant="variants", seed="seeds"
)
EXPERIMENT = study.define("normalisation", PRESETS, load, members, steps, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
