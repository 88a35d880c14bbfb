"""Alignment, linearized robustness, the homogeneous decomposition and the bounds between them.

Etmann, Lunz, Maass, Schoenlieb: On the Connection Between Adversarial Robustness and Saliency Map
Interpretability, ICML 2019. Everything is measured in the network's input space, in l2, for the
predicted class i* and the binarized classifier Psi+ = Psi^i* - Psi^j* (written with a dagger
there), whose gradient is g+ and whose bias part is beta+.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from tfrobust.batches import as_images, in_batches
from tfrobust.decomposition import Decomposition, bias_part, decompose, warn_if_inexact
from tfrobust.differentiate import (
    CHUNK,
    class_gradients,
    classes_of,
    compiled,
    gradients_at,
)
from tfrobust.norms import inner, norm, per_example, unit

__all__ = ["Alignment", "Decomposition", "decompose", "measure"]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Measures of Etmann 2019, one row an example; every array has shape (batch,).

    Where a gradient vanishes the quotients are infinite or NaN; `undefined` counts those rows.
    """

    predicted: np.ndarray
    """int32, i* = F(x)."""
    runner_up: np.ndarray
    """int32, j*, the minimiser of eq. (9); not always the second largest logit."""
    margin: np.ndarray
    """Psi+(x) = Psi^i* - Psi^j*, in logits."""
    linearized_robustness: np.ndarray
    """rho~, eq. (9): l2 distance to the nearest boundary of the linearized classifier."""
    alignment: np.ndarray
    """alpha, eq. (7): |<x, g>| / ||g||."""
    binarized_alignment: np.ndarray
    """alpha+, eq. (11): |<x, g+>| / ||g+||."""
    homogeneous_margin: np.ndarray
    """<x, g+>, in logits."""
    bias_margin: np.ndarray
    """beta+ = Psi+(x) - <x, g+>, in logits."""
    gradient_norm: np.ndarray
    """||g||, g the gradient of the predicted class's logit."""
    binarized_gradient_norm: np.ndarray
    """||g+||."""
    gradient_gap: np.ndarray
    """|| g+/||g+|| - g/||g|| ||, between 0 and 2."""
    input_norm: np.ndarray
    """||x||."""
    theorem2_binarized: np.ndarray
    """Right-hand side of eq. (14): alpha+ + |beta+| / ||g+||."""
    theorem2: np.ndarray
    """Right-hand side of eq. (15): alpha + ||x|| * gradient_gap + |beta+| / ||g+||."""
    shifted_alignment: np.ndarray
    """Alignment of logit i* at the bias-shifted input x^ = x + beta+ g+ / ||g+||^2."""
    shifted_gradient_gap: np.ndarray
    """|| g+/||g+|| - g^/||g^|| ||, g^ the gradient of logit i* at x^."""
    shifted_input_norm: np.ndarray
    """||x^||."""
    theorem3: np.ndarray
    """Right-hand side of eq. (16): shifted_alignment + ||x^|| * shifted_gradient_gap."""
    same_class_at_shift: np.ndarray
    """bool, F(x^) = F(x): then shifted_alignment is alpha at x^."""

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def undefined(self) -> int:
        """Rows with a quotient that is infinite or NaN because a gradient vanished."""
        columns = [self.linearized_robustness, self.alignment, self.theorem2, self.theorem3]
        return int((~np.isfinite(np.stack(columns)).all(axis=0)).sum())

    @property
    def bias_distance(self) -> np.ndarray:
        """|beta+| / ||g+||, the second summand of eq. (14)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(self.bias_margin) / self.binarized_gradient_norm

    def median(self, name: str) -> float:
        """Median of one measure over the examples where it is finite; NaN if there are none."""
        values = np.asarray(getattr(self, name), float)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else float("nan")

    def medians(self) -> dict[str, float]:
        """`median` of every measure, class indices left out; flags become fractions."""
        result = {}
        for field in dataclasses.fields(self):
            if field.name == "same_class_at_shift":
                result[field.name] = float(np.mean(self.same_class_at_shift))
            elif field.name not in ("predicted", "runner_up"):
                result[field.name] = self.median(field.name)
        return {**result, "bias_distance": self.median("bias_distance")}

    def to_frame(self) -> pd.DataFrame:
        """One row an example, one column a measure."""
        return pd.DataFrame(
            {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )


def measure(model: keras.Model, x: Any, *, batch_size: int = 100) -> Alignment:
    """Alignment, linearized robustness and the bounds of Theorems 2 and 3 at each example.

    One forward pass and one backward pass a class, plus one of each at the shifted input; in
    chunks of classes where there are many, so that memory is bounded by `batch_size`.

    Args:
        model: any Keras classifier; see `logits_model`.
        x: (batch, *input), in the space that the model takes (after preprocessing).
        batch_size: examples a call.

    Returns:
        `Alignment`, one row an example.

    Raises:
        ValueError: x has the wrong shape, is empty or is not finite.
        NotLogitsError: the model has no logits to give.

    Warns:
        UserWarning: the network is outside Theorem 1's class, so that beta+ is not the biases'
            part alone; says by how much. Checked on the first batch.
    """
    x = as_images(model, x)
    classes = classes_of(model, x)
    warn_if_inexact(bias_part(model, x[:batch_size], batch_size=batch_size))
    if classes <= CHUNK:
        run = compiled(model, "measure", _measure_together, x)
    else:
        run = _measure_in_chunks(model, classes, x)
    columns = in_batches(run, x, batch_size=batch_size, description="alignment")
    return Alignment(**columns)


def _measure_together(logits: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """All classes' gradients in one graph, over one forward pass."""

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        values, pull_back = gradients_at(logits, x)
        gradients = [class_gradients(pull_back, values, k) for k in range(values.shape[1])]
        stacked = tf.stack(gradients, axis=1)
        predicted = tf.argmax(values, axis=1, output_type=tf.int32)
        gradient = tf.gather(stacked, predicted, batch_dims=1)
        gaps = tf.stack([norm(gradient - other) for other in gradients], axis=1)
        runner_up, robustness = _nearest_boundary(values, gaps, predicted)
        binarized = gradient - tf.gather(stacked, runner_up, batch_dims=1)
        return _columns(logits, x, values, predicted, runner_up, robustness, gradient, binarized)

    return run


def _measure_in_chunks(
    model: keras.Model, classes: int, checked: np.ndarray
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Gradients of `CHUNK` classes at a time; only their distances to g are kept."""

    def top(logits: keras.Model) -> Callable[..., Any]:
        def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            values, pull_back = gradients_at(logits, x)
            predicted = tf.argmax(values, axis=1, output_type=tf.int32)
            return values, predicted, class_gradients(pull_back, values, predicted)

        return run

    def distances(size: int) -> Callable[[keras.Model], Callable[..., Any]]:
        def build(logits: keras.Model) -> Callable[..., Any]:
            def run(x: tf.Tensor, gradient: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
                values, pull_back = gradients_at(logits, x)
                others = (class_gradients(pull_back, values, first + k) for k in range(size))
                return tf.stack([norm(gradient - other) for other in others], axis=1)

            return run

        return build

    def finish(logits: keras.Model) -> Callable[..., Any]:
        def run(
            x: tf.Tensor, gradient: tf.Tensor, gaps: tf.Tensor, predicted: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            values, pull_back = gradients_at(logits, x)
            runner_up, robustness = _nearest_boundary(values, gaps, predicted)
            binarized = gradient - class_gradients(pull_back, values, runner_up)
            return _columns(
                logits, x, values, predicted, runner_up, robustness, gradient, binarized
            )

        return run

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        _, predicted, gradient = compiled(model, "measure top", top, checked)(x)
        gaps = []
        for first in range(0, classes, CHUNK):
            size = min(CHUNK, classes - first)
            chunk = compiled(model, ("measure distances", size), distances(size), checked)
            gaps.append(chunk(x, gradient, tf.constant(first)))
        last = compiled(model, "measure finish", finish, checked)
        return last(x, gradient, tf.concat(gaps, axis=1), predicted)

    return run


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


def _columns(
    logits: keras.Model,
    x: tf.Tensor,
    values: tf.Tensor,
    predicted: tf.Tensor,
    runner_up: tf.Tensor,
    robustness: tf.Tensor,
    gradient: tf.Tensor,
    binarized: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Every field of `Alignment` from the two gradients."""
    margin = tf.gather(values, predicted, batch_dims=1) - tf.gather(values, runner_up, batch_dims=1)
    gradient_norm, binarized_norm = norm(gradient), norm(binarized)
    homogeneous = inner(x, binarized)
    bias = margin - homogeneous
    bias_distance = tf.abs(bias) / binarized_norm
    alignment = tf.abs(inner(x, gradient)) / gradient_norm
    binarized_alignment = tf.abs(homogeneous) / binarized_norm
    binarized_unit = unit(binarized)
    gap = norm(binarized_unit - unit(gradient))
    input_norm = norm(x)

    shift = tf.math.divide_no_nan(bias, tf.square(binarized_norm))
    shifted = x + per_example(shift, x) * binarized
    shifted_values, pull_back = gradients_at(logits, shifted)
    shifted_gradient = class_gradients(pull_back, shifted_values, predicted)
    shifted_alignment = tf.abs(inner(shifted, shifted_gradient)) / norm(shifted_gradient)
    shifted_gap = norm(binarized_unit - unit(shifted_gradient))
    shifted_norm = norm(shifted)
    return {
        "predicted": predicted,
        "runner_up": runner_up,
        "margin": margin,
        "linearized_robustness": robustness,
        "alignment": alignment,
        "binarized_alignment": binarized_alignment,
        "homogeneous_margin": homogeneous,
        "bias_margin": bias,
        "gradient_norm": gradient_norm,
        "binarized_gradient_norm": binarized_norm,
        "gradient_gap": gap,
        "input_norm": input_norm,
        "theorem2_binarized": binarized_alignment + bias_distance,
        "theorem2": alignment + input_norm * gap + bias_distance,
        "shifted_alignment": shifted_alignment,
        "shifted_gradient_gap": shifted_gap,
        "shifted_input_norm": shifted_norm,
        "theorem3": shifted_alignment + shifted_norm * shifted_gap,
        "same_class_at_shift": tf.equal(
            tf.argmax(shifted_values, axis=1, output_type=tf.int32), predicted
        ),
    }
