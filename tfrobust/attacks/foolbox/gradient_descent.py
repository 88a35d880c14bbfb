"""Foolbox's gradient descent with compiled gradients and a radius per example."""

from __future__ import annotations

from typing import Any

import eagerpy as ep
import numpy as np
from foolbox.attacks.gradient_descent_base import (
    BaseGradientDescent,
    L1BaseGradientDescent,
    L2BaseGradientDescent,
    LinfBaseGradientDescent,
    uniform_l1_n_balls,
    uniform_l2_n_balls,
)

from tfrobust.attacks.direction import loss_direction
from tfrobust.classifier import Classifier
from tfrobust.norms import norm, per_example

__all__ = ["with_radius_per_example", "without_underflow"]

_WITH_PROJECTION = (L1BaseGradientDescent, L2BaseGradientDescent, LinfBaseGradientDescent)


def without_underflow(attack: BaseGradientDescent, model: Any, x: np.ndarray) -> None:
    """Replace this attack object's gradient by the loss gradient's direction, compiled.

    Foolbox normalizes the gradient of each example, so that the steps are the same except where
    the gradient of the cross-entropy underflows to zero, and Foolbox would not move.
    """
    direction = Classifier.of(model, x).compiled(_loss_direction)
    # Foolbox passes the result of get_loss_fn to value_and_grad
    attack.get_loss_fn = lambda _, classes: classes.raw

    def value_and_grad(classes: Any, images: ep.Tensor) -> tuple[None, ep.Tensor]:
        return None, ep.astensor(direction(images.raw, classes))

    attack.value_and_grad = value_and_grad


def _loss_direction(logits: Any) -> Any:
    return lambda rows, labels: loss_direction(logits, rows, labels)


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
