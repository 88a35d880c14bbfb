"""SuperDeepFool: DeepFool steps to the boundary, then along it to its nearest point."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_count
from tfrobust.attacks.direction import AttackFunction, label_lead, rounding_of
from tfrobust.attacks.linearised import free_part, nearest_in_box, shortest_step
from tfrobust.classifier import Classifier, class_gradients, gradients_at
from tfrobust.norms import clip_to_range, inner, norm, per_example

__all__ = ["super_deepfool"]

# of a step, so that it crosses the boundary that it aims at
OVERSHOOT = 0.02
# a return to the boundary that shortens the perturbation by less than this share is the last one
GAIN = 0.002
# shares of a step along the boundary, from the first to the last; and how far beyond it they aim,
# as a share of the perturbation
FIRST, LAST, BEYOND = 0.8, 0.02, 0.01
# of the segment from x to the adversarial, at the end
HALVINGS = 12
# relative to the range: where a search stands still
TINY = 1e-12


def super_deepfool(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *,
    norm: float = 2,
    steps: int = 50,
    rounds: int = 4,
    refinements: int = 60,
    candidates: int = 9,
) -> AttackFunction:
    """The smallest adversarial met while DeepFool steps, projections and refinements alternate.

    From x, steps to the nearest linearised boundary until the class changes (Moosavi-Dezfooli
    2016); from the adversarial x' to the point of its boundary's tangent plane that is nearest to
    x; and again from there, until the perturbation is shortened no more: it is then normal to the
    boundary, as at the nearest point of a smooth one (SDF(infinity, 1)). Boundaries have edges, on
    which this ends too early: so, ours, refinements follow, shrinking shares of the way to the
    tangent plane's nearest point, each of which takes one gradient instead of a Jacobian. Last the
    segment from x to the adversarial is halved. The nearest point of a plane is that inside the
    range of pixels.

    Args:
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        norm: p that is minimised, 2 or infinity; 1 takes 2.
        steps: at most so many Jacobians per example.
        rounds: at most so many projections.
        refinements: gradients after them.
        candidates: classes other than the label that a step considers, those with the largest
            logits; each takes a backward pass.

    Raises:
        ValueError: `steps`, `rounds` or `candidates` is not a whole number of at least 1, or
            `refinements` of at least 0.

    Source: Abdolahpourrostam, Abroshan and Moosavi-Dezfooli 2024.
    """
    steps, rounds = as_count("steps", steps, 1), as_count("rounds", rounds, 1)
    refinements = as_count("refinements", refinements, 0)
    candidates = as_count("candidates", candidates, 1)
    classifier = Classifier.of(model, x)
    p = math.inf if norm == math.inf else 2.0
    count = min(candidates, classifier.classes - 1)
    run = classifier.compiled(_search, p, count, batched_args=2)
    scalars = [tf.constant(v, tf.float32) for v in value_range]
    limits = [tf.constant(v) for v in (steps, rounds, refinements)]
    return lambda rows, labels: run(rows, labels, *scalars, *limits)


def _search(logits: keras.Model, p: float, count: int) -> Callable[..., Any]:
    """Build: see `super_deepfool`."""

    def run(
        x: tf.Tensor,
        labels: tf.Tensor,
        low: tf.Tensor,
        high: tf.Tensor,
        steps: tf.Tensor,
        rounds: tf.Tensor,
        refinements: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        best, length, passes = _walk(logits, x, labels, (low, high), p, count, steps, rounds)
        best, length = _refined(logits, x, labels, (low, high), p, refinements, best, length)
        found = tf.math.is_finite(length)
        forward = passes + tf.cast(refinements + HALVINGS, tf.float32)
        backward = passes * (count + 1) + tf.cast(refinements, tf.float32)
        return _polished(logits, x, best, labels, found), found, forward, backward

    return run


def _walk(
    logits: keras.Model,
    x: tf.Tensor,
    labels: tf.Tensor,
    value_range: tuple[tf.Tensor, tf.Tensor],
    p: float,
    count: int,
    steps: tf.Tensor,
    rounds: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """DeepFool and projections: the smallest adversarials, their lengths, and passes (batch,)."""
    low, high = value_range
    room = (low - x, high - x)

    def take(
        step: tf.Tensor,
        at: tf.Tensor,
        best: tf.Tensor,
        length: tf.Tensor,
        returns: tf.Tensor,
        done: tf.Tensor,
        passes: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        values, pull_back = gradients_at(logits, at)
        slack = rounding_of(values)
        lead = label_lead(values, labels)
        adversarial, now = -lead > slack, norm(at - x, p)
        gained = adversarial & (now < length * (1 - GAIN))
        better = adversarial & (now < length)
        best = tf.where(per_example(better, x), at, best)
        length = tf.where(better, now, length)
        returns += tf.cast(adversarial & ~done, tf.int32)
        forward, normal = _nearest(values, pull_back, labels, at, value_range, slack, p, count)
        # lead(x + d) = lead - <w, d - (at - x)> on the tangent plane at `at`
        wanted = inner(normal, at - x) + lead + 2 * slack
        back = nearest_in_box(normal, wanted, room, p)
        following = tf.where(per_example(adversarial, x), x + back, at + forward)
        following = clip_to_range(following, value_range)
        passes += tf.cast(~done, tf.float32)
        stuck = norm(following - at, math.inf) <= TINY * (high - low)
        ended = (adversarial & (~gained | (returns >= rounds))) | stuck
        following = tf.where(per_example(done, x), at, following)
        return step + 1, following, best, length, returns, done | ended, passes

    rows = tf.shape(x)[:1]
    state = (
        tf.constant(0),
        x,
        x,
        tf.fill(rows, tf.constant(math.inf, x.dtype)),
        tf.zeros(rows, tf.int32),
        tf.fill(rows, False),
        tf.zeros(rows, tf.float32),
    )
    _, _, best, length, _, _, passes = tf.while_loop(
        lambda step, *others: (step < steps) & ~tf.reduce_all(others[4]), take, state
    )
    return best, length, passes


def _nearest(
    values: tf.Tensor,
    pull_back: Callable[[tf.Tensor], tf.Tensor],
    labels: tf.Tensor,
    at: tf.Tensor,
    value_range: tuple[tf.Tensor, tf.Tensor],
    slack: tf.Tensor,
    p: float,
    count: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The step to the nearest linearised boundary, and the normal of the largest class's."""
    top = tf.math.top_k(_without_label(values, labels), count)
    label_values = tf.gather(values, labels, batch_dims=1)
    own = class_gradients(pull_back, values, labels)
    shortest = tf.fill(tf.shape(labels), tf.constant(math.inf, at.dtype))
    chosen, normal = tf.zeros_like(at), tf.zeros_like(at)
    for k in range(count):
        gradient = class_gradients(pull_back, values, top.indices[:, k]) - own
        if k == 0:
            normal = gradient
        margin = (label_values - top.values[:, k] + slack) * (1 + OVERSHOOT)
        step, length = shortest_step(free_part(gradient, at, value_range), margin, p)
        nearer = length < shortest
        chosen = tf.where(per_example(nearer, at), step, chosen)
        shortest = tf.where(nearer, length, shortest)
    return chosen, normal


def _without_label(values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    is_label = tf.one_hot(labels, values.shape[1], on_value=True, off_value=False)
    return tf.where(is_label, values.dtype.min, values)


def _refined(
    logits: keras.Model,
    x: tf.Tensor,
    labels: tf.Tensor,
    value_range: tuple[tf.Tensor, tf.Tensor],
    p: float,
    steps: tf.Tensor,
    start: tf.Tensor,
    length: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Shrinking shares of the way to the nearest point of the boundary of the class at hand."""
    low, high = value_range
    room = (low - x, high - x)

    def take(
        step: tf.Tensor, at: tf.Tensor, best: tf.Tensor, length: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        values, pull_back = gradients_at(logits, at)
        other = tf.argmax(_without_label(values, labels), axis=1, output_type=tf.int32)
        classes = values.shape[1]
        cotangent = tf.one_hot(other, classes, dtype=values.dtype)
        gradient = pull_back(cotangent - tf.one_hot(labels, classes, dtype=values.dtype))
        lead, slack, now = label_lead(values, labels), rounding_of(values), norm(at - x, p)
        better = (-lead > slack) & (now < length)
        best = tf.where(per_example(better, x), at, best)
        length = tf.where(better, now, length)
        progress = tf.cast(step, x.dtype) / tf.cast(steps, x.dtype)
        share = LAST + (FIRST - LAST) * (1 + tf.cos(math.pi * progress)) / 2
        dual = norm(gradient, 1 if p == math.inf else 2)
        beyond = 2 * slack + BEYOND * share * dual * tf.where(
            tf.math.is_finite(length), length, 0.0
        )
        wanted = inner(gradient, at - x) + lead + beyond
        target = x + nearest_in_box(gradient, wanted, room, p)
        # the rest of the way to the boundary where `at` is not beyond it
        free = free_part(gradient, at, value_range)
        missing, _ = shortest_step(free, (1 - share) * tf.nn.relu(lead + beyond), p)
        following = clip_to_range(at + share * (target - at) + missing, value_range)
        return step + 1, following, best, length

    state = (tf.constant(0), start, start, length)
    _, _, best, length = tf.while_loop(lambda step, *_: step < steps, take, state)
    return best, length


def _polished(
    logits: keras.Model, x: tf.Tensor, adversarial: tf.Tensor, labels: tf.Tensor, found: tf.Tensor
) -> tf.Tensor:
    """The adversarial nearest to x that halving the segment to `adversarial` finds."""
    change = adversarial - x

    def halve(
        step: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        middle = (lower + upper) / 2
        values = logits(x + per_example(middle, x) * change, training=False)
        values = tf.cast(values, x.dtype)
        wrong = -label_lead(values, labels) > rounding_of(values)
        return step + 1, tf.where(wrong, lower, middle), tf.where(wrong, middle, upper)

    rows = tf.shape(x)[:1]
    state = (tf.constant(0), tf.zeros(rows, x.dtype), tf.ones(rows, x.dtype))
    _, _, upper = tf.while_loop(lambda step, *_: step < HALVINGS, halve, state)
    keep = found & (upper < 1)
    return tf.where(per_example(keep, x), x + per_example(upper, x) * change, adversarial)
