"""Clean, attacked and certified accuracy of a classifier, in one call."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd

from tfrobust import alignment, bounds
from tfrobust.arguments import as_range
from tfrobust.attacks import minimal, prepare
from tfrobust.classifier import as_images, as_labels, classes_of, predict_logits
from tfrobust.errors import InexactDecompositionWarning, InputError

__all__ = ["Benchmark", "benchmark", "search_for"]

# number of classes up to which all their gradients cost less than a sketch of 64 directions
_EXACT_UP_TO = 16


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A classifier on labelled examples; arrays have one row per example.

    Attributes:
        labels: (batch,) int32, the true classes.
        predicted: (batch,) int32.
        attack_distance: (batch, attacks) float32, lp norm of the smallest perturbation that each
            attack found; 0 for a misclassified example, infinite where it found none.
        certified_radius: (batch,) float32; it is proven that no perturbation of a smaller lp norm
            changes the predicted class. NaN for a network without certificates.
        alignment: (batch,) float32, Etmann 2019, eq. (7), l2.
        linearized_robustness: (batch,) float32, Etmann 2019, eq. (9), l2.
        epsilon: radius at which accuracies are given, in the network's input units.
        norm: p of the lp norm.
        attacks: names, in the order of the columns of `attack_distance`.
        uncertified: why there are no certificates; None where there are.
    """

    labels: np.ndarray
    predicted: np.ndarray
    attack_distance: np.ndarray
    certified_radius: np.ndarray
    alignment: np.ndarray
    linearized_robustness: np.ndarray
    epsilon: float
    norm: float
    attacks: tuple[str, ...]
    uncertified: str | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """(batch,) bool, whether the example is classified correctly."""
        return self.predicted == self.labels

    @property
    def distance(self) -> np.ndarray:
        """(batch,) float32, the smallest of all attacks' distances."""
        return self.attack_distance.min(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of examples that are classified correctly."""
        return float(np.mean(self.correct))

    def robust_accuracy(self, epsilon: float | None = None) -> float:
        """Share of all examples that are classified correctly and robust to the attacks at epsilon.

        Robust: the perturbation of every attack is larger than epsilon. An upper bound of the true
        robust accuracy: another attack may find a smaller perturbation.

        Args:
            epsilon: default: the benchmark's.
        """
        epsilon = self.epsilon if epsilon is None else epsilon
        return float(np.mean(self.correct & (self.distance > np.float64(epsilon))))

    def certified_accuracy(self, epsilon: float | None = None) -> float:
        """Share of all examples that are provably classified correctly in the whole ball.

        A lower bound of the true robust accuracy; NaN for a network without certificates.

        Args:
            epsilon: default: the benchmark's.
        """
        if self.uncertified is not None:
            return math.nan
        epsilon = self.epsilon if epsilon is None else epsilon
        return float(np.mean(self.correct & (self.certified_radius > np.float64(epsilon))))

    @property
    def violations(self) -> int:
        """Number of examples with an attack within the certified radius: not 0 only by a bug."""
        return int(np.sum(self.correct & (self.distance < self.certified_radius)))

    def median(self, values: np.ndarray) -> float:
        """Median over the correctly classified examples; infinite values count, NaN do not.

        Misclassified examples, whose distance is 0, are left out. NaN where none is left.
        """
        values = np.asarray(values, np.float64)[self.correct]
        values = values[~np.isnan(values)]
        return float(np.median(values)) if len(values) else math.nan

    def summary(self) -> dict[str, Any]:
        """The benchmark as plain data; medians are those of `median`."""
        changed = np.isfinite(self.distance[self.correct])
        return {
            "examples": len(self),
            "epsilon": self.epsilon,
            "norm": self.norm,
            "attacks": list(self.attacks),
            "accuracy": self.accuracy,
            "robust_accuracy": self.robust_accuracy(),
            "certified_accuracy": self.certified_accuracy(),
            "attack_success_rate": float(np.mean(changed)) if len(changed) else math.nan,
            "median_distance": self.median(self.distance),
            "median_certified_radius": self.median(self.certified_radius),
            "median_alignment": self.median(self.alignment),
            "median_linearized_robustness": self.median(self.linearized_robustness),
            "violations": self.violations,
            "uncertified": self.uncertified,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per example, with a column of distances for each attack."""
        columns = zip(self.attacks, self.attack_distance.T, strict=True)
        return pd.DataFrame(
            {
                "label": self.labels,
                "predicted": self.predicted,
                "correct": self.correct,
                "distance": self.distance,
                **{f"distance_{name}": column for name, column in columns},
                "certified_radius": self.certified_radius,
                "alignment": self.alignment,
                "linearized_robustness": self.linearized_robustness,
            }
        )


def benchmark(
    model: keras.Model,
    x: Any,
    labels: Any,
    *,
    epsilon: float,
    attacks: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("deepfool", "carlini_wagner"),
    value_range: tuple[float, float] = (0.0, 1.0),
    norm: float = 2,
    search: Literal["auto", "exact", "sketch"] = "auto",
    tighten: bool | None = None,
    seed: int = 0,
    batch_size: int = 100,
) -> Benchmark:
    """Clean, attacked and certified accuracy of a classifier, and its alignment.

    The true robust accuracy at epsilon, the share of examples that are classified correctly
    together with every image of `value_range` within epsilon, lies between `certified_accuracy` (a
    proof, which also covers images outside the range) and `robust_accuracy` (attacks).

    Args:
        model: any Keras classifier.
        x: (batch, *input), in the network's input units, inside `value_range`.
        labels: (batch,) true classes.
        epsilon: radius, in the network's input units.
        attacks: names of attacks, see `tfrobust.minimal`, or their settings by name. The smallest
            perturbation counts.
        value_range: smallest and largest valid pixel.
        norm: p of the lp norm of distances and radii, 1, 2 or infinity. Certificates are l2: a
            radius r certifies r in l1, and r / sqrt(inputs) in l-infinity.
        search: for the runner-up of linearized robustness, see `tfrobust.measure`; "auto": "exact"
            for at most 16 classes.
        tighten: of the certificates, see `tfrobust.robustness`.
        seed: of the sketch's directions.
        batch_size: examples per call; bounds the memory.

    Raises:
        InputError: a malformed argument, or an unknown attack.
        InputTypeError: an attack has no such setting.
        NotLogitsError: the model has no logits to give.
    """
    if not (np.ndim(epsilon) == 0 and math.isfinite(epsilon) and epsilon >= 0):
        raise InputError(f"epsilon must be a finite number of at least 0, got {epsilon!r}")
    if norm not in (1, 2, math.inf):
        raise InputError(f"norm must be 1, 2 or infinity, got {norm!r}")
    x, value_range = as_images(model, x), as_range(value_range)
    classes = classes_of(model, x)
    labels = as_labels(labels, len(x), classes)
    settings = _settings_of(attacks)
    for name, options in settings.items():  # before anything is computed
        prepare(name, model, x[:1], value_range=value_range, norm=norm, settings=options)

    predicted = predict_logits(model, x, batch_size=batch_size).argmax(axis=1).astype(np.int32)
    with warnings.catch_warnings():
        # the decomposition into homogeneous part and biases is not used here
        warnings.simplefilter("ignore", InexactDecompositionWarning)
        measures = alignment.measure(
            model, x, search=search_for(classes, search), seed=seed, batch_size=batch_size
        )
    radius, uncertified = _certified(model, x, norm, tighten, batch_size)
    distances = [
        minimal(
            model,
            x,
            name,
            labels=labels,
            value_range=value_range,
            norm=norm,
            batch_size=batch_size,
            **options,
        ).distance
        for name, options in settings.items()
    ]
    return Benchmark(
        labels=labels,
        predicted=predicted,
        attack_distance=np.stack(distances, axis=1),
        certified_radius=radius,
        alignment=measures.alignment,
        linearized_robustness=measures.linearized_robustness,
        epsilon=float(epsilon),
        norm=float(norm),
        attacks=tuple(settings),
        uncertified=uncertified,
    )


def search_for(classes: int, search: str = "auto") -> str:
    """The search for the runner-up that "auto" stands for: "exact" up to 16 classes."""
    if search != "auto":
        return search
    return "exact" if classes <= _EXACT_UP_TO else "sketch"


def _settings_of(
    attacks: Sequence[str] | Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    if isinstance(attacks, str):
        raise InputError(f"attacks must be a sequence of names: give [{attacks!r}]")
    if not isinstance(attacks, Mapping):
        if len(set(attacks)) < len(attacks):
            raise InputError(f"an attack is named twice: {', '.join(attacks)}")
        attacks = {name: {} for name in attacks}
    if not attacks:
        raise InputError("attacks must name at least one attack")
    return {name: dict(options) for name, options in attacks.items()}


def _certified(
    model: keras.Model, x: np.ndarray, norm: float, tighten: bool | None, batch_size: int
) -> tuple[np.ndarray, str | None]:
    """Proven lp radii (batch,), or NaN and the reason why this network has none."""
    try:
        radius = bounds.robustness(model, x, tighten=tighten, batch_size=batch_size).bound
    except bounds.UnsupportedLayerError as error:
        return np.full(len(x), np.nan, np.float32), str(error)
    if norm == math.inf:  # ||d||_2 <= sqrt(n) ||d||_inf; rounded down, so that it stays a bound
        smaller = np.float32(radius / math.sqrt(x[0].size))
        radius = np.where(np.isinf(radius), radius, np.nextafter(smaller, np.float32(0)))
    return radius, None  # ||d||_2 <= ||d||_1: an l2 radius holds in l1
