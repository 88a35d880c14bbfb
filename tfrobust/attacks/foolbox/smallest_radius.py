"""The smallest radius at which an attack with a fixed radius succeeds, for each example."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrobust.norms import norm

__all__ = ["smallest_radius"]

# the first radius and the smallest one, as fractions of the diameter of the box of valid images
START, SMALLEST = 2.0**-8, 2.0**-24


def smallest_radius(
    try_radius: Callable[[tf.Tensor, tf.Tensor, np.ndarray], tuple[tf.Tensor, tf.Tensor]],
    x: tf.Tensor,
    labels: tf.Tensor,
    p: float,
    value_range: tuple[float, float],
    *,
    bisection_steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest adversarial met while each example's radius is bracketed, then bisected.

    The radius is doubled until the attack succeeds, up to the diameter of the box of valid images,
    or halved until it fails; the bracket is then halved until its relative width is
    2**-bisection_steps.

    Args:
        try_radius: from images, labels and radii (batch,) to candidates and their success.
        x: (batch, *input).
        labels: (batch,).
        p: of the lp norm of the radius.
        value_range: smallest and largest valid pixel.
        bisection_steps: the radius is determined to a relative 2**-bisection_steps.

    Returns:
        images (batch, *input), the adversarials met with the smallest norm, and whether an example
        has one (batch,).
    """
    features = math.prod(x.shape[1:])
    diameter = (value_range[1] - value_range[0]) * features ** (1 / p)
    best, best_norm = x.numpy(), np.full(len(x), np.inf)
    lower, upper = np.zeros(len(x)), np.full(len(x), np.inf)
    radius = np.full(len(x), START * diameter)
    active = np.arange(len(x))
    while len(active):
        rows = tf.gather(x, active)
        images, success = try_radius(rows, tf.gather(labels, active), radius[active])
        images, success = np.asarray(images), np.asarray(success)
        success = success & np.isfinite(images).reshape(len(images), -1).all(axis=1)
        lengths = np.asarray(norm(tf.constant(images) - rows, p))
        better = success & (lengths < best_norm[active])
        best[active[better]], best_norm[active[better]] = images[better], lengths[better]
        upper[active[success]] = radius[active[success]]
        lower[active[~success]] = radius[active[~success]]

        unbounded = np.isinf(upper)
        always_successful = (lower == 0) & ~unbounded
        converged = np.where(
            unbounded, lower >= diameter, upper - lower <= 2.0**-bisection_steps * upper
        )
        converged |= always_successful & (upper <= SMALLEST * diameter)
        doubled = np.minimum(2 * lower, diameter)
        radius = np.where(unbounded, doubled, (lower + np.where(unbounded, 0, upper)) / 2)
        active = active[~converged[active]]
    return best, np.isfinite(best_norm)
