"""The logits view: the same function and the same weights, less the softmax."""

import re
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.classifier import (
    NotLogitsError,
    all_layers,
    is_graph,
    jacobian,
    logits_model,
    predict_logits,
)
from tfrobust.training import computing_in

layers = keras.layers
SHAPE = (6, 5, 1)
CLASSES = 4


def images(count=7):
    return np.random.default_rng(1).normal(size=(count, *SHAPE)).astype(np.float32)


def trunk():
    return [layers.Input(SHAPE), layers.Flatten(), layers.Dense(8, activation="tanh")]


def functional(head):
    inputs = layers.Input(SHAPE)
    hidden = layers.Dense(8, activation="tanh")(layers.Flatten()(inputs))
    return keras.Model(inputs, head(hidden))


def dense(activation=None):
    # large weights, so that logits and probabilities differ
    return layers.Dense(
        CLASSES, activation=activation, kernel_initializer=keras.initializers.RandomNormal(0, 2)
    )


def sequential_fused():
    return keras.Sequential([*trunk(), dense("softmax")])


def sequential_softmax_layer():
    return keras.Sequential([*trunk(), dense(), layers.Softmax()])


def sequential_activation_layer():
    return keras.Sequential([*trunk(), dense(), layers.Activation("softmax")])


def functional_fused():
    return functional(dense("softmax"))


def functional_softmax_layer():
    return functional(lambda h: layers.Softmax()(dense()(h)))


def functional_ops_softmax():
    return functional(lambda h: keras.ops.softmax(dense()(h)))


def functional_tf_softmax_activation():
    return functional(dense(tf.nn.softmax))


def functional_ops_softmax_activation():
    return functional(dense(keras.ops.softmax))


def softmax_then_reshape():
    return keras.Sequential(
        [
            *trunk(),
            dense(),
            layers.Reshape((1, CLASSES)),
            layers.Softmax(),
            layers.Reshape((CLASSES,)),
        ]
    )


def softmax_then_dropout():
    return keras.Sequential([*trunk(), dense("softmax"), layers.Dropout(0.5)])


def convolution_then_flatten():
    head = layers.Conv2D(CLASSES, 1, activation="softmax")
    return keras.Sequential(
        [layers.Input(SHAPE), layers.Conv2D(6, (6, 5), activation="relu"), head, layers.Flatten()]
    )


def pooled_convolution_then_reshape_and_softmax():
    """The shape of MobileNet's head."""
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(6, 3, activation="relu"),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Conv2D(CLASSES, 1),
            layers.Reshape((CLASSES,)),
            layers.Activation("softmax"),
        ]
    )


def inner_model_last():
    return functional(keras.Sequential([layers.Input((8,)), dense("softmax")]))


def inner_model_then_reshape():
    inner = keras.Sequential([layers.Input((8,)), dense(), layers.Softmax()])
    return functional(lambda h: layers.Reshape((CLASSES,))(inner(h)))


def twice_nested():
    innermost = keras.Sequential([layers.Input((8,)), dense("softmax")])
    hidden = layers.Input((8,))
    return functional(keras.Model(hidden, innermost(hidden)))


def sequential_around_a_base():
    return keras.Sequential([functional_fused()])


def rescaling_then_base():
    return keras.Sequential(
        [layers.Input(SHAPE), layers.Rescaling(0.5), functional_softmax_layer()]
    )


def with_batch_normalization():
    return keras.Sequential([*trunk(), layers.BatchNormalization(), dense("softmax")])


class Subclassed(keras.Model):
    def __init__(self, end, attention=False):
        super().__init__()
        self.flatten = layers.Flatten()
        self.hidden = layers.Dense(8, activation="tanh")
        self.attention = layers.Softmax() if attention else None
        self.end = [end] if not isinstance(end, list) else end

    def call(self, inputs):
        hidden = self.hidden(self.flatten(inputs))
        if self.attention is not None:
            hidden = hidden * self.attention(hidden)
        for layer in self.end:
            hidden = layer(hidden)
        return hidden


class Bare(keras.Model):
    """A function that is no layer on top of a dense layer."""

    def __init__(self, function):
        super().__init__()
        self.dense = dense()
        self.function = function

    def call(self, inputs):
        return self.function(self.dense(tf.reshape(inputs, [-1, 30])))


def subclassed_fused():
    return Subclassed(dense("softmax"))


def subclassed_softmax_layer():
    return Subclassed([dense(), layers.Softmax()])


def subclassed_activation_layer():
    return Subclassed([dense(), layers.Activation("softmax")])


def subclassed_nested():
    return Subclassed(keras.Sequential([dense("softmax")]))


def subclassed_around_functional():
    return Subclassed(keras.Sequential([layers.Input((8,)), dense(), layers.Softmax()]))


def subclassed_with_attention_and_softmax():
    return Subclassed([dense(), layers.Softmax()], attention=True)


def subclassed_softmax_of_tensorflow():
    return Bare(tf.nn.softmax)


def subclassed_softmax_of_rank_three():
    return Subclassed([dense(), layers.Reshape((1, CLASSES)), layers.Softmax(), layers.Flatten()])


DECLARED = [
    sequential_fused,
    sequential_softmax_layer,
    sequential_activation_layer,
    functional_fused,
    functional_softmax_layer,
    functional_ops_softmax,
    functional_tf_softmax_activation,
    functional_ops_softmax_activation,
    softmax_then_reshape,
    softmax_then_dropout,
    convolution_then_flatten,
    pooled_convolution_then_reshape_and_softmax,
    inner_model_last,
    inner_model_then_reshape,
    twice_nested,
    sequential_around_a_base,
    rescaling_then_base,
    with_batch_normalization,
]
SUBCLASSED = [
    subclassed_fused,
    subclassed_softmax_layer,
    subclassed_activation_layer,
    subclassed_nested,
    subclassed_around_functional,
    subclassed_with_attention_and_softmax,
    subclassed_softmax_of_tensorflow,
    subclassed_softmax_of_rank_three,
]
EVERY = pytest.mark.parametrize("build", DECLARED + SUBCLASSED, ids=lambda build: build.__name__)


def view_of(build, x):
    model = build()
    return model, logits_model(model, None if build in DECLARED else x)


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def ids(variables):
    return sorted(id(variable) for variable in variables)


@EVERY
def test_softmax_of_the_view_is_the_model(build):
    x = images()
    model, view = view_of(build, x)
    probabilities = np.asarray(model(x))
    logits = np.asarray(view(x))
    assert logits.shape == (7, CLASSES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    # not probabilities again
    assert (np.abs(logits.sum(axis=1) - 1) > 1e-3).any()
    assert (logits < 0).any()
    np.testing.assert_allclose(softmax(logits), probabilities, atol=1e-5)


@EVERY
def test_the_model_keeps_its_softmax(build):
    x = images()
    model = build()
    before = np.asarray(model(x))
    view = logits_model(model, x)
    view(x)
    jacobian(model, x)
    np.testing.assert_array_equal(np.asarray(model(x)), before)


@EVERY
def test_the_view_holds_the_same_variables_and_no_others(build):
    x = images()
    model, view = view_of(build, x)
    model(x), view(x)
    assert ids(view.trainable_variables) == ids(model.trainable_variables)
    assert ids(view.non_trainable_variables) == ids(model.non_trainable_variables)


@EVERY
def test_assigning_to_one_changes_the_other(build):
    x = images()
    model, view = view_of(build, x)
    rng = np.random.default_rng(2)
    for source in (model, view):
        before = np.asarray(view(x))
        for variable in source.trainable_variables:
            variable.assign_add(rng.normal(size=variable.shape).astype(np.float32))
        assert np.abs(np.asarray(view(x)) - before).max() > 1e-2
        np.testing.assert_allclose(softmax(view(x)), np.asarray(model(x)), atol=1e-5)


@EVERY
def test_the_view_of_a_view_is_itself(build):
    x = images()
    _, view = view_of(build, x)
    assert logits_model(view, x) is view


@pytest.mark.parametrize("build", [functional_fused, sequential_softmax_layer, subclassed_fused])
def test_training_one_trains_the_other(build):
    x = images(16)
    labels = np.arange(16) % CLASSES
    model, view = view_of(build, x)
    before = np.asarray(model(x))
    view.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    view.fit(x, labels, epochs=2, verbose=0)
    between = np.asarray(model(x))
    assert np.abs(between - before).max() > 1e-3
    np.testing.assert_allclose(softmax(view(x)), between, atol=1e-5)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(x, labels, epochs=2, verbose=0)
    assert np.abs(np.asarray(model(x)) - between).max() > 1e-3
    np.testing.assert_allclose(softmax(view(x)), np.asarray(model(x)), atol=1e-5)


def test_loading_weights_into_the_model_reaches_the_view(tmp_path):
    x = images()
    other = functional_fused()
    other.save_weights(tmp_path / "a.weights.h5")
    model, view = view_of(functional_fused, x)
    model.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(softmax(view(x)), np.asarray(other(x)), atol=1e-6)


@pytest.mark.parametrize("build", DECLARED, ids=lambda build: build.__name__)
def test_a_saved_view_loads_in_safe_mode_with_the_same_logits(build, tmp_path):
    if build in (functional_tf_softmax_activation,):
        pytest.skip("Keras itself cannot load tf.nn.softmax by name")
    x = images()
    _, view = view_of(build, x)
    view.save(tmp_path / "view.keras")
    loaded = keras.saving.load_model(tmp_path / "view.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(x), view(x), atol=1e-6)
    assert loaded.count_params() == view.count_params()
    assert logits_model(loaded) is loaded


@pytest.mark.parametrize("build", DECLARED[::3], ids=lambda build: build.__name__)
def test_a_model_saved_after_use_holds_nothing_extra(build, tmp_path):
    if build in (functional_tf_softmax_activation,):
        pytest.skip("Keras itself cannot load tf.nn.softmax by name")
    x = images()
    model = build()
    model(x)
    model.save(tmp_path / "before.keras")
    logits = predict_logits(model, x)
    jacobian(model, x)
    model.save(tmp_path / "after.keras")
    model.save_weights(tmp_path / "after.weights.h5")
    before = keras.saving.load_model(tmp_path / "before.keras")
    after = keras.saving.load_model(tmp_path / "after.keras")
    assert len(after.weights) == len(before.weights) == len(model.weights)
    assert [w.path for w in after.weights] == [w.path for w in before.weights]
    assert after.get_config() == before.get_config()
    size = {name: (tmp_path / f"{name}.keras").stat().st_size for name in ("before", "after")}
    assert abs(size["after"] - size["before"]) < 64
    np.testing.assert_allclose(after(x), model(x), atol=1e-6)
    np.testing.assert_allclose(predict_logits(after, x), logits, atol=1e-6)
    before.load_weights(tmp_path / "after.weights.h5")
    np.testing.assert_allclose(before(x), model(x), atol=1e-6)


@pytest.mark.parametrize("build", SUBCLASSED, ids=lambda build: build.__name__)
def test_weights_of_a_subclassed_model_saved_after_use(build, tmp_path):
    x = images()
    model = build()
    jacobian(model, x)
    model.save_weights(tmp_path / "after.weights.h5")
    other = build()
    other(x)
    assert np.abs(np.asarray(other(x)) - np.asarray(model(x))).max() > 1e-3
    other.load_weights(tmp_path / "after.weights.h5")
    np.testing.assert_allclose(other(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        lambda: functional(dense()),
        lambda: functional(dense("linear")),
        lambda: keras.Sequential([*trunk(), dense()]),
        lambda: keras.Sequential([*trunk(), dense(), layers.Activation("linear")]),
        lambda: keras.Sequential([*trunk(), dense(), layers.Dropout(0.5)]),
        lambda: keras.Sequential([*trunk(), dense(), layers.Rescaling(3.0)]),
        lambda: keras.Sequential([functional(dense())]),
        lambda: functional(lambda h: dense()(h) + dense()(h)),
        lambda: functional(lambda h: layers.BatchNormalization()(dense()(h))),
        lambda: functional(lambda h: dense()(h * layers.Softmax()(h))),
    ],
)
def test_a_model_of_logits_comes_back_as_it_is(model):
    model = model()
    assert logits_model(model) is model


@pytest.mark.parametrize("attention", [False, True])
def test_a_subclassed_model_of_logits_comes_back_as_it_is(attention):
    model = Subclassed(dense(), attention=attention)
    assert logits_model(model, images()) is model


def test_the_inner_softmax_of_attention_stays():
    x = images()
    model = subclassed_with_attention_and_softmax()
    view = logits_model(model, x)
    hidden = model.hidden(model.flatten(x))
    expected = model.end[0](hidden * tf.nn.softmax(hidden))
    np.testing.assert_allclose(view(x), expected, atol=1e-5)


def test_the_training_phase_passes_through_the_view():
    x = images(64)
    model = Subclassed([layers.Dropout(0.5), dense(), layers.Softmax()])
    view = logits_model(model, x)
    assert np.abs(np.asarray(view(x, training=True) - view(x, training=False))).max() > 1e-3
    np.testing.assert_array_equal(view(x, training=False), view(x, training=False))


def test_a_sequential_model_without_input_needs_inputs_and_stays_open():
    x = images()
    model = keras.Sequential([layers.Flatten(), dense("softmax")])
    with pytest.raises(NotLogitsError, match=r"declares no input shape.*logits_model\(model, x\)"):
        logits_model(model)
    view = logits_model(model, x)
    np.testing.assert_allclose(softmax(view(x)), np.asarray(model(x)), atol=1e-5)
    assert model.input_shape == (None, *SHAPE)
    assert view.count_params() == model.count_params() == (30 + 1) * CLASSES


def test_an_inner_model_that_is_run_to_know_it_sees_its_own_inputs():
    """Its last layer says nothing about its output, and its input is not the model's."""
    x = images()
    for inner_shape, outer in (((None,), layers.Dense(8)), ((8,), layers.Dense(8))):
        hidden = layers.Input(inner_shape)
        inner = keras.Model(hidden, layers.Rescaling(2.0)(hidden))
        model = keras.Sequential([layers.Input(SHAPE), layers.Flatten(), outer, inner])
        assert logits_model(model, x) is model


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_inputs_in_a_list_and_outputs_in_a_dictionary():
    x = images()
    inputs = layers.Input(SHAPE)
    hidden = layers.Flatten()(inputs)
    in_list = keras.Model([inputs], [dense("softmax")(hidden)])
    np.testing.assert_allclose(softmax(logits_model(in_list)(x)), in_list(x), atol=1e-5)
    named = keras.Model(inputs, {"class": dense("softmax")(hidden)})
    np.testing.assert_allclose(softmax(logits_model(named)(x)), named(x)["class"], atol=1e-5)
    linear = keras.Model(inputs, {"class": dense()(hidden)})
    np.testing.assert_allclose(logits_model(linear)(x), linear(x)["class"], atol=1e-6)


def test_a_float32_head_in_a_mixed_precision_model_stays_float32():
    """The usual advice for mixed precision, and the view must not round its inputs."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = functional(
            lambda h: layers.Dense(CLASSES, activation="softmax", dtype="float32")(
                layers.Dense(8, dtype="float32")(h)
            )
        )
        view = logits_model(model)
    finally:
        keras.config.set_dtype_policy(before)
    x = images()
    assert view(x).dtype == tf.float32
    np.testing.assert_allclose(softmax(view(x)), np.asarray(model(x)), atol=1e-6)


ADVICE = "Give a model that returns logits"


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "log_softmax", "softplus"])
@pytest.mark.parametrize("form", ["fused", "layer", "nested", "reshaped"])
def test_other_activations_at_the_end_are_refused(activation, form):
    head = {
        "fused": [dense(activation)],
        "layer": [dense(), layers.Activation(activation)],
        "nested": [keras.Sequential([layers.Input((8,)), dense(activation)])],
        "reshaped": [dense(activation), layers.Reshape((CLASSES,))],
    }[form]
    model = keras.Sequential([*trunk(), *head])
    message = rf"ends in {activation} \(layer .*its outputs are not logits\. {ADVICE}"
    with pytest.raises(NotLogitsError, match=message):
        logits_model(model)


@pytest.mark.parametrize("layer", [layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU])
def test_activation_layers_at_the_end_are_refused(layer):
    model = keras.Sequential([*trunk(), dense(), layer()])
    with pytest.raises(NotLogitsError, match=f"ends in {layer.__name__}.*not logits"):
        logits_model(model)


def test_one_output_unit_is_refused():
    message = "has one output unit; one logit per class is needed, two for a binary problem"
    for activation in (None, "sigmoid"):
        with pytest.raises(NotLogitsError, match=message):
            logits_model(functional(layers.Dense(1, activation=activation)))
    with pytest.raises(NotLogitsError, match=message):
        logits_model(Subclassed(layers.Dense(1)), images())


def test_an_output_of_rank_three_is_refused():
    message = re.escape("; logits have shape (batch, classes)")
    model = keras.Sequential([layers.Input(SHAPE), layers.Reshape((6, 5)), layers.Dense(3)])
    with pytest.raises(NotLogitsError, match=r"returns \(None, 6, 3\)" + message):
        logits_model(model)
    with pytest.raises(NotLogitsError, match=r"returns \(7, 2, 4\)" + message):
        logits_model(Subclassed(layers.Reshape((2, 4))), images())


def test_two_outputs_are_refused():
    inputs = layers.Input(SHAPE)
    hidden = layers.Flatten()(inputs)
    model = keras.Model(inputs, [layers.Dense(3)(hidden), layers.Dense(2)(hidden)])
    with pytest.raises(NotLogitsError, match="has 1 inputs and 2 outputs; one of each is needed"):
        logits_model(model)


def test_two_inputs_are_refused():
    inputs = [layers.Input((3,)), layers.Input((3,))]
    model = keras.Model(inputs, layers.Dense(3)(layers.Add()(inputs)))
    with pytest.raises(NotLogitsError, match="has 2 inputs and 1 outputs; one of each is needed"):
        logits_model(model)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda z: tf.exp(z) / tf.reduce_sum(tf.exp(z), 1, keepdims=True),
            f"returns probabilities, and the softmax .* is no layer.*{ADVICE}",
        ),
        (tf.nn.log_softmax, f"returns log-probabilities. {ADVICE}"),
        (tf.nn.sigmoid, f"lies between 0 and 1, as a sigmoid's do. {ADVICE}"),
    ],
)
def test_hidden_functions_in_a_subclassed_call_are_refused(function, message):
    with pytest.raises(NotLogitsError, match=message):
        logits_model(Bare(function), images())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (keras.ops.log_softmax, "returns log-probabilities"),
        (lambda z: keras.ops.exp(z) / keras.ops.sum(keras.ops.exp(z), 1, True), "probabilities"),
    ],
)
def test_hidden_functions_in_a_functional_model_are_refused(function, message):
    with pytest.raises(NotLogitsError, match=message):
        logits_model(functional(lambda h: function(dense()(h))))


def test_an_average_of_softmaxes_is_refused():
    """No logits exist whose gradients could be taken layer by layer."""
    model = keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(4, 3, activation="softmax"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    with pytest.raises(NotLogitsError, match="returns probabilities"):
        logits_model(model)


def small_averages(activation):
    """Network in Network's head; kernels so small that every output lies between 0 and 1."""
    small = keras.initializers.RandomUniform(0, 0.01)
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Rescaling(0.01, offset=1),
            layers.Conv2D(CLASSES, 3, activation=activation, kernel_initializer=small),
            layers.GlobalAveragePooling2D(),
        ]
    )


@pytest.mark.parametrize("activation", [None, "relu"])
def test_an_average_of_an_unbounded_convolution_is_logits(activation):
    model = small_averages(activation)
    values = np.asarray(model(images()))
    assert 0 < values.min() < values.max() < 1
    assert logits_model(model) is model
    np.testing.assert_array_equal(predict_logits(model, images()), values)


def test_an_average_of_sigmoids_is_refused():
    with pytest.raises(NotLogitsError, match="lies between 0 and 1"):
        logits_model(small_averages("sigmoid"))


@pytest.mark.parametrize("model", [None, np.ones(3), lambda x: x, layers.Dense(3)])
def test_what_is_no_model_is_refused(model):
    message = f"expected a keras.Model, got {type(model).__name__}"
    with pytest.raises(TypeError, match=re.escape(message)):
        logits_model(model)


def test_a_subclassed_model_needs_inputs():
    with pytest.raises(NotLogitsError, match="declares no input shape; give a few inputs"):
        logits_model(Subclassed(dense("softmax")))


def test_the_error_is_a_value_error():
    assert issubclass(NotLogitsError, ValueError)


# a softmax that is not the softmax of the outputs before it ---------------------------------------


def two_softmaxes():
    return functional(
        lambda h: layers.Flatten()(layers.Softmax()(layers.Reshape((2, 2))(dense()(h))))
    )


def softmax_per_position():
    head = layers.Conv2D(2, (6, 4), activation="softmax")
    return keras.Sequential([layers.Input(SHAPE), head, layers.Flatten()])


def activation_per_position():
    rows = [layers.Input(SHAPE), layers.Reshape((5, 6)), layers.Dense(2)]
    return keras.Sequential([*rows, layers.Activation("softmax"), layers.Reshape((10,))])


def masked_softmax():
    mask = np.array([[True, True, False, True]])
    return functional(lambda h: layers.Softmax()(dense()(h), mask=mask))


class Reweighted(layers.Dense):
    def call(self, inputs, training=None):
        return super().call(inputs) * tf.constant([1.0, 5.0, 0.2, 2.0])


class Attention(layers.Layer):
    def __init__(self):
        super().__init__()
        self.activation = keras.activations.softmax
        self.query, self.head = layers.Dense(8), dense()

    def call(self, inputs):
        return tf.nn.sigmoid(self.head(self.activation(self.query(inputs)) * inputs))


def recurrent():
    return keras.Sequential(
        [layers.Input(SHAPE), layers.Reshape((6, 5)), layers.LSTM(CLASSES, activation="softmax")]
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (two_softmaxes, "several groups of outputs are normalised"),
        (softmax_per_position, "several groups of outputs are normalised"),
        (activation_per_position, "several groups of outputs are normalised"),
        (masked_softmax, "a softmax with a mask"),
        (lambda: functional(Reweighted(CLASSES, activation="softmax")), "they differ by"),
        (lambda: functional(Attention()), "they differ by"),
        (recurrent, "they differ by"),
    ],
)
def test_a_softmax_of_something_else_stays(build, message):
    """Leaving it out would change the class in up to half of the images."""
    with pytest.raises(NotLogitsError, match=message):
        logits_model(build())


class Softmax(layers.Layer):
    """Not Keras's."""

    def call(self, inputs):
        return tf.nn.softmax(-inputs)


def test_a_class_called_softmax_is_not_taken_for_one():
    with pytest.raises(NotLogitsError, match="returns probabilities"):
        logits_model(functional(lambda h: Softmax()(dense()(h))))


def test_the_axis_may_be_written_as_a_list():
    model = functional(lambda h: layers.Softmax(axis=[-1])(dense()(h)))
    np.testing.assert_allclose(softmax(logits_model(model)(images())), model(images()), atol=1e-5)


def test_a_call_that_is_overridden_is_not_a_graph():
    class Negated(keras.Model):
        def __call__(self, *args, **kwargs):
            return -super().__call__(*args, **kwargs)

    inputs = layers.Input(SHAPE)
    model = Negated(inputs, dense()(layers.Flatten()(inputs)))
    assert not is_graph(model)
    x = images()
    np.testing.assert_array_equal(predict_logits(model, x), model(x))


@pytest.mark.parametrize("build", [sequential_fused, subclassed_fused])
def test_a_global_dtype_policy_does_not_reach_the_view(build):
    """The view is made later than the model, under whatever policy is in force then."""
    x = 20 * images()
    model = build()
    expected = predict_logits(model, x)
    model.end = getattr(model, "end", None)  # another state: the view is made again
    with computing_in("mixed_bfloat16"):
        view = logits_model(model, x)
        for values in (view(x), predict_logits(view, x), predict_logits(model, x)):
            np.testing.assert_allclose(values, expected, atol=1e-5)
    assert all(layer.compute_dtype == "float32" for layer in all_layers(view))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("change", ["lora", "int8"])
def test_adapted_and_quantized_heads_lose_their_softmax_alike(change):
    x = images()
    model = sequential_fused()
    if change == "lora":
        model.layers[-1].enable_lora(2)
        model.layers[-1].lora_kernel_b.assign_add(np.full((2, CLASSES), 0.3, np.float32))
    else:
        model.quantize("int8")
    np.testing.assert_allclose(softmax(logits_model(model)(x)), model(x), atol=1e-5)


def test_threads_that_call_a_view_leave_the_model_alone():
    x = images()
    model = subclassed_fused()
    expected = np.asarray(model(x))
    view = logits_model(model, x)
    stop, wrong = threading.Event(), []

    def predict():
        while not stop.is_set():
            wrong.append(np.abs(np.asarray(model(x)) - expected).max() > 1e-6)

    thread = threading.Thread(target=predict)
    thread.start()
    for _ in range(20):
        tf.function(lambda rows: view(rows))(x)
    stop.set()
    thread.join()
    assert wrong
    assert not any(wrong)
