"""Bounds beside attacks: one row per example, its summary as a table, and violations counted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd

from experiments.peck2017 import published
from tfrobust import attacks, bounds
from tfrobust.errors import PrintedRulesWarning

__all__ = [
    "ATTACKS",
    "BOUNDS",
    "attacked",
    "attacked_by",
    "compare",
    "fgs_and",
    "nearest",
    "printed_bound",
    "ratio_median",
    "summary",
    "violations",
]

BOUNDS = {
    "printed": "printed bound",
    "certified": "certified bound, global",
    "tightened": "certified bound, tightened",
}
ATTACKS = {
    "fast_gradient_sign": "FGS",
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
        value_range: what attacks may not leave.
        settings: of each attack, by its name; distances of failures are NaN.
        tighten: add the tightened bound.
        batch_size: examples per call.
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
    return pd.DataFrame(columns)


def fgs_and(second: str, *, max_epsilon: float) -> dict[str, dict[str, Any]]:
    """Settings of FGS, and of a second attack unless it is "none"."""
    settings: dict[str, dict[str, Any]] = {"fast_gradient_sign": {"max_epsilon": max_epsilon}}
    return settings if second == "none" else {**settings, second: {}}


def printed_bound(
    model: keras.Model, x: np.ndarray, *, batch_size: int = 100
) -> bounds.RobustnessBound:
    """The thesis's bound, without the warning that every page of these experiments gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrintedRulesWarning)
        return bounds.robustness(model, x, rules="thesis", batch_size=batch_size)


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


def summary(frames: Mapping[str, pd.DataFrame], table: str, *, scale: float = 1.0) -> pd.DataFrame:
    """One row per network and quantity: mean, median, deviation, extremes, and what is published.

    Args:
        frames: `compare`'s results by the network's name.
        table: the thesis's table, "3.1" for instance.
        scale: distances are multiplied by it, 255 for pixels in [0, 255].
    """
    rows = []
    for network, frame in frames.items():
        for name in (*attacked_by(frame), *(key for key in BOUNDS if key in frame)):
            values = frame[name].to_numpy() * scale
            values = values[np.isfinite(values)]
            printed = name in ("fast_gradient_sign", "printed")
            quantity = {**ATTACKS, **BOUNDS}[name]
            row: dict[str, Any] = {"network": network, "quantity": quantity}
            for column in _STATISTICS:
                row[column] = float(getattr(np, column)(values)) if len(values) else float("nan")
            row["examples"] = f"{len(values)} of {len(frame)}"
            for column in ("mean", "median"):
                known = published.figure(table, f"{network} {quantity}", column)
                row[f"published {column}"] = known if printed else "ours only"
            row["violations"] = violations(frame, name) if name in BOUNDS else ""
            row["bound / attack"] = ratio_median(frame, name) if name in BOUNDS else float("nan")
            rows.append(row)
    columns = ("network", "quantity", *_STATISTICS, *_COUNTS)
    return pd.DataFrame(rows, columns=columns)  # also where no network is finished


_COUNTS = ("examples", "published mean", "published median", "violations", "bound / attack")
_STATISTICS = ("mean", "median", "std", "min", "max")
