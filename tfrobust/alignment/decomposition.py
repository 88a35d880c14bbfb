"""The homogeneous decomposition Psi(x) = <x, grad Psi(x)> + beta(x) of a network.

Etmann 2019, Theorem 1: for networks of affine layers, (leaky) ReLU, max and average pooling and
skip connections, beta is the derivative along all biases b, beta = <b, grad_b Psi>, where b holds
convolution and dense biases, batch normalisation's betas and moving means, and the offsets of
preprocessing layers inside the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier import (
    Classifier,
    as_images,
    in_batches,
    layers_behind,
    push_forward,
    replaced_method,
    with_attributes,
)
from tfrobust.errors import InexactDecompositionWarning

__all__ = [
    "Decomposition",
    "decompose",
    "describe_inexactness",
    "warn_if_inexact",
    "with_explicit_bias",
]

# float32 rounding in a deep network stays well below this
TOLERANCE = 1e-3
_BIASES = ("bias", "beta", "moving_mean")
# affine preprocessing and its offset
_OFFSETS = {keras.layers.Rescaling: "offset", keras.layers.Normalization: "mean"}


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """Logits and their two parts, each (batch, classes) float32."""

    homogeneous: np.ndarray
    """<x, grad Psi^i(x)>."""
    bias: np.ndarray
    """beta^i(x), the explicit gradient with respect to all biases, times the biases."""
    logits: np.ndarray
    """Psi^i(x), which the parts add up to inside Theorem 1's class."""

    @property
    def residual(self) -> np.ndarray:
        """logits - homogeneous - bias, (batch, classes); zero inside Theorem 1's class."""
        return self.logits - self.homogeneous - self.bias

    @property
    def relative_error(self) -> np.ndarray:
        """Largest residual of each example over its largest part, (batch,)."""
        parts = np.stack([self.logits, self.homogeneous, self.bias])
        size = np.abs(parts).max(axis=(0, 2))
        largest = np.abs(self.residual).max(axis=1)
        return np.divide(largest, size, out=np.zeros_like(largest), where=size > 0)


def decompose(model: keras.Model, x: Any, *, batch_size: int = 100) -> Decomposition:
    """Split every logit into <x, grad Psi^i(x)> and the biases' part (Etmann 2019, Theorem 1).

    Both parts are explicit derivatives, for all classes at once: one Jacobian-vector product along
    x and one along the biases. Neither is computed from the other: their sum can be compared with
    the logits.

    Args:
        model: any Keras classifier.
        x: (batch, *input).
        batch_size: examples per call.

    Raises:
        ValueError: x has the wrong shape, is empty or is not finite.
        NotLogitsError: the model has no logits to give.

    Warns:
        UserWarning: the parts do not add up to the logits, by the amount in the message: the
            network is outside Theorem 1's class.
    """
    x = as_images(model, x)
    run = Classifier.of(model, x).compiled(_decompose)
    parts = in_batches(run, x, batch_size=batch_size, description="decomposition")
    result = Decomposition(*parts)
    warn_if_inexact(result)
    return result


def with_explicit_bias(
    classifier: Classifier, x: np.ndarray, remainder: np.ndarray, *, batch_size: int
) -> Decomposition:
    """`decompose` without the warning, where Psi^i - <x, grad Psi^i> (batch, classes) is known."""
    run = classifier.compiled(_explicit_bias)
    bias, logits = in_batches(run, x, batch_size=batch_size, description="decomposition")
    return Decomposition(logits - remainder, bias, logits)


def warn_if_inexact(result: Decomposition) -> None:
    """Warn, with the size of the error, if the network is outside Theorem 1's class."""
    description = describe_inexactness(result.relative_error)
    if description is not None:
        # the caller of decompose or measure
        warnings.warn(description, InexactDecompositionWarning, stacklevel=3)


def describe_inexactness(errors: np.ndarray) -> str | None:
    """What the warning says of the examples' relative errors; None inside Theorem 1's class."""
    if errors.max() <= TOLERANCE:
        return None
    return (
        "the homogeneous decomposition is not exact for this network: <x, grad> + <b, grad_b> "
        f"misses the logits by {errors.max():.1%} of the largest part at worst, "
        f"{np.median(errors):.1%} at the median of {len(errors)} examples. Theorem 1 of Etmann "
        "2019 covers affine layers, (leaky) ReLU, max and average pooling and skip connections; "
        "beta holds everything else."
    )


def _decompose(logits: keras.Model) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """Build: <x, grad Psi^i>, <b, grad_b Psi^i> and Psi^i of all classes."""
    explicit_bias = _explicit_bias(logits)

    def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        values, homogeneous = push_forward(
            lambda: tf.cast(logits(x, training=False), x.dtype), x, x, [x]
        )
        return homogeneous, explicit_bias(x)[0], values

    return run


def _explicit_bias(logits: keras.Model) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Build: <b, grad_b Psi^i> and Psi^i of all classes."""
    layers = layers_behind(logits)
    variables = _bias_variables(layers)
    preprocessing = [layer for layer in layers if type(layer) in _OFFSETS]

    def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        offsets = [
            tf.cast(getattr(layer, _OFFSETS[type(layer)]), tf.float32) for layer in preprocessing
        ]

        def with_offsets() -> tf.Tensor:
            with _offsets_replaced(preprocessing, offsets):
                return tf.cast(logits(x, training=False), x.dtype)

        sources = [*variables, *offsets]
        if not sources:
            values = with_offsets()
            return tf.zeros_like(values), values
        tangents = [tf.convert_to_tensor(source) for source in sources]
        values, bias = push_forward(with_offsets, sources, tangents, sources)
        return bias, values

    return run


def _bias_variables(layers: list[keras.layers.Layer]) -> list[tf.Variable]:
    variables = {}
    for layer in layers:
        for variable in layer.weights:
            if variable.name in _BIASES:
                variables[id(variable)] = variable.value
    return list(variables.values())


@contextlib.contextmanager
def _offsets_replaced(layers: list[keras.layers.Layer], offsets: list[tf.Tensor]) -> Iterator[None]:
    """While in the block these preprocessing layers compute with the given offsets.

    Their own offset is a plain attribute, with respect to which nothing can be differentiated.
    """
    replacements = {id(layer): offset for layer, offset in zip(layers, offsets, strict=True)}

    def call(original: Callable[..., Any], layer: keras.layers.Layer, inputs: Any) -> Any:
        if id(layer) in replacements:
            layer = with_attributes(layer, **{_OFFSETS[type(layer)]: replacements[id(layer)]})
        return original(layer, inputs)

    with contextlib.ExitStack() as stack:
        for cls in _OFFSETS:
            stack.enter_context(replaced_method(cls, "call", call))
        yield
