"""Foolbox's gradient descent with compiled gradients and a radius per example."""

from __future__ import annotations

from typing import Any

import eagerpy as ep
import numpy as np
import tensorflow as tf
from foolbox.attacks.gradient_descent_base import (
    BaseGradientDescent,
    L1BaseGradientDescent,
    L2BaseGradientDescent,
    LinfBaseGradientDescent,
    uniform_l1_n_balls,
    uniform_l2_n_balls,
)

from tfrobust.attacks.direction import loss_cotangent, misclassified
from tfrobust.classifier import Classifier, gradients_at
from tfrobust.norms import norm, per_example

__all__ = ["Iterates", "with_radius_per_example", "without_underflow"]

_WITH_PROJECTION = (L1BaseGradientDescent, L2BaseGradientDescent, LinfBaseGradientDescent)


class Iterates:
    """The smallest adversarial of all iterates of a search, per example."""

    def __init__(self) -> None:
        self._x: tf.Tensor | None = None

    def begin(self, x: tf.Tensor, p: float) -> None:
        """A new search from images x, whose perturbations are measured in the lp norm."""
        self._x, self._p = x, p
        self.smallest = x
        self._length = tf.fill([len(x)], tf.constant(np.inf, x.dtype))

    @property
    def found(self) -> tf.Tensor:
        """(batch,) bool, whether an adversarial was seen."""
        return tf.math.is_finite(self._length)

    def seen(self, images: tf.Tensor, adversarial: tf.Tensor) -> None:
        """Keep those that are adversarial and smaller than what was seen before, once begun."""
        if self._x is None:
            return
        length = norm(images - self._x, self._p)
        better = adversarial & (length < self._length)
        self.smallest = tf.where(per_example(better, images), images, self.smallest)
        self._length = tf.where(better, length, self._length)


def without_underflow(
    attack: BaseGradientDescent, model: Any, x: np.ndarray, value_range: tuple[float, float]
) -> Iterates:
    """Replace this attack object's gradient by the loss gradient's direction, compiled.

    Foolbox normalizes the gradient of each example, so that the steps are the same except where
    the gradient of the cross-entropy underflows to zero, and Foolbox would not move.

    Args:
        attack: sees pixels in [0, 1].
        model, x, value_range: of the classifier.

    Returns:
        what the search passes through, from the same forward passes.
    """
    direction = Classifier.of(model, x).compiled(_loss_direction, batched_args=2)
    low, width = (
        tf.constant(number, tf.float32)
        for number in (value_range[0], value_range[1] - value_range[0])
    )
    iterates = Iterates()
    # Foolbox passes the result of get_loss_fn to value_and_grad
    attack.get_loss_fn = lambda _, classes: classes.raw

    def value_and_grad(classes: Any, images: ep.Tensor) -> tuple[None, ep.Tensor]:
        towards, adversarial = direction(images.raw, tf.cast(classes, tf.int32), low, width)
        iterates.seen(images.raw, adversarial)
        return None, ep.astensor(towards)

    attack.value_and_grad = value_and_grad
    return iterates


def _loss_direction(logits: Any) -> Any:
    def run(
        images: tf.Tensor, labels: tf.Tensor, low: tf.Tensor, width: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        values, pull_back = gradients_at(logits, low + width * images)
        return pull_back(loss_cotangent(values, labels)), misclassified(values, labels)

    return run


def with_radius_per_example(attack: BaseGradientDescent) -> bool:
    """Make this attack object accept epsilon of shape (batch, 1, ...), one radius per example.

    Returns:
        False where the attack overrides the projection, so that it takes a single epsilon only.
    """
    bases = [base for base in _WITH_PROJECTION if type(attack).project is base.project]
    if not bases:
        return False
    p = bases[0].distance.p

    def project(x: ep.Tensor, x0: ep.Tensor, epsilon: Any) -> ep.Tensor:
        step = x - x0
        if p == np.inf:
            return x0 + ep.maximum(ep.minimum(step, epsilon), -epsilon)
        length = ep.astensor(per_example(norm(step.raw, p), step.raw))
        return x0 + step * ep.minimum(1, epsilon / ep.maximum(length, 1e-12))

    def get_random_start(x0: ep.Tensor, epsilon: Any) -> ep.Tensor:
        if p == np.inf:
            return x0 + epsilon * ep.uniform(x0, x0.shape, -1.0, 1.0)
        ball = {1: uniform_l1_n_balls, 2: uniform_l2_n_balls}[p]
        return x0 + epsilon * ball(x0, *x0.flatten(start=1).shape).reshape(x0.shape)

    attack.project = project
    attack.get_random_start = get_random_start
    return True
