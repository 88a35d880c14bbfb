"""The result of an attack: the smallest perturbation of each example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["MinimalPerturbation"]


@dataclass(frozen=True)
class MinimalPerturbation:
    """The smallest adversarial perturbation found for each example.

    Attributes:
        distance: (batch,) float32, lp norm of the perturbation; 0 where the example was
            misclassified to begin with, infinite where no adversarial was found.
        perturbation: (batch, *input) float32; zeros where none was found. The adversarial is
            x + perturbation, clipped to the value range unless the attack has `clip=False`.
        success: (batch,) bool, whether the example is, or was made, misclassified.
        labels: (batch,) int32, the class that was attacked.
        adversarial_label: (batch,) int32, the class of the adversarial; -1 where there is none.
        norm: the p of the lp norm.
        attack: the attack's name.
        forward_passes, backward_passes: (batch,) float32, what the search of each example took; NaN
            where the attack does not tell.
    """

    distance: np.ndarray
    perturbation: np.ndarray
    success: np.ndarray
    labels: np.ndarray
    adversarial_label: np.ndarray
    norm: float
    attack: str
    forward_passes: np.ndarray | None = None
    backward_passes: np.ndarray | None = None

    @property
    def epsilon(self) -> np.ndarray:
        """(batch,) float32, l-infinity norm of the perturbation: the size of FGS's step.

        0 and infinite where `distance` is.
        """
        largest = np.abs(self.perturbation).reshape(len(self.success), -1).max(axis=1)
        return np.where(self.success, largest, np.float32(np.inf))

    def epsilon_statistics(self) -> dict[str, float]:
        """Of `epsilon` over the examples with an adversarial, as in Peck 2017, Table 5.2.

        Keys min, max, mean, median and std, NaN where no example has one, and rate, the share of
        all examples that have one.
        """
        found = self.epsilon[self.success].astype(np.float64)
        names = ("min", "max", "mean", "median", "std")
        values = [float(getattr(np, n)(found)) if len(found) else float("nan") for n in names]
        return {**dict(zip(names, values, strict=True)), "rate": self.success_rate}

    @property
    def success_rate(self) -> float:
        """Fraction of all examples that are, or were made, misclassified."""
        return float(np.mean(self.success))

    def median(self) -> float:
        """Median distance over the examples with a distance > 0 (Etmann 2019, section 4).

        A failed attack counts as infinitely far. NaN where all examples are misclassified to begin
        with.
        """
        counted = self.distance[self.distance > 0]
        return float(np.median(counted)) if len(counted) else float("nan")

    def to_frame(self) -> pd.DataFrame:
        """One row per example, without the perturbation's pixels."""
        return pd.DataFrame(
            {
                "label": self.labels,
                "adversarial_label": self.adversarial_label,
                "success": self.success,
                "distance": self.distance,
                "norm": float(self.norm),
                "attack": self.attack,
            }
        )
