"""The search for the largest ball in which no margin can vanish.

It needs no property of left(r), what is left of the margins in a ball of radius r: whatever radii
it tries, the largest of those certified, left(r) > 0, is returned. It evaluates left at the radius
known to be safe (START), bisects on a logarithmic scale between that and the radius of a linear
network of the same slope (BISECT), and ends with one secant step (SECANT): where left is concave,
its chord between a safe and an unsafe radius lies below it, and the chord's root is safe too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfrobust.bounds.certified.network import Network
from tfrobust.bounds.certified.relaxation import (
    Problem,
    certified_margin,
    errors_of_margins,
    forward,
    row_grams,
)
from tfrobust.bounds.graph import graph_steps

__all__ = ["MARGINS", "largest_ball"]

# margins that are relaxed at a time
MARGINS = 16
# the steps of the search
START, BISECT, SECANT = 0, 1, 2
SEARCH = (START, BISECT, BISECT, BISECT, BISECT, SECANT)
# safety factors: of the secant step, and of a linear network's radius, whose margin SLACK reduces
SECANT_SAFETY = 0.999
LINEAR_SAFETY = 0.99


def largest_ball(logits: keras.Model, _: int) -> Callable[..., tf.Tensor]:
    """Build: see `run`; again after a rule was registered."""
    network = Network(graph_steps(logits))

    def run(
        x: tf.Tensor,
        start: tf.Tensor,
        errors: tf.Tensor,
        proved: tf.Tensor,
        predicted: tf.Tensor,
        steps: tf.Tensor,
        fused: tf.Tensor,
        first: tf.Tensor,
    ) -> tf.Tensor:
        """The largest radius (batch,) found at which `MARGINS` margins stay positive.

        Args:
            x: (batch, *input).
            start: (batch,), radii known to be safe.
            errors: (batch, classes), of the logits at x.
            proved: (batch,), whether they are a bound, or else an estimate for the ball too.
            predicted: (batch,).
            steps, fused: of `LipschitzConstants`, float32, rounded up.
            first: the first of the margins, counted without the predicted class.
        """
        values = forward(network, x)
        margin, cotangent = _margins(values[-1], errors, predicted, first)
        problem = Problem(
            network=network,
            x=x,
            values=values,
            grams=row_grams(network),
            steps=steps,
            fused=fused,
            margin=margin,
            cotangent=cotangent,
            errors=errors,
            proved=proved,
        )
        return _search(problem, start)

    return run


def _search(problem: Problem, start: tf.Tensor) -> tf.Tensor:
    """The largest certified radius (batch,) among `start` and those tried."""
    minus_infinity = tf.fill(tf.shape(start), -float("inf"))

    def next_try(step: tf.Tensor, best: tf.Tensor, *bracket: tf.Tensor) -> Any:
        low, high, left_low, left_high = bracket
        kind = tf.gather(SEARCH, step)
        radius = tf.where(kind == START, start, _next_radius(kind, *bracket))
        slope, left = certified_margin(problem, radius)
        safe = left > 0
        best = tf.where(safe, tf.maximum(best, radius), best)
        # look no farther than the radius of a linear network of this slope
        linear = tf.reduce_min(tf.maximum(problem.margin, 0.0) / tf.maximum(slope, 1e-30), axis=1)
        linear = tf.maximum(linear, start)
        # not from zero: bisection takes geometric means; `high` counts as unsafe until it is tried
        first = (tf.maximum(start, 1e-6 * linear), linear, left, minus_infinity)
        later = (
            tf.where(safe, radius, low),
            tf.where(safe, high, radius),
            tf.where(safe, left, left_low),
            tf.where(safe, left_high, left),
        )
        bracket = (tf.where(kind == START, a, b) for a, b in zip(first, later, strict=True))
        return step + 1, best, *bracket

    def unfinished(step: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return step < len(SEARCH)

    state = (tf.constant(0), start, *(tf.zeros_like(start) for _ in range(4)))
    return tf.while_loop(unfinished, next_try, state)[1]


def _next_radius(
    kind: tf.Tensor, low: tf.Tensor, high: tf.Tensor, left_low: tf.Tensor, left_high: tf.Tensor
) -> tf.Tensor:
    """Bisection, or a secant step where the margin at the bracket's lower end is positive."""
    # the chord's root: low + (high - low) left(low) / (left(low) - left(high))
    secant = low + SECANT_SAFETY * (high - low) * left_low / (left_low - left_high)
    # all radii were safe and `high` was not tried: perhaps the network is linear all the way
    secant = tf.where(tf.math.is_inf(left_high), LINEAR_SAFETY * high, secant)
    return tf.where((kind == SECANT) & (left_low > 0), secant, tf.sqrt(low * high))


def _margins(
    logits: tf.Tensor, errors: tf.Tensor, predicted: tf.Tensor, first: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Margins (batch, M) less rounding at x, infinite past the last class; their cotangents."""
    classes = logits.shape[1]
    count = min(MARGINS, classes - 1)
    place = first + tf.range(count)[None]
    other = place + tf.cast(place >= predicted[:, None], tf.int32)
    cotangent = tf.one_hot(predicted, classes)[:, None] - tf.one_hot(other, classes)
    margin = tf.einsum("bmc,bc->bm", cotangent, logits) - errors_of_margins(errors, cotangent)
    return tf.where(place < classes - 1, margin, tf.constant(float("inf"))), cotangent
