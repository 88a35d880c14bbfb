"""Rewarding delta(h_L(x); f), the last layer's robustness, in training (Figure 4.3).

python -m experiments.peck2017.regularised --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from experiments.common.checks import DISTINCT, NotNegative
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, mlp_claims, study
from experiments.peck2017.checks import TableName
from experiments.peck2017.comparison import AS_PRINTED, FGS, compare, nearest
from tfrobust import evaluate
from tfrobust.commands import run
from tfrobust.data import Dataset
from tfrobust.objectives import CrossEntropy, LastLayerRobustness

SPLITS = ("train", "test", "validation")


@dataclasses.dataclass(frozen=True)
class Settings(study.MLPSettings):
    """Data, weights of the reward, training and attacks."""

    datasets: Annotated[tuple[TableName, ...], DISTINCT] = ("iris", "wine", "spambase")
    """With the thesis's hidden layers."""
    weights: Annotated[tuple[NotNegative, ...], DISTINCT] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """l of the reward; 0 is plain training. The thesis's values are in its figure only."""


PRESETS = {
    "demo": Settings(datasets=("iris", "wine"), weights=(0.0, 0.1, 1.0), seeds=(0,), epochs=40),
    "reduced": Settings(epochs=30),
    "paper": Settings(
        weights=(0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), seeds=tuple(range(10)), epochs=200
    ),
}


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, study.Splits]:
    """Every data set's splits."""
    return {name: study.splits(name, data_dir, *SPLITS) for name in settings.datasets}


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train; accuracy, bounds and attacks on the whole data set."""
    settings, name = task.settings, member.settings["dataset"]
    sets = task.data[name]
    objective = CrossEntropy() + LastLayerRobustness(member.settings["weight"])
    model = study.trained_mlp(task, member, name, sets["train"], objective=objective)
    yield
    x, labels = _whole(sets)
    reach = settings.max_epsilon
    attacks = {
        FGS: {"max_epsilon": reach, **AS_PRINTED},
        # as long as FGS's longest step
        "fast_gradient_value": {"max_epsilon": reach * x.shape[1] ** 0.5, **AS_PRINTED},
    }
    task.run.frame_step(
        f"{member.folder}/{study.BOUNDED}",
        lambda: compare(model, x, study.WIDE, attacks, tighten=False, batch_size=500),
    )
    yield
    task.run.json_step(f"{member.folder}/{study.TESTED}", lambda: evaluate(model, x, labels))
    yield


def _whole(sets: dict[str, Dataset]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.concatenate([sets[split].images for split in SPLITS]),
        np.concatenate([sets[split].labels for split in SPLITS]),
    )


def report(task: Task, progress: Progress) -> Report:
    """Figure 4.3."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(
        results, lambda r: f"{r.settings['dataset']}, l {r.settings['weight']:g}"
    )
    networks = pd.DataFrame([_row(result) for result in results])
    return study.report_of(
        task,
        title="rewarding the last layer's robustness",
        lead="L - l * delta(h_L(x); f), delta of (3.12) for the predicted class; "
        f"{len(settings.seeds)} "
        f"seeds per weight. Ours, not stated: the values of l, Adam for {settings.epochs} epochs, "
        f"epsilon up to {settings.max_epsilon:g}.",
        tables=[
            Table(
                "Figure 4.3, in numbers",
                "Accuracy on the entire data set; adversarial error rate: the share of it that "
                "FGS or "
                "FGV changes; means over seeds with their standard deviation.",
                _means(networks),
            ),
            Table("Every network", study.ABOUT, networks),
        ],
        drawings=_drawings(settings.weights, networks) if len(networks) else [],
        claims=[
            *(mlp_claims.regularised(networks) if len(networks) else []),
            *claims.bounds_hold(frames, "Theorem 4.2"),
        ],
    )


def _row(result: study.Result) -> dict[str, Any]:
    distance = nearest(result.frame)
    found = np.isfinite(distance)
    return {
        **result.settings,
        "accuracy": result.accuracy,
        "error": float(found.mean()),
        "mean distance": float(distance[found].mean()) if found.any() else float("nan"),
        "mean bound": float(result.frame["printed"].mean()),
    }


def _means(networks: pd.DataFrame) -> pd.DataFrame:
    if not len(networks):
        return networks
    groups = networks.groupby(["dataset", "weight"], sort=False)
    columns = ["accuracy", "error", "mean distance", "mean bound"]
    means, spreads = groups[columns].mean(), groups[["accuracy", "error"]].std()
    return means.join(spreads, rsuffix=", std").reset_index()


def _drawings(weights: Sequence[float], networks: pd.DataFrame) -> list[Drawing]:
    means = _means(networks)
    shares: dict[str, dict[str, list[float]]] = {}
    lengths: dict[str, dict[str, list[float]]] = {}
    present = sorted(set(means["weight"]))
    for dataset, rows in means.groupby("dataset", sort=False):
        rows = rows.set_index("weight").reindex(present)
        shares[dataset] = {"accuracy": rows["accuracy"].tolist(), "error": rows["error"].tolist()}
        lengths[dataset] = {"smallest perturbation found": rows["mean distance"].tolist()}
    options = {"xlabel": "l"}
    return [
        Drawing(
            "Figure 4.3",
            "Accuracy on the whole data set and adversarial error rate over l; means over seeds.",
            "figure4.3",
            partial(figures.panels, present, shares, ylabel="share", limits=(0, 1.02), **options),
        ),
        Drawing(
            "Figure 4.3, perturbations",
            "Mean norm of the smaller of FGS's and FGV's perturbations, where one was found.",
            "figure4.3-perturbations",
            partial(figures.panels, present, lengths, ylabel="l2 norm", **options),
        ),
    ]


members = partial(
    grid,
    "{dataset}, l {weight:g}, seed {seed}",
    "{dataset}/weight{weight:g}/seed{seed}",
    dataset="datasets",
    weight="weights",
    seed="seeds",
)
EXPERIMENT = study.define("regularised", PRESETS, load, members, steps, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
