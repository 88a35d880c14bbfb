"""Certified radii by global Lipschitz constants, with rounding errors of the margins.

Let m_j = z_c - z_j be the margin over class j, L_j an upper bound of its Lipschitz constant and E_j
an upper bound of its rounding error in single precision. No perturbation of l2 norm below
min_j (m_j - E_j) / L_j changes the class.
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

# the largest share of a margin that a proven rounding error may take; above it errors are estimated
TOLERATED = 0.5
# below it errors are proven, or no radius is given
SMALLEST_MARGIN = 1e-30

# from images and radii of balls (batch,) to logits and bounds of their errors in these balls
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
    """Build: logits and bounds of their errors. Rebuilt after a rule has been registered."""
    network = Network(graph_steps(logits))

    def run(x: tf.Tensor, radius: tf.Tensor, from_input: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = forward(network, x)
        # global elementwise bound: |D_s[i]| <= ||D_s||_2 <= L_s r
        elementwise = {
            index: norms.per_example(radius * from_input[index], value)
            for index, value in [*enumerate(values), (INPUT, x)]
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
    """min_j (m_j - E_j) / L_j with the rounding errors of both logits, at x and in the ball:

        E_j = E_c(x) + E_j(x) + E_c(r) + E_j(r).

    E(r) is evaluated for the radius `outer` = min_j (m_j - E_c(x) - E_j(x)) / L_j, which limits the
    result. Where E_j takes more than TOLERATED of the margin, or an operation has no proven
    rounding error, an estimate replaces both E(x) and E(r).

    Args:
        margins, errors: (batch, classes), the latter of logits at x.

    Returns:
        radius (batch,); max_j E_j (batch,); E(x) of the logits, proven or estimated
        (batch, classes); and whether they are proven (batch,).
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
    proved = largest_error <= TOLERATED * smallest
    proved &= all(operation.rounding_is_proved for operation in network.operations)
    if not proved.all():
        errors = errors.copy()
        exact = _lipschitz_radius(
            margins, np.zeros_like(error_bound), predicted, constants, network
        )
        estimate = _estimated_error(evaluate, x[~proved], exact[~proved])
        # near the smallest numbers nothing can be estimated: what underflows is not seen
        lost = (smallest > 0) & (smallest < SMALLEST_MARGIN)
        estimate = np.where(lost[~proved], np.inf, estimate)
        errors[~proved] = estimate[:, None]
        # two logits, each at x and in the ball
        error_bound[~proved] = 4 * estimate[:, None]
    radius = _lipschitz_radius(margins, error_bound, predicted, constants, network)
    # the proven errors hold in the ball of radius `outer` only
    radius = np.where(proved | unlimited, np.minimum(radius, outer), radius)
    return radius, of_other_classes(error_bound, predicted).max(axis=1), errors, proved


def margins_of(logits: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """m_j = z_c - z_j, float64: (batch, classes)."""
    predicted_logits = np.take_along_axis(logits, predicted[:, None], 1)
    return predicted_logits.astype(np.float64) - logits


def _of_margins(errors: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Errors E_c + E_j of the margins, from those of the logits: (batch, classes)."""
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
    """min_j (m_j - E_j) / L_j (batch,), L_j = ||w_c - w_j|| L_head, in float64.

    w are the rows of the linear head, L_head the constant of its input as a function of x.
    """
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
    """Where no margin changes: the largest power of 10 with errors within TOLERATED, (batch,).

    At most 1e30: farther away single precision overflows, and what overflows is no number.
    """
    radius = np.zeros(len(x))
    smallest = of_other_classes(margins, predicted).min(axis=1)
    for power in range(-6, 31):
        _, error_in_ball = evaluate(x, np.full(len(x), 10.0**power), None)
        error_bound = _of_margins(errors + error_in_ball, predicted)
        largest = of_other_classes(error_bound, predicted).max(axis=1)
        certified = largest <= TOLERATED * smallest
        radius = np.where(certified, 10.0**power, radius)
        if not certified.any():
            break
    return radius


def _estimated_error(evaluate: Evaluate, x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Estimated rounding errors of the logits (batch,): their response to rounding the input.

    4 max |z(y + 2^-23 t s) - z(y)| for random signs s and t_i = max(|y_i|, max |y| / 8), at y = x
    and at y = x + radius * u for a random unit vector u; at least 4 * 2^-24 max |z|. Signs and
    vector are the same for all examples, so that an estimate does not depend on the others.
    """
    rng = np.random.default_rng(0)
    largest, zero = np.zeros(len(x)), np.zeros(len(x))
    column, axes = (-1, *[1] * (x.ndim - 1)), tuple(range(1, x.ndim))
    direction = rng.normal(size=x.shape[1:])
    direction /= np.linalg.norm(direction)
    distance = np.where(np.isfinite(radius), radius, 0).reshape(column)
    for point in (x, (x + distance * direction).astype(np.float32)):
        logits, _ = evaluate(point, zero, None)
        own = np.abs(point).max(axis=axes, keepdims=True)
        magnitude = np.maximum(np.abs(point), np.where(own > 0, own / 8, 1))
        for _ in range(2):
            signs = rng.choice(np.float32([-1, 1]), x.shape[1:])
            perturbed, _ = evaluate(point + np.float32(2.0**-23) * magnitude * signs, zero, None)
            largest = np.maximum(largest, np.abs(perturbed - logits).max(axis=1))
        largest = np.maximum(largest, 2.0**-24 * np.abs(logits).max(axis=1))
    return 4 * largest


def rounded_up(values: np.ndarray) -> np.ndarray:
    """In single precision; what is positive is at least the smallest normal number."""
    with np.errstate(over="ignore"):
        single = np.nextafter(values.astype(np.float32), np.float32(np.inf))
    return np.where(values > 0, np.maximum(single, np.finfo(np.float32).tiny), np.float32(0))
