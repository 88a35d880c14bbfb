"""Which layers a rule covers: those that compute what their class does, and nothing else."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import classifier, randomise

import tfrobust
from tfrobust.bounds import (
    UnsupportedLayerError,
    operator_norm_upper_bound,
    register_rule,
    robustness,
)

layers = keras.layers


class Louder(layers.Dense):
    def call(self, inputs, training=None):
        return 100 * super().call(inputs)


class Leak(layers.ReLU):
    def call(self, inputs):
        return 100 * inputs


class Reversed(layers.Flatten):
    def call(self, inputs):
        return -50 * super().call(inputs)


class Named(layers.Layer):
    """Linear, and with an activation of that name, as many layers have."""

    def __init__(self):
        super().__init__()
        self.activation = keras.activations.get(None)

    def call(self, inputs):
        return self.activation(20 * inputs)


class WithSettings(layers.Dense):
    """Computes what Dense does."""

    def __init__(self, units, colour="red", **kwargs):
        super().__init__(units, **kwargs)
        self.colour = colour

    def get_config(self):
        return {**super().get_config(), "colour": self.colour}


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((4, 4, 2), layers.Conv2DTranspose(3, 3)),
        ((4, 2), layers.Conv1DTranspose(3, 3)),
        ((3, 3, 3, 1), layers.Conv3D(2, 2)),
        ((4, 2), layers.EinsumDense("abc,cd->abd", output_shape=(4, 5))),
        ((4, 2), layers.SimpleRNN(5, activation="linear")),
        ((4, 2), Named()),
        ((4, 2), Louder(5)),
        ((4, 2), Louder(5, activation="relu")),
        ((4, 2), Leak()),
        ((4, 2), Reversed()),
        ((4, 2), layers.PReLU()),
        ((2, 4, 4), layers.GlobalAveragePooling2D(data_format="channels_first")),
        ((2, 4), layers.GlobalAveragePooling1D(data_format="channels_first")),
        ((2, 4, 4), layers.GlobalMaxPooling2D(data_format="channels_first")),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else None,
)
@pytest.mark.filterwarnings("ignore:the thesis's printed rules")
def test_what_no_rule_covers_is_an_error(shape, layer):
    model, x = classifier(shape, layer)
    for rules in ("certified", "thesis"):
        with pytest.raises(UnsupportedLayerError, match=layer.name):
            robustness(model, x, rules=rules)
    if layer.name not in ("leak", "p_re_lu"):
        with pytest.raises(UnsupportedLayerError, match=layer.name):
            operator_norm_upper_bound(layer, shape)


def test_average_pooling_over_the_wrong_axes_is_an_error():
    for layer in (layers.AveragePooling2D, layers.MaxPooling2D):
        model, x = classifier((2, 4, 4), layer(2, data_format="channels_first"))
        with pytest.raises(UnsupportedLayerError, match="channels_last"):
            robustness(model, x)
    pool = layers.AveragePooling2D(2, data_format="channels_first")
    with pytest.raises(UnsupportedLayerError, match="channels_last"):
        operator_norm_upper_bound(pool, (2, 4, 4))


def test_a_subclass_with_settings_only_is_its_base():
    model, x = classifier((4,), WithSettings(6, activation="tanh"))
    randomise(model, 0)
    same, _ = classifier((4,), layers.Dense(6, activation="tanh"))
    same.set_weights(model.get_weights())
    np.testing.assert_array_equal(robustness(model, x).bound, robustness(same, x).bound)


def test_arguments_beside_the_inputs_are_an_error():
    class Scaled(layers.Layer):
        def call(self, x, scale=1.0):
            return x * scale

    register_rule(Scaled)(lambda layer, shape: 1.0)
    inputs = keras.Input((2,))
    x = np.ones((1, 2), np.float32)
    for output in (
        Scaled(name="louder")(inputs, scale=100.0),
        layers.Concatenate(name="louder")([inputs, tf.ones((1, 2))]),
    ):
        with pytest.raises(UnsupportedLayerError, match=r"'louder'.*more than its input"):
            robustness(keras.Model(inputs, layers.Dense(3)(output)), x)
    with pytest.raises(UnsupportedLayerError, match="training=True"):
        output = layers.Dropout(0.5)(inputs, training=True)
        robustness(keras.Model(inputs, layers.Dense(3)(output)), x)
    for output in (Scaled()(inputs), Scaled()(x=inputs), layers.Dropout(0.5)(inputs)):
        model = keras.Model(inputs, layers.Dense(3)(output))
        assert robustness(model, x).bound[0] > 0


def test_messages_say_why():
    for layer, message in (
        (layers.Activation("mish", name="fish"), r"'mish' of 'fish'"),
        (layers.ReLU(threshold=0.1), r"'ReLU'.*settings"),
        (layers.LeakyReLU(negative_slope=2.0), r"'LeakyReLU'.*settings"),
        (Louder(3), r"'Louder'.*computes something other than the class"),
    ):
        model, x = classifier((4,), layer)
        with pytest.raises(UnsupportedLayerError, match=message):
            robustness(model, x)


def test_adapted_statistics_count():
    """What was compiled before takes no old ones along."""
    rng = np.random.default_rng(0)
    normalize = layers.Normalization()
    normalize.adapt(rng.normal(size=(100, 2)))
    model, _ = classifier((2,), normalize, layers.Dense(6, activation="relu"))
    x = rng.normal(size=(20, 2)).astype(np.float32)
    robustness(model, x, tighten=False)
    attack = functools.partial(
        tfrobust.minimal, x=x, attack="fast_gradient_value", value_range=(-10, 10)
    )
    before = attack(model).distance
    normalize.adapt(100 * rng.normal(size=(100, 2)))
    result = robustness(model, x, tighten=False)
    fresh = keras.Sequential([keras.Input((2,)), *model.layers])
    expected = robustness(fresh, x, tighten=False)
    np.testing.assert_array_equal(result.bound, expected.bound)
    np.testing.assert_array_equal(result.margin, expected.margin)
    after = attack(model).distance
    np.testing.assert_array_equal(after, attack(fresh).distance)
    assert (after != before).any()


def test_shapes_that_do_not_fit_are_an_error():
    dense, pool = layers.Dense(3), layers.AveragePooling2D(2)
    dense.build((None, 20))
    normalize = layers.BatchNormalization()
    normalize.build((None, 5))
    for layer, shape in (
        *((dense, (7,)), (dense, ()), (normalize, (7,)), (normalize, ())),
        *((pool, (7,)), (layers.GlobalAveragePooling2D(), (7, 2))),
    ):
        with pytest.raises(ValueError, match=layer.name):
            operator_norm_upper_bound(layer, shape)
    assert operator_norm_upper_bound(dense, (None, 20)) > 0
    assert operator_norm_upper_bound(dense, (4, 20)) > 0


class Amplified(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return super().call(10 * inputs, training=training)


class AmplifiedGraph(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return super().call(10 * inputs, training=training)


class Watched(keras.Model):
    """Adds a training step and nothing else."""

    def train_step(self, data):
        return super().train_step(data)


def test_a_model_with_a_call_of_its_own_is_not_its_graph():
    x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, activation="relu")(inputs)
    nested = keras.Sequential([keras.Input((4,)), Amplified([keras.Input((4,)), layers.Dense(3)])])
    for model in (
        Amplified([keras.Input((4,)), layers.Dense(3)]),
        AmplifiedGraph(inputs, layers.Dense(3)(hidden)),
        keras.Sequential([keras.Input((4,)), nested, layers.Dense(3)]),
    ):
        with pytest.raises(UnsupportedLayerError, match="subclassed"):
            robustness(model, x)
        # what does not need the graph goes by the call
        result = tfrobust.predict_logits(model, x)
        np.testing.assert_allclose(result, np.asarray(model(x)), rtol=1e-4, atol=1e-5)
    softmax = AmplifiedGraph(inputs, layers.Dense(3, activation="softmax")(hidden))
    np.testing.assert_allclose(
        tf.nn.softmax(tfrobust.predict_logits(softmax, x)), softmax(x), rtol=1e-4, atol=1e-6
    )
    assert (robustness(Watched(inputs, layers.Dense(3)(hidden)), x).bound > 0).all()


def test_adapters_and_quantized_weights_are_not_missed():
    model, x = classifier((4,), layers.Dense(16, activation="relu"))
    before = robustness(model, x, tighten=False)
    dense = model.layers[0]
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(3 * np.ones(dense.lora_kernel_b.shape))
    result = robustness(model, x, tighten=False)
    same, _ = classifier((4,), layers.Dense(16, activation="relu"))
    same.layers[0].set_weights([np.asarray(dense.kernel), np.asarray(dense.bias)])
    same.layers[-1].set_weights(model.layers[-1].get_weights())
    expected = robustness(same, x, tighten=False)
    np.testing.assert_allclose(result.bound, expected.bound, rtol=1e-4)
    assert not np.allclose(before.bound, result.bound, rtol=0.1)

    model, x = classifier((4,), layers.Dense(16, activation="relu"))
    robustness(model, x, tighten=False)
    model.quantize("int8")
    with pytest.raises(UnsupportedLayerError, match="quantized"):
        robustness(model, x, tighten=False)
    with pytest.raises(UnsupportedLayerError, match="quantized"):
        operator_norm_upper_bound(model.layers[0], (4,))


@pytest.mark.parametrize("dtype", ["int32", "float16"])
def test_inputs_that_are_rounded_are_an_error(dtype):
    inputs = keras.Input((4,), dtype=dtype)
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    with pytest.raises(UnsupportedLayerError, match=f"takes {dtype}"):
        robustness(model, np.ones((2, 4), np.float32))


def test_odd_settings_are_errors():
    inputs = keras.Input((4,))
    x = np.ones((2, 4), np.float32)
    for output in (
        layers.Softmax(axis=0)(layers.Dense(3)(inputs)),
        layers.Dense(3)(layers.Concatenate(axis=0)([inputs, inputs])),
    ):
        with pytest.raises(ValueError, match=r"over axis 0|concatenates examples"):
            robustness(keras.Model(inputs, output), x)
    normalize = layers.BatchNormalization()
    model, _ = classifier((4,), normalize)
    normalize.moving_variance.assign(-np.ones(4))
    with pytest.raises(ValueError, match=r"variance of layer .* is negative"):
        robustness(model, x)
    with pytest.raises(ValueError, match="sequence of sizes"):
        operator_norm_upper_bound(normalize, 4)
