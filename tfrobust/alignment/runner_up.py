"""The runner-up j* of eq. (9): the class whose linearized boundary is nearest.

Etmann 2019, eq. (9): rho~ = min over j != i* of r_j, with the ratio
r_j = (Psi^i* - Psi^j) / ||grad Psi^i* - grad Psi^j||. Either from every class's gradient, or by a
sketch that leaves only a few classes to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfrobust.alignment.sketch import interval, sums_of_squares
from tfrobust.classifier import CHUNK, class_gradients, compiled, gradients_at
from tfrobust.norms import inner, norm

__all__ = ["RunnerUp", "by_sketch", "in_chunks", "together"]

# a class is left out only if its bound is above the best ratio by more than rounding
SLACK = 1e-4


class RunnerUp(NamedTuple):
    """What a search finds, one row an example."""

    values: tf.Tensor
    """(batch, classes) logits."""
    predicted: tf.Tensor
    """(batch,) int32."""
    runner_up: tf.Tensor
    """(batch,) int32."""
    robustness: tf.Tensor
    """(batch,) rho~."""
    gradient: tf.Tensor
    """(batch, *input), g."""
    binarized: tf.Tensor
    """(batch, *input), g+."""
    bias: tf.Tensor
    """(batch, classes), Psi^i - <x, grad Psi^i>."""
    exact_gradients: tf.Tensor
    """(batch,) int32, how many classes' gradients were computed."""


def together(logits: keras.Model) -> Callable[[tf.Tensor], RunnerUp]:
    """All classes' gradients in one graph, over one forward pass."""

    def run(x: tf.Tensor) -> RunnerUp:
        values, pull_back = gradients_at(logits, x)
        classes = values.shape[1]
        gradients = [class_gradients(pull_back, values, k) for k in range(classes)]
        stacked = tf.stack(gradients, axis=1)
        predicted = tf.argmax(values, axis=1, output_type=tf.int32)
        gradient = tf.gather(stacked, predicted, batch_dims=1)
        gaps = tf.stack([norm(gradient - other) for other in gradients], axis=1)
        runner_up, robustness = _nearest_boundary(values, gaps, predicted)
        binarized = gradient - tf.gather(stacked, runner_up, batch_dims=1)
        bias = values - tf.stack([inner(x, other) for other in gradients], axis=1)
        count = tf.fill(tf.shape(predicted), classes)
        return RunnerUp(values, predicted, runner_up, robustness, gradient, binarized, bias, count)

    return run


def in_chunks(
    model: keras.Model, classes: int, checked: np.ndarray
) -> Callable[[tf.Tensor], RunnerUp]:
    """Gradients of `CHUNK` classes at a time; only their distances to g are kept."""

    def distances(size: int) -> Callable[[keras.Model], Callable[..., Any]]:
        def build(logits: keras.Model) -> Callable[..., Any]:
            def run(
                x: tf.Tensor, gradient: tf.Tensor, first: tf.Tensor
            ) -> tuple[tf.Tensor, tf.Tensor]:
                values, pull_back = gradients_at(logits, x)
                others = [class_gradients(pull_back, values, first + k) for k in range(size)]
                gaps = tf.stack([norm(gradient - other) for other in others], axis=1)
                return gaps, tf.stack([inner(x, other) for other in others], axis=1)

            return run

        return build

    def run(x: tf.Tensor) -> RunnerUp:
        values, predicted, gradient = compiled(model, "measure top", _top, checked)(x)
        parts = []
        for first in range(0, classes, CHUNK):
            size = min(CHUNK, classes - first)
            chunk = compiled(model, ("measure distances", size), distances(size), checked)
            parts.append(chunk(x, gradient, tf.constant(first)))
        gaps, homogeneous = (tf.concat(part, axis=1) for part in zip(*parts, strict=True))
        runner_up, robustness = _nearest_boundary(values, gaps, predicted)
        binarized = compiled(model, "measure runner-up", _finish, checked)(x, gradient, runner_up)
        count = tf.fill(tf.shape(predicted), classes)
        return RunnerUp(
            values,
            predicted,
            runner_up,
            robustness,
            gradient,
            binarized,
            values - homogeneous,
            count,
        )

    return run


def by_sketch(
    model: keras.Model,
    checked: np.ndarray,
    *,
    directions: int,
    failure_probability: float,
    seed: int,
) -> Callable[[tf.Tensor], RunnerUp]:
    """Exact gradients of those classes alone that random directions cannot rule out.

    With q the quantile of chi^2_m at delta, the failure probability, the bound
    low_j = (Psi^i* - Psi^j) / sqrt(S_j / q) is above r_j with probability delta (see
    `tfrobust.sketch`). Classes are computed exactly, those of small low_j first, until every class
    left out has low_j >= the smallest exact ratio.

    Why delta is not multiplied by the number of classes: the true minimiser j* is one fixed class,
    which does not depend on the directions. If it was not computed, low_j* >= r_j >= r_j* for the
    class j that was chosen, so that the answer can only be wrong where j*'s own bound fails, and
    that has probability delta; other classes' failures only add or save work. This holds for each
    example; as the directions are shared, examples fail together rather than independently. A
    wrong answer is still some class's exact ratio, an upper bound of rho~.
    """
    sums = sums_of_squares(model, checked, directions=directions, seed=seed)
    top = compiled(model, "measure top", _top, checked)
    finish = compiled(model, "measure runner-up", _finish, checked)

    def run(x: tf.Tensor) -> RunnerUp:
        values, predicted, gradient = top(x)
        squares, errors, homogeneous = (part.numpy() for part in sums(x, predicted))
        logits, own = values.numpy(), predicted.numpy()
        margins = logits.max(axis=1, keepdims=True) - logits
        lows = _lower_ratios(margins, squares, errors, directions, failure_probability)

        left = np.arange(logits.shape[1]) != own[:, None]
        smallest = np.where(left, margins, np.inf).argmin(axis=1)
        ratios = np.full(margins.shape, np.inf, np.float32)
        width = 1
        while True:
            best = ratios.min(axis=1)
            wanted = left & (lows < best[:, None])
            active = np.flatnonzero(wanted.any(axis=1))
            if not len(active):
                break
            if len(active) == 1 < len(own):
                # one row alone is rounded otherwise than rows of a batch, which can turn a ReLU
                active = np.repeat(active, 2)
            candidates = _most_promising(lows[active], wanted[active], width)
            gaps = compiled(model, ("measure gaps", width), _gaps(width), checked)
            lengths = gaps(
                tf.gather(x, active), tf.gather(gradient, active), tf.constant(candidates)
            )
            row, column = np.nonzero(candidates >= 0)
            found = active[row], candidates[row, column]
            ratios[found] = _ratios(margins[found], lengths.numpy()[row, column])
            left[found] = False
            # so that many near-ties cost no more forward passes than the exact search
            width = min(4 * width, CHUNK)

        # where every gradient vanishes the smallest margin names the runner-up
        runner_up = np.where(np.isinf(best), smallest, ratios.argmin(axis=1)).astype(np.int32)
        rows = np.arange(len(own))
        left[rows, runner_up] = False
        binarized = finish(x, gradient, tf.constant(runner_up))
        robustness = _ratios(margins[rows, runner_up], norm(binarized).numpy())
        count = (~left).sum(axis=1).astype(np.int32)
        return RunnerUp(
            values,
            predicted,
            tf.constant(runner_up),
            tf.constant(robustness),
            gradient,
            binarized,
            values - homogeneous,
            tf.constant(count),
        )

    return run


def _lower_ratios(
    margins: np.ndarray,
    squares: np.ndarray,
    errors: np.ndarray,
    directions: int,
    failure_probability: float,
) -> np.ndarray:
    """low_j, (batch, classes) float64; 0 where nothing is known, which rules nothing out."""
    _, upper = interval(squares, errors, directions, failure_probability)
    with np.errstate(divide="ignore", invalid="ignore"):
        lows = (1 - SLACK) * margins / upper
    # a tie is on the boundary, whatever the gradients say
    return np.where((margins > 0) & ~np.isnan(lows), lows, 0.0)


def _most_promising(lows: np.ndarray, wanted: np.ndarray, width: int) -> np.ndarray:
    """The `width` wanted classes of smallest bound in each row, (rows, width) int32, -1 beyond."""
    keys = np.where(wanted, lows, np.inf)
    order = np.argsort(keys, axis=1, kind="stable")[:, :width]
    found = np.where(np.take_along_axis(keys, order, axis=1) < np.inf, order, -1)
    missing = width - found.shape[1]
    return np.pad(found, ((0, 0), (0, missing)), constant_values=-1).astype(np.int32)


def _top(logits: keras.Model) -> Callable[..., Any]:
    """Logits, i* and g."""

    def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        values, pull_back = gradients_at(logits, x)
        predicted = tf.argmax(values, axis=1, output_type=tf.int32)
        return values, predicted, class_gradients(pull_back, values, predicted)

    return run


def _finish(logits: keras.Model) -> Callable[..., tf.Tensor]:
    """g+."""

    def run(x: tf.Tensor, gradient: tf.Tensor, runner_up: tf.Tensor) -> tf.Tensor:
        values, pull_back = gradients_at(logits, x)
        return gradient - class_gradients(pull_back, values, runner_up)

    return run


def _gaps(width: int) -> Callable[[keras.Model], Callable[..., tf.Tensor]]:
    """Distances of g to the gradients of each example's own candidates, (batch, width)."""

    def build(logits: keras.Model) -> Callable[..., tf.Tensor]:
        # no loop in the graph: it would round the forward pass otherwise than `_top` does
        def run(x: tf.Tensor, gradient: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
            values, pull_back = gradients_at(logits, x)
            others = [class_gradients(pull_back, values, candidates[:, k]) for k in range(width)]
            return tf.stack([norm(gradient - other) for other in others], axis=1)

        return run

    return build


def _ratios(margins: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """r_j; a tie is on the boundary, whatever the gradients say."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(margins > 0, margins / gaps, np.float32(0))


def _nearest_boundary(
    values: tf.Tensor, gaps: tf.Tensor, predicted: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """j* and rho~ of eq. (9) from the logits and all ||grad Psi^i* - grad Psi^j||."""
    margins = tf.gather(values, predicted, batch_dims=1)[:, None] - values
    # a tie is on the boundary, whatever the gradients say
    ratios = tf.where(margins > 0, margins / gaps, tf.zeros_like(margins))
    others = tf.one_hot(predicted, values.shape[1], on_value=False, off_value=True)
    ratios = tf.where(others, ratios, tf.fill(tf.shape(ratios), np.float32(np.inf)))
    # where every gradient vanishes the smallest margin names the runner-up
    margins = tf.where(others, margins, tf.fill(tf.shape(margins), np.float32(np.inf)))
    robustness = tf.reduce_min(ratios, axis=1)
    runner_up = tf.where(
        tf.math.is_inf(robustness), tf.argmin(margins, axis=1), tf.argmin(ratios, axis=1)
    )
    return tf.cast(runner_up, tf.int32), robustness
