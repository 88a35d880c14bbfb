"""Keras's activations, each with bounds of its slope in an interval.

`slopes(x, e)` bounds (f(x + D) - f(x)) / D for |D| <= e: by the extreme chords where f is piecewise
linear or convex, else by the extreme values of f' on [x - e, x + e] (mean value theorem).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrobust.bounds.graph import is_plain, operation_class
from tfrobust.bounds.operations.activations import Activation

__all__ = ["activation_of"]


def _relu(slope: float = 0.0, function: Callable[..., Any] | None = None) -> Activation:
    def slopes(x, e):
        # the extreme chords from x end at x - e and x + e; those of a ReLU have the slopes
        # x > 0:  low = min(1, x / e),  high = 1
        # x < 0:  low = 0,              high = max(0, 1 + x / e)
        # and a leaky ReLU is slope * x + (1 - slope) * ReLU(x)
        ratio = x / tf.maximum(e, 1e-30)
        high = tf.where(x >= 0, 1.0, tf.nn.relu(1 + ratio))
        low = tf.where(x > 0, tf.minimum(1.0, ratio), 0.0)
        return slope + (1 - slope) * low, slope + (1 - slope) * high

    return Activation(
        function or (lambda x: tf.maximum(x, slope * x)),
        1.0,
        slopes,
        lambda x: tf.where(x > 0, 1.0, slope),
        roundings=2 if slope else 0,
    )


def _convex(
    function: Callable[..., Any], derivative: Callable[..., Any], lipschitz: float
) -> Activation:
    """A convex function: f' increases, so that slopes of chords lie in [f'(x - e), f'(x + e)]."""
    return Activation(
        function, lipschitz, lambda x, e: (derivative(x - e), derivative(x + e)), derivative
    )


def _bell_slope(
    function: Callable[..., Any], derivative: Callable[..., Any], lipschitz: float
) -> Activation:
    """f' is even and decreases with |x|: [f'(|x| + e), f'(max(0, |x| - e))]."""

    def slopes(x, e):
        nearest = tf.nn.relu(tf.abs(x) - e)
        return derivative(tf.abs(x) + e), derivative(nearest)

    return Activation(function, lipschitz, slopes, None)


def _elu(alpha: float, scale: float, function: Callable[..., Any]) -> Activation:
    def derivative(x):
        return scale * tf.where(x > 0, 1.0, alpha * tf.exp(tf.minimum(x, 0.0)))

    terms = (scale * alpha, 0.0)  # exp - 1 cancels
    lipschitz = scale * max(1.0, alpha)
    if alpha <= 1:
        return _convex(function, derivative, lipschitz)._replace(terms=terms)

    def slopes(x, e):
        left, right = x - e, x + e
        ends = derivative(left), derivative(right)
        # f' increases to scale * alpha at 0, and is scale for x > 0
        high = tf.where((left <= 0) & (right > 0), lipschitz, tf.maximum(*ends))
        return tf.minimum(tf.minimum(*ends), tf.where(right > 0, scale, ends[1])), high

    return Activation(function, lipschitz, slopes, None, terms)


def _clipped_relu(function: Callable[..., Any], limit: float) -> Activation:
    def slopes(x, e):
        # of the two slopes 0 and 1, those that occur in [x - e, x + e]
        always_linear = (x - e >= 0) & (x + e <= limit)
        somewhere_linear = (x + e > 0) & (x - e < limit)
        return tf.where(always_linear, 1.0, 0.0), tf.where(somewhere_linear, 1.0, 0.0)

    return Activation(function, 1.0, slopes, None, roundings=0)


def _piecewise_monotone_slope(
    function: Callable[..., Any],
    derivative: Callable[..., Any],
    extrema: Sequence[tuple[float, float]],
    terms: tuple[float, float] = (0.0, 0.0),
) -> Activation:
    """f' is monotone between its extrema, given as (x, f'(x)).

    Over an interval f' is extreme at an end or at an extremum inside. The slopes at the extrema are
    rounded away from zero.
    """

    def slopes(x, e):
        left, right = x - e, x + e
        ends = derivative(left), derivative(right)
        low, high = tf.minimum(*ends), tf.maximum(*ends)
        for extremum, slope in extrema:
            inside = (left <= extremum) & (extremum <= right)
            low = tf.where(inside, tf.minimum(low, slope), low)
            high = tf.where(inside, tf.maximum(high, slope), high)
        return low, high

    steepest = max(abs(slope) for _, slope in extrema)
    return Activation(function, steepest, slopes, None, terms, slopes_cancel=True)


def _silu_slope(x: tf.Tensor) -> tf.Tensor:
    # f(x) = x s(x) with the sigmoid s: f' = s(x) (1 + x s(-x))
    return tf.sigmoid(x) * (1 + x * tf.sigmoid(-x))


def _gelu_slope(x: tf.Tensor) -> tf.Tensor:
    # f(x) = x P(x) with the normal distribution P of density p: f' = P(x) + x p(x)
    density = tf.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return tf.math.erfc(-x / math.sqrt(2)) / 2 + x * density


def _hard_silu_slope(x: tf.Tensor) -> tf.Tensor:
    # f(x) = x (x + 3) / 6 on [-3, 3]
    return tf.where(x <= -3, 0.0, tf.where(x >= 3, 1.0, (2 * x + 3) / 6))


def _hard_sigmoid_slope(x: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.abs(x) < 3, 1 / 6, 0.0)


def _softsign_slope(x: tf.Tensor) -> tf.Tensor:
    return 1 / tf.square(1 + tf.abs(x))


def _sigmoid_slope(x: tf.Tensor) -> tf.Tensor:
    return tf.sigmoid(x) * tf.sigmoid(-x)


def _tanh_slope(x: tf.Tensor) -> tf.Tensor:
    # 1 - tanh^2 without cancellation
    return 4 * tf.sigmoid(2 * x) * tf.sigmoid(-2 * x)


_act = keras.activations
_KNOWN: dict[Any, Callable[[], Activation]] = {
    _act.relu: lambda: _relu(function=tf.nn.relu),
    _act.leaky_relu: lambda: _relu(0.2, _act.leaky_relu),
    _act.relu6: lambda: _clipped_relu(tf.nn.relu6, 6.0),
    _act.elu: lambda: _elu(1.0, 1.0, _act.elu),
    _act.selu: lambda: _elu(1.6732632423543772, 1.0507009873554805, _act.selu),
    _act.softplus: lambda: _convex(tf.nn.softplus, tf.sigmoid, 1.0),
    _act.sigmoid: lambda: _bell_slope(tf.sigmoid, _sigmoid_slope, 0.25),
    _act.tanh: lambda: _bell_slope(tf.tanh, _tanh_slope, 1.0),
    _act.softsign: lambda: _bell_slope(tf.nn.softsign, _softsign_slope, 1.0),
    _act.hard_sigmoid: lambda: _bell_slope(_act.hard_sigmoid, _hard_sigmoid_slope, 0.16666668),
    _act.silu: lambda: _piecewise_monotone_slope(
        tf.nn.silu, _silu_slope, [(-2.3993573, -0.0998394), (2.3993573, 1.0998394)]
    ),
    _act.gelu: lambda: _piecewise_monotone_slope(
        lambda x: tf.nn.gelu(x, approximate=False),
        _gelu_slope,
        [(-math.sqrt(2), -0.1289049), (math.sqrt(2), 1.1289049)],
        terms=(0.0, 1.0),  # 1 + erf cancels where x < 0
    ),
    _act.hard_silu: lambda: _piecewise_monotone_slope(
        _act.hard_silu, _hard_silu_slope, [(-3.0, -0.5), (3.0, 1.5)]
    ),
}
# functions of keras.ops without settings, as a model holds them
_OPERATIONS = {
    operation_class(getattr(keras.ops, function.__name__)): function
    for function in (
        *(_act.relu, _act.relu6, _act.selu, _act.softplus, _act.sigmoid, _act.tanh),
        *(_act.softsign, _act.silu, _act.hard_sigmoid, _act.hard_silu),
    )
}
# layers with settings, and the operations with the same settings
_RELUS = (keras.layers.ReLU, operation_class(_act.relu))
_LEAKY = (keras.layers.LeakyReLU, operation_class(keras.ops.leaky_relu))
_ELUS = (keras.layers.ELU, operation_class(keras.ops.elu))
_GELU = operation_class(keras.ops.gelu)


def activation_of(layer: Any) -> Activation | None:
    """The activation of a layer or function, or None where it is not known."""
    if is_plain(layer, keras.layers.Activation):
        layer = layer.activation
    if is_plain(layer, *_RELUS):
        slope, limit = float(layer.negative_slope), layer.max_value
        if layer.threshold or not 0 <= slope <= 1 or (limit is not None and slope):
            return None
        return _relu(slope, layer) if limit is None else _clipped_relu(layer, float(limit))
    if is_plain(layer, *_LEAKY):
        slope = float(layer.negative_slope)
        return _relu(slope, layer) if 0 <= slope <= 1 else None
    if is_plain(layer, *_ELUS):
        return _elu(float(layer.alpha), 1.0, layer) if layer.alpha >= 0 else None
    if is_plain(layer, _GELU) and not layer.approximate:
        layer = _act.gelu
    layer = _OPERATIONS.get(type(layer), layer)
    for function, activation in _KNOWN.items():
        if layer is function:
            return activation()
    return None
