"""Box-constrained L-BFGS (Szegedy 2014): the smallest perturbation towards a target class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from tfrobust.arguments import as_count
from tfrobust.attacks.direction import (
    AttackFunction,
    label_lead,
    misclassified,
    rounding_of,
)
from tfrobust.classifier import Classifier, gradients_at, softmax, values_of
from tfrobust.errors import InputError

__all__ = ["lbfgs"]

# c is first changed by this factor, at most CHANGES times, until both outcomes have occurred
FACTOR, CHANGES = 10.0, 8
# relative change of the value, and projected gradient, at which L-BFGS-B stops
TOLERANCE = 1e-5


def lbfgs(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *,
    targets: str | int | Sequence[int] = "runner_up",
    initial_const: float = 1.0,
    steps: int = 8,
    max_iterations: int = 100,
    penalty: Literal["square", "norm"] = "square",
    goal: Literal["any", "target"] = "any",
) -> AttackFunction:
    """The smallest adversarial met while minimising c ||r||^2 + cross-entropy(x + r, target).

    SciPy's L-BFGS-B keeps x + r in the value range. A larger c keeps r smaller, so that the largest
    c with an adversarial minimum is searched: c is multiplied or divided by 10, at most 8 times,
    until one minimum is adversarial and one is not, then bisected on a logarithmic scale. Each
    minimisation starts at the last adversarial minimum, the first ones at x. Any class other than
    the label counts as adversarial, not only the target; of several targets the smallest result is
    kept.

    Szegedy 2014, section 4.1, and Peck 2017, section 2.5.1, minimise c ||r|| and want the target
    class itself: `penalty="norm"`, `goal="target"`. The square is smooth at r = 0. Both print the
    *smallest* c whose minimum has the target class, which is 0 for a c at the norm; here the
    largest is searched in either form.

    Examples are attacked one at a time, each in about ten minimisations, in total 100 to 200
    forward and backward passes of one image per target: slow compared with attacks on batches. The
    search ends at a loss or gradient that is not finite, and keeps its best result so far.

    Args:
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        targets: "runner_up", the class with the largest logit other than the label's; "all" other
            classes, at a cost proportional to their number; or one class or several by index. The
            attack fails on an example whose only target is its label.
        initial_const: the first c, for perturbations in units of the value range's width.
        steps: bisections of c, which is determined to a factor of 10**(2**-steps).
        max_iterations: of L-BFGS-B at each c.
        penalty: "square", c ||r||^2, or "norm", c ||r||.
        goal: "any" class other than the label, or the "target".

    Raises:
        ValueError: `targets` names no classes, `initial_const` is not positive, `steps` or
            `max_iterations` is not a whole number of at least 0 or 1, or `penalty` or `goal` is
            unknown.
    """
    if penalty not in ("square", "norm"):
        raise InputError(f'penalty must be "square" or "norm", got {penalty!r}')
    if goal not in ("any", "target"):
        raise InputError(f'goal must be "any" or "target", got {goal!r}')
    classifier = Classifier.of(model, x)
    targets_of = _targets(targets, classifier.classes)
    if not 0 < initial_const < np.inf:
        raise InputError(f"initial_const must be positive and finite, got {initial_const}")
    steps = as_count("steps", steps, 0)
    max_iterations = as_count("max_iterations", max_iterations, 1)
    loss_at = classifier.compiled(_loss, batched_args=0)
    values_at = classifier.compiled(values_of, batched_args=0)

    def run(rows: tf.Tensor, labels: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        logits = values_at(rows).numpy()
        images, success = rows.numpy(), np.zeros(len(rows), bool)
        # L-BFGS-B's matrices are too small for several BLAS threads, which only synchronise
        with threadpool_limits(limits=1, user_api="blas"):
            for row, label in enumerate(labels.numpy()):
                search = _Search(loss_at, images[row], label, value_range, max_iterations)
                search.squared, search.targeted = penalty == "square", goal == "target"
                for target in targets_of(logits[row], label):
                    search.towards(target, initial_const, steps)
                images[row], success[row] = search.best, np.isfinite(search.length)
        return images, success

    return run


def _targets(targets: Any, classes: int) -> Callable[[np.ndarray, int], Iterator[int]]:
    """A function from the logits (classes,) and label of an example to the target classes."""
    if isinstance(targets, str) and targets == "runner_up":
        count, chosen = 1, range(classes)
    elif isinstance(targets, str) and targets == "all":
        count, chosen = classes, range(classes)
    else:
        indices = np.atleast_1d(np.asarray(targets))
        valid = indices.dtype.kind in "iu" and indices.ndim == 1 and len(indices)
        if not valid or (indices < 0).any() or (indices >= classes).any():
            raise InputError(
                f'targets must be "runner_up", "all", or classes in 0..{classes - 1}, '
                f"got {targets!r}"
            )
        count, chosen = classes, sorted(set(indices.tolist()))

    def targets_of(logits: np.ndarray, label: int) -> Iterator[int]:
        others = [target for target in chosen if target != label]
        return iter(sorted(others, key=lambda target: -logits[target])[:count])

    return targets_of


class _NotFiniteError(ArithmeticError):
    """The loss or its gradient is infinite or NaN, so that the search has to stop."""


class _Search:
    """The smallest adversarial of one example among all images at which the loss is evaluated."""

    def __init__(
        self,
        loss_at: Callable[..., Any],
        x: np.ndarray,
        label: int,
        value_range: tuple[float, float],
        max_iterations: int,
    ):
        self.loss_at = loss_at
        self.low, self.high = value_range
        self.width = self.high - self.low
        self.label = tf.constant([label])
        self.max_iterations = max_iterations
        self.squared, self.targeted = True, False
        self.best, self.length = x, np.inf
        # pixels in [0, 1], in the double precision of L-BFGS-B
        self.x = (x.astype(np.float64).ravel() - self.low) / self.width

    def towards(self, target: int, const: float, steps: int) -> None:
        """Try one target: bracket c, then bisect it."""
        target_class, start, below, above = tf.constant([target]), self.x, None, None
        try:
            for _ in range(CHANGES + 1):
                minimum, adversarial = self._minimum(target_class, const, start)
                start, below, above = (
                    (minimum, const, above) if adversarial else (start, below, const)
                )
                if below and above:
                    break
                const = const * FACTOR if adversarial else const / FACTOR
            else:
                return
            for _ in range(steps):
                const = float(np.sqrt(below * above))
                minimum, adversarial = self._minimum(target_class, const, start)
                start, below, above = (
                    (minimum, const, above) if adversarial else (start, below, const)
                )
        except _NotFiniteError:
            return

    def _minimum(
        self, target: tf.Tensor, const: float, start: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """The minimum, and whether it is adversarial; the smallest adversarial met is kept."""

        def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient, change, _ = self._at(z, target)
            square = float(change @ change)
            if self.squared:
                return const * square + loss, 2 * const * change + gradient
            length = square**0.5  # not differentiable at 0, where 0 is a subgradient
            slope = change / length if length else change
            return const * length + loss, const * slope + gradient

        options = {"maxiter": self.max_iterations, "ftol": TOLERANCE, "gtol": TOLERANCE}
        bounds = [(0.0, 1.0)] * len(start)
        result = minimize(
            objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        return result.x, self._at(result.x, target)[3]

    def _at(self, z: np.ndarray, target: tf.Tensor) -> tuple[float, np.ndarray, np.ndarray, bool]:
        """Loss, its gradient, the change, and whether the image is adversarial."""
        image = (self.low + self.width * z).astype(np.float32).reshape(self.best.shape)
        image = np.clip(image, np.float32(self.low), np.float32(self.high))
        loss, gradient, left, reached = self.loss_at(tf.constant(image[None]), target, self.label)
        adversarial = reached if self.targeted else left
        loss, gradient = float(loss[0]), gradient.numpy().astype(np.float64).ravel() * self.width
        if not (np.isfinite(loss) and np.isfinite(gradient).all()):
            raise _NotFiniteError
        change, adversarial = z - self.x, bool(adversarial[0])
        square = float(change @ change)
        if adversarial and square < self.length:
            self.best, self.length = image, square
        return loss, gradient, change, adversarial


def _loss(logits: keras.Model) -> Callable[..., Any]:
    def run(x: tf.Tensor, target: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
        values, pull_back = gradients_at(logits, x)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(target, values)
        one_hot = tf.one_hot(target, values.shape[1], dtype=values.dtype)
        reached = label_lead(values, target) > rounding_of(values)
        gradient = pull_back(softmax(values) - one_hot)
        return loss, gradient, misclassified(values, label), reached

    return run
