"""Models that compute in half precision, evaluated in single precision without being changed."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.classifier import Classifier, all_layers, keras_internals
from tfrobust.classifier.keras_internals import single_precision
from tfrobust.training import computing_in

layers = keras.layers


class Subclassed(keras.Model):
    """Casts its input itself, as models written for half precision do."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = layers.Dense(8, "relu"), layers.BatchNormalization()
        self.last = layers.Dense(3)

    def call(self, x, training=False):
        x = tf.cast(x, self.compute_dtype)
        return self.last(self.norm(self.first(x), training=training))


class Decorated(Subclassed):
    @tf.function
    def call(self, x, training=False):
        return super().call(x, training=training)


def functional(shape, *middle):
    inputs = keras.Input(shape)
    x = inputs
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def convolutional():
    return functional(
        (6, 6, 1),
        layers.Rescaling(1 / 3, offset=0.1),
        layers.Conv2D(4, 3),
        layers.BatchNormalization(),
        layers.ReLU(),
        lambda x: 1.1 * x,
        layers.Flatten(),
    )


def sequential(*, declared=True, softmax=False):
    start = [keras.Input((6, 6, 1))] if declared else []
    end = [layers.Softmax()] if softmax else []
    return keras.Sequential(
        [*start, layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(3), *end]
    )


def attention():
    inputs = keras.Input((6, 4))
    x = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def inner_graph():
    """A model that begins inside the graph of another."""
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(3, 3)(inputs)
    head = keras.Model(x, layers.Dense(3)(layers.Flatten()(x)))
    return keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(3, 3), head])


MODELS = {
    "functional": convolutional,
    "sequential": lambda: sequential(softmax=True),
    "sequential, input not declared": lambda: sequential(declared=False),
    "nested": lambda: functional((6, 6, 1), layers.Conv2D(1, 3, padding="same"), sequential()),
    "nested, input not declared": lambda: functional((6, 6, 1), sequential(declared=False)),
    "inner graph": inner_graph,
    "subclassed": Subclassed,
    "decorated": Decorated,
    "attention": attention,
    "bidirectional": lambda: functional((6, 4), layers.Bidirectional(layers.LSTM(3))),
    "time distributed": lambda: functional(
        (6, 4), layers.TimeDistributed(layers.Dense(5, "tanh")), layers.Flatten()
    ),
}


def pair(build, policy="mixed_bfloat16"):
    """The same model in half and in single precision, and a batch for it."""
    keras.utils.set_random_seed(0)
    full = build()
    with computing_in(policy):
        half = build()
    shape = full.input_shape[1:] if full.built else (36,)
    x = np.random.default_rng(0).random((5, *shape)).astype("float32")
    for model in (full, half):
        model(x)
    half.set_weights(full.get_weights())
    return half, full, x


def outputs(model, x, **options):
    return np.asarray(Classifier.of(model, x).compiled_outputs(**options)(x))


def settings_of(model):
    parts = all_layers(model)
    return [(layer.dtype_policy.name, layer.compute_dtype, list(vars(layer))) for layer in parts]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_outputs_are_those_of_the_model_in_single_precision(build):
    half, full, x = pair(build)
    expected = outputs(full, x)
    settings, weights = settings_of(half), half.get_weights()
    before = outputs(half, x)
    np.testing.assert_array_equal(outputs(half, x, in_single_precision=True), expected)
    assert abs(before - expected).max() > 1e-5
    # evaluated anew, the model still computes in half precision, with the same weights
    np.testing.assert_array_equal(outputs(half, x), before)
    assert half(x).dtype == tf.bfloat16
    assert settings_of(half) == settings
    for mine, theirs in zip(half.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("mean", "variance"), [(0.123, 0.377), ([0.123, 0.2, 0.3], [1.1, 0.377, 0.9]), (None, None)]
)
def test_moments_that_keras_keeps_in_half_precision(mean, variance, rng):
    data = rng.normal(0.123, 0.7, (50, 4, 4, 3)).astype("float32")

    def build():
        normalised = layers.Normalization(mean=mean, variance=variance)
        model = functional((4, 4, 3), normalised, layers.Flatten())
        if mean is None:
            normalised.adapt(data)
        return model

    half, full, x = pair(build)
    expected = outputs(full, x)
    np.testing.assert_allclose(outputs(half, x, in_single_precision=True), expected, rtol=1e-5)
    assert abs(outputs(half, x) - expected).max() > 1e-4


def test_float16_and_single_layers():
    half, full, x = pair(sequential, "mixed_float16")
    np.testing.assert_array_equal(outputs(half, x, in_single_precision=True), outputs(full, x))
    one = sequential()
    mixed = keras.Sequential(
        [keras.Input((6, 6, 1)), *one.layers[:1], layers.Dense(8, dtype="mixed_bfloat16")]
    )
    kernel, bias = mixed.layers[-1].get_weights()
    found = outputs(mixed, x, in_single_precision=True)
    np.testing.assert_allclose(found, x.reshape(5, 36) @ kernel + bias, rtol=1e-5, atol=1e-6)


def test_a_model_in_single_precision_is_left_alone():
    model = convolutional()
    x = np.random.default_rng(0).random((5, 6, 6, 1)).astype("float32")
    np.testing.assert_array_equal(outputs(model, x), outputs(model, x, in_single_precision=True))
    with keras.device("cpu"), single_precision():
        double = keras.layers.Dense(2, dtype="float64")
        assert double(x).dtype == tf.float64
        assert double.compute_dtype == "float64"


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantized_layers_are_left_alone():
    half, _, x = pair(sequential)
    half.quantize("int8")
    before = outputs(half, x)
    np.testing.assert_array_equal(outputs(half, x, in_single_precision=True), before)


def test_keras_is_put_back_also_after_an_error():
    layer, cls = layers.Dense(2, dtype="mixed_bfloat16"), layers.Layer
    before = {name: vars(cls)[name] for name in ("dtype_policy", "compute_dtype")}
    with pytest.raises(RuntimeError), single_precision():
        assert layer.compute_dtype == "float32"
        assert layer.dtype_policy.name == "float32"
        raise RuntimeError
    assert layer.compute_dtype == "bfloat16"
    assert layer.dtype_policy.name == "mixed_bfloat16"
    assert {name: vars(cls)[name] for name in before} == before
    assert not keras_internals._USERS
    layer.dtype_policy = "float32"  # the setter works, inside and outside
    with single_precision():
        layer.dtype_policy = "mixed_float16"
    assert layer.compute_dtype == "float16"


def test_other_threads_compute_in_half_precision():
    half, full, x = pair(convolutional)
    inside, done = threading.Event(), threading.Event()
    found = {}

    def other_thread():
        inside.wait(20)
        found["other"] = half(x).dtype, half.layers[1].compute_dtype
        with single_precision():
            found["own block"] = half(x).dtype
        found["after it"] = half(x).dtype
        done.set()

    thread = threading.Thread(target=other_thread)
    thread.start()
    with single_precision():
        inside.set()
        values = half(x)
        assert done.wait(20)
        assert half.layers[1].compute_dtype == "float32"
    thread.join(20)
    np.testing.assert_allclose(values, full(x), rtol=1e-6, atol=1e-6)
    assert found["other"] == (tf.bfloat16, "bfloat16")
    assert found["own block"] == tf.float32
    assert found["after it"] == tf.bfloat16
    assert half(x).dtype == tf.bfloat16


def test_many_threads_at_once():
    half, _, x = pair(sequential)
    expected = outputs(half, x, in_single_precision=True)
    wrong = []

    def evaluate(single):
        for _ in range(20):
            if single:
                with single_precision():
                    values = half(x)
                right = values.dtype == tf.float32 and np.allclose(values, expected, atol=1e-6)
            else:
                right = half(x).dtype == tf.bfloat16
            if not right:
                wrong.append(single)

    threads = [threading.Thread(target=evaluate, args=(k % 2 == 0,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not keras_internals._USERS
