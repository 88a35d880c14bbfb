"""Operator-norm bounds against dense matrices: never below the largest singular value."""

import keras
import numpy as np
import pytest
import scipy.sparse.linalg
import tensorflow as tf
from helpers.nets import randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.bounds import UnsupportedLayerError, operator_norm_upper_bound
from tfrobust.bounds.operator_norms import convolution as convolution_norms
from tfrobust.bounds.operator_norms.layers import folded_norm
from tfrobust.layers import FrozenBatchNormalization

layers = keras.layers


def dense_matrix(layer, shape):
    """The layer's linear part, column by column, by calling it in single precision."""
    size = int(np.prod(shape))
    zero = np.asarray(layer(tf.zeros((1, *shape)))).reshape(1, -1)
    columns = np.asarray(layer(tf.reshape(tf.eye(size), (size, *shape)))).reshape(size, -1)
    return (columns.astype(np.float64) - zero).T


def assert_bounds_norm(layer, shape, within=1.02):
    norm = np.linalg.norm(dense_matrix(layer, shape), 2)
    bound = operator_norm_upper_bound(layer, shape)
    assert norm * (1 - 1e-5) <= bound <= norm * within + 1e-6  # the matrix is in float32
    return norm


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    taps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]),
    groups=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    positive=st.booleans(),
)
def test_convolutions(seed, size, taps, strides, dilation, padding, groups, channels, positive):
    if dilation > 1:
        strides = 1  # Keras has one of both at most
        taps = tuple(min(t, 3) for t in taps)
    layer = layers.Conv2D(
        channels[1] * groups,
        taps,
        strides=strides,
        dilation_rate=dilation,
        padding=padding,
        groups=groups,
    )
    shape = (*size, channels[0] * groups)
    layer.build((None, *shape))
    randomise(layer, seed)
    if positive:  # kernels of one sign have their norm at frequency zero, where edges matter most
        layer.kernel.assign(abs(layer.kernel))
    assert_bounds_norm(layer, shape)


# settings of convolutions that take channels one by one
PER_CHANNEL = {
    "seed": st.integers(0, 2**32 - 1),
    "size": st.tuples(st.integers(5, 10), st.integers(5, 10)),
    "taps": st.integers(1, 4),
    "strides": st.integers(1, 3),
    "padding": st.sampled_from(["valid", "same"]),
    "multiplier": st.integers(1, 2),
}


@settings(max_examples=30)
@given(
    **PER_CHANNEL,
    channels=st.integers(1, 4),
)
def test_depthwise_convolutions(seed, size, taps, strides, padding, channels, multiplier):
    layer = layers.DepthwiseConv2D(
        taps, strides=strides, padding=padding, depth_multiplier=multiplier
    )
    shape = (*size, channels)
    layer.build((None, *shape))
    assert_bounds_norm(randomise(layer, seed), shape)


@settings(max_examples=20)
@given(
    **PER_CHANNEL,
    channels=st.integers(1, 3),
)
def test_separable_convolutions(seed, size, taps, strides, padding, channels, multiplier):
    layer = layers.SeparableConv2D(
        3, taps, strides=strides, padding=padding, depth_multiplier=multiplier
    )
    shape = (*size, channels)
    layer.build((None, *shape))
    assert_bounds_norm(randomise(layer, seed), shape)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(6, 30),
    taps=st.integers(1, 5),
    strides=st.integers(1, 3),
    padding=st.sampled_from(["valid", "same", "causal"]),
)
def test_one_dimensional_convolutions(seed, size, taps, strides, padding):
    layer = layers.Conv1D(3, taps, strides=strides, padding=padding)
    layer.build((None, size, 2))
    assert_bounds_norm(randomise(layer, seed), (size, 2))


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    pool=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.integers(1, 4),
    padding=st.sampled_from(["valid", "same"]),
)
def test_average_pooling(size, pool, strides, padding):
    layer = layers.AveragePooling2D(pool, strides=strides, padding=padding)
    assert_bounds_norm(layer, (*size, 2), within=1 + 1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dense(7),
        layers.BatchNormalization(),
        FrozenBatchNormalization(),
        layers.GlobalAveragePooling2D(),
        layers.Rescaling(1 / 255, offset=-1),
        layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 0.25, 1.0]),
        layers.ZeroPadding2D(2),
        layers.Cropping2D(1),
        layers.Flatten(),
        layers.Permute((2, 1, 3)),
        layers.Dropout(0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_linear_layers_are_exact(layer):
    shape = (6, 5, 3)
    layer.build((None, *shape))
    assert_bounds_norm(randomise(layer, 1), shape, within=1 + 1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_large_convolutions_against_lanczos(seed, monkeypatch):
    """The bound over frequencies, where a matrix would be too large: at most 2 % above."""
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(20, 34, 2))
    taps = int(rng.integers(2, 6))
    stride = int(rng.integers(1, 3))
    before = int(rng.integers(0, taps))
    channels = rng.integers(3, 9, 2)
    convolution = convolution_norms.Convolution(
        rng.normal(size=(taps, taps, *channels, 1)) + rng.choice([0, 0.5]),
        size,
        (stride, stride),
        (1, 1),
        ((before, taps - 1 - before),) * 2,
    )
    monkeypatch.setattr(convolution_norms, "DENSE_COST", 0)
    bound = convolution_norms.convolution_norm(convolution)
    matrix = convolution_norms.sparse_matrix(convolution)
    norm = scipy.sparse.linalg.svds(
        matrix, k=1, return_singular_vectors=False, tol=1e-6, random_state=0
    )[0]
    assert norm * (1 - 1e-9) <= bound <= 1.02 * norm


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
)
def test_frequencies_bound_small_convolutions_too(seed, size, taps, strides, dilation, padding):
    rng = np.random.default_rng(seed)
    strides = tuple(s if d == 1 else 1 for s, d in zip(strides, dilation, strict=True))
    convolution = convolution_norms.Convolution(
        rng.normal(size=(*taps, 2, 2, 1)) + rng.choice([0, 1]),
        size,
        strides,
        dilation,
        (padding[:2], padding[2:]),
    )
    if min(convolution.output_size) < 1:
        return
    norm = np.linalg.norm(convolution_norms.sparse_matrix(convolution).toarray(), 2)
    assert convolution_norms._spectral_norm(convolution, 0) >= norm * (1 - 1e-12)


def test_gram_norm_of_a_large_matrix_is_exact():
    matrix = np.random.default_rng(0).normal(size=(400, 900))
    norm = np.linalg.norm(matrix, 2)
    assert norm <= convolution_norms.largest_singular_value(matrix) <= norm * 1.0002


def test_many_channels_by_gram_iteration():
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(30, 40, 50)) + 1j * rng.normal(size=(30, 40, 50))
    norms = np.linalg.norm(matrices, 2, axis=(1, 2))
    bound = convolution_norms._largest_norm(matrices, 0.0)
    assert norms.max() <= bound <= norms.max() * 1.005
    assert convolution_norms._largest_norm(matrices, 1e3) == 1e3


def test_batch_normalization_is_folded_into_the_layer_before_it():
    for layer in (layers.Conv2D(4, 3), layers.DepthwiseConv2D(3, depth_multiplier=2)):
        layer.build((None, 7, 6, 3))
        randomise(layer, 0)
        normalization = layers.BatchNormalization()
        normalization.build(layer.compute_output_shape((None, 7, 6, 3)))
        randomise(normalization, 1)

        def both(x, layer=layer, normalization=normalization):
            return normalization(layer(x))

        norm = np.linalg.norm(dense_matrix(both, (7, 6, 3)), 2)
        bound = folded_norm(layer, normalization, (7, 6, 3))
        assert norm * (1 - 1e-5) <= bound <= norm * 1.001


def test_a_norm_is_computed_once_for_the_same_weights(monkeypatch):
    calls = []
    original = convolution_norms.convolution_norm
    monkeypatch.setattr(
        "tfrobust.bounds.operator_norms.layers.convolution_norm",
        lambda convolution: calls.append(1) or original(convolution),
    )
    layer = layers.Conv2D(2, 3)
    layer.build((None, 9, 9, 1))
    layer.kernel.assign(np.random.default_rng(99).normal(size=(3, 3, 1, 2)))
    first = operator_norm_upper_bound(layer, (9, 9, 1))
    assert operator_norm_upper_bound(layer, (None, 9, 9, 1)) == first and len(calls) == 1
    operator_norm_upper_bound(layer, (8, 9, 1))
    assert len(calls) == 2
    layer.kernel.assign(2 * layer.kernel)
    assert operator_norm_upper_bound(layer, (9, 9, 1)) == pytest.approx(2 * first)
    assert len(calls) == 3


def test_what_cannot_be_bounded_is_an_error():
    with pytest.raises(UnsupportedLayerError, match="LayerNormalization"):
        operator_norm_upper_bound(layers.LayerNormalization(name="n"), (4,))
    with pytest.raises(ValueError, match="no weights yet"):
        operator_norm_upper_bound(layers.Dense(3), (4,))
    layer = layers.Conv2D(2, 3)
    layer.build((None, 9, 9, 1))
    with pytest.raises(ValueError, match="1 channels"):
        operator_norm_upper_bound(layer, (9, 9, 2))
    with pytest.raises(ValueError, match="does not fit"):
        operator_norm_upper_bound(layer, (2, 9, 1))
    layer.kernel.assign(np.full((3, 3, 1, 2), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        operator_norm_upper_bound(layer, (9, 9, 1))
