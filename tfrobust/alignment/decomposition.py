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

from tfrobust.classifier import as_images, compiled, in_batches, push_forward
from tfrobust.errors import InexactDecompositionWarning

__all__ = ["Decomposition", "bias_part", "decompose", "warn_if_inexact"]

# float32 rounding in a deep network stays well below this
TOLERANCE = 1e-3
_BIASES = ("bias", "beta", "moving_mean")
_OFFSETS = {"Rescaling": "offset", "Normalization": "mean"}


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

    Both parts come from explicit derivatives, for all classes at once: one Jacobian-vector product
    along x, one along the biases. Their sum is not assumed but can be compared with the logits.

    Args:
        model: any Keras classifier.
        x: (batch, *input).
        batch_size: examples a call.

    Raises:
        ValueError: x has the wrong shape, is empty or is not finite.
        NotLogitsError: the model has no logits to give.

    Warns:
        UserWarning: the parts do not add up to the logits: the network is outside Theorem 1's
            class; says by how much.
    """
    result = bias_part(model, as_images(model, x), batch_size=batch_size)
    warn_if_inexact(result)
    return result


def bias_part(model: keras.Model, x: np.ndarray, *, batch_size: int) -> Decomposition:
    """`decompose` without the warning; x is checked already."""
    run = compiled(model, "decompose", _decompose, x)
    homogeneous, bias, logits = in_batches(
        run, x, batch_size=batch_size, description="decomposition"
    )
    return Decomposition(homogeneous, bias, logits)


def warn_if_inexact(result: Decomposition) -> None:
    """Say so, and by how much, if the network is outside Theorem 1's class."""
    errors = result.relative_error
    if errors.max() > TOLERANCE:
        warnings.warn(
            "the homogeneous decomposition is not exact for this network: <x, grad> + <b, grad_b> "
            f"misses the logits by {errors.max():.1%} of the largest part at worst, "
            f"{np.median(errors):.1%} at the median of {len(errors)} examples. Theorem 1 of "
            "Etmann 2019 covers affine layers, (leaky) ReLU, max and average pooling and skip "
            "connections; beta holds whatever else there is.",
            InexactDecompositionWarning,
            stacklevel=3,  # the caller of decompose or measure
        )


def _decompose(logits: keras.Model) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    layers = [logits, *logits._flatten_layers(include_self=False)]
    variables = _bias_variables(layers)
    offsets = _offset_attributes(layers)

    def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def plain() -> tf.Tensor:
            return tf.cast(logits(x, training=False), x.dtype)

        values, homogeneous = push_forward(plain, x, x, [x])
        constants = [tf.cast(getattr(layer, name), tf.float32) for layer, name in offsets]
        sources = [*variables, *constants]
        if not sources:
            return homogeneous, tf.zeros_like(values), values

        def with_constants() -> tf.Tensor:
            with _replaced(offsets, constants):
                return plain()

        tangents = [tf.convert_to_tensor(source) for source in sources]
        _, bias = push_forward(with_constants, sources, tangents, sources)
        return homogeneous, bias, values

    return run


def _bias_variables(layers: list[keras.layers.Layer]) -> list[tf.Variable]:
    found = {}
    for layer in layers:
        for variable in layer.weights:
            if variable.name in _BIASES:
                found[id(variable)] = variable.value
    return list(found.values())


def _offset_attributes(layers: list[keras.layers.Layer]) -> list[tuple[Any, str]]:
    """Affine preprocessing keeps its offset as a plain attribute, not as a variable."""
    return [
        (layer, _OFFSETS[type(layer).__name__])
        for layer in layers
        if type(layer).__name__ in _OFFSETS
    ]


@contextlib.contextmanager
def _replaced(attributes: list[tuple[Any, str]], values: list[tf.Tensor]) -> Iterator[None]:
    saved = [getattr(layer, name) for layer, name in attributes]
    try:
        for (layer, name), value in zip(attributes, values, strict=True):
            setattr(layer, name, value)
        yield
    finally:
        for (layer, name), value in zip(attributes, saved, strict=True):
            setattr(layer, name, value)
