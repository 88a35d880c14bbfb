"""Iterated minimal perturbations: each starts from the result of the previous one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd

from tfrobust.arguments import as_count, as_pixels, as_range
from tfrobust.attacks.minimal import minimal
from tfrobust.attacks.verification import predictions
from tfrobust.classifier import as_images
from tfrobust.errors import InputError, InputTypeError
from tfrobust.norms import norm as norm_of

__all__ = ["IteratedPerturbation", "iterate"]


@dataclass(frozen=True)
class IteratedPerturbation:
    """The images x_0, x_1, ... of an iterated perturbation, one row per example.

    Attributes:
        images: (batch, steps + 1, *input) float32, x_0 first.
        labels: (batch, steps + 1) int32, the model's class of each image.
        step_distance: (batch, steps) float32, lp norm of each step; infinite from the step on at
            which the attack failed: the image then stays unchanged.
        distance: (batch, steps + 1) float32, lp norm of x_t - x_0.
        success: (batch, steps) bool, whether the attack succeeded, or no step was needed.
        norm: the p of the lp norm.
        attack: the attack's name.
        away_from: "current" or "original", the class that each step leaves.
    """

    images: np.ndarray
    labels: np.ndarray
    step_distance: np.ndarray
    distance: np.ndarray
    success: np.ndarray
    norm: float
    attack: str
    away_from: str

    def to_frame(self) -> pd.DataFrame:
        """One row per example and step, without pixels; step 0 is x itself, distance 0."""
        batch, count = self.labels.shape
        start = np.zeros((batch, 1), np.float32)
        return pd.DataFrame(
            {
                "example": np.repeat(np.arange(batch), count),
                "step": np.tile(np.arange(count), batch),
                "label": self.labels.ravel(),
                "step_distance": np.hstack([start, self.step_distance]).ravel(),
                "distance": self.distance.ravel(),
                "success": np.hstack([start == 0, self.success]).ravel(),
                "norm": float(self.norm),
                "attack": self.attack,
            }
        )


def iterate(
    model: keras.Model,
    x: Any,
    attack: str = "fast_gradient_sign",
    *,
    steps: int = 10,
    away_from: Literal["current", "original"] = "current",
    value_range: tuple[float, float] = (0.0, 1.0),
    norm: float = 2,
    overshoot: float = 0.0,
    batch_size: int = 100,
    attack_steps: int | None = None,
    **settings: Any,
) -> IteratedPerturbation:
    """x_{t+1} = x_t + eta(x_t), eta the smallest perturbation of x_t (Peck 2017, section 2.7).

    A minimal perturbation ends just beyond a boundary, and the nearest other class is then the
    previous one: with `overshoot` 0, as in the thesis, all steps but the first are tiny and images
    alternate between two classes. Near a single flat boundary each step is about `overshoot`
    times the previous one, so that images only move away from it with 1 or more.

    Args:
        model: any classifier, also one that ends in a softmax.
        x: (batch, *input), inside `value_range`.
        attack: as in `minimal`.
        steps: number of perturbations of each image.
        away_from: "current": each step leaves the class of x_t. "original": each step leaves the
            class of x_0: eta is zero while the class is a different one, so that the image stays at
            its first adversarial.
        value_range: smallest and largest valid pixel.
        norm: p of the reported distances, 1, 2 or infinity.
        overshoot: each step is (1 + overshoot) * eta, clipped to the range.
        batch_size: examples attacked at a time.
        attack_steps: the attack's own setting `steps`.
        settings: all other settings of the attack, as in `minimal`.

    Raises:
        ValueError: `steps` is not a whole number of at least 1, `away_from` is unknown, or
            `overshoot` is negative; and all that `minimal` raises.
        TypeError: `labels` is given; and as `minimal`.
        NotLogitsError: the model has no logits to attack.
        FoolboxError: an attack of Foolbox's refuses its settings or the images.
    """
    steps = as_count("steps", steps, 1)
    _check_arguments(away_from, overshoot, settings)
    if attack_steps is not None:
        settings["steps"] = attack_steps
    low, high = as_range(value_range)
    within = (low, high) if settings.get("clip", True) else (-np.inf, np.inf)
    images = [as_pixels("x", as_images(model, x), (low, high))]
    labels = [predictions(model, images[0], batch_size)]
    distances, successes = [], [np.ones(len(images[0]), bool)]
    for _ in range(steps):
        current, success = images[-1].copy(), successes[-1].copy()
        rows = np.flatnonzero(success)
        if len(rows):
            result = minimal(
                model,
                current[rows],
                attack,
                labels=labels[0 if away_from == "original" else -1][rows],
                value_range=value_range,
                norm=norm,
                batch_size=batch_size,
                **settings,
            )
            current[rows] = np.clip(current[rows] + (1 + overshoot) * result.perturbation, *within)
            success[rows] = result.success
        distance = np.asarray(norm_of(current - images[-1], norm))
        distances.append(np.where(success, distance, np.float32(np.inf)))
        images.append(current)
        labels.append(predictions(model, current, batch_size))
        successes.append(success)
    return IteratedPerturbation(
        images=np.stack(images, axis=1),
        labels=np.stack(labels, axis=1),
        step_distance=np.stack(distances, axis=1),
        distance=np.stack(
            [np.asarray(norm_of(image - images[0], norm)) for image in images], axis=1
        ),
        success=np.stack(successes[1:], axis=1),
        norm=float(norm),
        attack=attack,
        away_from=away_from,
    )


def _check_arguments(away_from: str, overshoot: float, settings: dict[str, Any]) -> None:
    if away_from not in ("current", "original"):
        raise InputError(f'away_from must be "current" or "original", got {away_from!r}')
    if not 0 <= overshoot < np.inf:
        raise InputError(f"overshoot must be finite and not negative, got {overshoot}")
    if "labels" in settings:
        raise InputTypeError(
            "iterate leaves the classes that the model predicts and takes no labels: see away_from"
        )
