"""A view leaves no trace on its model, and is compared with it on the data that it is used for."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import Masking

from tfrobust import measure, minimal
from tfrobust.bounds import robustness
from tfrobust.classifier import (
    Classifier,
    NotLogitsError,
    WithoutActivation,
    all_layers,
    jacobian,
    logits_model,
    predict_logits,
    producer,
    values_of,
)
from tfrobust.classifier.checks import checked_rows, in_chunks, other_batch
from tfrobust.training import evaluate

layers = keras.layers
FEATURES = 4
CLASSES = 3


def inputs(count=20, scale=1.0):
    rows = np.random.default_rng(1).normal(size=(count, FEATURES))
    return (scale * rows).astype(np.float32)


def model_ending_in(*head, functions=()):
    start = keras.Input((FEATURES,))
    x = layers.Dense(6, activation="tanh", name="hidden")(start)
    for layer in (*head, *functions):
        x = layer(x)
    return keras.Model(start, x)


def softmax_head():
    return layers.Dense(CLASSES, activation="softmax")


class Subclassed(keras.Model):
    """A call of one's own around layers, each called with `keywords`."""

    def __init__(self, *parts, **keywords):
        super().__init__()
        self.parts, self.keywords = list(parts), keywords

    def call(self, x):
        for part in self.parts:
            x = part(x, **self.keywords) if part._call_has_training_arg else part(x)
        return x


# no trace ----------------------------------------------------------------------------------------


HEADS = {
    "fused": lambda: [softmax_head()],
    "layer": lambda: [layers.Dense(CLASSES), layers.Softmax()],
    "activation": lambda: [layers.Dense(CLASSES), layers.Activation("softmax")],
    "reshaped": lambda: [
        layers.Reshape((1, 6)),
        softmax_head(),
        layers.Dropout(0.5),
        layers.Flatten(),
        layers.Identity(),
        layers.Reshape((CLASSES,)),
    ],
    "operations": lambda: [
        layers.Reshape((1, 6)),
        softmax_head(),
        lambda x: keras.ops.squeeze(x, 1),
        lambda x: keras.ops.reshape(x, (-1, CLASSES)),
    ],
    "nested": lambda: [keras.Sequential([keras.Input((6,)), softmax_head()])],
    "twice nested": lambda: [
        keras.Sequential([keras.Sequential([keras.Input((6,)), softmax_head()]), layers.Flatten()])
    ],
    "subclassed inside": lambda: [Subclassed(softmax_head())],
    "logits": lambda: [layers.Dense(CLASSES)],
}


def everything(model):
    """What every layer refers to, and what is in its lists, dictionaries and sets."""

    def described(value):
        if isinstance(value, (list, tuple)):
            return [id(item) for item in value]
        if isinstance(value, dict):
            return [(key, id(item)) for key, item in value.items()]
        return len(value) if isinstance(value, set) else value if isinstance(value, bool) else 0

    return [
        (id(layer), {name: (id(value), described(value)) for name, value in vars(layer).items()})
        for layer in all_layers(model)
    ]


@pytest.mark.parametrize("head", HEADS)
def test_layers_are_left_as_they_are(head):
    """Every view appended a node to the layer before the softmax, and kept its memory."""
    model, x = model_ending_in(*HEADS[head]()), inputs()
    np.asarray(model(x))
    before = everything(model)
    view = logits_model(model, x)
    logits_model(model, x)(x)
    assert everything(model) == before
    measure(model, x)
    jacobian(model, x)
    minimal(model, x, "gradient", value_range=(-10, 10))
    if head not in ("subclassed inside", "operations"):  # which have no rules
        robustness(model, x)
    assert everything(model) == before
    np.testing.assert_allclose(
        tf.nn.softmax(view(x)) if head != "logits" else view(x), model(x), atol=1e-6
    )
    assert model.to_json() == model.to_json()


def test_a_subclassed_model_is_left_as_it_is():
    model, x = Subclassed(layers.Dense(6, activation="relu"), softmax_head()), inputs()
    model(x)
    before = everything(model)
    logits_model(model, x)(x)
    predict_logits(model, x)
    # TensorFlow's six notes on any model that is part of another one, made once
    notes = {name for name in vars(model) if name.startswith("_self_")}
    assert len(notes - set(before[0][1])) <= 6
    without_notes = everything(model)
    for name in notes - set(before[0][1]):
        del without_notes[0][1][name]
    assert without_notes == before
    before = everything(model)
    logits_model(model, x)(x)
    predict_logits(model, x)
    assert everything(model) == before


def test_what_follows_the_softmax_is_the_users_layer():
    model = model_ending_in(*HEADS["reshaped"]())
    last = producer(logits_model(model).outputs[0]).operation
    assert isinstance(last, WithoutActivation)
    assert last.layer is model.layers[-1]


@pytest.mark.parametrize("head", ["reshaped", "operations", "twice nested"])
def test_a_view_with_what_follows_its_softmax_is_saved(head, tmp_path):
    model, x = model_ending_in(*HEADS[head]()), inputs()
    view = logits_model(model)
    view.save(tmp_path / "view.keras")
    loaded = keras.saving.load_model(tmp_path / "view.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(x), view(x), atol=1e-6)


# compared on the data ----------------------------------------------------------------------------


class FarFromZero(layers.Dense):
    """A softmax, but for inputs that are large."""

    def call(self, x, training=None):
        probabilities = super().call(x)
        far = tf.reduce_max(tf.abs(x), axis=1, keepdims=True) > 5
        return tf.where(far, probabilities * [1.0, 5.0, 0.2], probabilities)


class Gained(layers.Dense):
    """A softmax as long as its gain is one."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(), initializer="ones")
        super().build(shape)

    def call(self, x, training=None):
        return self.gain * super().call(x)


def only_the_last_quarter_is_large():
    """Sorted, as data sets are."""
    x = inputs(100, 0.1)
    x[75:] *= 100
    return x


@pytest.mark.parametrize(
    "use",
    [
        predict_logits,
        measure,
        jacobian,
        lambda model, x: minimal(model, x, "gradient", value_range=(-100, 100)),
    ],
)
def test_a_head_that_is_a_softmax_near_the_first_examples_only(use):
    start = keras.Input((FEATURES,))
    model = keras.Model(start, FarFromZero(CLASSES, activation="softmax")(start))
    x = only_the_last_quarter_is_large()
    logits_model(model, x)  # which looks at the first few
    predict_logits(model, x[:75])
    with pytest.raises(NotLogitsError, match="outputs are not the softmax of"):
        use(model, x)


def test_a_head_that_is_no_softmax_any_more():
    """Weights are no part of the state, so that the same compiled functions would be used."""
    model, x = model_ending_in(Gained(CLASSES, activation="softmax")), inputs()
    np.testing.assert_allclose(tf.nn.softmax(predict_logits(model, x)), model(x), atol=1e-6)
    classifier = Classifier.of(model)
    model.layers[-1].gain.assign(1.1)
    assert Classifier.of(model) is classifier
    with pytest.raises(NotLogitsError, match="they differ by 0"):
        measure(model, x)


class Doubling(keras.Model):
    """No override that `is_graph` looks for."""

    def _standardize_inputs(self, x):
        return [2 * each for each in super()._standardize_inputs(x)]


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_model_that_does_not_compute_its_graph(activation):
    start = keras.Input((FEATURES,))
    model = Doubling(start, layers.Dense(CLASSES, activation=activation)(start))
    message = "not the softmax" if activation else "does not return what its layers compute"
    with pytest.raises(NotLogitsError, match=message):
        predict_logits(model, inputs())


@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("layer", [layers.BatchNormalization, lambda: layers.Dropout(0.5)])
def test_examples_that_depend_on_each_other_or_on_chance(layer, activation, count):
    """No gradient of one example's logit is the right one."""
    head = layers.Dense(CLASSES, activation=activation)
    model, x = Subclassed(layer(), head, training=True), inputs(count)
    with pytest.raises(NotLogitsError, match="depend on the other examples in its batch"):
        measure(model, x)
    quiet = Subclassed(layer(), head, training=False)
    np.testing.assert_allclose(
        tf.nn.softmax(predict_logits(quiet, x)) if activation else predict_logits(quiet, x),
        quiet(x),
        atol=1e-6,
    )


def test_training_goes_on_where_a_model_is_random_in_inference_mode():
    """Its losses are those of its draws; a refusal after the first epoch would lose it."""
    model = Subclassed(layers.Dropout(0.5), layers.Dense(CLASSES), training=True)
    assert set(evaluate(model, inputs(), np.arange(20) % CLASSES)) == {"loss", "accuracy"}


def test_rows_that_are_compared():
    x = np.arange(1000.0)[:, None]
    rows = checked_rows(x)
    assert rows.dtype == np.float32
    assert len(rows) == 16
    assert (rows[0], rows[-1]) == (0, 999)
    assert np.ptp(np.diff(rows[:, 0])) <= 1
    np.testing.assert_array_equal(checked_rows(x[:5]), x[:5])
    np.testing.assert_array_equal(checked_rows(tf.constant(x[:5])), x[:5])
    sizes = []

    def note(chunk):
        sizes.append(len(chunk))
        return chunk, tf.cast(chunk, tf.bfloat16)

    first, second = in_chunks(note, rows)
    assert sizes == [8, 8]  # what fits for one batch of 8 fits
    assert first.dtype == second.dtype == np.float64
    np.testing.assert_array_equal(first, rows)
    # of another size, and with the same rows first
    assert [len(other_batch(rows[:count])) for count in (1, 2, 3, 8, 16)] == [2, 1, 1, 4, 4]
    for count in (1, 2, 16):
        np.testing.assert_array_equal(other_batch(rows[:count])[:1], rows[:1])


def test_the_comparison_is_traced_once_and_costs_two_forward_passes_of_16_rows():
    rows = []

    class Counting(layers.Layer):
        def call(self, x):
            tf.numpy_function(lambda x: rows.append(len(x)), [x], [])
            return x * 1.0

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape)

    start = keras.Input((FEATURES,))
    model = keras.Model(start, softmax_head()(Counting()(start)))
    x = inputs(64)
    predict_logits(model, x)
    rows.clear()
    predict_logits(model, x)
    assert sum(rows) == 64 + 2 * 16
    unchanged = Subclassed(Counting(), layers.Dense(CLASSES))
    predict_logits(unchanged, x)
    rows.clear()
    predict_logits(unchanged, x)
    assert sum(rows) == 64  # its logits are its output


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("kind", ["graph", "subclassed"])
def test_models_in_half_precision(policy, activation, kind):
    """A softmax rounded to half precision does not add up to one to 1e-4."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        parts = [layers.Dense(30, activation="relu"), layers.Dense(CLASSES, activation=activation)]
        model = Subclassed(*parts)
        if kind == "graph":
            model = keras.Sequential([keras.Input((FEATURES,)), *parts])
    finally:
        keras.config.set_dtype_policy(before)
    x = inputs(50, 3.0)
    logits = predict_logits(model, x)
    expected = np.asarray(tf.cast(model(x), tf.float32))
    found = tf.nn.softmax(logits) if activation else logits
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.RNN(layers.SimpleRNNCell(CLASSES, activation="softmax")), "probabilities"),
        (lambda: layers.GRU(CLASSES, activation="softmax"), "they differ by"),
        (lambda: layers.SimpleRNN(CLASSES, activation="softmax"), "they differ by"),
        (
            lambda: layers.Bidirectional(layers.LSTM(CLASSES, activation="softmax")),
            "lies between 0 and 1",
        ),
    ],
)
def test_recurrent_layers_with_a_softmax_are_refused(layer, message):
    model = keras.Sequential([keras.Input((5, FEATURES)), layer()])
    x = np.random.default_rng(0).normal(size=(8, 5, FEATURES)).astype(np.float32)
    for use in (predict_logits, measure, robustness):
        with pytest.raises(NotLogitsError, match=message):
            use(model, x)


class Inverted(layers.Layer):
    """Keeps a mask, and has a softmax to leave out."""

    def __init__(self):
        super().__init__()
        self.activation = keras.activations.softmax

    def call(self, x, mask=None):
        return self.activation(x)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (layers.Softmax, "a softmax with a mask"),
        (Inverted, "more than its input, a mask for instance"),
        (
            lambda: keras.Sequential([keras.Input((CLASSES,)), layers.Softmax()]),
            "more than its input, a mask for instance",
        ),
    ],
)
def test_a_mask_that_comes_with_the_input_is_seen(end, message):
    model = model_ending_in(layers.Dense(CLASSES), Masking(below=-1e9), end())
    with pytest.raises(NotLogitsError, match=message):
        logits_model(model, inputs())


def test_a_shape_of_zeros_is_not_taken_for_data():
    """`fit` gives zeros of the data's shape, where a head without bias returns zeros too."""

    class Negated(layers.Dense):
        def call(self, x, training=None):
            return tf.nn.softmax(-tf.matmul(x, self.kernel))

    head = Negated(CLASSES, activation="softmax", use_bias=False)
    model = keras.Sequential([head])
    zeros = np.zeros((1, FEATURES), np.float32)
    model(zeros)
    with pytest.raises(NotLogitsError, match="they differ by"):
        logits_model(model, zeros)


def test_a_call_that_takes_inputs_alone():
    class Sharpened(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(CLASSES)

        def call(self, x):
            return self.dense(x)

        def __call__(self, x):
            return tf.nn.softmax(3 * super().__call__(x))

    model, x = Sharpened(), inputs()
    np.testing.assert_allclose(tf.nn.softmax(predict_logits(model, x)), model(x), atol=1e-6)
    np.testing.assert_array_equal(measure(model, x).predicted, np.argmax(model(x), axis=1))


def test_functions_of_a_model_that_is_gone():
    x = inputs()
    model = Subclassed(softmax_head())
    classifier = Classifier.of(model, x)
    run = classifier.compiled_outputs()
    expected = run(x)
    del model
    gc.collect()
    np.testing.assert_array_equal(run(x), expected)
    np.testing.assert_array_equal(classifier.compiled_outputs()(x), expected)
    for compile_again in (
        lambda: classifier.compiled(values_of),
        lambda: classifier.compiled_outputs(in_single_precision=True),
    ):
        with pytest.raises(ValueError, match="has been deleted: keep a reference to it"):
            compile_again()
    graph = model_ending_in(softmax_head())
    classifier, expected = Classifier.of(graph, x), np.asarray(graph(x))
    del graph
    gc.collect()
    np.testing.assert_allclose(classifier.compiled_outputs()(x), expected, atol=1e-6)


def test_a_policy_that_a_map_holds_for_a_layer():
    """Only the map's default was read."""
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    policies["half"] = "mixed_bfloat16"
    dense = layers.Dense(CLASSES, dtype=policies, name="half")
    dense.build((None, FEATURES))
    assert (dense.path, dense.compute_dtype) == ("half", "bfloat16")
    model, x = keras.Sequential([keras.Input((FEATURES,)), dense]), inputs()
    exact = x @ np.asarray(dense.kernel) + np.asarray(dense.bias)
    run = Classifier.of(model, x).compiled_outputs
    assert np.abs(run()(x) - exact).max() > 1e-4
    np.testing.assert_allclose(run(in_single_precision=True)(x), exact, atol=1e-5)
    # and the other way round: single in a map whose default is half
    policies = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16")
    policies["single"] = "float64"
    double = layers.Dense(CLASSES, dtype=policies, name="single")
    double.build((None, FEATURES))
    model = keras.Sequential([keras.Input((FEATURES,), dtype="float64"), double])
    found = Classifier.of(model, x).compiled_outputs(in_single_precision=True)(x)
    np.testing.assert_allclose(found, double(x), atol=1e-6)
