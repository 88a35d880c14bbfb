"""The sound rules: which operation each Keras layer is."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfrobust.bounds.graph import Step, UnsupportedLayerError, is_plain, operation_class
from tfrobust.bounds.operations import (
    Addition,
    AveragePooling,
    Concatenation,
    Convolutional,
    Dense,
    Elementwise,
    Lipschitz,
    MaxPooling,
    Operation,
    Permutation,
    ResponseNormalization,
    Scaling,
    Separable,
    activation_of,
    batch_normalization_factors,
    rescaling_factors,
    sliding_windows,
)
from tfrobust.bounds.operator_norms import (
    ISOMETRIES,
    check_channels_last,
    operator_norm_upper_bound,
    windows_over,
    zeros_around,
)
from tfrobust.bounds.registry import built_in_rule, find_rule, is_user_rule, unsupported
from tfrobust.errors import InputError
from tfrobust.layers import FrozenBatchNormalization, LocalResponseNormalization, LpPooling2D

__all__ = ["operation_of"]

layers = keras.layers


def operation_of(step: Step) -> Operation:
    """The operation of a step, by the certified rules.

    Raises:
        UnsupportedLayerError: no rule covers it.
        ValueError: a registered rule returned no number, or a negative one.
    """
    rule = find_rule(step, "certified")
    if rule is None:
        is_activation = is_plain(step.layer, layers.Activation)
        if is_activation and step.layer.activation is keras.activations.linear:
            return Permutation(step.layer, "no element changes")
        activation = activation_of(step.layer)
        if activation is None:
            raise unsupported(step, "certified")
        return Elementwise(activation, step.kind)
    shapes = step.input_shapes
    result = rule(step.layer, shapes[0] if len(shapes) == 1 else list(shapes))
    if isinstance(result, Operation):
        return result
    try:
        constant = float(result)
    except (TypeError, ValueError):
        constant = math.nan
    if not 0 <= constant < math.inf:
        raise InputError(
            f"the rule of layer {step.name!r} ({step.kind}) returned {result!r:.200}; it must be "
            "a Lipschitz constant: a number, finite and not negative"
        )
    return Lipschitz(
        step.function,
        constant,
        step.output_shape,
        f"Lipschitz constant {constant:.4g}",
        roundings=None if is_user_rule(step, "certified") else 0,
    )


@built_in_rule(layers.Dense)
def _dense(layer: Any, shape: Any) -> Operation:
    return Dense(layer, lambda: operator_norm_upper_bound(layer, shape), "spectral norm")


@built_in_rule(layers.Conv1D)
@built_in_rule(layers.Conv2D)
@built_in_rule(layers.DepthwiseConv1D)
@built_in_rule(layers.DepthwiseConv2D)
def _convolution(layer: Any, shape: Any) -> Operation:
    return Convolutional(
        layer, lambda: operator_norm_upper_bound(layer, shape), "operator norm of the convolution"
    )


@built_in_rule(layers.SeparableConv1D)
@built_in_rule(layers.SeparableConv2D)
def _separable_convolution(layer: Any, shape: Any) -> Operation:
    return Separable(
        layer, lambda: operator_norm_upper_bound(layer, shape), "operator norm of both convolutions"
    )


@built_in_rule(layers.BatchNormalization)
@built_in_rule(FrozenBatchNormalization)
def _batch_normalization(layer: Any, shape: Any) -> Operation:
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    if axis not in (-1, len(shape)):
        raise UnsupportedLayerError(
            f"batch normalization {layer.name!r} over axis {axis}: only the last is supported"
        )
    return Scaling(
        layer,
        lambda: operator_norm_upper_bound(layer, shape),
        "largest |gamma| / sqrt(variance + epsilon)",
        lambda dtype: batch_normalization_factors(layer, dtype),
    )


@built_in_rule(layers.Rescaling)
@built_in_rule(layers.Normalization)
def _rescaling(layer: Any, shape: Any) -> Operation:
    return Scaling(
        layer,
        lambda: operator_norm_upper_bound(layer, shape),
        "largest scale",
        lambda dtype: rescaling_factors(layer, dtype),
    )


@built_in_rule(layers.AveragePooling1D)
@built_in_rule(layers.AveragePooling2D)
def _average_pooling(layer: Any, shape: Any) -> Operation:
    check_channels_last(layer)
    fewest = 1  # entries in the smallest window: padding does not count
    for size, pool, stride in zip(shape[:-1], layer.pool_size, layer.strides, strict=True):
        reads = windows_over(size, pool, stride, zeros_around(layer.padding, size, pool, stride))
        fewest *= int(reads.sum(axis=1).min())
    return AveragePooling(
        layer,
        lambda: operator_norm_upper_bound(layer, shape),
        "operator norm of the average",
        terms=math.prod(layer.pool_size),
        row_norm=1 / math.sqrt(fewest),
    )


@built_in_rule(layers.GlobalAveragePooling1D)
@built_in_rule(layers.GlobalAveragePooling2D)
def _global_average(layer: Any, shape: Any) -> Operation:
    check_channels_last(layer)
    count = math.prod(shape[:-1])
    return AveragePooling(
        layer,
        lambda: operator_norm_upper_bound(layer, shape),
        "1 / root of the number of positions",
        terms=count,
        row_norm=1 / math.sqrt(count),
    )


def _isometry(layer: Any, shape: Any) -> Operation:
    return Permutation(layer, "no element changes")


for _type in ISOMETRIES:
    built_in_rule(_type)(_isometry)


@built_in_rule(layers.MaxPooling1D)
@built_in_rule(layers.MaxPooling2D)
def _max_pooling(layer: Any, shape: Any) -> Operation:
    check_channels_last(layer)
    pool, strides = tuple(layer.pool_size), tuple(layer.strides)
    padding = tuple(
        zeros_around(layer.padding, size, p, s)
        for size, p, s in zip(shape[:-1], pool, strides, strict=True)
    )
    return MaxPooling(
        layer, sliding_windows(pool, strides, padding), _overlap(shape, pool, strides, padding)
    )


@built_in_rule(layers.GlobalMaxPooling1D)
@built_in_rule(layers.GlobalMaxPooling2D)
def _global_max(layer: Any, shape: Any) -> Operation:
    check_channels_last(layer)
    sizes = tuple(shape[:-1])
    sliding = sliding_windows(sizes, sizes, ((0, 0),) * len(sizes))

    def windows(x: Any, fill: Any) -> Any:
        entries = sliding(x, fill)
        return entries if layer.keepdims else tf.squeeze(entries, list(range(1, len(sizes) + 1)))

    return MaxPooling(layer, windows, 1)


@built_in_rule(LpPooling2D)
def _lp_pooling(layer: Any, shape: Any) -> Operation:
    pool, strides = tuple(layer.pool_size), tuple(layer.strides)
    padding = tuple(
        zeros_around(layer.padding, size, p, s)
        for size, p, s in zip(shape[:-1], pool, strides, strict=True)
    )
    overlap = _overlap(shape, pool, strides, padding)
    # ||.||_p <= n^(1/p - 1/2) ||.||_2 over n entries where p < 2
    window_constant = max(1.0, math.prod(pool) ** (1 / float(layer.p) - 0.5))
    output = layer.compute_output_shape((None, *shape))[1:]
    return Lipschitz(
        layer,
        window_constant * math.sqrt(overlap),
        output,
        f"lp pooling: root of {overlap} windows per input",
        # 16 for each power, 16 for the root, and those of the sum
        roundings=math.prod(pool) + 40,
    )


@built_in_rule(LocalResponseNormalization)
def _response_normalization(layer: Any, shape: Any) -> Operation:
    return ResponseNormalization(layer)


@built_in_rule(layers.Add)
@built_in_rule(operation_class(keras.ops.add, tensors=2))
def _addition(layer: Any, shapes: Any) -> Operation:
    return Addition([1.0] * _branches(layer, shapes))


@built_in_rule(layers.Average)
def _average(layer: Any, shapes: Any) -> Operation:
    count = _branches(layer, shapes)
    return Addition([1 / count] * count)


@built_in_rule(layers.Subtract)
@built_in_rule(operation_class(keras.ops.subtract, tensors=2))
def _subtraction(layer: Any, shapes: Any) -> Operation:
    _branches(layer, shapes)
    return Addition([1.0, -1.0])


@built_in_rule(layers.Maximum)
@built_in_rule(layers.Minimum)
def _extremum(layer: Any, shapes: Any) -> float:
    _branches(layer, shapes)
    return 1.0  # no element changes more than the largest change among the branches


def _branches(layer: Any, shapes: Any) -> int:
    """The number of branches that a layer merges. UnsupportedLayerError if shapes differ."""
    if not isinstance(shapes, list):
        raise UnsupportedLayerError(
            f"layer {layer.name!r} takes one tensor, or one and a constant, but bounds need two "
            "tensors here: use a Rescaling layer to add a constant"
        )
    if any(shape != shapes[0] for shape in shapes):
        raise UnsupportedLayerError(
            f"layer {layer.name!r} merges tensors of different shapes {shapes}"
        )
    return len(shapes)


@built_in_rule(layers.Concatenate)
@built_in_rule(operation_class(lambda *tensors: keras.ops.concatenate(tensors), tensors=2))
def _concatenation(layer: Any, shapes: Any) -> Operation:
    if not isinstance(shapes, list):
        raise UnsupportedLayerError(f"layer {layer.name!r} concatenates one tensor only")
    axis = layer.axis if layer.axis >= 0 else len(shapes[0]) + 1 + layer.axis
    if axis == 0:
        raise UnsupportedLayerError(f"layer {layer.name!r} concatenates examples")
    return Concatenation(axis, [shape[axis - 1] for shape in shapes])


def _overlap(shape: Any, pool: Any, strides: Any, padding: Any) -> int:
    """The largest number of windows that contain one input."""
    windows = 1
    for size, p, s, (before, after) in zip(shape[:-1], pool, strides, padding, strict=True):
        starts = range(-before, size + after - p + 1, s)
        windows *= max(
            sum(first <= position < first + p for first in starts) for position in range(size)
        )
    return windows
