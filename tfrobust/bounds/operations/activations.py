"""Activations as the certified rules see them: the lines they stay close to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfrobust.bounds.graph import is_plain, operation_class
from tfrobust.bounds.operations.base import UNIT_ROUNDOFF, Operation, heaviest_load

__all__ = ["Activation", "Elementwise", "activation_of"]


# TensorFlow's elementary functions are within 9 roundings of their values (tests look)
ACCURACY = 16
# below it numbers are flushed to zero
SMALLEST = 1e-35


class Activation(NamedTuple):
    """A scalar function with bounds of its slope.

    Attributes:
        function: itself.
        lipschitz: its largest slope.
        slopes: values x and changes t >= 0 to (lowest, highest): every
            (f(x + d) - f(x)) / d with |d| <= t lies between them; where f is not convex every
            slope within t of x does.
        tangent: the derivative (a subgradient) where f is convex, else None.
        terms: (a, b): f(x) is computed from magnitudes up to a + b |x|, or up to |f(x)|.
        roundings: of f(x), at most.
    """

    function: Callable[[tf.Tensor], tf.Tensor]
    lipschitz: float
    slopes: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    tangent: Callable[[tf.Tensor], tf.Tensor] | None
    terms: tuple[float, float] = (0.0, 0.0)
    roundings: int = ACCURACY


class Elementwise(Operation):
    """An activation; an element that stays on one side of a kink is linear."""

    def __init__(self, activation: Activation, name: str):
        self.activation = activation
        self.rule = f"{name}: slope at most {activation.lipschitz:.4g}"

    def constant(self):
        return self.activation.lipschitz

    def apply(self, values):
        return self.activation.function(values[0])

    def spread(self, values, changes, reaches, constant):
        low, high = self.activation.slopes(values[0], changes[0])
        return changes[0] * tf.maximum(tf.abs(low), tf.abs(high))

    def pull(self, values, changes, reaches, constant, cotangent, rows=None):
        x, change = values[0], changes[0] * tf.ones_like(values[0])
        low, high = self.activation.slopes(x, change)
        middle, half = (low + high) / 2, (high - low) / 2
        if self.activation.tangent is None:
            slope, uncertain = middle[:, None], tf.abs(cotangent) * half[:, None]
        else:  # a convex function lies above its tangent: that side loses nothing
            upward = cotangent >= 0
            slope = tf.where(upward, self.activation.tangent(x)[:, None], middle[:, None])
            uncertain = tf.where(upward, 0.0, -cotangent * half[:, None])
        return [cotangent * slope], heaviest_load(uncertain, change, reaches[0], rows)

    def rounding(self, values, changes, output, change, errors):
        x, (fixed, growing) = values[0], self.activation.terms
        apart = changes[0] + errors[0]
        if self.activation.tangent is None:
            low, high = self.activation.slopes(x, apart)
        else:  # the slope of a convex function grows
            low, high = self.activation.tangent(x - apart), self.activation.tangent(x + apart)
        steepest = tf.maximum(tf.abs(low), tf.abs(high))
        terms = fixed + growing * (tf.abs(x) + changes[0])
        fresh = self.activation.roundings * (tf.abs(output) + change) + 4 * terms
        return steepest * errors[0] + UNIT_ROUNDOFF * fresh + SMALLEST


def _relu(slope: float = 0.0, function: Callable[..., Any] | None = None) -> Activation:
    def slopes(x, t):
        # the share of a change of t that lies on the steep side
        ratio = x / tf.maximum(t, 1e-30)
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


def _monotone_slope(
    function: Callable[..., Any], derivative: Callable[..., Any], lipschitz: float
) -> Activation:
    """A convex function: its slopes grow, and a chord's lies between those of its ends."""
    return Activation(
        function, lipschitz, lambda x, t: (derivative(x - t), derivative(x + t)), derivative
    )


def _bell_slope(
    function: Callable[..., Any], derivative: Callable[..., Any], lipschitz: float
) -> Activation:
    """A function whose slope is even and falls with distance from zero."""

    def slopes(x, t):
        nearest = tf.nn.relu(tf.abs(x) - t)
        return derivative(tf.abs(x) + t), derivative(nearest)

    return Activation(function, lipschitz, slopes, None)


def _elu(alpha: float, scale: float, function: Callable[..., Any]) -> Activation:
    def derivative(x):
        return scale * tf.where(x > 0, 1.0, alpha * tf.exp(tf.minimum(x, 0.0)))

    terms = (scale * alpha, 0.0)  # exp - 1 cancels
    lipschitz = scale * max(1.0, alpha)
    if alpha <= 1:
        return _monotone_slope(function, derivative, lipschitz)._replace(terms=terms)

    def slopes(x, t):
        low, high = x - t, x + t
        ends = derivative(low), derivative(high)
        # across zero the slope jumps down from alpha to 1
        peak = tf.where((low <= 0) & (high > 0), lipschitz, tf.maximum(*ends))
        return tf.minimum(tf.minimum(*ends), tf.where(high > 0, scale, ends[1])), peak

    return Activation(function, lipschitz, slopes, None, terms)


def _clipped(function: Callable[..., Any], limit: float) -> Activation:
    def slopes(x, t):
        inside = (x - t >= 0) & (x + t <= limit)
        meets = (x + t > 0) & (x - t < limit)
        return tf.where(inside, 1.0, 0.0), tf.where(meets, 1.0, 0.0)

    return Activation(function, 1.0, slopes, None, roundings=0)


def _turning_slope(
    function: Callable[..., Any],
    derivative: Callable[..., Any],
    turns: Sequence[tuple[float, float]],
    terms: tuple[float, float] = (0.0, 0.0),
) -> Activation:
    """A function whose slope rises and falls: it is monotone between the places (x, slope).

    Slopes are rounded away from zero.
    """

    def slopes(x, t):
        low, high = x - t, x + t
        ends = derivative(low), derivative(high)
        least, most = tf.minimum(*ends), tf.maximum(*ends)
        for place, slope in turns:
            inside = (low <= place) & (place <= high)
            least = tf.where(inside, tf.minimum(least, slope), least)
            most = tf.where(inside, tf.maximum(most, slope), most)
        return least, most

    return Activation(function, max(abs(slope) for _, slope in turns), slopes, None, terms)


def _silu_slope(x: tf.Tensor) -> tf.Tensor:
    return tf.sigmoid(x) * (1 + x * tf.sigmoid(-x))


def _gelu_slope(x: tf.Tensor) -> tf.Tensor:
    density = tf.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return tf.math.erfc(-x / math.sqrt(2)) / 2 + x * density


def _hard_silu_slope(x: tf.Tensor) -> tf.Tensor:
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
    _act.relu6: lambda: _clipped(tf.nn.relu6, 6.0),
    _act.elu: lambda: _elu(1.0, 1.0, _act.elu),
    _act.selu: lambda: _elu(1.6732632423543772, 1.0507009873554805, _act.selu),
    _act.softplus: lambda: _monotone_slope(tf.nn.softplus, tf.sigmoid, 1.0),
    _act.sigmoid: lambda: _bell_slope(tf.sigmoid, _sigmoid_slope, 0.25),
    _act.tanh: lambda: _bell_slope(tf.tanh, _tanh_slope, 1.0),
    _act.softsign: lambda: _bell_slope(tf.nn.softsign, _softsign_slope, 1.0),
    _act.hard_sigmoid: lambda: _bell_slope(_act.hard_sigmoid, _hard_sigmoid_slope, 0.16666668),
    _act.silu: lambda: _turning_slope(
        tf.nn.silu, _silu_slope, [(-2.3993573, -0.0998394), (2.3993573, 1.0998394)]
    ),
    _act.gelu: lambda: _turning_slope(
        lambda x: tf.nn.gelu(x, approximate=False),
        _gelu_slope,
        [(-math.sqrt(2), -0.1289049), (math.sqrt(2), 1.1289049)],
        terms=(0.0, 1.0),  # 1 + erf cancels where x < 0
    ),
    _act.hard_silu: lambda: _turning_slope(
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
# layers with settings, and the operations that have the same
_RELUS = (keras.layers.ReLU, operation_class(_act.relu))
_LEAKY = (keras.layers.LeakyReLU, operation_class(keras.ops.leaky_relu))
_ELUS = (keras.layers.ELU, operation_class(keras.ops.elu))
_GELU = operation_class(keras.ops.gelu)


def activation_of(layer: Any) -> Activation | None:
    """The activation of an activation layer or function, or None where it is not known."""
    if is_plain(layer, keras.layers.Activation):
        layer = layer.activation
    if is_plain(layer, *_RELUS):
        slope, limit = float(layer.negative_slope), layer.max_value
        if layer.threshold or not 0 <= slope <= 1 or (limit is not None and slope):
            return None
        return _relu(slope, layer) if limit is None else _clipped(layer, float(limit))
    if is_plain(layer, *_LEAKY):
        slope = float(layer.negative_slope)
        return _relu(slope, layer) if 0 <= slope <= 1 else None
    if is_plain(layer, *_ELUS):
        return _elu(float(layer.alpha), 1.0, layer) if layer.alpha >= 0 else None
    if is_plain(layer, _GELU) and not layer.approximate:
        layer = _act.gelu
    layer = _OPERATIONS.get(type(layer), layer)
    for function, make in _KNOWN.items():
        if layer is function:
            return make()
    return None
