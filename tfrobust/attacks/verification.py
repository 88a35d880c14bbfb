"""An attack's candidates, checked on the model itself."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfrobust import norms
from tfrobust.arguments import PIXEL_ROUNDING
from tfrobust.attacks.direction import all_finite
from tfrobust.classifier import Classifier, in_batches

__all__ = ["predictions", "verified"]


def predictions(
    model: keras.Model, x: np.ndarray, batch_size: int, *, in_single_precision: bool = False
) -> np.ndarray:
    """The model's classes of images from `as_images`, (batch, *input): (batch,) int32."""
    original = Classifier.of(model, x).compiled_outputs(in_single_precision=in_single_precision)
    outputs = in_batches(original, x, batch_size=batch_size, description="predictions")
    return np.argmax(outputs, axis=1).astype(np.int32)


def verified(
    original: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    candidates: tf.Tensor,
    labels: tf.Tensor,
    value_range: tuple[float, float],
    *,
    targeted: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Perturbations, classes of the perturbed examples, and whether they are adversarial.

    Adversarial are those that have left the class `labels`, or reached it if `targeted`. The class
    is -1 where the outputs are not finite: neither adversarial nor classified correctly.
    """
    low, high = value_range
    candidates = tf.cast(candidates, x.dtype)
    slack = PIXEL_ROUNDING * (high - low)
    valid = (candidates >= low - slack) & (candidates <= high + slack)  # false for NaN
    valid = tf.reduce_all(norms.flatten(valid), axis=1)
    clipped = norms.clip_to_range(candidates, value_range)
    changes = tf.where(norms.per_example(valid, x), clipped - x, tf.zeros_like(x))
    # evaluated at x + perturbation, as a user would, not at the attack's image
    outputs = original(norms.clip_to_range(x + changes, value_range))
    finite = all_finite(outputs).numpy()
    classes = np.where(finite, np.argmax(outputs, axis=1), -1).astype(np.int32)
    adversarial = (classes == labels.numpy()) if targeted else (classes != labels.numpy())
    return changes.numpy(), classes, adversarial & valid.numpy() & finite
