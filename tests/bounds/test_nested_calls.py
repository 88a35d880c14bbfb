"""Models inside models, called in every way that Keras allows: right, or refused."""

import keras
import numpy as np
import pytest
from helpers.nets import Masking

from tfrobust import measure, minimal
from tfrobust.bounds import UnsupportedLayerError, graph_steps, register_rule, robustness
from tfrobust.classifier import predict_logits

layers = keras.layers


def inputs(count=40):
    return np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)


def inner(declared):
    """Subtracts its second input, "a", from its first, "z": the order of names is another."""
    first, second = keras.Input((4,), name="z"), keras.Input((4,), name="a")
    given = {"list": [first, second], "dict": {"z": first, "a": second}}[declared]
    return keras.Model(given, layers.Subtract()([first, layers.ReLU()(second)]))


def around(nested, call):
    start = keras.Input((4,))
    first, second = layers.Dense(4)(start), layers.Dense(4)(start)
    unused = layers.Dense(4)(start)
    return keras.Model(start, layers.Dense(3)(call(nested, first, second, unused)))


CALLS = {
    "list": ("list", lambda nested, z, a, _: nested([z, a])),
    "tuple": ("list", lambda nested, z, a, _: nested((z, a))),
    "by keyword": ("list", lambda nested, z, a, _: nested(inputs=[z, a])),
    "dictionary for a list": ("list", lambda nested, z, a, _: nested({"z": z, "a": a})),
    "with another key": (
        "list",
        lambda nested, z, a, unused: nested({"z": z, "a": a, "0": unused}),
    ),
    "dictionary": ("dict", lambda nested, z, a, _: nested({"z": z, "a": a})),
    "dictionary in another order": ("dict", lambda nested, z, a, _: nested({"a": a, "z": z})),
    "the same twice": ("list", lambda nested, z, a, _: nested({"z": a, "a": a})),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_go_where_keras_puts_them(name):
    """A dictionary was taken in the order of its names: another class in every image."""
    declared, call = CALLS[name]
    model, x = around(inner(declared), call), inputs()
    expected = np.argmax(model(x), axis=1)
    assert len(set(expected)) > 1
    np.testing.assert_array_equal(predict_logits(model, x).argmax(axis=1), expected)
    np.testing.assert_array_equal(measure(model, x).predicted, expected)
    np.testing.assert_array_equal(
        minimal(model, x, "gradient", value_range=(-10, 10)).labels, expected
    )
    bound = robustness(model, x)
    np.testing.assert_array_equal(bound.predicted, expected)
    # and the bound is one: a step of this length along the gradient does not change the class
    found = minimal(model, x, "gradient", value_range=(-100, 100))
    assert (found.distance >= bound.bound * (1 - 1e-5)).all()


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_tensors_that_keras_drops_are_refused():
    # the last one, by the order of the keys
    model = around(
        inner("dict"), lambda nested, z, a, unused: nested({"z": z, "a": a, "b": unused})
    )
    with pytest.raises(UnsupportedLayerError, match="do not correspond to its inputs"):
        robustness(model, inputs())
    np.testing.assert_allclose(predict_logits(model, inputs()), model(inputs()), atol=1e-5)


def test_an_input_whose_rank_keras_changes_is_refused():
    inner_start = keras.Input((4,))
    nested = keras.Model(inner_start, layers.Dense(3)(inner_start))
    start = keras.Input((4,))
    hidden = nested(layers.Reshape((4, 1))(start))
    # what Keras declares for it is not what it computes
    model = keras.Model(start, layers.Dense(3)(layers.Flatten()(hidden)))
    with pytest.raises(UnsupportedLayerError, match="in shapes that they have"):
        robustness(model, inputs())


@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("layer", [layers.BatchNormalization, lambda: layers.Dropout(0.5)])
@pytest.mark.parametrize("end", [False, True])
def test_nested_models_that_are_called_with_training(layer, activation, end):
    """Everything but bounds is the model in inference mode, as `predict` computes it."""
    head = layers.Dense(3, activation=activation)
    start = keras.Input((4,))
    if end:
        nested = keras.Sequential([keras.Input((4,)), layer(), head])
        model = keras.Model(start, nested(start, training=True))
    else:
        nested = keras.Sequential([keras.Input((4,)), layer(), layers.Dense(4)])
        model = keras.Model(start, head(nested(start, training=True)))
    x = inputs()
    expected = model.predict(x, verbose=0)
    logits = predict_logits(model, x)
    powers = np.exp(logits)
    found = powers / powers.sum(axis=1, keepdims=True) if activation else logits
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(measure(model, x).predicted, expected.argmax(axis=1))
    labels = minimal(model, x, "gradient", value_range=(-10, 10)).labels
    np.testing.assert_array_equal(labels, expected.argmax(axis=1))
    if end and activation:  # the view calls the model without its softmax in inference mode
        np.testing.assert_array_equal(robustness(model, x).predicted, expected.argmax(axis=1))
    else:
        with pytest.raises(UnsupportedLayerError, match="called with training=True"):
            robustness(model, x)


def test_masks_are_refused():
    register_rule(Masking)(lambda layer, shape: 1.0)
    start = keras.Input((4,))
    nested = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    masked = keras.Model(start, nested(Masking(below=0)(start)))
    with pytest.raises(UnsupportedLayerError, match="called with more than its input tensors"):
        robustness(masked, inputs())
    # a list without a mask is none
    model = keras.Model(start, layers.Dense(3)(inner("list")([start, start])))
    assert (robustness(model, inputs()).bound >= 0).all()


def test_a_call_of_ones_own_is_refused_inside_as_well():
    class Negated(keras.Model):
        def __call__(self, *args, **kwargs):
            return -super().__call__(*args, **kwargs)

    start = keras.Input((4,))
    nested = Negated(start, layers.Dense(4)(start))
    model = keras.Sequential([keras.Input((4,)), nested, layers.Dense(3)])
    x = inputs()
    with pytest.raises(UnsupportedLayerError, match="subclassed"):
        robustness(model, x)
    np.testing.assert_allclose(predict_logits(model, x), model(x), atol=1e-5)


def test_a_view_adds_no_steps():
    start = keras.Input((4,))
    hidden = layers.Reshape((1, 4))(start)
    model = keras.Model(
        start, layers.Flatten()(layers.Dense(3, activation="softmax", name="head")(hidden))
    )
    kinds = [(step.kind, step.bare) for step in graph_steps(model)]
    assert kinds == [("Reshape", False), ("Dense", True), ("Flatten", False)]
