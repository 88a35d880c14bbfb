"""The search for the largest ball in which every margin stays positive.

Let rest(r) be a lower bound of the smallest margin in a ball of radius r (see `relaxation`). A
radius with rest(r) > 0 is certified by itself, so the search needs no property of rest: it returns
the largest certified radius that it tried. With a safe radius low and an unsafe radius high,

    START    r = start, a radius known to be safe;
    BISECT   r = sqrt(low high), first with high = min_j m_j / ||a_j||, the exact radius of a linear
             network with the margins m_j and their gradients a_j;
    SECANT   r = low + (high - low) rest(low) / (rest(low) - rest(high)), the root of the chord,
             which lies below rest where rest is concave: its root is then safe.
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

# margins relaxed in one call
MARGINS = 16
START, BISECT, SECANT = 0, 1, 2
SEARCH = (START, BISECT, BISECT, BISECT, BISECT, SECANT)
# safety factors: of the secant step, and of the linear network's radius (rounding takes some of it)
SECANT_SAFETY = 0.999
LINEAR_SAFETY = 0.99


def largest_ball(logits: keras.Model, _: int) -> Callable[..., tf.Tensor]:
    """Build: see `run`. Rebuilt after a rule has been registered."""
    network = Network(graph_steps(logits))

    def run(
        x: tf.Tensor,
        start: tf.Tensor,
        errors: tf.Tensor,
        proved: tf.Tensor,
        predicted: tf.Tensor,
        steps: tf.Tensor,
        fused: tf.Tensor,
        rounding: tf.Tensor,
        first: tf.Tensor,
    ) -> tf.Tensor:
        """The largest certified radius (batch,) for a block of `MARGINS` margins.

        Args:
            x: (batch, *input).
            start: (batch,), radii known to be safe.
            errors: (batch, classes), of the logits at x.
            proved: (batch,), whether `errors` is a proven bound at x; if not, it is an estimate for
                the whole ball.
            predicted: (batch,).
            steps, fused, rounding: of `LipschitzConstants`, float32, rounded up.
            first: index of the block's first margin, not counting the predicted class.
        """
        values = forward(network, x)
        margin, cotangent = _margins(values[-1], errors, predicted, first)
        problem = Problem(
            network=network,
            x=x,
            values=values,
            steps=steps,
            fused=fused,
            rounding=rounding,
            grams=row_grams(network),
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

    def try_radius(step: tf.Tensor, best: tf.Tensor, *bracket: tf.Tensor) -> Any:
        low, high, rest_low, rest_high = bracket
        kind = tf.gather(SEARCH, step)
        radius = tf.where(kind == START, start, _next_radius(kind, *bracket))
        slope, rest = certified_margin(problem, radius)
        safe = rest > 0
        best = tf.where(safe, tf.maximum(best, radius), best)
        # upper end of the search: min_j m_j / ||a_j||, exact for a linear network
        linear = tf.reduce_min(tf.maximum(problem.margin, 0.0) / tf.maximum(slope, 1e-35), axis=1)
        linear = tf.maximum(linear, start)
        # above zero, for geometric means; `high` counts as unsafe until it is tried
        initial = (tf.maximum(start, 1e-6 * linear), linear, rest, minus_infinity)
        narrowed = (
            tf.where(safe, radius, low),
            tf.where(safe, high, radius),
            tf.where(safe, rest, rest_low),
            tf.where(safe, rest_high, rest),
        )
        bracket = (tf.where(kind == START, a, b) for a, b in zip(initial, narrowed, strict=True))
        return step + 1, best, *bracket

    def unfinished(step: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return step < len(SEARCH)

    state = (tf.constant(0), start, *(tf.zeros_like(start) for _ in range(4)))
    return tf.while_loop(unfinished, try_radius, state)[1]


def _next_radius(
    kind: tf.Tensor, low: tf.Tensor, high: tf.Tensor, rest_low: tf.Tensor, rest_high: tf.Tensor
) -> tf.Tensor:
    """sqrt(low high), or a secant step where the margin at the lower end is positive."""
    # the chord's root: low + (high - low) rest(low) / (rest(low) - rest(high))
    secant = low + SECANT_SAFETY * (high - low) * rest_low / (rest_low - rest_high)
    # every radius was safe and `high` was not tried: the network may be linear up to it
    secant = tf.where(tf.math.is_inf(rest_high), LINEAR_SAFETY * high, secant)
    return tf.where((kind == SECANT) & (rest_low > 0), secant, tf.sqrt(low * high))


def _margins(
    logits: tf.Tensor, errors: tf.Tensor, predicted: tf.Tensor, first: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Margins m_j - E_c(x) - E_j(x), infinite past the last class, and cotangents e_c - e_j.

    (batch, M) and (batch, M, classes).
    """
    classes = logits.shape[1]
    count = min(MARGINS, classes - 1)
    index = first + tf.range(count)[None]
    other = index + tf.cast(index >= predicted[:, None], tf.int32)
    cotangent = tf.one_hot(predicted, classes)[:, None] - tf.one_hot(other, classes)
    margin = tf.einsum("bmc,bc->bm", cotangent, logits) - errors_of_margins(errors, cotangent)
    return tf.where(index < classes - 1, margin, tf.constant(float("inf"))), cotangent
