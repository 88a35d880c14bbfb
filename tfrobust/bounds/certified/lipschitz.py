"""Certified radii by global Lipschitz constants, less rounding errors of the margins.

With m_j the margin over class j, L_j an upper bound of its Lipschitz constant and E_j one of what
two logits err by in single precision, no perturbation below min over j of (m_j - E_j) / L_j changes
the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds import registry
from tfrobust.bounds.certified.network import LipschitzConstants, Network
from tfrobust.bounds.certified.relaxation import forward, rounding_errors
from tfrobust.bounds.graph import INPUT, graph_steps
from tfrobust.classifier import Classifier, in_batches

__all__ = ["evaluator", "global_radius", "margins_of", "of_other_classes", "rounded_up"]

# a proven rounding error may take this share of a margin; else the error is estimated
TOLERATED = 0.5

# images and radii of balls (batch,) to logits and bounds of their errors anywhere in these balls
Evaluate = Callable[..., tuple[np.ndarray, np.ndarray]]


def evaluator(
    model: keras.Model,
    network: Network,
    constants: LipschitzConstants,
    x: np.ndarray,
    batch_size: int,
) -> Evaluate:
    classifier = Classifier.of(model, x)
    run = classifier.compiled(_forward, registry.registrations(), batched_args=2)
    from_input = tf.constant(rounded_up(constants.from_input))

    def evaluate(x: Any, radius: np.ndarray, description: str | None = "margins") -> Any:
        return in_batches(
            lambda *rows: run(*rows, from_input),
            x,
            rounded_up(radius),
            batch_size=batch_size,
            description=description,
        )

    return evaluate


def _forward(logits: keras.Model, _: int) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Build: logits, and bounds of their errors; again after a rule was registered."""
    network = Network(graph_steps(logits))

    def run(x: tf.Tensor, radius: tf.Tensor, from_input: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = forward(network, x)
        # global elementwise bounds: no element changes more than the l2 norm of all
        elementwise = {
            at: norms.per_example(radius * from_input[at], value)
            for at, value in [*enumerate(values), (INPUT, x)]
        }
        return values[-1], rounding_errors(network, x, values, elementwise)

    return run


def global_radius(
    evaluate: Evaluate,
    network: Network,
    constants: LipschitzConstants,
    x: np.ndarray,
    margins: np.ndarray,
    errors: np.ndarray,
    predicted: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """min over j of (m_j - errors) / L_j, and what is known of rounding errors.

    Two logits err at x, by E(x), and where an attacker's image is evaluated, by E in the ball; that
    ball is no larger than the one whose radius leaves the latter out.

    Args:
        margins, errors: (batch, classes), the latter of logits at x.

    Returns:
        radius (batch,); the largest error of a margin (batch,); the logits' errors, with estimates
        where no proof is within TOLERATED (batch, classes); and where there is one (batch,).
    """
    outer = _lipschitz_radius(
        margins, _of_margins(errors, predicted), predicted, constants, network
    )
    unlimited = np.isinf(outer)
    if unlimited.any():
        outer[unlimited] = _radius_of_constant_margins(
            evaluate, x[unlimited], margins[unlimited], errors[unlimited], predicted[unlimited]
        )
    _, error_in_ball = evaluate(x, np.where(np.isinf(outer), 0, outer), "rounding errors")
    error_bound = _of_margins(errors + error_in_ball, predicted)
    smallest = of_other_classes(margins, predicted).min(axis=1)
    largest_error = of_other_classes(error_bound, predicted).max(axis=1)
    proved = largest_error <= TOLERATED * np.maximum(smallest, 1e-30)
    proved &= all(operation.rounding_is_proved for operation in network.operations)
    if not proved.all():
        errors = errors.copy()
        exact = _lipschitz_radius(
            margins, np.zeros_like(error_bound), predicted, constants, network
        )
        estimate = _estimated_error(evaluate, x[~proved], exact[~proved])
        errors[~proved] = estimate[:, None]
        # of two logits, at x and in the ball
        error_bound[~proved] = 4 * estimate[:, None]
    radius = _lipschitz_radius(margins, error_bound, predicted, constants, network)
    # a proof goes no farther than the ball that its errors are for
    radius = np.where(proved | unlimited, np.minimum(radius, outer), radius)
    return radius, of_other_classes(error_bound, predicted).max(axis=1), errors, proved


def margins_of(logits: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """z_c - z_j, float64: (batch, classes)."""
    predicted_logits = np.take_along_axis(logits, predicted[:, None], 1)
    return predicted_logits.astype(np.float64) - logits


def _of_margins(errors: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Errors of the logits to those of the margins, E_c + E_j: (batch, classes)."""
    return np.take_along_axis(errors, predicted[:, None], 1) + errors


def of_other_classes(values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Without the predicted class: (batch, classes) -> (batch, classes - 1)."""
    keep = np.arange(values.shape[1])[None] != predicted[:, None]
    return values[keep].reshape(len(values), -1)


def _lipschitz_radius(
    margins: np.ndarray,
    error_bound: np.ndarray,
    predicted: np.ndarray,
    constants: LipschitzConstants,
    network: Network,
) -> np.ndarray:
    """min over j of (m_j - errors) / L_j (batch,), L_j the margin's global Lipschitz constant."""
    head = constants.from_input[network.head_input]
    slopes = constants.margins[predicted] * head * (1 + 1e-6)
    remaining = np.maximum(margins - error_bound, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        radii = np.where(slopes > 0, remaining / slopes, np.where(remaining > 0, np.inf, 0.0))
    return of_other_classes(radii, predicted).min(axis=1)


def _radius_of_constant_margins(
    evaluate: Evaluate,
    x: np.ndarray,
    margins: np.ndarray,
    errors: np.ndarray,
    predicted: np.ndarray,
) -> np.ndarray:
    """For margins that never change, the largest power of 10 with tolerable rounding errors.

    (batch,); infinite where rounding errors do not depend on the radius either.
    """
    radius = np.zeros(len(x))
    smallest = of_other_classes(margins, predicted).min(axis=1)
    for power in range(-6, 16):
        _, error_in_ball = evaluate(x, np.full(len(x), 10.0**power), None)
        error_bound = _of_margins(errors + error_in_ball, predicted)
        largest = of_other_classes(error_bound, predicted).max(axis=1)
        radius = np.where(largest <= TOLERATED * smallest, 10.0**power, radius)
    return np.where((error_in_ball == errors).all(axis=1), np.inf, radius)


def _estimated_error(evaluate: Evaluate, x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Rounding errors of the logits (batch,), seen by changing inputs by a rounding error.

    At x, and somewhere at the given distance from it.
    """
    rng = np.random.default_rng(0)
    largest, zero = np.zeros(len(x)), np.zeros(len(x))
    direction = rng.normal(size=x.shape)
    direction /= np.linalg.norm(direction.reshape(len(x), -1), axis=1).reshape(
        -1, *[1] * (x.ndim - 1)
    )
    distance = np.where(np.isfinite(radius), radius, 0).reshape(-1, *[1] * (x.ndim - 1))
    for place in (x, (x + distance * direction).astype(np.float32)):
        logits, _ = evaluate(place, zero, None)
        size = np.maximum(np.abs(place), np.abs(place).max() / 8 or 1)
        for _ in range(2):
            signs = rng.choice(np.float32([-1, 1]), x.shape)
            other, _ = evaluate(place + np.float32(2.0**-23) * size * signs, zero, None)
            largest = np.maximum(largest, np.abs(other - logits).max(axis=1))
        largest = np.maximum(largest, 2.0**-24 * np.abs(logits).max(axis=1))
    return 4 * largest


def rounded_up(values: np.ndarray) -> np.ndarray:
    return np.nextafter(values.astype(np.float32), np.float32(np.inf))
