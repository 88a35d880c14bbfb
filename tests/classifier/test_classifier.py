"""One object per model: compiled again exactly when the model computes something else."""

import gc
import itertools
import sys
import threading
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import two_replicas
from helpers.processes import Child

from tfrobust.alignment import measure
from tfrobust.bounds import robustness
from tfrobust.classifier import (
    Classifier,
    gradients_at,
    logits_model,
    predict_logits,
    values_of,
)
from tfrobust.layers import LocalResponseNormalization

layers = keras.layers
FEATURES = 4


def inputs(count=5):
    return np.random.default_rng(1).normal(size=(count, FEATURES)).astype(np.float32)


def stack(*middle, activation="softmax"):
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(6, activation="relu"),
            *middle,
            layers.Dense(3, activation=activation),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self, activation="softmax"):
        super().__init__()
        self.hidden = layers.Dense(6, activation="relu")
        self.head = layers.Dense(3, activation=activation)
        self.temperature = 1.0

    def call(self, inputs):
        return self.head(self.hidden(inputs) * self.temperature)


def squares(logits, factor):
    def run(x):
        return factor * tf.square(logits(x, training=False))

    return run


def test_the_object_and_its_functions_are_the_same_as_long_as_the_model_is():
    model, x = stack(), inputs()
    classifier = Classifier.of(model)
    assert classifier is Classifier.of(model, x)
    assert (classifier.classes, classifier.input_shape) == (3, (FEATURES,))
    run = classifier.compiled(squares, 2.0)
    assert run is classifier.compiled(squares, 2.0)
    assert run is not classifier.compiled(squares, 3.0)
    np.testing.assert_allclose(run(x), 2 * predict_logits(model, x) ** 2, rtol=1e-5)
    np.testing.assert_allclose(classifier.compiled_outputs()(x), model(x), rtol=1e-5)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(5) % 3, verbose=0)
    model.predict(x, verbose=0)
    assert classifier is Classifier.of(model)
    assert classifier is not Classifier.of(stack())


def test_a_function_that_is_another_one_at_every_call_is_refused():
    classifier = Classifier.of(stack())
    for build in (lambda logits: logits, lambda logits, x: x):
        with pytest.raises(TypeError, match="is no function of a module"):
            classifier.compiled(build)


@pytest.mark.parametrize("build", [stack, Subclassed])
def test_weights_are_read_when_a_function_runs(build):
    model, x = build(), inputs()
    before = predict_logits(model, x)
    classifier = Classifier.of(model)
    model.set_weights([weight + 0.5 for weight in model.get_weights()])
    after = predict_logits(model, x)
    assert Classifier.of(model) is classifier
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(tf.nn.softmax(after), model(x), atol=1e-6)


def with_statistics():
    model = stack(layers.BatchNormalization())
    model.layers[1].moving_variance.assign(np.full(6, 0.01, np.float32))
    return model


def adapted():
    normalisation = layers.Normalization()
    normalisation.adapt(inputs())
    return keras.Sequential([keras.Input((FEATURES,)), normalisation, layers.Dense(3)])


def rescaled():
    scale = np.ones(FEATURES)
    return keras.Sequential([keras.Input((FEATURES,)), layers.Rescaling(scale), layers.Dense(3)])


def set_attribute(at, name, value):
    return lambda model: setattr(model.layers[at], name, value)


def enable_lora(model):
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones(model.layers[0].lora_kernel_b.shape))


def scale_in_place(model):
    model.layers[0].scale[:] = 3.0


class Scale(layers.Layer):
    """Multiplies by a number that is found by `read(held)`."""

    def __init__(self, held, read):
        super().__init__()
        self._evaluation_gain, self.loss, self.read = held, 1.0, read

    def call(self, inputs):
        return inputs * self.read(self._evaluation_gain) * self.loss


def scaled(held, read):
    return lambda: stack(Scale(held(), read))


def held_by(change):
    return lambda model: change(model.layers[1]._evaluation_gain)


class Slotted:
    __slots__ = ("gain",)

    def __init__(self):
        self.gain = 1.0

    def __call__(self, inputs):
        return inputs * self.gain


def with_default():
    def scale(inputs, gain=[1.0]):  # noqa: B006
        return inputs * gain[0]

    return stack(layers.Lambda(scale))


CHANGES = {
    "private": (scaled(lambda: 1.0, float), set_attribute(1, "_evaluation_gain", 3.0)),
    "named as Keras's": (scaled(lambda: 1.0, float), set_attribute(1, "loss", 3.0)),
    "object": (
        scaled(lambda: types.SimpleNamespace(gain=1.0), lambda held: held.gain),
        held_by(lambda held: setattr(held, "gain", 3.0)),
    ),
    "object in a dict": (
        scaled(lambda: {"a": [Slotted()]}, lambda held: held["a"][0].gain),
        held_by(lambda held: setattr(held["a"][0], "gain", 3.0)),
    ),
    "set": (scaled(lambda: {1}, sum), held_by(lambda held: held.add(2))),
    "long list": (
        scaled(lambda: [1.0] * 1001, lambda held: sum(held) / 1001),
        held_by(lambda held: held.__setitem__(0, 2000.0)),
    ),
    "range": (scaled(lambda: range(2), sum), set_attribute(1, "_evaluation_gain", range(4))),
    "object as activation": (
        lambda: stack(layers.Activation(Slotted())),
        lambda model: setattr(model.layers[1].activation, "gain", 3.0),
    ),
    "default of a function": (
        with_default,
        lambda model: model.layers[1].function.__defaults__[0].__setitem__(0, 3.0),
    ),
    "precision": (
        lambda: stack(layers.Dense(6)),
        set_attribute(1, "dtype_policy", keras.DTypePolicy("mixed_bfloat16")),
    ),
    "activation": (stack, set_attribute(0, "activation", keras.activations.tanh)),
    "softmax to none": (stack, set_attribute(-1, "activation", keras.activations.linear)),
    "epsilon": (with_statistics, set_attribute(1, "epsilon", 10.0)),
    "negative_slope": (
        lambda: keras.Sequential([keras.Input((4,)), layers.LeakyReLU(0.1), layers.Dense(3)]),
        set_attribute(0, "negative_slope", 2.0),
    ),
    "max_value": (lambda: stack(layers.ReLU(max_value=6.0)), set_attribute(1, "max_value", 0.1)),
    "ELU.alpha": (
        lambda: keras.Sequential([keras.Input((4,)), layers.ELU(), layers.Dense(3)]),
        set_attribute(0, "alpha", 5.0),
    ),
    "LRN.alpha": (
        lambda: stack(LocalResponseNormalization(1, 1.0)),
        set_attribute(1, "alpha", 5.0),
    ),
    "scale in place": (rescaled, scale_in_place),
    "lora": (stack, enable_lora),
    "int8": (stack, lambda model: model.quantize("int8")),
    "adapt": (adapted, lambda model: model.layers[0].adapt(3 * inputs() + 1)),
    "temperature": (Subclassed, lambda model: setattr(model, "temperature", 3.0)),
    "subclassed activation": (
        Subclassed,
        lambda model: setattr(model.hidden, "activation", keras.activations.tanh),
    ),
}


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_a_graph_holds_compile_it_again(name):
    """Each of them gave the old function's results, and bounds that did not hold."""
    build, change = CHANGES[name]
    model, x = build(), inputs()
    before = predict_logits(model, x)
    change(model)
    after = predict_logits(model, x)
    assert np.abs(after - before).max() > 1e-3 or name in ("softmax to none", "int8", "precision")
    linear = name in ("softmax to none", "ELU.alpha", "negative_slope", "adapt", "scale in place")
    outputs = after if linear else tf.nn.softmax(after)
    close = 0.02 if name == "precision" else 1e-5
    np.testing.assert_allclose(outputs, model(x), rtol=close, atol=close)
    assert Classifier.of(model) is Classifier.of(model)


def test_what_a_layer_notes_while_it_is_traced_compiles_nothing_again():
    class Counted(layers.Layer):
        calls = 0

        def call(self, inputs):
            self.calls += 1
            return inputs * 1.0

    model, x = stack(Counted()), inputs()
    classifier = Classifier.of(model, x)
    predict_logits(model, x)
    calls = model.layers[1].calls
    for _ in range(3):
        predict_logits(model, x)
        assert Classifier.of(model) is classifier
    assert model.layers[1].calls == calls > 0


def test_what_a_function_notes_while_it_is_traced_compiles_nothing_again():
    traced = []

    def note(inputs):
        traced.append(1)
        return inputs * 1.0

    model, x = stack(layers.Lambda(note)), inputs()
    classifier = Classifier.of(model, x)
    predict_logits(model, x)
    count = len(traced)
    for _ in range(3):
        predict_logits(model, x)
        assert Classifier.of(model) is classifier
    assert len(traced) == count


def test_what_keras_notes_of_a_subclassed_model_compiles_nothing_again(tmp_path):
    model, x = Subclassed(), inputs()
    predict_logits(model, x)
    classifier = Classifier.of(model)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, np.arange(5) % 3, verbose=0)
    model.evaluate(x, np.arange(5) % 3, verbose=0)
    model.predict(x, verbose=0)
    model.save_weights(tmp_path / "w.weights.h5")
    model.load_weights(tmp_path / "w.weights.h5")
    assert Classifier.of(model) is classifier
    predict_logits(model, x)
    assert Classifier.of(model) is classifier


def sequential_logits():
    return stack(activation=None)


def functional():
    start = keras.Input((FEATURES,))
    return keras.Model(start, layers.Dense(3, activation="softmax")(layers.Dense(6)(start)))


@pytest.mark.parametrize(
    "build", [stack, sequential_logits, functional, Subclassed, lambda: Subclassed(None)]
)
def test_a_deleted_model_frees_its_memory(build):
    model, x = build(), inputs()
    predict_logits(model, x)
    measure(model, x)
    classifier = Classifier.of(model)
    classifier.compiled_outputs()(x)
    gone = weakref.ref(model), weakref.ref(classifier), weakref.ref(model.variables[0])
    del model, classifier
    for _ in range(2):  # what the model held is let go of by the second
        gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def gradients(logits):
    def run(x):
        values, pull_back = gradients_at(logits, x)
        return pull_back(values)

    return run


@pytest.mark.parametrize("build", [stack, Subclassed])
def test_threads_get_the_same_object_and_the_same_results(build):
    model, x = build(), inputs(8)
    model(x)
    results, barrier = [], threading.Barrier(4)

    def work():
        barrier.wait(10)
        classifier = Classifier.of(model, x)
        run = classifier.compiled(gradients)
        results.append((classifier, run, run(x).numpy()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = results[0]
    for classifier, run, values in results:
        assert classifier is first[0]
        assert run is first[1]
        np.testing.assert_array_equal(values, first[2])


def test_bounds_in_threads_leave_the_activations_alone():
    """Two threads turned every activation linear, and predictions meanwhile were wrong."""
    model, x = stack(layers.Dense(5, activation="relu")), inputs(8)
    expected = np.asarray(model(x))
    activations = [layer.activation for layer in model.layers]
    bound = robustness(keras.Model(model.inputs, model.outputs), x).bound
    bounds, wrong, stop = [], [], threading.Event()

    def certify():
        # a view of its own, so that it is traced again
        bounds.append(robustness(keras.Model(model.inputs, model.outputs), x).bound)

    def predict():
        while not stop.is_set():
            wrong.append(np.abs(np.asarray(model(x)) - expected).max() > 1e-6)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        predicting = threading.Thread(target=predict)
        certifying = [threading.Thread(target=certify) for _ in range(2)]
        for thread in (predicting, *certifying):
            thread.start()
        for thread in certifying:
            thread.join()
        stop.set()
        predicting.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong
    assert not any(wrong)
    assert [layer.activation for layer in model.layers] == activations
    for each in bounds:
        np.testing.assert_array_equal(each, bound)


def test_values_of_open_shapes_are_traced_by_shape():
    model = keras.Sequential(
        [
            keras.Input((None, 2)),
            layers.Conv1D(4, 2, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    run = Classifier.of(model).compiled(values_of)
    for length, count in itertools.product((3, 5), (1, 4)):
        x = rng.normal(size=(count, length, 2)).astype(np.float32)
        np.testing.assert_allclose(run(x), model(x), atol=1e-5)


def test_functions_that_are_told_to_run_eagerly():
    model, x = Subclassed(), inputs()
    expected = np.asarray(model(x))
    tf.config.run_functions_eagerly(True)
    try:
        logits = predict_logits(model, x)
        view = np.asarray(logits_model(model, x)(x))
    finally:
        tf.config.run_functions_eagerly(False)
    for values in (logits, view):
        np.testing.assert_allclose(tf.nn.softmax(values), expected, atol=1e-6)
        assert np.abs(values.sum(axis=1) - 1).max() > 1e-3


def test_two_replicas_keep_the_softmax_of_their_model():
    """Replicas take turns in threads of one process: a patched head stayed linear for good."""
    Child(two_replicas.train_with_a_softmax).finished()
