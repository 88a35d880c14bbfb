"""Distances between class gradients from a few random Jacobian-vector products.

Let J be the Jacobian of the logits, i* the predicted class (Etmann 2019) and v ~ N(0, I). Then

    (J v)_i* - (J v)_j = <grad Psi^i* - grad Psi^j, v> ~ N(0, D_j),
    D_j = ||grad Psi^i* - grad Psi^j||^2,

as a linear form of a Gaussian vector is Gaussian. So for m independent directions v_k

    S_j = sum_k ((J v_k)_i* - (J v_k)_j)^2,    S_j / D_j ~ chi^2_m exactly,

for any network of any size, and with quantiles q_lo, q_hi of chi^2_m

    sqrt(S_j / q_hi) <= ||grad Psi^i* - grad Psi^j|| <= sqrt(S_j / q_lo)

for all classes from m passes instead of one pass per class. In floating point sqrt(S_j) has an
error of at most the l2 norm of the errors of its m terms, by which the interval is widened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from tfrobust.arguments import as_seed
from tfrobust.classifier import (
    Classifier,
    as_images,
    gradients_at,
    in_batches,
    layers_behind,
    predict_logits,
)
from tfrobust.errors import InputError
from tfrobust.norms import hypotenuse, inner, norm

__all__ = [
    "DISAGREEMENT",
    "GradientGaps",
    "check_sketch",
    "derivatives_agree",
    "gradient_gaps",
    "interval",
    "roots_of_sums",
]

# iterations of the loop over directions that may run concurrently, which bounds the memory
PARALLEL = 4
# relative spacing of floating-point numbers
_SINGLE = 2.0**-23
_PRECISION = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
# relative error of a Jacobian-vector product, in these units
ROUNDING = 16
DISAGREEMENT = (
    "its derivatives along directions and its gradients disagree, as with a custom gradient that "
    "is not linear in what comes back or stops it"
)


@dataclasses.dataclass(frozen=True)
class GradientGaps:
    """||grad Psi^i* - grad Psi^j|| for all classes j, with intervals; zero at j = i*."""

    predicted: np.ndarray
    """(batch,) int32, i*."""
    estimate: np.ndarray
    """(batch, classes) float32, root of the unbiased estimate S_j / m of the square."""
    lower: np.ndarray
    """(batch, classes) float32."""
    upper: np.ndarray
    """(batch, classes) float32."""

    def __len__(self) -> int:
        return len(self.predicted)


def gradient_gaps(
    model: keras.Model,
    x: Any,
    *,
    directions: int = 64,
    confidence: float = 0.99,
    seed: int = 0,
    batch_size: int = 100,
) -> GradientGaps:
    """Distances of every class's logit gradient to the predicted class's, with intervals.

    The directions are drawn from (seed, number of the direction) and shared by all examples, so
    that results depend neither on `batch_size` nor on an example's position. Intervals of different
    examples are therefore not independent; those of each example have the stated confidence.

    Args:
        model: any Keras classifier.
        x: (batch, *input).
        directions: Jacobian-vector products; the estimate's relative standard error is about
            1 / sqrt(2 directions).
        confidence: that all intervals of one example hold, simultaneously over its classes
            (Bonferroni: each interval fails with probability (1 - confidence) / (classes - 1)).
        seed: of the directions.
        batch_size: examples per call.

    Raises:
        ValueError: x has the wrong shape, is empty or is not finite; `directions` is less than 1;
            `confidence` is not between 0 and 1; the model's derivatives are not consistent (a
            custom gradient that is not the derivative, or not linear in what comes back).
        NotLogitsError: the model has no logits to give.
    """
    check_sketch(directions, confidence, "confidence")
    x = as_images(model, x)
    values = predict_logits(model, x, batch_size=batch_size)
    predicted = values.argmax(axis=1).astype(np.int32)
    classifier = Classifier.of(model, x)
    if not derivatives_agree(classifier, x[:batch_size]):
        raise InputError(f"{model.name}: {DISAGREEMENT}, so that no distances can be estimated")
    sums = roots_of_sums(classifier, directions=directions, seed=as_seed("seed", seed))
    roots, errors, _ = in_batches(
        sums, x, predicted, batch_size=batch_size, description="gradient gaps"
    )
    tail = (1 - confidence) / (2 * max(values.shape[1] - 1, 1))
    lower, upper = interval(roots, errors, directions, tail)
    return GradientGaps(
        predicted,
        roots / np.float32(np.sqrt(directions)),
        lower.astype(np.float32),
        upper.astype(np.float32),
    )


def check_sketch(directions: int, probability: float, name: str) -> None:
    """Raise InputError unless both settings are valid; `name` is the probability's argument."""
    if directions < 1:
        raise InputError(f"directions must be at least 1, got {directions}")
    if not 0 < probability < 1:
        raise InputError(f"{name} must lie between 0 and 1, got {probability}")


def derivatives_agree(classifier: Classifier, x: Any) -> bool:
    """Whether <w, J v> and <J^T w, v> agree at each of a few inputs, for random v and w.

    They do not where a custom gradient is not linear in what comes back, or is not differentiable
    by it: the sketch would take another Jacobian than the gradients.

    Args:
        x: (batch, *input).
    """
    forwards, backwards, size = (
        part.numpy() for part in classifier.compiled(_two_products)(tf.convert_to_tensor(x))
    )
    # half precision is a few percent off, and more where it cancels
    tolerance = 1e-3 if _precision(classifier.logits) == _SINGLE else 0.5
    return bool((np.abs(forwards - backwards) <= tolerance * size).all())


def interval(
    roots: np.ndarray, errors: np.ndarray, directions: int, tail: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of sqrt(D_j), float64, each of which fails with probability `tail`:

        (sqrt(S_j) - error) / sqrt(q_hi)  and  (sqrt(S_j) + error) / sqrt(q_lo),

    with P(chi^2_m <= q_lo) = P(chi^2_m >= q_hi) = tail.

    Args:
        roots: sqrt(S_j).
        errors: bounds of the rounding error of sqrt(S_j), by which the interval is widened.
        directions: m.
        tail: may be so small that the quantile underflows; the upper bound is then infinite.
    """
    root = roots.astype(float)
    low, high = stats.chi2.ppf(tail, directions), stats.chi2.isf(tail, directions)
    lower = np.maximum(root - errors, 0) / np.sqrt(high)
    with np.errstate(divide="ignore", invalid="ignore"):
        upper = (root + errors) / np.sqrt(low)
    return lower, upper


def roots_of_sums(
    classifier: Classifier, *, directions: int, seed: int
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """A function of inputs (batch, *input) and i* (batch,).

    It returns sqrt(S_j), a bound of its rounding error, and <x, grad Psi^j>, the Jacobian along x;
    each (batch, classes).
    """
    run = classifier.compiled(_sketch)
    count, number = tf.constant(directions, tf.int32), tf.constant(seed, tf.int64)
    return lambda rows, predicted: run(rows, predicted, count, number)


def _sketch(logits: keras.Model) -> Callable[..., Any]:
    """Build: see `roots_of_sums`."""
    precision = _precision(logits)

    def run(
        x: tf.Tensor, predicted: tf.Tensor, directions: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        values, _, push = _products(logits, x)

        def add_direction(
            k: tf.Tensor, roots: tf.Tensor, sizes: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            direction_seed = tf.stack([seed, tf.cast(k, tf.int64)])
            # the same random generator on every device
            direction = tf.random.stateless_normal(tf.shape(x)[1:], direction_seed, alg="philox")
            change = push(tf.broadcast_to(direction, tf.shape(x)))
            change_of_predicted = tf.gather(change, predicted, batch_dims=1)[:, None]
            # the roots of S_j and of sum_k (J v_k)_j^2; expanding the square of the difference
            # would cancel, and sums of squares would underflow
            return (
                k + 1,
                hypotenuse(roots, change_of_predicted - change),
                hypotenuse(sizes, change),
            )

        zeros = tf.zeros_like(values)
        _, roots, sizes = tf.while_loop(
            lambda k, *_: k < directions,
            add_direction,
            [tf.constant(0), zeros, zeros],
            parallel_iterations=PARALLEL,
        )
        size_of_predicted = tf.gather(sizes, predicted, batch_dims=1)[:, None]
        others = tf.one_hot(predicted, values.shape[1], on_value=0.0, off_value=1.0)
        # term k errs by at most eps (|(J v_k)_i*| + |(J v_k)_j|), eps = ROUNDING * precision; with
        # (a + b)^2 <= 2 (a^2 + b^2) the norm over k is at most
        # eps sqrt(2 sum_k ((J v_k)_i*^2 + (J v_k)_j^2)); every sum adds three roundings
        total = tf.sqrt(2.0) * hypotenuse(size_of_predicted, sizes)
        relative = ROUNDING * precision + 4 * tf.cast(directions, tf.float32) * _SINGLE
        return roots, relative * total * others, push(x)

    return run


def _products(
    logits: keras.Model, x: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor], Callable[[tf.Tensor], tf.Tensor]]:
    """In a graph: logits at x, and functions from cotangents to J^T u and from tangents to J v."""
    values, pull_back = gradients_at(logits, x)
    # g(u) = J^T u is linear; the vector-Jacobian product of g with v is J v, one pass per v
    with tf.GradientTape(persistent=True) as tape:
        cotangent = tf.ones_like(values)
        tape.watch(cotangent)
        pulled_back = pull_back(cotangent)

    def push(tangent: tf.Tensor) -> tf.Tensor:
        return tape.gradient(
            pulled_back, cotangent, tangent, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    return values, pull_back, push


def _two_products(logits: keras.Model) -> Callable[..., Any]:
    """Build: <w, J v> and <J^T w, v> for fixed random w and v, and ||J^T w|| ||w||; (batch,)."""

    def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        values, pull_back, push = _products(logits, x)
        cotangent, tangent = (
            tf.random.stateless_normal(tf.shape(like)[1:], (k, 0), alg="philox")[None]
            + tf.zeros_like(like)
            for k, like in enumerate((values, x))
        )
        change, gradient = push(tangent), pull_back(cotangent)
        # what is compared may cancel, and each of the terms has an error
        size = norm(gradient) + norm(change * cotangent)
        return inner(change, cotangent), inner(gradient, tangent), size

    return run


def _precision(logits: keras.Model) -> float:
    """Relative spacing of the coarsest dtype that a layer computes in."""
    return max(_PRECISION.get(layer.compute_dtype, _SINGLE) for layer in layers_behind(logits))
