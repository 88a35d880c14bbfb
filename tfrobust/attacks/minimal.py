"""The smallest adversarial perturbation that an attack finds, verified on the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import norms
from tfrobust.arguments import as_pixels, as_range
from tfrobust.attacks.direction import AttackFunction
from tfrobust.attacks.registry import prepare
from tfrobust.attacks.result import MinimalPerturbation
from tfrobust.attacks.verification import predictions, verified
from tfrobust.classifier import Classifier, as_images, as_labels, in_batches
from tfrobust.errors import InputError

__all__ = ["minimal"]


def minimal(
    model: keras.Model,
    x: Any,
    attack: str = "gradient",
    *,
    labels: Any = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    norm: float = 2,
    batch_size: int = 100,
    **settings: Any,
) -> MinimalPerturbation:
    """The smallest perturbation found by an attack that changes each example's class.

    Every adversarial is verified on `model` as passed in; one that is not finite, leaves the
    value range or is not misclassified counts as a failure. An example that is misclassified
    to begin with has distance 0 and is not attacked.

    Args:
        model: any classifier, also one that ends in a softmax.
        x: (batch, *input), inside `value_range` up to float rounding, which is clipped.
        attack: built in are "super_deepfool", "gradient" (Etmann 2019), and "fast_gradient_sign",
            "fast_gradient_value", "lbfgs" and "hot_cold" (Peck 2017, chapter 2); "basic_iterative",
            "carlini_wagner" and "deepfool" are Foolbox's with the settings of Etmann 2019; any
            other attack of Foolbox by the name of its class in `foolbox.attacks`.
        labels: (batch,) classes that the perturbation must leave; the model's predictions where
            None.
        value_range: smallest and largest valid pixel.
        norm: p of the reported distance, 1, 2 or infinity. "super_deepfool" minimises it for 2 and
            infinity, the others whatever is theirs: an l2 attack's distances may be reported in
            another norm.
        batch_size: examples attacked at a time; bounds the memory. Attacks of Foolbox that use
            the whole batch, as "carlini_wagner" does to stop early, depend on it slightly.
        settings: of the attack: `steps`, `rounds`, `refinements` and `candidates` of
            "super_deepfool"; `epsilons`
            and `max_epsilon` of "gradient"; `max_epsilon`, `steps`,
            `clip` and `bracketed` of "fast_gradient_sign", "fast_gradient_value" and "hot_cold",
            `normalized` of the second, `hot` and `cold_weight` of the last; `targets`,
            `initial_const`, `steps`, `max_iterations`, `penalty` and `goal` of "lbfgs"; the
            constructor's for Foolbox's, whose lengths are in units of the range's width, and
            `bisection_steps` for those of a fixed radius, `keep` for gradient descent. Each is
            described where the attack is, in the modules of `tfrobust.attacks`. With `clip=False`
            images may lie, and perturbations may lead, outside `value_range`.

    Raises:
        ValueError: x, labels, the range, the norm or the attack's name is invalid, or images
            lie outside the range.
        TypeError: the attack has no such setting.
        NotLogitsError: the model has no logits to attack.
        FoolboxError: an attack of Foolbox's refuses its settings or the images.
    """
    if norm not in (1, 2, math.inf):
        raise InputError(f"norm must be 1, 2 or infinity, got {norm!r}")
    x = as_images(model, x)
    value_range = as_range(value_range)
    within = value_range if settings.get("clip", True) else (-math.inf, math.inf)
    x = as_pixels("x", x, within) if math.isfinite(within[0]) else x
    classifier = Classifier.of(model, x)
    if labels is not None:
        labels = as_labels(labels, len(x), classifier.classes)
    original = classifier.compiled_outputs()
    run = prepare(attack, model, x, value_range=value_range, norm=norm, settings=settings)
    if labels is None:
        labels = predictions(model, x, batch_size)

    perturbation, success, adversarial_label, distance, forward, backward = in_batches(
        lambda rows, row_labels: _attacked(original, run, rows, row_labels, within, norm),
        x,
        labels,
        batch_size=batch_size,
        description=attack,
    )
    return MinimalPerturbation(
        distance=distance,
        perturbation=perturbation,
        success=success,
        labels=labels,
        adversarial_label=adversarial_label,
        norm=float(norm),
        attack=attack,
        forward_passes=forward,
        backward_passes=backward,
    )


def _attacked(
    original: Callable[[tf.Tensor], tf.Tensor],
    run: AttackFunction,
    x: tf.Tensor,
    labels: tf.Tensor,
    value_range: tuple[float, float],
    norm: float,
) -> tuple[Any, ...]:
    """One batch: perturbations, successes, classes (-1 for none), distances, passes."""
    predicted = np.argmax(original(x), axis=1).astype(np.int32)
    success = predicted != labels.numpy()
    perturbation = np.zeros(x.shape, np.float32)
    forward, backward = (np.zeros(len(labels), np.float32) for _ in range(2))
    attacked = np.flatnonzero(~success)
    if len(attacked):
        rows, row_labels = tf.gather(x, attacked), tf.gather(labels, attacked)
        candidates, claimed, *passes = run(rows, row_labels)
        changes, classes, adversarial = verified(
            original, rows, candidates, row_labels, value_range
        )
        adversarial &= np.asarray(claimed)
        forward[attacked], backward[attacked] = passes or (np.nan, np.nan)
        successful = attacked[adversarial]
        perturbation[successful], predicted[successful] = changes[adversarial], classes[adversarial]
        success[successful] = True
    distance = np.where(success, norms.norm(perturbation, norm), np.float32(np.inf))
    classes = np.where(success, predicted, -1).astype(np.int32)
    return perturbation, success, classes, distance, forward, backward
