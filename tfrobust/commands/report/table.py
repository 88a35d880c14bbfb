"""The table of all classifiers: one row each, and the words for what they were trained by."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tfrobust.commands.report.settings import Found, Settings

__all__ = [
    "ADVERSARIAL",
    "DISTANCES",
    "Measured",
    "kind_of",
    "shown",
    "sorted_by_training",
    "table_of",
    "terms_of",
    "violations",
    "words_of",
]

ADVERSARIAL = "AdversarialTraining"
# terms that nearly every objective has
_COMMON = ("CrossEntropy", "WeightDecay")
# columns of the examples: title
DISTANCES = {
    "certified_bound": "certified bound",
    "linearized_robustness": "linearized robustness",
    "attack_distance": "attack distance",
}
# columns of the file: those of the page
_SHOWN = {
    "data": "data",
    "run": "run",
    "network": "network",
    "objective": "objective",
    "seed": "seed",
    "accuracy": "accuracy, %",
    "robust_accuracy_mean": "robust, %",
    "robust_accuracy_worst": "worst case, %",
    "certified_bound": "certified bound",
    "linearized_robustness": "ρ~",
    "attack_distance": "attack distance",
    "alignment": "α",
    "gradient_norm": "‖J_c‖",
    "cosine": "cosine",
}
_SHARES = ("accuracy", "robust_accuracy_mean", "robust_accuracy_worst")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A classifier with its results."""

    found: Found
    record: dict[str, Any]
    """The provenance beside it."""
    data: str
    """Name of the data set."""
    sha256: str
    """Of the file."""
    is_table: bool
    """Whether the data are a table, whose lengths are in the units of its features."""
    examples: pd.DataFrame
    """One row per test example: label, predicted, correct, the columns of `DISTANCES`, alignment,
    gradient_norm, uncertified (why there is no certificate, or ""), and resisted_1, ... for each
    restart where robust accuracy is given."""
    cosine: float
    """NaN where there are no target maps."""
    reasons: Mapping[str, str]
    """Why a column is empty, by its title on the page."""

    @property
    def empty(self) -> dict[str, str]:
        """The reasons, with those that the results tell."""
        right = self.examples[self.examples["correct"]]
        if right.empty:
            return {**self.reasons, "all medians": "no example is classified correctly"}
        if right["alignment"].isna().all():
            reason = "its gradient is zero at every correctly classified example"
            return {**self.reasons, "α": reason}
        return dict(self.reasons)


def terms_of(record: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Class and settings of every term of a record's objective; empty where it has none."""
    terms = record.get("objective")
    if not isinstance(terms, list):
        return []
    named = [term for term in terms if isinstance(term, dict) and "term" in term]
    # a term that was given another name has its own as `kind`
    classes = [str(term.get("kind", term["term"])) for term in named]
    camel = ["".join(part.capitalize() for part in name.split("_")) for name in classes]
    return list(zip(camel, named, strict=True))


def words_of(record: Mapping[str, Any], *, is_table: bool) -> str:
    """An objective in short, such as "CrossEntropy + AdversarialTraining (l2 1.5)".

    Args:
        record: with the objective.
        is_table: leave radii as they are; else they are divided by the pixel range.
    """
    return " + ".join(
        f"{name} ({', '.join(numbers)})" if (numbers := _numbers(name, term, is_table)) else name
        for name, term in terms_of(record)
    )


def _numbers(name: str, term: Mapping[str, Any], is_table: bool) -> list[str]:
    threat = term.get("threat")
    if isinstance(threat, dict) and threat.keys() >= {"norm", "epsilon", "value_range"}:
        low, high = threat["value_range"]
        unit = 1.0 if is_table else high - low
        # JSON has Python's infinity
        norm = "linf" if threat["norm"] == float("inf") else f"l{threat['norm']:g}"
        return [f"{norm} {threat['epsilon'] / unit:.4g}"]
    named = [value for key, value in term.items() if key == "weight" or key.startswith("lambda")]
    weights = [value for value in named if isinstance(value, int | float)]
    if name == "CrossEntropy" and weights == [1.0]:
        return []
    return [f"{weight:g}" for weight in weights]


def kind_of(record: Mapping[str, Any]) -> str:
    """The terms that tell an objective from standard training, without their settings."""
    names = [name for name, _ in terms_of(record)]
    special = [name for name in names if name not in _COMMON]
    return " + ".join(special) if special else "standard" if names else "not recorded"


def sorted_by_training(measured: Sequence[Measured]) -> list[Measured]:
    """By data set, run, objective and seed; standard training first, numbers by their size."""

    def order(each: Measured) -> tuple[Any, ...]:
        kind = kind_of(each.record)
        numbers = re.findall(r"\d[\d.]*(?:e[-+]?\d+)?", words_of(each.record, is_table=True))
        sizes = [float(number) for number in numbers]
        seed = each.record.get("seed")
        found = each.found
        return (each.data, found.run, kind != "standard", kind, sizes, str(seed), found.network)

    return sorted(measured, key=order)


def violations(each: Measured) -> int:
    """Correctly classified examples with an attack closer than the bound: 0 if it is correct."""
    frame = each.examples
    return int((frame["correct"] & (frame["attack_distance"] < frame["certified_bound"])).sum())


def table_of(measured: Sequence[Measured], settings: Settings) -> pd.DataFrame:
    """One row per classifier; shares in [0, 1], and medians over correctly classified examples."""
    return pd.DataFrame([_row(each, settings) for each in measured])


def _row(each: Measured, settings: Settings) -> dict[str, Any]:
    frame, record = each.examples, each.record
    correct = frame["correct"].to_numpy()
    resisted = frame.filter(like="resisted_").to_numpy()
    attacked = resisted.shape[1] > 0
    seed = record.get("seed")
    return {
        "data": each.data,
        "run": each.found.run,
        "network": each.found.network,
        "architecture": record.get("model", ""),
        "objective": words_of(record, is_table=each.is_table) or "not recorded",
        "seed": "" if seed is None else str(seed),
        "examples": len(frame),
        "accuracy": float(correct.mean()),
        "epsilon": settings.epsilon,
        "norm": settings.norm,
        "robust_accuracy_mean": float(resisted.mean()) if attacked else np.nan,
        "robust_accuracy_worst": (
            float((correct & resisted.all(axis=1)).mean()) if attacked else np.nan
        ),
        **{name: _median(frame[name].to_numpy()[correct]) for name in (*DISTANCES, "alignment")},
        "gradient_norm": float(frame["gradient_norm"].mean()),
        "cosine": each.cosine,
        "violations": violations(each),
        "sha256": each.sha256,
    }


def _median(values: np.ndarray) -> float:
    """Infinite values count, NaN do not; NaN where none is left."""
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else float("nan")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the page, shares in per cent."""
    result = table[list(_SHOWN)].copy()
    for name in _SHARES:
        result[name] = [f"{100 * value:.1f}" if value == value else "" for value in result[name]]
    result["cosine"] = [f"{value:.3f}" if value == value else "" for value in result["cosine"]]
    if result["data"].nunique() == 1:  # the page's first sentence names it
        del result["data"]
    return result.rename(columns=_SHOWN)
