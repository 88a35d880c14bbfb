"""Random classifiers and linear layers of every kind that certified bounds cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfrobust.layers import LocalResponseNormalization, LpPooling2D

__all__ = ["random_linear_layer", "random_network"]

layers = keras.layers
ACTIVATIONS = (
    *("relu", "selu", "softplus", "sigmoid", "tanh", "softsign", "silu", "gelu"),
    *("hard_sigmoid", "hard_silu", "relu6", "elu", "leaky_relu"),
)


class _Draws:
    """Random choices from one generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def one_of(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def number(self, first: int, last: int) -> int:
        return int(self.rng.integers(first, last + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


def random_network(rng: np.random.Generator, extreme: bool) -> keras.Model:
    """A small classifier with random weights.

    Args:
        rng: of architecture and weights.
        extreme: weights of each layer times a power of 10 from -30 to 30.
    """
    draws = _Draws(rng)
    model = _dense(draws) if draws.chance(0.55) else _convolutional(draws)
    scale = float(draws.one_of(0.3, 1, 1, 3))
    factors: dict[str, float] = {}  # by layer
    for variable in model.weights:
        if "float" not in str(variable.dtype):
            continue
        values = rng.normal(size=variable.shape)
        if "variance" in variable.name:
            values = np.abs(values) * float(draws.one_of(1, 1e-6))
        else:
            layer = variable.path.rpartition("/")[0]
            power = rng.uniform(-30, 30) if extreme and draws.chance(0.5) else 0.0
            values = values * scale * factors.setdefault(layer, 10.0**power)
        variable.assign(values.astype(np.float32))
    return model


def _activation(draws: _Draws) -> keras.layers.Layer:
    kind = draws.number(0, 6)
    if kind == 0:
        return layers.ReLU(max_value=float(draws.one_of(0.5, 1, 6)))
    if kind == 1:
        return layers.LeakyReLU(negative_slope=float(draws.one_of(0.0, 0.01, 0.5, 1.0)))
    if kind == 2:
        return layers.ELU(alpha=float(draws.one_of(0.1, 1, 3, 10)))
    return layers.Activation(draws.one_of(*ACTIVATIONS))


def _dense(draws: _Draws) -> keras.Model:
    inputs = keras.Input((draws.number(1, 3),))
    x = inputs
    if draws.chance(0.3):
        x = layers.Rescaling(float(draws.one_of(0.1, -3, 20)), offset=draws.rng.normal())(x)
    for _ in range(draws.number(1, 3)):
        units = draws.number(1, 4)
        x = layers.Dense(units, activation=draws.one_of(None, None, "relu", "tanh", "gelu"))(x)
        if draws.chance(0.15):
            x = layers.BatchNormalization(epsilon=float(draws.one_of(1e-3, 1e-6)))(x)
        elif draws.chance(0.1):
            places = layers.Reshape((1, 1, units))(x)
            x = layers.Flatten()(_response_normalization(draws)(places))
        x = _activation(draws)(x)
        x = _merged(draws, x, inputs, units)
    head = draws.one_of(None, None, "softmax")
    return keras.Model(inputs, layers.Dense(draws.number(2, 3), activation=head)(x))


def _merged(draws: _Draws, x: Any, inputs: Any, units: int) -> Any:
    """Sometimes with a branch, or a layer or a model that is used twice."""
    kind = draws.number(0, 15)
    if kind == 0:
        return layers.Add()([x, layers.Dense(units)(x)])
    if kind == 1:
        return layers.Concatenate()([x, _activation(draws)(layers.Dense(2)(inputs)), x])
    if kind == 2:
        return layers.Subtract()([x, layers.Dense(units, activation="relu")(x)])
    if kind == 3:
        merge = draws.one_of(layers.Maximum, layers.Minimum, layers.Average)
        return merge()([x, layers.Dense(units)(inputs), layers.Dense(units)(x)])
    if kind == 4:
        size = x.shape[-1]
        nested = keras.Sequential([keras.Input((size,)), layers.Dense(size), _activation(draws)])
        return nested(nested(x))
    if kind == 5:
        shared = layers.Dense(x.shape[-1], activation="relu")
        return shared(shared(x))
    return x


def _response_normalization(draws: _Draws) -> keras.layers.Layer:
    return LocalResponseNormalization(
        depth_radius=draws.number(0, 2),
        bias=float(draws.one_of(0.1, 1, 2)),
        alpha=float(draws.one_of(1e-4, 0.5, 5)),
        beta=float(draws.one_of(0.5, 0.75, 1.5)),
    )


def _convolutional(draws: _Draws) -> keras.Model:
    flat = draws.chance(0.3)  # one dimension
    sizes = [draws.number(3, 6) for _ in range(1 if flat else 2)]
    inputs = keras.Input((*sizes, draws.number(1, 2)))
    x = inputs
    for _ in range(draws.number(1, 2)):
        x = _convolution(draws, x, flat)
        if draws.chance(0.3):
            x = layers.BatchNormalization()(x)
        if not flat and draws.chance(0.15):
            x = _response_normalization(draws)(x)
        x = _pooled(draws, _activation(draws)(x), flat)
    if draws.chance(0.6):
        x = layers.Flatten()(x)
    elif flat:
        x = draws.one_of(layers.GlobalMaxPooling1D, layers.GlobalAveragePooling1D)()(x)
    else:
        x = draws.one_of(layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D)()(x)
    return keras.Model(inputs, layers.Dense(draws.number(2, 3))(x))


def _padding(draws: _Draws, x: Any, at_least: int) -> str:
    return draws.one_of("same", "valid") if min(x.shape[1:-1]) >= at_least else "same"


def _convolution(draws: _Draws, x: Any, flat: bool) -> Any:
    kind, taps = draws.number(0, 4), draws.number(1, 3)
    options = {"strides": draws.number(1, 2), "padding": _padding(draws, x, 4)}
    if kind <= 1:
        convolution = layers.Conv1D if flat else layers.Conv2D
        activation = draws.one_of(None, "relu")
        return convolution(draws.number(1, 3), taps, activation=activation, **options)(x)
    if kind == 2:
        convolution = layers.Conv1D if flat else layers.Conv2D
        channels = x.shape[-1]
        return convolution(2 * channels, taps, groups=channels, padding=options["padding"])(x)
    if kind == 3:
        depthwise = layers.DepthwiseConv1D if flat else layers.DepthwiseConv2D
        return depthwise(taps, depth_multiplier=2, **options)(x)
    separable = layers.SeparableConv1D if flat else layers.SeparableConv2D
    return separable(2, taps, **options)(x)


def _pooled(draws: _Draws, x: Any, flat: bool) -> Any:
    kind, pool, strides = draws.number(0, 9), draws.number(1, 3), draws.number(1, 2)
    padding = _padding(draws, x, 3)
    if kind <= 2:
        pooling = layers.MaxPooling1D if flat else layers.MaxPooling2D
        return pooling(pool, strides=strides, padding=padding)(x)
    if kind == 3:
        pooling = layers.AveragePooling1D if flat else layers.AveragePooling2D
        return pooling(pool, strides=strides, padding=padding)(x)
    if kind == 4 and not flat:
        p = float(draws.one_of(1, 1.5, 2, 4))
        return LpPooling2D(2, strides=strides, padding="same", p=p)(x)
    if kind == 5:
        return (layers.ZeroPadding1D if flat else layers.ZeroPadding2D)(1)(x)
    return x


def random_linear_layer(rng: np.random.Generator) -> tuple[keras.layers.Layer, tuple[int, ...]]:
    """A built linear layer with random weights and no offset, and the shape of its input."""
    draws = _Draws(rng)
    layer, shape = _linear_layer(draws)
    layer.build((None, *shape))
    if not isinstance(layer, layers.Normalization):
        layer.set_weights([_weights(draws, weight) for weight in layer.weights])
    return layer, shape


def _weights(draws: _Draws, weight: Any) -> np.ndarray:
    values = draws.rng.normal(size=weight.shape)
    if weight.name in ("bias", "beta", "moving_mean"):
        return np.zeros(weight.shape)
    if "variance" in weight.name:
        return np.abs(values) * float(draws.one_of(1, 1e-8, 0))
    return values * float(draws.one_of(1, 1, 1e-20, 1e20))


def _linear_layer(draws: _Draws) -> tuple[keras.layers.Layer, tuple[int, ...]]:
    height, width, channels = draws.number(10, 13), draws.number(10, 13), draws.number(1, 3)
    image, line = (height, width, channels), (2 * height, channels)
    padding, stride = draws.one_of("valid", "same"), draws.number(1, 3)
    dilation = draws.number(1, 3) if stride == 1 else 1
    taps = draws.number(1, 4)
    options = {"padding": padding, "dilation_rate": dilation, "strides": stride}
    multiplier = {**options, "depth_multiplier": draws.number(1, 2)}
    outputs, groups = draws.number(1, 3), draws.number(2, 3)
    pooling: dict[str, Any] = {"strides": draws.one_of(None, stride), "padding": padding}
    choices: Sequence[tuple[Any, tuple[int, ...]]] = (
        (lambda: layers.Conv2D(outputs, (taps, draws.number(1, 4)), **options), image),
        (
            lambda: layers.Conv2D(groups * outputs, taps, groups=groups, **options),
            (height, width, groups * channels),
        ),
        (lambda: layers.DepthwiseConv2D(taps, **multiplier), image),
        (lambda: layers.SeparableConv2D(outputs, taps, **multiplier), image),
        (lambda: layers.Conv1D(outputs, taps, **options), line),
        (lambda: layers.Conv1D(outputs, taps, **{**options, "padding": "causal"}), line),
        (lambda: layers.DepthwiseConv1D(taps, **multiplier), line),
        (lambda: layers.SeparableConv1D(outputs, taps, **multiplier), line),
        (lambda: layers.AveragePooling2D((taps, draws.number(1, 4)), **pooling), image),
        (lambda: layers.AveragePooling1D(taps, **pooling), line),
        (lambda: layers.BatchNormalization(epsilon=float(draws.one_of(1e-3, 1e-7, 1e-12))), image),
        (lambda: layers.Dense(draws.number(1, 90)), (draws.number(1, 90),)),
        (lambda: layers.Dense(draws.number(1, 20)), (3, channels)),
        (lambda: layers.GlobalAveragePooling2D(keepdims=draws.chance(0.5)), image),
        (lambda: layers.GlobalAveragePooling1D(), line),
        (lambda: layers.Rescaling(float(draws.one_of(1 / 255, -3))), image),
        (
            lambda: layers.Normalization(
                mean=np.zeros(channels),
                variance=draws.rng.random(channels) * float(draws.one_of(1, 1e-6, 1e-20)),
            ),
            image,
        ),
    )
    make, shape = choices[draws.number(0, len(choices) - 1)]
    return make(), shape
