"""Alignment, linearized robustness, the homogeneous decomposition and the bounds between them.

Etmann, Lunz, Maass, Schoenlieb: On the Connection Between Adversarial Robustness and Saliency Map
Interpretability, ICML 2019. Everything is measured in the network's input space, in l2, for the
predicted class i* and the binarized classifier Psi+ = Psi^i* - Psi^j* (written with a dagger
there), whose gradient is g+ and whose bias part is beta+.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from tfrobust.alignment.decomposition import warn_if_inexact, with_explicit_bias
from tfrobust.alignment.runner_up import (
    RunnerUp,
    exact_search,
    exact_search_in_chunks,
    sketch_search,
)
from tfrobust.alignment.sketch import DISAGREEMENT, check_sketch, derivatives_agree
from tfrobust.arguments import as_seed
from tfrobust.classifier import (
    CHUNK,
    Classifier,
    as_images,
    class_gradients,
    gradients_at,
    in_batches,
)
from tfrobust.errors import InputError
from tfrobust.norms import inner, norm, per_example, unit

__all__ = ["Alignment", "measure"]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Measures of Etmann 2019, one row per example; arrays have shape (batch,) unless stated.

    Where a gradient vanishes, quotients are infinite or NaN; `undefined` counts these rows.
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
    exact_gradients: np.ndarray | None = None
    """int32, classes whose gradient was computed, the predicted one included."""
    bias: np.ndarray | None = None
    """(batch, classes), beta^i = Psi^i - <x, grad Psi^i> of every class; None from a table."""
    failure_probability: float | None = None
    """Probability that an example's runner-up is wrong; 0 for the exact search, None if unknown."""
    decomposition_error: np.ndarray | None = None
    """`Decomposition.relative_error`: near 0 inside Theorem 1's class; None if unknown."""

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Alignment:
        """The measures in a table of `to_frame`; other columns are ignored.

        Raises:
            ValueError: a measure is missing.
        """
        fields = dataclasses.fields(cls)
        missing = [
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.name not in frame
        ]
        if missing:
            raise InputError(f"the table is not one of Alignment's: it has no {', '.join(missing)}")
        return cls(**{f.name: frame[f.name].to_numpy() for f in fields if f.name in frame})

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
        """`median` of every measure; flags become fractions.

        Class indices, `bias` and the fields about the search are left out.
        """
        result = {}
        for field in dataclasses.fields(self):
            if field.name == "same_class_at_shift":
                result[field.name] = float(np.mean(self.same_class_at_shift))
            elif field.name not in _NO_MEASURES:
                result[field.name] = self.median(field.name)
        return {**result, "bias_distance": self.median("bias_distance")}

    def to_frame(self) -> pd.DataFrame:
        """One row per example, one column per measure; `bias`, (batch, classes), is left out."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return pd.DataFrame(
            {name: column for name, column in columns.items() if np.ndim(column) == 1}
        )


# fields that have no median
_NO_MEASURES = (
    "predicted",
    "runner_up",
    "exact_gradients",
    "bias",
    "failure_probability",
    "decomposition_error",
)


def measure(
    model: keras.Model,
    x: Any,
    *,
    search: Literal["exact", "sketch"] = "exact",
    directions: int = 64,
    failure_probability: float = 1e-6,
    seed: int = 0,
    batch_size: int = 100,
) -> Alignment:
    """Alignment, linearized robustness and the bounds of Theorems 2 and 3 at each example.

    The exact search takes one backward pass per class, in chunks of classes where there are many,
    so that memory is bounded by `batch_size`. The sketch takes `directions` Jacobian-vector
    products, and backward passes for only those classes that these cannot rule out as the
    runner-up; its result is exact except with probability `failure_probability`. It is faster from
    about a hundred classes on. Both end with a forward and a backward pass at the shifted input,
    and a derivative along the biases, for the error of the decomposition.

    Args:
        model: any Keras classifier; see `logits_model`.
        x: (batch, *input), the model's input (after preprocessing).
        search: how the runner-up is searched, "exact" or "sketch" (see
            `tfrobust.alignment.runner_up`).
        directions: of the sketch; with more of them fewer classes have to be computed exactly.
        failure_probability: of the sketch, for each example, that the runner-up is not the
            minimiser of eq. (9); `linearized_robustness` is then too large.
        seed: of the sketch's directions, which all examples share: results depend neither on
            `batch_size` nor on an example's place.
        batch_size: examples per call.

    Returns:
        `Alignment`, one row per example.

    Raises:
        ValueError: x has the wrong shape, is empty or is not finite; `search` is unknown;
            `directions` is less than 1; `failure_probability` is not between 0 and 1; `seed` is not
            a whole number from 0 to 2^32 - 1.
        NotLogitsError: the model has no logits to give.

    Warns:
        UserWarning: the network is outside Theorem 1's class, by the error in the message: beta+
            is not the biases' part alone; or the sketch cannot be used, and the search is exact.
    """
    if search not in ("exact", "sketch"):
        raise InputError(f'search must be "exact" or "sketch", got {search!r}')
    check_sketch(directions, failure_probability, "failure_probability")
    seed = as_seed("seed", seed)
    x = as_images(model, x)
    classifier = Classifier.of(model, x)
    if search == "sketch" and not derivatives_agree(classifier, x[:batch_size]):
        warnings.warn(
            f"{model.name}: {DISAGREEMENT}; the runner-up is searched exactly instead of with the "
            "sketch",
            stacklevel=2,
        )
        search = "exact"
    if search == "exact" and classifier.classes <= CHUNK:
        run = classifier.compiled(_measure_in_one_graph)
    elif search == "exact":
        run = _search_and_measure(classifier, exact_search_in_chunks(classifier))
    else:
        settings = {"directions": directions, "failure_probability": failure_probability}
        run = _search_and_measure(classifier, sketch_search(classifier, **settings, seed=seed))
    columns = in_batches(run, x, batch_size=batch_size, description="alignment")
    parts = with_explicit_bias(classifier, x, columns["bias"], batch_size=batch_size)
    warn_if_inexact(parts)
    return Alignment(
        **columns,
        failure_probability=failure_probability if search == "sketch" else 0.0,
        decomposition_error=parts.relative_error,
    )


def _search_and_measure(
    classifier: Classifier, search: Callable[[tf.Tensor], RunnerUp]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    columns = classifier.compiled(_columns)
    return lambda x: columns(x, *search(x))


def _measure_in_one_graph(logits: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Build: the exact search and the columns from its result, in one graph."""
    search, columns = exact_search(logits), _columns(logits)
    return lambda x: columns(x, *search(x))


def _columns(logits: keras.Model) -> Callable[..., dict[str, tf.Tensor]]:
    """Build: the fields of `Alignment` from x and the parts of a `RunnerUp`."""

    def run(x: tf.Tensor, *search_result: tf.Tensor) -> dict[str, tf.Tensor]:
        nearest = RunnerUp(*search_result)
        values, predicted, runner_up = nearest.values, nearest.predicted, nearest.runner_up
        gradient, binarized = nearest.gradient, nearest.binarized
        largest = tf.gather(values, predicted, batch_dims=1)
        margin = largest - tf.gather(values, runner_up, batch_dims=1)
        gradient_norm, binarized_norm = norm(gradient), norm(binarized)
        homogeneous = inner(x, binarized)
        bias = margin - homogeneous
        bias_distance = tf.abs(bias) / binarized_norm
        alignment = tf.abs(inner(x, gradient)) / gradient_norm
        binarized_alignment = tf.abs(homogeneous) / binarized_norm
        binarized_unit = unit(binarized)
        gap = norm(binarized_unit - unit(gradient))
        input_norm = norm(x)

        # x + (bias / ||g+||^2) g+, whose square may underflow
        shift = tf.math.divide_no_nan(bias, binarized_norm)
        shifted = x + per_example(shift, x) * binarized_unit
        shifted_values, pull_back = gradients_at(logits, shifted)
        shifted_gradient = class_gradients(pull_back, shifted_values, predicted)
        shifted_alignment = tf.abs(inner(shifted, shifted_gradient)) / norm(shifted_gradient)
        shifted_gap = norm(binarized_unit - unit(shifted_gradient))
        shifted_norm = norm(shifted)
        return {
            "predicted": predicted,
            "runner_up": runner_up,
            "margin": margin,
            "linearized_robustness": nearest.robustness,
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
            "exact_gradients": nearest.exact_gradients,
            "bias": nearest.bias,
        }

    return run
