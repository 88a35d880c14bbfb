"""How certified bounds are composed over a network's graph, and that they follow its weights."""

import keras
import numpy as np
import pytest
from helpers.nets import classifier, piecewise_linear_net, randomise

import tfrobust
from tfrobust.bounds import UnsupportedLayerError, operator_norm_upper_bound, robustness

layers = keras.layers


def test_residual_network_equals_its_chain_rule():
    """A sum's constant is the sum of its branches': two identities double a change."""
    inputs = keras.Input((3,))
    doubled = layers.Add()([inputs, layers.Identity()(inputs)])
    both = layers.Concatenate()([doubled, inputs])
    model = randomise(keras.Model(inputs, layers.Dense(2)(both)), 0)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    result = robustness(model, x, tighten=False)
    kernel, bias = (np.asarray(w, np.float64) for w in model.get_weights())
    logits = np.concatenate([2 * x, x], 1) @ kernel + bias
    margin = np.abs(logits[:, 0] - logits[:, 1])
    expected = margin / np.linalg.norm(kernel[:, 0] - kernel[:, 1]) / np.sqrt(5)
    np.testing.assert_allclose(result.bound, expected, rtol=1e-4)
    # but each branch is linear, and the tightened bound sees through
    slope = 2 * kernel[:3] + kernel[3:]
    exact = margin / np.linalg.norm(slope[:, 0] - slope[:, 1])
    tight = robustness(model, x, tighten=True)
    assert (tight.bound <= exact).all()


def test_operations_count_as_their_layers():
    inputs = keras.Input((3,))
    first, second = layers.Dense(4), layers.Dense(4)
    head = layers.Dense(2)

    def net(plus, minus, relu):
        one, two = first(inputs), second(inputs)
        return keras.Model(inputs, head(plus(relu(minus(one, two)), two)))

    keras_ops = keras.ops
    model = net(keras_ops.add, keras_ops.subtract, keras_ops.relu)
    randomise(model, 0)
    layered = net(
        lambda a, b: layers.Add()([a, b]),
        lambda a, b: layers.Subtract()([a, b]),
        layers.ReLU(),
    )
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    result, expected = (robustness(m, x).bound for m in (model, layered))
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    dense, last = layers.Dense(6), layers.Dense(3)
    last(keras.Input((12,)))
    for operation, layer in (
        (keras.activations.relu, layers.ReLU()),
        (lambda h: keras.activations.relu(h, max_value=1.0), layers.ReLU(max_value=1.0)),
        (keras.ops.leaky_relu, layers.LeakyReLU(0.2)),
        (lambda h: keras.ops.gelu(h, approximate=False), layers.Activation("gelu")),
        (keras.ops.hard_silu, layers.Activation("hard_silu")),
    ):
        hidden = dense(inputs)
        model = keras.Model(inputs, last(keras.ops.concatenate([operation(hidden), hidden], -1)))
        layered = keras.Model(inputs, last(layers.Concatenate()([layer(hidden), hidden])))
        result, expected = (robustness(m, x, tighten=False).bound for m in (model, layered))
        np.testing.assert_allclose(result, expected, rtol=1e-5)
    with pytest.raises(UnsupportedLayerError, match="'Gelu'"):  # the approximate one
        robustness(keras.Model(inputs, last(layers.Dense(12)(keras.ops.gelu(inputs)))), x)
    with pytest.raises(UnsupportedLayerError, match="one and a constant"):
        robustness(keras.Model(inputs, head(first(inputs) + 3.0)), x)
    with pytest.raises(UnsupportedLayerError, match="operation 'Multiply'"):
        robustness(keras.Model(inputs, head(first(inputs) * second(inputs))), x)
    wide = layers.Dense(1)(inputs)
    with pytest.raises(UnsupportedLayerError, match="different shapes"):
        robustness(keras.Model(inputs, head(first(inputs) + wide)), x)


def test_linear_layers_in_a_row_count_as_one():
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 2))
    x = layers.AveragePooling2D(2)(layers.Conv2D(3, 3)(inputs))
    hidden = layers.Dense(5, activation="relu")(layers.Dense(6)(layers.Flatten()(x)))
    model = randomise(keras.Model(inputs, layers.Dense(3)(hidden)), 0)
    images = rng.normal(size=(4, 8, 8, 2)).astype(np.float32)
    result = robustness(model, images, tighten=False)
    before = keras.Model(inputs, model.layers[-2].input)
    zero = tfrobust.predict_logits(before, np.zeros((1, 8, 8, 2)))
    columns = tfrobust.predict_logits(before, np.eye(128, dtype=np.float32).reshape(-1, 8, 8, 2))
    kernel = model.layers[-2].kernel
    norm = np.linalg.norm((columns - zero) @ kernel, 2)
    # kappa at the relu's input is the bound times the norm of everything before it
    relu = next(layer for layer in result.layers if layer.kind == "relu")
    np.testing.assert_allclose(relu.kappa / result.bound, norm, rtol=1e-3)


def test_convolution_and_batch_normalization_are_folded():
    inputs = keras.Input((20, 20, 4))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)), 0)
    scale = np.linspace(0.01, 10, 16, dtype=np.float32)
    model.layers[2].gamma.assign(scale)
    model.layers[1].kernel.assign(model.layers[1].kernel / scale)  # what one undoes, the other does
    images = np.random.default_rng(0).normal(size=(3, 20, 20, 4)).astype(np.float32)
    result = robustness(model, images, tighten=False)
    relu = next(layer for layer in result.layers if layer.kind == "ReLU")
    product = 1.0
    for layer, shape in ((model.layers[1], (20, 20, 4)), (model.layers[2], (20, 20, 16))):
        product *= operator_norm_upper_bound(layer, shape)
    assert np.all(relu.kappa / result.bound < product / 3)


def test_batches_and_softmax_change_nothing():
    model, x = piecewise_linear_net(3)
    one_batch = robustness(model, x)
    small_batches = robustness(model, x, batch_size=5)
    np.testing.assert_allclose(one_batch.bound, small_batches.bound, rtol=1e-4)
    softmax = keras.Model(model.input, layers.Softmax()(model.output))
    nested = keras.Sequential([keras.Input(x.shape[1:]), model, layers.Activation("softmax")])
    plain, headed, again = (robustness(each, x, tighten=False) for each in (model, softmax, nested))
    np.testing.assert_allclose(headed.bound, plain.bound, rtol=1e-4)
    np.testing.assert_allclose(again.bound, plain.bound, rtol=1e-4)
    assert [layer.name for layer in again.layers] == [layer.name for layer in one_batch.layers]


def test_a_nested_model_called_twice_counts_twice():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, activation="tanh")])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inner(inner(inputs))))
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert [layer.kind for layer in robustness(model, x).layers] == [
        "Dense",
        "tanh",
        "Dense",
        "tanh",
        "Dense",
    ]


def test_new_weights_give_new_bounds():
    model, x = classifier((4,), layers.Dense(6), layers.BatchNormalization(), layers.ReLU())
    before = robustness(randomise(model, 0), x).bound
    randomise(model, 1)
    after = robustness(model, x).bound
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(after, robustness(clone, x).bound, rtol=1e-5)
    assert not np.allclose(before, after)
