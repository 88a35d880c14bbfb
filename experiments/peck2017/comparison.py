"""Bounds beside attacks: one row per example, deviations, statistics, and violations counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd

from tfrobust import attacks, bounds
from tfrobust.errors import PrintedRulesWarning

__all__ = [
    "AS_PRINTED",
    "ATTACKS",
    "BOUNDS",
    "FGS",
    "attacked",
    "attacked_by",
    "compare",
    "deviations",
    "fgs_and",
    "nearest",
    "printed_bound",
    "quantities",
    "ratio_median",
    "statistics",
    "violations",
]

FGS = "fast_gradient_sign"
# Algorithm 2.1 as printed, with a fixed number of halvings: in floating point it does not end
AS_PRINTED = {"clip": False, "bracketed": False, "steps": 30}
BOUNDS = {
    "printed": "printed bound",
    "certified": "certified bound, global",
    "tightened": "certified bound, tightened",
}
ATTACKS = {
    FGS: "FGS",
    "fast_gradient_value": "FGV",
    "lbfgs": "L-BFGS",
    "carlini_wagner": "Carlini-Wagner",
    "deepfool": "DeepFool",
}
# float32 distances and bounds
ROUNDING = 1e-5


def compare(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    tighten: bool = True,
    batch_size: int = 100,
) -> pd.DataFrame:
    """Both rule sets and the attacks' l2 distances for each example.

    Args:
        model: a classifier that both rule sets cover.
        x: (batch, *input); classes are the model's own predictions.
        value_range: of the data; what attacks that clip may not leave.
        settings: of each attack, by its name; distances of failures are NaN.
        tighten: add the tightened bound.
        batch_size: examples per call.

    Returns:
        columns predicted, printed, certified, tightened (where asked for) and one per attack; for
        FGS also epsilon (NaN where it failed) and becomes, the class that it led to (-1).
    """
    printed = printed_bound(model, x, batch_size=batch_size)
    certified = bounds.robustness(model, x, tighten=tighten, batch_size=batch_size)
    columns: dict[str, np.ndarray] = {
        "predicted": certified.predicted,
        "printed": printed.bound.astype(np.float64),
        "certified": certified.untightened.astype(np.float64),
    }
    if tighten:
        columns["tightened"] = certified.bound.astype(np.float64)
    for name, keywords in settings.items():
        found = attacks.minimal(
            model, x, name, value_range=value_range, batch_size=batch_size, **keywords
        )
        columns[name] = np.where(found.success, found.distance, np.nan).astype(np.float64)
        if name == FGS:
            columns["epsilon"] = np.where(found.success, found.epsilon, np.nan).astype(np.float64)
            columns["becomes"] = found.adversarial_label
    return pd.DataFrame(columns)


def fgs_and(second: str, *, max_epsilon: float) -> dict[str, dict[str, Any]]:
    """Settings of FGS as printed, and of a second attack unless it is "none"."""
    settings: dict[str, dict[str, Any]] = {FGS: {"max_epsilon": max_epsilon, **AS_PRINTED}}
    return settings if second == "none" else {**settings, second: {}}


def printed_bound(
    model: keras.Model, x: np.ndarray, *, batch_size: int = 100
) -> bounds.RobustnessBound:
    """The thesis's bound, without the warning that every page of these experiments gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrintedRulesWarning)
        return bounds.robustness(model, x, rules="thesis", batch_size=batch_size)


def deviations(frame: pd.DataFrame, attack: str = FGS, bound: str = "printed") -> np.ndarray:
    """Norm of the perturbation found minus the bound, over the examples where one was found."""
    values = frame[attack].to_numpy() - frame[bound].to_numpy()
    return values[np.isfinite(values)]


def statistics(values: Iterable[float]) -> dict[str, float]:
    """Mean, Median, Std (of the sample), Min and Max, as the thesis's tables have them.

    And the mean's standard error; NaN where there are too few values.
    """
    values = np.asarray(list(values), np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(("Mean", "Median", "Std", "Min", "Max", "error of mean"), float("nan"))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {
        "Mean": float(np.mean(values)),
        "Median": float(np.median(values)),
        "Std": spread,
        "Min": float(np.min(values)),
        "Max": float(np.max(values)),
        "error of mean": spread / len(values) ** 0.5,
    }


def attacked_by(frame: pd.DataFrame) -> list[str]:
    """The attacks among a frame's columns."""
    return [name for name in ATTACKS if name in frame]


def nearest(frame: pd.DataFrame) -> np.ndarray:
    """The smallest distance that any attack found for each example, infinite where none did."""
    found = frame[attacked_by(frame)].to_numpy()
    return np.nanmin(np.where(np.isnan(found), np.inf, found), axis=1)


def attacked(frame: pd.DataFrame) -> int:
    """Examples that some attack changed: the only ones that can show a violation."""
    return int(np.isfinite(nearest(frame)).sum())


def violations(frame: pd.DataFrame, bound: str) -> int:
    """Examples that an attack changed with less than a bound says is needed."""
    return int((nearest(frame) < frame[bound].to_numpy() * (1 - ROUNDING)).sum())


def ratio_median(frame: pd.DataFrame, bound: str) -> float:
    """Median of bound over smallest distance found, over the examples where one was."""
    distance = nearest(frame)
    use = np.isfinite(distance) & (distance > 0)
    return float(np.median(frame[bound][use] / distance[use])) if use.any() else float("nan")


def quantities(frames: Mapping[str, pd.DataFrame], *, scale: float = 1.0) -> pd.DataFrame:
    """One row per network and quantity: every attack's distances and every bound, ours too.

    Args:
        frames: `compare`'s results by the network's name.
        scale: lengths are multiplied by it.
    """
    rows = []
    for network, frame in frames.items():
        for name in (*attacked_by(frame), *(key for key in BOUNDS if key in frame)):
            values = frame[name].to_numpy() * scale
            values = values[np.isfinite(values)]
            rows.append(
                {
                    "network": network,
                    "quantity": {**ATTACKS, **BOUNDS}[name],
                    **statistics(values),
                    "examples": f"{len(values)} of {len(frame)}",
                    "violations": violations(frame, name) if name in BOUNDS else "",
                    "bound / attack": ratio_median(frame, name) if name in BOUNDS else np.nan,
                }
            )
    columns = ("network", "quantity", *statistics([]), "examples", "violations", "bound / attack")
    return pd.DataFrame(rows, columns=columns)  # also where no network is finished
