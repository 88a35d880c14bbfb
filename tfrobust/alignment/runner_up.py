"""The runner-up j* of eq. (9): the class whose linearized boundary is nearest.

Etmann 2019, eq. (9): rho~ = min over j != i* of r_j, with the ratio
r_j = (Psi^i* - Psi^j) / ||grad Psi^i* - grad Psi^j||. Either from the gradients of all classes, or
from those of the few classes that a sketch cannot rule out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfrobust.alignment.sketch import interval, roots_of_sums
from tfrobust.classifier import CHUNK, Classifier, class_gradients, gradients_at
from tfrobust.norms import inner, norm

__all__ = ["RunnerUp", "exact_search", "exact_search_in_chunks", "sketch_search"]

# relative: a class is left out only if its bound exceeds the best ratio by more than rounding
SLACK = 1e-4


class RunnerUp(NamedTuple):
    """Result of a search, one row per example."""

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


def exact_search(logits: keras.Model) -> Callable[[tf.Tensor], RunnerUp]:
    """Build: the gradients of all classes in one graph, over one forward pass."""

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


def exact_search_in_chunks(classifier: Classifier) -> Callable[[tf.Tensor], RunnerUp]:
    """Gradients of `CHUNK` classes at a time; only their distances to g are kept."""

    def run(x: tf.Tensor) -> RunnerUp:
        values, predicted, gradient = classifier.compiled(_top_gradient)(x)
        parts = []
        for first in range(0, classifier.classes, CHUNK):
            size = min(CHUNK, classifier.classes - first)
            chunk = classifier.compiled(_chunk_of_classes, size)
            parts.append(chunk(x, gradient, tf.constant(first)))
        gaps, homogeneous = (tf.concat(part, axis=1) for part in zip(*parts, strict=True))
        runner_up, robustness = _nearest_boundary(values, gaps, predicted)
        binarized = classifier.compiled(_margin_gradient)(x, gradient, runner_up)
        return RunnerUp(
            values=values,
            predicted=predicted,
            runner_up=runner_up,
            robustness=robustness,
            bias=values - homogeneous,
            gradient=gradient,
            binarized=binarized,
            exact_gradients=tf.fill(tf.shape(predicted), classifier.classes),
        )

    return run


def sketch_search(
    classifier: Classifier, *, directions: int, failure_probability: float, seed: int
) -> Callable[[tf.Tensor], RunnerUp]:
    """Exact gradients of only those classes that random directions cannot rule out.

    Let delta be the failure probability and q its chi^2_m quantile, P(chi^2_m <= q) = delta. As
    S_j / D_j ~ chi^2_m (see `tfrobust.alignment.sketch`), sqrt(S_j / q) is below sqrt(D_j), the
    length of the gap, with probability delta only. So the bound

        low_j = (Psi^i* - Psi^j) / sqrt(S_j / q)  <=  r_j = (Psi^i* - Psi^j) / sqrt(D_j)

    fails, low_j > r_j, with probability delta. Classes are computed exactly, those of small low_j
    first, until every class k left out has low_k >= r_min, the smallest exact ratio.

    Why delta is not multiplied by the number of classes: let j* be the true minimiser of r_j, one
    fixed class that does not depend on the directions. The answer is wrong only if j* was left
    out; then low_j* >= r_min >= r_j*, so that j*'s own bound fails:

        P(wrong) <= P(low_j* > r_j*) = delta        (ties are no errors)

    If the bounds of other classes fail, these classes are left out or computed needlessly, but
    only j* has to be computed for a correct answer. This holds for each example; as examples share
    the directions, their failures are not independent. A wrong answer is still the exact ratio of
    some class, an upper bound of rho~.
    """
    sums = roots_of_sums(classifier, directions=directions, seed=seed)
    top_gradient = classifier.compiled(_top_gradient)
    margin_gradient = classifier.compiled(_margin_gradient)

    def run(x: tf.Tensor) -> RunnerUp:
        values, predicted, gradient = top_gradient(x)
        roots, errors, homogeneous = (part.numpy() for part in sums(x, predicted))
        logits, rows = values.numpy(), np.arange(len(x))
        margins = logits.max(axis=1, keepdims=True) - logits
        lows = _lower_ratios(margins, roots, errors, directions, failure_probability)
        others = np.arange(logits.shape[1]) != predicted.numpy()[:, None]
        ratios, left_out = _exact_ratios(classifier, x, gradient, margins, lows, others)

        # where every gradient gap vanishes, the class with the smallest margin is the runner-up
        smallest = np.where(others, margins, np.inf).argmin(axis=1)
        vanishing = np.isinf(ratios.min(axis=1))
        runner_up = np.where(vanishing, smallest, ratios.argmin(axis=1)).astype(np.int32)
        left_out[rows, runner_up] = False
        binarized = margin_gradient(x, gradient, tf.constant(runner_up))
        robustness = _ratios(margins[rows, runner_up], norm(binarized).numpy())
        return RunnerUp(
            values=values,
            predicted=predicted,
            runner_up=tf.constant(runner_up),
            robustness=tf.constant(robustness),
            gradient=gradient,
            binarized=binarized,
            bias=values - homogeneous,
            exact_gradients=tf.constant((~left_out).sum(axis=1).astype(np.int32)),
        )

    return run


def _exact_ratios(
    classifier: Classifier,
    x: tf.Tensor,
    gradient: tf.Tensor,
    margins: np.ndarray,
    lows: np.ndarray,
    others: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """r_j of the classes that `lows` does not rule out, else infinite; classes left out.

    Both (batch, classes); the predicted class is not among those left out.
    """
    left_out = others.copy()
    ratios = np.full(margins.shape, np.inf, np.float32)
    width = 1
    while True:
        open_classes = left_out & (lows < ratios.min(axis=1)[:, None])
        active = np.flatnonzero(open_classes.any(axis=1))
        if not len(active):
            return ratios, left_out
        if len(active) == 1 < len(margins):
            # kernels for a batch of 1 round differently, which may flip a ReLU
            active = np.repeat(active, 2)
        candidates = _most_promising(lows[active], open_classes[active], width)
        gap_norms = classifier.compiled(_gap_norms, width)
        lengths = gap_norms(
            tf.gather(x, active), tf.gather(gradient, active), tf.constant(candidates)
        )
        row, column = np.nonzero(candidates >= 0)
        computed = active[row], candidates[row, column]
        ratios[computed] = _ratios(margins[computed], lengths.numpy()[row, column])
        left_out[computed] = False
        # grows so that many near-ties take no more forward passes than the exact search
        width = min(4 * width, CHUNK)


def _lower_ratios(
    margins: np.ndarray,
    roots: np.ndarray,
    errors: np.ndarray,
    directions: int,
    failure_probability: float,
) -> np.ndarray:
    """low_j = (1 - SLACK) (Psi^i* - Psi^j) sqrt(q) / (sqrt(S_j) + error_j).

    (batch, classes) float64; 0 where it is undefined, which does not rule the class out.
    """
    _, upper = interval(roots, errors, directions, failure_probability)
    with np.errstate(divide="ignore", invalid="ignore"):
        lows = (1 - SLACK) * margins / upper
    # a tie lies on the boundary, for any gradients
    return np.where((margins > 0) & ~np.isnan(lows), lows, 0.0)


def _most_promising(lows: np.ndarray, open_classes: np.ndarray, width: int) -> np.ndarray:
    """The `width` open classes of smallest bound in each row, (rows, width) int32; -1 pads."""
    keys = np.where(open_classes, lows, np.inf)
    order = np.argsort(keys, axis=1, kind="stable")[:, :width]
    candidates = np.where(np.take_along_axis(keys, order, axis=1) < np.inf, order, -1)
    missing = width - candidates.shape[1]
    return np.pad(candidates, ((0, 0), (0, missing)), constant_values=-1).astype(np.int32)


def _top_gradient(logits: keras.Model) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Build: logits, i* and g."""

    def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        values, pull_back = gradients_at(logits, x)
        predicted = tf.argmax(values, axis=1, output_type=tf.int32)
        return values, predicted, class_gradients(pull_back, values, predicted)

    return run


def _margin_gradient(logits: keras.Model) -> Callable[..., tf.Tensor]:
    """Build: g+, from g and j*."""

    def run(x: tf.Tensor, gradient: tf.Tensor, runner_up: tf.Tensor) -> tf.Tensor:
        values, pull_back = gradients_at(logits, x)
        return gradient - class_gradients(pull_back, values, runner_up)

    return run


def _chunk_of_classes(logits: keras.Model, size: int) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Build: distances of g to `size` classes' gradients, and <x, grad Psi^j>; (batch, size)."""

    def run(x: tf.Tensor, gradient: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values, pull_back = gradients_at(logits, x)
        others = [class_gradients(pull_back, values, first + k) for k in range(size)]
        gaps = tf.stack([norm(gradient - other) for other in others], axis=1)
        return gaps, tf.stack([inner(x, other) for other in others], axis=1)

    return run


def _gap_norms(logits: keras.Model, width: int) -> Callable[..., tf.Tensor]:
    """Build: distances of g to the gradients of each example's candidates, (batch, width)."""

    # no loop in the graph: it would round the forward pass differently from `_top_gradient`
    def run(x: tf.Tensor, gradient: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        values, pull_back = gradients_at(logits, x)
        others = [class_gradients(pull_back, values, candidates[:, k]) for k in range(width)]
        return tf.stack([norm(gradient - other) for other in others], axis=1)

    return run


def _ratios(margins: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """r_j; 0 for a tie, which lies on the boundary for any gradients."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(margins > 0, margins / gaps, np.float32(0))


def _nearest_boundary(
    values: tf.Tensor, gaps: tf.Tensor, predicted: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """j* and rho~ of eq. (9) from the logits and all ||grad Psi^i* - grad Psi^j||."""
    margins = tf.gather(values, predicted, batch_dims=1)[:, None] - values
    # a tie lies on the boundary, for any gradients
    ratios = tf.where(margins > 0, margins / gaps, tf.zeros_like(margins))
    others = tf.one_hot(predicted, values.shape[1], on_value=False, off_value=True)
    ratios = tf.where(others, ratios, tf.fill(tf.shape(ratios), np.float32(np.inf)))
    # where every gradient gap vanishes, the class with the smallest margin is the runner-up
    margins = tf.where(others, margins, tf.fill(tf.shape(margins), np.float32(np.inf)))
    robustness = tf.reduce_min(ratios, axis=1)
    runner_up = tf.where(
        tf.math.is_inf(robustness), tf.argmin(margins, axis=1), tf.argmin(ratios, axis=1)
    )
    return tf.cast(runner_up, tf.int32), robustness
