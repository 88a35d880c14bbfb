"""Theorem 4.2 and Algorithm 4.1 on the dense layers of a Keras classifier."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from scipy.special import expit

from tfrobust.bounds.graph import Step, UnsupportedLayerError, is_plain
from tfrobust.bounds.printed import formulas
from tfrobust.bounds.printed.stage import Stage
from tfrobust.bounds.registry import is_user_rule

__all__ = ["activation_name", "hidden_layers", "mlp_stage"]

layers = keras.layers
_FUNCTIONS = {
    keras.activations.linear: "linear",
    keras.activations.sigmoid: "sigmoid",
    keras.activations.tanh: "tanh",
    keras.activations.softplus: "softplus",
    keras.activations.relu: "relu",
}


def hidden_layers(steps: Sequence[Step], last: int) -> int:
    """The first step of the dense layers, activations and dropouts that end in `last`.

    `last` + 1 where that step is none of them.
    """
    first, index = last + 1, last
    while index >= 0 and not is_user_rule(steps[index], "thesis"):
        if is_plain(steps[index].layer, layers.Dense):
            first = index
        elif not activation_name(steps[index]) and not is_plain(steps[index].layer, layers.Dropout):
            break
        index -= 1
    return first


def activation_name(step: Step) -> str | None:
    """The activation's name in Table 4.1, or None where the step has none."""
    layer = step.layer
    if is_plain(layer, layers.Activation):
        layer = layer.activation
    if is_plain(layer, layers.ReLU):
        standard = not layer.negative_slope and layer.max_value is None and not layer.threshold
        return "relu" if standard else None
    return next((name for known, name in _FUNCTIONS.items() if known is layer), None)


def mlp_stage(steps: Sequence[Step], first: int, last: int) -> Stage:
    """The rule of Theorem 4.2 for the MLP of steps `first` to `last`."""
    dense, names, indices = [], [], []
    for index in range(first, last + 1):
        if isinstance(steps[index].layer, layers.Dense):
            dense.append(steps[index].layer)
            names.append("linear")
            indices.append(index)
        elif activation_name(steps[index]) not in (None, "linear"):
            if names[-1] != "linear":
                raise UnsupportedLayerError(
                    f"two consecutive activations at {steps[index].name!r}: Theorem 4.2 has one "
                    'per layer; remove one, or use rules="certified"'
                )
            names[-1] = activation_name(steps[index])

    def rule(kappa: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        weights = [np.asarray(layer.kernel, np.float64) for layer in dense]
        slopes = [
            _slope(name, values[index + 1]) for name, index in zip(names, indices, strict=True)
        ]
        jacobian = _jacobian_norms(weights, slopes)
        return formulas.mlp(
            kappa, jacobian, formulas.hessian_bound(weights, names), weights[-1].shape[1]
        )

    return Stage(first, last, "Theorem 4.2, Algorithm 4.1", rule)


def _slope(name: str, x: np.ndarray) -> np.ndarray:
    """An activation's derivative at its input."""
    if name == "relu":
        return (x > 0).astype(np.float64)
    if name == "tanh":
        return 1 - np.tanh(x) ** 2
    if name in ("sigmoid", "softplus"):
        value = expit(x)
        return value if name == "softplus" else value * (1 - value)
    return np.ones_like(x)


def _jacobian_norms(weights: list[np.ndarray], slopes: list[np.ndarray]) -> np.ndarray:
    """Spectral norm of each example's Jacobian of dense layers, to about 1e-7: (batch,).

    By the power method, without forming the Jacobians, until the norms of all examples have
    converged.
    """
    count = len(slopes[0])
    vectors = np.random.default_rng(0).random((count, weights[0].shape[0])) + 0.5
    norms = np.zeros(count)
    for _ in range(1000):
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
        forward = vectors
        for kernel, slope in zip(weights, slopes, strict=True):
            forward = (forward @ kernel) * slope
        previous, norms = norms, np.linalg.norm(forward, axis=1)
        if np.all(np.abs(norms - previous) <= 1e-9 * norms):
            break
        vectors = forward
        for kernel, slope in zip(weights[::-1], slopes[::-1], strict=True):
            vectors = (vectors * slope) @ kernel.T
    return norms
