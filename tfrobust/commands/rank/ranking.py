"""Models ranked by medians, violations of a bound, and agreement between measures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

__all__ = ["MEASURES", "attacked", "correlations", "ranking", "violations"]

# column of the tables of examples: title
MEASURES = {
    "certified_bound": "certified bound",
    "linearized_robustness": "linearized robustness ρ~",
    "attack_distance": "attack distance",
}


def ranking(tables: dict[str, pd.DataFrame], accuracy: dict[str, float]) -> pd.DataFrame:
    """One row per model, best certified bound first: medians, and the rank in each measure.

    Medians are over all examples. Where the attack failed or the bound is infinite, the distance is
    infinite, so that resisting an attack improves a model's rank; only undefined values (NaN) are
    left out. Models with equal medians share the better rank; models without a median come last.
    """
    rows = []
    for name, table in tables.items():
        row = {"model": name, "accuracy": accuracy[name]}
        for column, measure in MEASURES.items():
            values = table[column].to_numpy()
            values = values[~np.isnan(values)]
            row[measure] = float(np.median(values)) if len(values) else float("nan")
        row["attack success"] = f"{attacked(table).mean():.1%}"
        row["violations"] = violations(table)
        rows.append(row)
    result = pd.DataFrame(rows)
    for measure in MEASURES.values():
        rank = result[measure].rank(method="min", ascending=False, na_option="bottom")
        result[f"rank by {measure}"] = rank.astype(int)
    order = [f"rank by {measure}" for measure in MEASURES.values()]
    return result.sort_values(order, kind="stable", ignore_index=True)


def attacked(table: pd.DataFrame) -> np.ndarray:
    """(examples,) bool: the attack succeeded; only these examples can violate the bound."""
    return np.isfinite(table["attack_distance"].to_numpy())


def violations(table: pd.DataFrame) -> int:
    """Number of examples with an attack within the certified bound: 0 if the bound is correct."""
    return int((table["attack_distance"] < table["certified_bound"]).sum())


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of the medians, for each pair of measures."""
    measures = list(MEASURES.values())
    rows = []
    for number, first in enumerate(measures):
        for second in measures[number + 1 :]:
            both = table[[first, second]].dropna()
            enough = len(both) > 2 and both[first].nunique() > 1 and both[second].nunique() > 1
            value = float(spearmanr(both[first], both[second]).statistic) if enough else np.nan
            rows.append({"between": first, "and": second, "Spearman": value, "models": len(both)})
    return pd.DataFrame(rows)
