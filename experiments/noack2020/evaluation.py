"""What is measured of every network: accuracies under attack, Jacobian norms, cosines."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import keras
import numpy as np
import pandas as pd

from experiments.common.checks import DISTINCT, Count
from experiments.common.experiment import Task
from experiments.noack2020 import study
from experiments.noack2020.rows import ATTACK, Attack
from experiments.noack2020.selection import BestEpoch
from tfrobust import evaluate, jacobian, robust_accuracy, saliency

__all__ = [
    "ATTACKED",
    "MEASURED",
    "TESTED",
    "EvaluationSettings",
    "attacked",
    "cosines",
    "measured",
]

ATTACKED, MEASURED, TESTED = "attacked.parquet", "measured.json", "tested.json"
_ROWS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Attacks on test images, and training images whose Jacobians are measured."""

    attacks: Annotated[tuple[Annotated[str, ATTACK], ...], DISTINCT]
    """l2 or linf and a radius, pixels in [0, 1]."""
    attack_steps: Count = 40
    """Of projected gradient descent."""
    restarts: Count = 3
    """From different random starts, each of which attacks every image."""
    floors: Annotated[tuple[Literal["code", "none"], ...], DISTINCT] = ("code", "none")
    """code: the gradient is divided by no less than 1e-6 times the batch size, and underflows where
    a network is confident, as in the released code; none: a direction that does not underflow."""
    stop: Literal["success", "last"] = "success"
    """success: an image counts as fooled at any step; last: at the last one, as in the released
    code."""
    jacobians: Count = 2000
    """Training images whose Jacobians are measured."""


def attacked(task: Task, model: keras.Model, seed: int) -> pd.DataFrame:
    """Accuracies under attack: one row per attack and floor.

    Columns: attack, floor, mean and spread over restarts, worst case, zero_gradient (images).
    """
    settings, test = task.settings, task.data["test"]
    cases, threats = [], []
    for name in settings.attacks:
        for floor in settings.floors:
            cases.append((name, floor))
            threats.append(
                Attack.of(name).threat(
                    steps=settings.attack_steps,
                    step_size=settings.step_size(name),
                    floor=settings.floor if floor == "code" else 0.0,
                )
            )
    found = robust_accuracy(
        model, test, threats, restarts=settings.restarts, stop=settings.stop, seed=seed
    )
    return pd.DataFrame(
        {
            "attack": name,
            "floor": floor,
            "mean": result.mean,
            "spread": result.spread,
            "worst": result.worst_case,
            "zero_gradient": int(result.zero_gradient.sum()),
        }
        for (name, floor), result in zip(cases, found, strict=True)
    )


def measured(task: Task, model: keras.Model) -> dict[str, float]:
    """Mean norms of the Jacobian's rows over training images, and cosines with the robust maps.

    label: of the label's logit, ||J_c||; others: averaged over the other logits, ||J_{!=c}||
    (Figure 4); whole: ||J||_F; cosine: of J_c with the thresholded SmoothGrad maps of the robust
    network.
    """
    train = task.data["train"]
    count = min(task.settings.jacobians, len(train))
    sums: dict[str, float] = {"label": 0.0, "others": 0.0, "whole": 0.0}
    for start in range(0, count, _ROWS):
        rows = slice(start, min(start + _ROWS, count))
        norms = np.linalg.norm(_flat(jacobian(model, train.images[rows])), axis=2)
        own = np.take_along_axis(norms, train.labels[rows, None], axis=1)[:, 0]
        sums["label"] += own.sum()
        sums["others"] += ((norms.sum(axis=1) - own) / (norms.shape[1] - 1)).sum()
        sums["whole"] += np.linalg.norm(norms, axis=1).sum()
    means = {name: float(total / count) for name, total in sums.items()}
    return {**means, "cosine": cosines(task, model, study.robust_targets(task), count)}


def cosines(task: Task, model: keras.Model, targets: np.ndarray, count: int) -> float:
    """Mean cosine of the first `count` training images' J_c with target maps; 0 for zero maps."""
    train = task.data["train"]
    maps = saliency.gradient(model, train.images[:count], train.labels[:count])
    a, b = (values.reshape(count, -1).astype(np.float64) for values in (maps, targets[:count]))
    products = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    inner = (a * b).sum(axis=1)
    return float(np.divide(inner, products, out=np.zeros(count), where=products > 0).mean())


def tested(task: Task, model: keras.Model, folder: str) -> dict[str, Any]:
    """Accuracies of the chosen epoch, and the epochs that both rules choose."""
    validation = evaluate(model, *task.data["validation"].arrays, batch_size=500)
    best = BestEpoch(task.run, folder, task.settings.epochs, task.data["test"])
    return {
        "accuracy": evaluate(model, *task.data["test"].arrays, batch_size=500)["accuracy"],
        "validation_accuracy": validation["accuracy"],
        "validation_loss": validation["loss"],
        "chosen": best.chosen(),
    }


def _flat(rows: np.ndarray) -> np.ndarray:
    """(batch, classes, *input) to (batch, classes, values)."""
    return rows.reshape(*rows.shape[:2], -1)
