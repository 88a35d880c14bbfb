"""Upper bounds of the operator norm of any linear Keras layer, cached by its weights."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfrobust.bounds.graph import UnsupportedLayerError, is_plain
from tfrobust.bounds.operator_norms.convolution import (
    SLACK,
    Convolution,
    convolution_norm,
    largest_singular_value,
)
from tfrobust.errors import InputError
from tfrobust.layers import FrozenBatchNormalization

__all__ = [
    "batch_normalization_scale",
    "cached_norm",
    "check_channels_last",
    "folded_norm",
    "operator_norm_upper_bound",
    "windows_over",
    "zeros_around",
]

_CACHE: OrderedDict[Any, float] = OrderedDict()
_CACHED = 4096
_CACHE_LOCK = threading.Lock()

layers = keras.layers
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_AVERAGES = (layers.AveragePooling1D, layers.AveragePooling2D)
_GLOBAL_AVERAGES = (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D)
NORMALIZATIONS = (layers.BatchNormalization, FrozenBatchNormalization)
ISOMETRIES = (
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
)


def operator_norm_upper_bound(
    layer: keras.layers.Layer, input_shape: Sequence[int | None]
) -> float:
    """A proven upper bound of the norm of a layer's linear part, ||A x||_2 <= bound * ||x||_2.

    For Keras's linear layers that the certified rules cover, and subclasses that compute the same.

    Dense layers: the largest singular value. Convolutions, with any stride, padding, dilation and
    groups: within 2 % for the sizes used in practice (see `convolution`). Batch normalization in
    inference mode, rescaling, average pooling: exact. Bias and activation do not enter. Computed in
    double precision and cached by the weights and the shape, also across layers.

    Args:
        layer: a built layer.
        input_shape: of one example, (height, width, channels) or (features,); a leading None for
            the batch is left out.

    Raises:
        UnsupportedLayerError: the layer is not linear, or not known.
        ValueError: it has no weights yet, weights that are not finite, or the shape does not fit.
    """
    shape = _sizes(input_shape)
    if getattr(layer, "quantization_mode", None):
        raise UnsupportedLayerError(f"layer {layer.name!r} is quantized, so not linear")
    if is_plain(layer, layers.Dense):
        kernel = _weights(layer, "kernel")
        _check_size(layer, shape, -1, len(kernel))
        return cached_norm("dense", [kernel], (), largest_singular_value)
    if is_plain(layer, *_CONVOLUTIONS):
        return _convolution(layer, shape, _weights(layer, "kernel"))
    if is_plain(layer, *_SEPARABLE):  # as the one convolution that it is
        first, second = _weights(layer, "depthwise_kernel"), _weights(layer, "pointwise_kernel")
        second = second.reshape(*first.shape[-2:], -1)
        return _convolution(layer, shape, np.einsum("...cm,cmo->...co", first, second))
    if is_plain(layer, *NORMALIZATIONS):
        scale = batch_normalization_scale(layer)
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
        _check_size(layer, shape, axis - 1 if axis > 0 else axis, len(scale))
        return float(np.abs(scale).max()) * (1 + SLACK)
    if is_plain(layer, layers.Rescaling):
        # as rounded to single precision
        return float(np.abs(np.asarray(layer.scale, np.float32)).max()) * (1 + SLACK)
    if is_plain(layer, layers.Normalization):
        if layer.invert:
            raise UnsupportedLayerError(
                f"Normalization {layer.name!r} with invert is not supported"
            )
        deviation = np.sqrt(np.asarray(layer.variance, np.float64))
        return float(1 / np.maximum(deviation, keras.config.epsilon()).min()) * (1 + 1e-6)
    if is_plain(layer, *_AVERAGES):
        _check_images(layer, shape, len(layer.pool_size))
        return _average(layer, shape)
    if is_plain(layer, *_GLOBAL_AVERAGES):
        _check_images(layer, shape, 1 if isinstance(layer, layers.GlobalAveragePooling1D) else 2)
        return 1 / math.sqrt(math.prod(shape[:-1])) * (1 + SLACK)
    if is_plain(layer, *ISOMETRIES):
        return 1.0
    raise UnsupportedLayerError(
        f"layer {layer.name!r} ({type(layer).__name__}) is no linear layer with a known norm; "
        "known are Dense, Conv1D/2D, DepthwiseConv1D/2D, SeparableConv1D/2D, BatchNormalization, "
        "Rescaling, Normalization, average pooling, padding, cropping, reshaping and dropout"
    )


def _sizes(input_shape: Sequence[int | None]) -> tuple[int, ...]:
    """The sizes of one example."""
    try:
        shape = tuple(input_shape)
    except TypeError:
        raise InputError(f"input_shape must be a sequence of sizes, got {input_shape!r}") from None
    if shape and shape[0] is None:
        shape = shape[1:]
    if any(size is None or size < 1 for size in shape):
        raise InputError(f"input_shape must hold positive sizes, got {tuple(input_shape)}")
    return tuple(int(size) for size in shape)


def folded_norm(layer: Any, normalization: Any, input_shape: tuple[int, ...]) -> float:
    """The norm of a dense or convolutional layer followed by batch normalization, as one layer."""
    scale = batch_normalization_scale(normalization)
    kernel = _weights(layer, "kernel")
    if isinstance(layer, _DEPTHWISE):  # (taps, channels, multiplier)
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    else:
        kernel = kernel * scale
    if isinstance(layer, layers.Dense):
        return cached_norm("dense", [kernel], (), largest_singular_value)
    return _convolution(layer, tuple(input_shape), kernel)


def batch_normalization_scale(layer: Any) -> np.ndarray:
    """gamma / sqrt(moving variance + epsilon) of each channel, float64."""
    variance = _weights(layer, "moving_variance")
    if (variance + layer.epsilon <= 0).any():
        raise InputError(f"the moving variance of layer {layer.name!r} is negative")
    scale = 1 / np.sqrt(variance + layer.epsilon)
    return scale * _weights(layer, "gamma") if layer.scale else scale


def _convolution(layer: Any, shape: tuple[int, ...], kernel: np.ndarray) -> float:
    rank = kernel.ndim - 2
    check_channels_last(layer)
    groups = layer.groups if isinstance(layer, layers.Conv1D | layers.Conv2D) else 1
    channels = kernel.shape[-2] * groups
    if len(shape) != rank + 1 or shape[-1] != channels:
        raise InputError(
            f"layer {layer.name!r} takes {rank} sizes and {channels} channels, got {shape}"
        )
    strides, dilation = _pair(layer.strides, rank), _pair(layer.dilation_rate, rank)
    size = (1, *shape[:-1]) if rank == 1 else shape[:-1]
    if rank == 1:
        kernel = kernel[None]
    taps = kernel.shape[:2]
    padding = tuple(
        zeros_around(layer.padding, n, k, s, d)
        for n, k, s, d in zip(size, taps, strides, dilation, strict=True)
    )
    if isinstance(layer, _DEPTHWISE):  # one group per channel
        grouped = np.moveaxis(kernel, 2, -1)[:, :, None]
    else:  # output channels of a group lie side by side
        grouped = kernel.reshape(*kernel.shape[:-1], groups, -1)
        grouped = np.swapaxes(grouped, -1, -2)
    settings = (size, strides, dilation, padding)
    return cached_norm(
        "convolution",
        [grouped],
        settings,
        lambda weights: convolution_norm(Convolution(weights, *settings)),
    )


def _average(layer: Any, shape: tuple[int, ...]) -> float:
    """The product of the norms along each axis: averages over a rectangle are separable."""
    norm = 1.0
    for size, pool, stride in zip(
        shape[:-1], layer.pool_size, layer.strides or layer.pool_size, strict=True
    ):
        reads = windows_over(size, pool, stride, zeros_around(layer.padding, size, pool, stride))
        # padding does not count
        norm *= largest_singular_value(reads / reads.sum(axis=1, keepdims=True))
    return norm


def check_channels_last(layer: Any) -> None:
    """UnsupportedLayerError for a layer whose channels come before the positions."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise UnsupportedLayerError(f"layer {layer.name!r}: only channels_last is supported")


def _check_images(layer: Any, shape: tuple[int, ...], rank: int) -> None:
    check_channels_last(layer)
    if len(shape) != rank + 1:
        raise InputError(f"layer {layer.name!r} takes {rank} sizes and channels, got {shape}")


def _check_size(layer: Any, shape: tuple[int, ...], axis: int, size: int) -> None:
    if not -len(shape) <= axis < len(shape) or shape[axis] != size:
        raise InputError(f"layer {layer.name!r} takes {size} features or channels, got {shape}")


def windows_over(size: int, pool: int, stride: int, padding: tuple[int, int]) -> np.ndarray:
    """Which positions of one axis each pooling window contains: (windows, size), bool."""
    before, after = padding
    count = (size + before + after - pool) // stride + 1
    first = np.arange(count)[:, None] * stride - before
    positions = np.arange(size)
    return (positions >= first) & (positions < first + pool)


def zeros_around(
    padding: str, size: int, taps: int, stride: int, dilation: int = 1
) -> tuple[int, int]:
    """Number of zeros that Keras's padding adds before and after one axis."""
    reach = (taps - 1) * dilation + 1
    if padding == "valid":
        if reach > size:
            raise InputError(f"a window of {reach} does not fit into {size}")
        return 0, 0
    if padding == "causal":
        return reach - 1, 0
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _pair(value: Any, rank: int) -> tuple[int, int]:
    value = (value,) * rank if isinstance(value, int) else tuple(value)
    return (1, *value) if rank == 1 else value


def _weights(layer: Any, name: str) -> np.ndarray:
    if not layer.built:
        raise InputError(f"layer {layer.name!r} has no weights yet: build it, or call it once")
    values = np.asarray(getattr(layer, name), np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"the {name} of layer {layer.name!r} holds NaN or infinite values")
    return values


def cached_norm(
    kind: str, arrays: list[np.ndarray], settings: Any, compute: Callable[..., float]
) -> float:
    """`compute(*arrays)`, cached by kind, arrays and settings."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    key = (kind, digest.hexdigest(), settings)
    with _CACHE_LOCK:
        if key in _CACHE:
            _CACHE.move_to_end(key)
            return _CACHE[key]
    norm = float(compute(*arrays))
    with _CACHE_LOCK:
        _CACHE[key] = norm
        if len(_CACHE) > _CACHED:
            _CACHE.popitem(last=False)
    return norm
