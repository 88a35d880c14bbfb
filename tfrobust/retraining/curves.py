"""Accuracy against the share of replaced pixels, the area about such a curve, and its error."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pandas as pd

from tfrobust.errors import InputError

__all__ = ["Method", "RetrainingCurve", "RetrainingScore"]

Method = Literal["roar", "kar", "random"]


@dataclasses.dataclass(frozen=True)
class RetrainingCurve:
    """Test accuracies of networks that were retrained on occluded images.

    The horizontal axis is the share of replaced pixels, in KAR too: Kim 2019's released code counts
    the share that KAR keeps, then reverses the curve before it takes the area. The curve is closed
    by the accuracy without occlusion at 0 and by chance at 1.

    Attributes:
        method: "roar", "kar" or "random".
        fractions: (fractions,) float64, increasing: the share of pixels that are replaced, in KAR
            the share that is kept.
        accuracies: (fractions, retrains) float64 in [0, 1].
        unoccluded: accuracy without occlusion.
        chance: 1 / classes.
    """

    method: Method
    fractions: np.ndarray
    accuracies: np.ndarray
    unoccluded: float
    chance: float

    @property
    def removed(self) -> np.ndarray:
        """(fractions,) float64, the share of replaced pixels at each of `fractions`."""
        return np.round(1 - self.fractions, 12) if self.method == "kar" else self.fractions

    @property
    def closed(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of replaced pixels, increasing from 0 to 1, and mean accuracies over retrains."""
        order = np.argsort(self.removed)
        x = np.concatenate([[0.0], self.removed[order], [1.0]])
        y = np.concatenate([[self.unoccluded], self.accuracies.mean(axis=1)[order], [self.chance]])
        return x, y

    @property
    def area(self) -> float:
        """Area under the closed curve, by the trapezoid rule; the area over it is 1 - area."""
        x, y = self.closed
        return float(np.trapezoid(y, x))

    @property
    def spread(self) -> np.ndarray:
        """(fractions,) float64, sample standard deviation over retrains; NaN for one retrain."""
        if self.accuracies.shape[1] == 1:
            return np.full(len(self.fractions), np.nan)
        return self.accuracies.std(axis=1, ddof=1)

    @property
    def area_error(self) -> float:
        """Standard error of the area that the spread of retrains implies; NaN for one retrain.

        Without the error of the accuracy at 0.
        """
        return self.error_with(self.spread)

    def error_with(self, spread: np.ndarray) -> float:
        """Standard error of the area if single accuracies have these deviations, (fractions,).

        The area is a sum of accuracies with the trapezoid rule's weights, half the distance between
        neighbours; retrains are independent.
        """
        order = np.argsort(self.removed)
        x, _ = self.closed
        weights = (x[2:] - x[:-2]) / 2
        variances = spread[order] ** 2 / self.accuracies.shape[1]
        return float(np.sqrt(np.sum(weights**2 * variances)))

    def at(self, removed: np.ndarray) -> RetrainingCurve:
        """The curve at some of its points only, in this order.

        Args:
            removed: (points,), shares of replaced pixels.

        Raises:
            ValueError: the curve lacks one.
        """
        distance = np.abs(self.removed[None] - removed[:, None])
        rows = distance.argmin(axis=1)
        missing = removed[distance.min(axis=1) > 1e-9]
        if len(missing):
            points = ", ".join(f"{share:g}" for share in np.sort(self.removed))
            raise InputError(
                f"the {self.method} curve has no accuracy where a share of {missing[0]:g} of the "
                f"pixels is replaced, only at {points}"
            )
        return dataclasses.replace(
            self, fractions=self.fractions[rows], accuracies=self.accuracies[rows]
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per fraction and retrain: method, fraction, removed, retrain, accuracy."""
        count, retrains = self.accuracies.shape
        return pd.DataFrame(
            {
                "method": self.method,
                "fraction": np.repeat(self.fractions, retrains),
                "removed": np.repeat(self.removed, retrains),
                "retrain": np.tile(np.arange(retrains), count),
                "accuracy": self.accuracies.ravel(),
            }
        )


@dataclasses.dataclass(frozen=True)
class RetrainingScore:
    """How well an attribution method ranks pixels, against a random ranking.

    Attributes:
        curve: of the attribution method, "roar" or "kar".
        baseline: the random curve; one serves ROAR and KAR, since keeping a random share of pixels
            is the same as replacing the others at random.
    """

    curve: RetrainingCurve
    baseline: RetrainingCurve

    def __post_init__(self) -> None:
        ends = [(each.unoccluded, each.chance) for each in (self.curve, self.baseline)]
        if ends[0] != ends[1]:
            raise InputError(
                "a curve and its baseline must be closed by the same accuracies, got "
                f"{ends[0]} and {ends[1]}"
            )
        self.baseline.at(self.curve.removed)

    @property
    def area(self) -> float:
        """ROAR: the area over the curve, AOC. KAR: the area under it, AUC."""
        return self._area(self.curve)

    @property
    def baseline_area(self) -> float:
        """The same of the baseline at the same points."""
        return self._area(self.baseline.at(self.curve.removed))

    @property
    def mu(self) -> float:
        """Interpretability score: `area` - `baseline_area` (Kim 2019, section 3.2).

        Positive for a better ranking than a random one, in ROAR and in KAR.
        """
        return self.area - self.baseline_area

    @property
    def standard_error(self) -> float:
        """Standard error of `mu`, from the spreads of the retrains of both curves.

        A curve with one retrain is taken to have the other's spread; NaN where both have one. The
        baseline's part is common to all scores with this baseline: `curve.area_error` is what
        distinguishes them.
        """
        baseline = self.baseline.at(self.curve.removed)
        of_curve, of_baseline = self.curve.spread, baseline.spread
        if self.curve.accuracies.shape[1] == 1:
            of_curve = of_baseline
        elif baseline.accuracies.shape[1] == 1:
            of_baseline = of_curve
        errors = self.curve.error_with(of_curve), baseline.error_with(of_baseline)
        return float(np.hypot(*errors))

    def summary(self) -> dict[str, Any]:
        """The score as plain data."""
        return {
            "method": self.curve.method,
            "mu": self.mu,
            "standard_error": self.standard_error,
            "area": self.area,
            "baseline_area": self.baseline_area,
            "unoccluded": self.curve.unoccluded,
            "chance": self.curve.chance,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per fraction and retrain, of the curve and of its baseline."""
        return pd.concat([self.curve.to_frame(), self.baseline.to_frame()], ignore_index=True)

    def _area(self, curve: RetrainingCurve) -> float:
        return 1 - curve.area if self.curve.method == "roar" else curve.area
