"""The bounds of a batch: a radius for each example, and kappa for each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["LayerKappa", "RobustnessBound"]


@dataclass(frozen=True)
class LayerKappa:
    """Lower bound kappa of the change of one layer's input that changes the decision."""

    name: str
    """The layer's name; a fused activation has a separate entry with the same name."""
    kind: str
    """The layer's class, or the activation's name."""
    rule: str
    """The rule's description, with its number in the thesis where it is printed there."""
    kappa: np.ndarray
    """(batch,) float32, l2 norm of the change of the layer's input."""


@dataclass(frozen=True)
class RobustnessBound:
    """Lower bounds on the l2 norm of a perturbation that changes the predicted class.

    Attributes:
        bound: (batch,) float32, in the network's input units; 0 if nothing can be said, and 1e30,
            where single precision overflows, if nothing changes the class. Under the thesis's rules
            not a bound in the strict sense.
        predicted: (batch,) int32, the class that is not changed.
        margin: (batch,) float32, that class's logit minus the largest other.
        untightened: (batch,) float32, the bound by global Lipschitz constants alone,
            which `robustness(..., tighten=False)` returns; never above `bound`.
        layers: kappa of each layer in the network's order.
        rounding: (batch,) float32, the rounding error in single precision that is subtracted from
            the margins, at x and at the perturbed input, before tightening.
        proved_in_float32: (batch,) bool, whether `rounding` is a proven bound of the rounding
            errors of the network in single precision, so that `bound` holds for the network as it
            is computed (sums in any order; exp, tanh and the like within 16 roundings of their
            values, where TensorFlow's are within 9), at x and anywhere in the ball. Where it is
            False a proven error would take more than half the margin (deep networks, tiny margins,
            numbers that may under- or overflow), or a layer has a registered rule, or a GPU
            convolves (by algorithms with other sums): `bound` then holds in exact arithmetic, with
            an estimated rounding error subtracted.
        rules: "thesis" or "certified".
        tightened: whether the bound was tightened in a ball.
    """

    bound: np.ndarray
    predicted: np.ndarray
    margin: np.ndarray
    untightened: np.ndarray
    layers: tuple[LayerKappa, ...]
    rounding: np.ndarray
    proved_in_float32: np.ndarray
    rules: str
    tightened: bool

    def mean(self) -> float:
        """Mean bound: the estimate of a lower bound of a classifier's robustness, eq. (3.13)."""
        return float(np.mean(self.bound, dtype=np.float64))

    def median(self) -> float:
        """Median bound."""
        return float(np.median(self.bound))

    def to_frame(self) -> pd.DataFrame:
        """One row per example, with a column of kappa for each layer."""
        columns = {
            "predicted": self.predicted,
            "margin": self.margin,
            "bound": self.bound,
            "untightened": self.untightened,
            "rounding": self.rounding,
            "proved_in_float32": self.proved_in_float32,
        }
        for number, layer in enumerate(self.layers):
            columns[f"kappa {number} {layer.name} ({layer.kind})"] = layer.kappa
        return pd.DataFrame(columns)
