"""Derivatives against finite differences in float64, against each other, and their caching."""

import itertools

import keras
import numpy as np
import pytest
from helpers.derivatives import (
    ACTIVATIONS,
    CLASSES,
    SHAPE,
    away_from_kinks,
    finite_differences,
    give_moving_statistics,
    images,
    network,
    numpy_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.classifier import (
    NotLogitsError,
    classes_of,
    jacobian,
    jvp,
    predict_logits,
    vjp,
)
from tfrobust.saliency import input_gradient

layers = keras.layers


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobian_is_that_of_finite_differences(activation, pool):
    model = network(activation, pool)
    forward = numpy_network(model, activation, pool)
    x = away_from_kinks(forward)
    np.testing.assert_allclose(
        predict_logits(model, x), [forward(row)[0] for row in x], atol=1e-5, rtol=1e-5
    )
    found = jacobian(model, x)
    assert found.dtype == np.float32
    assert found.shape == (3, CLASSES, *SHAPE)
    exact = np.stack([finite_differences(lambda z: forward(z)[0], row) for row in x])
    scale = np.abs(exact).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found, exact, atol=1e-4 * scale, rtol=1e-3)


# products against the Jacobian, over random networks ------------------------------------------


def random_network(draw, seed):
    """Convolutions with normalization, skips, pooling and activations; or dense layers."""
    keras.utils.set_random_seed(seed)
    shape = (draw(st.integers(4, 7)), draw(st.integers(4, 7)), draw(st.integers(1, 2)))
    activation = draw(st.sampled_from([*ACTIVATIONS, "gelu", "silu"]))
    h = inputs = layers.Input(shape)
    for _ in range(draw(st.integers(0, 2))):
        h = layers.Conv2D(3, draw(st.integers(1, 3)), padding="same")(h)
        before = h
        if draw(st.booleans()):
            h = layers.BatchNormalization()(h)
        h = layers.LeakyReLU()(h) if draw(st.booleans()) else layers.Activation(activation)(h)
        if draw(st.booleans()):
            h = layers.Add()([h, before])
        pool = draw(st.sampled_from([None, layers.MaxPooling2D, layers.AveragePooling2D]))
        if pool is not None:
            h = pool(2, padding="same")(h)
    h = layers.GlobalAveragePooling2D()(h) if draw(st.booleans()) else layers.Flatten()(h)
    if draw(st.booleans()):
        h = layers.Dropout(0.5)(layers.Dense(5, activation=activation)(h))
    classes = draw(st.sampled_from([2, 3, 7, 18]))
    softmax = draw(st.sampled_from([None, "softmax"]))
    model = keras.Model(inputs, layers.Dense(classes, activation=softmax)(h))
    give_moving_statistics(model, seed)
    return model


def products(full, v, of):
    """In float64: J v of every example, or v^T J."""
    flat = full.astype(np.float64).reshape(*full.shape[:2], -1)
    if of == "jvp":
        return np.einsum("ncf,nf->nc", flat, v.reshape(len(v), -1))
    return np.einsum("ncf,nc->nf", flat, v).reshape(len(v), *full.shape[2:])


@settings(max_examples=6)
@given(st.data(), st.integers(0, 10**6))
def test_products_are_those_of_the_jacobian(data, seed):
    model = random_network(data.draw, seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, *model.input_shape[1:])).astype(np.float32)
    full = jacobian(model, x)
    assert full.shape == (3, model.output_shape[1], *x.shape[1:])
    scale = np.abs(full).max()
    assert scale > 0
    tangent = rng.normal(size=x.shape)
    cotangent = rng.normal(size=full.shape[:2])
    forward, backward = jvp(model, x, tangent), vjp(model, x, cotangent)
    assert forward.dtype == backward.dtype == full.dtype == np.float32
    np.testing.assert_allclose(
        forward, products(full, tangent, "jvp"), rtol=1e-4, atol=1e-4 * scale
    )
    np.testing.assert_allclose(
        backward, products(full, cotangent, "vjp"), rtol=1e-4, atol=1e-5 * scale
    )


def test_products_are_linear(rng):
    model = network("softplus", "max")
    x = images()
    for product, shape in ((jvp, x.shape), (vjp, (3, CLASSES))):
        a, b = rng.normal(size=(2, *shape))
        joint = product(model, x, 2.5 * a - 0.3 * b)
        parts = 2.5 * product(model, x, a) - 0.3 * product(model, x, b)
        np.testing.assert_allclose(joint, parts, atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(product(model, x, np.zeros(shape)), 0)


def test_jacobian_of_a_linear_model_is_its_matrix(rng):
    model = keras.Sequential([layers.Input((4, 3, 1)), layers.Flatten(), layers.Dense(5)])
    matrix = np.asarray(model.layers[-1].kernel).T.reshape(5, 4, 3, 1)
    found = jacobian(model, rng.normal(size=(2, 4, 3, 1)))
    np.testing.assert_allclose(found, np.stack([matrix, matrix]), atol=1e-6)


def test_logits_that_ignore_the_input_have_no_derivative():
    inputs = layers.Input((3,))
    zeros = layers.Lambda(keras.ops.zeros_like)(inputs)
    model = keras.Model(inputs, layers.Dense(2, bias_initializer="normal")(zeros))
    x = images(2, (3,))
    np.testing.assert_array_equal(jacobian(model, x), np.zeros((2, 2, 3)))
    np.testing.assert_array_equal(jvp(model, x, x), np.zeros((2, 2)))
    np.testing.assert_array_equal(vjp(model, x, np.ones((2, 2))), np.zeros((2, 3)))


@pytest.mark.parametrize("classes", [2, 15, 16, 17, 37])
def test_any_number_of_classes(classes):
    """Classes go through the network in chunks of 16."""
    model = keras.Sequential([layers.Input((3,)), layers.Dense(5, "tanh"), layers.Dense(classes)])
    first, second = (layer.kernel.numpy().astype(np.float64) for layer in model.layers)
    x = images(4, (3,))
    slope = 1 - np.tanh(x @ first) ** 2
    exact = np.einsum("fh,nh,hc->ncf", first, slope, second)
    np.testing.assert_allclose(jacobian(model, x, batch_size=3), exact, atol=1e-5)
    assert classes_of(model, x) == classes


# the same result every time ---------------------------------------------------------------------

CALLS = {
    "predict_logits": lambda model, x, size: predict_logits(model, x, batch_size=size),
    "jacobian": lambda model, x, size: jacobian(model, x, batch_size=size),
    "jvp": lambda model, x, size: jvp(model, x, np.cos(x), batch_size=size),
    "vjp": lambda model, x, size: vjp(
        model, x, np.cos(np.arange(len(x) * CLASSES)).reshape(-1, CLASSES), batch_size=size
    ),
    "logit gradient": lambda model, x, size: input_gradient(model, x, batch_size=size),
    "loss gradient": lambda model, x, size: input_gradient(
        model, x, np.arange(len(x)) % CLASSES, of="loss", batch_size=size
    ),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@EVERY_CALL
def test_batch_size_changes_nothing(call):
    model = network("relu", "max")
    x = images(7)
    whole = call(model, x, 100)
    for size in (1, 3, 7):
        np.testing.assert_allclose(call(model, x, size), whole, atol=2e-6, rtol=1e-5)
    order = np.array([4, 0, 6])
    if call not in (CALLS["vjp"], CALLS["loss gradient"]):
        np.testing.assert_allclose(call(model, x[order], 2), whole[order], atol=2e-6, rtol=1e-5)


@EVERY_CALL
def test_inference_mode(call):
    model = keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Flatten(),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.GaussianNoise(1.0),
            layers.Dense(CLASSES),
        ]
    )
    give_moving_statistics(model)
    before = [np.array(weight) for weight in model.weights]
    x = images(6)
    first = call(model, x, 100)
    np.testing.assert_array_equal(call(model, x, 100), first)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    # one example alone: its neighbours' statistics play no part
    if call is CALLS["predict_logits"]:
        np.testing.assert_allclose(call(model, x[:1], 100), first[:1], atol=1e-5)
        np.testing.assert_allclose(first, model.predict(x, verbose=0), atol=1e-5)


@EVERY_CALL
def test_training_is_followed(call):
    """Compiled functions read the weights of the moment, not those they were made with."""
    model = network("tanh", "average")
    x = images()
    before = call(model, x, 100)
    for layer in ("convolution", "head"):
        model.get_layer(layer).kernel.assign(model.get_layer(layer).kernel * -1.5)
    fresh = keras.models.clone_model(model)
    fresh.set_weights(model.get_weights())
    after = call(model, x, 100)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, call(fresh, x, 100), atol=1e-6)


@EVERY_CALL
def test_softmax_heads_and_logits_give_the_same(call):
    bare = network("elu", "max")
    headed = network("elu", "max", last="softmax")
    headed.set_weights(bare.get_weights())
    x = images()
    np.testing.assert_allclose(call(headed, x, 2), call(bare, x, 2), atol=1e-6)


@EVERY_CALL
def test_subclassed_models(call):
    class Subclassed(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.softmax = layers.Softmax()

        def call(self, inputs):
            return self.softmax(self.inner(inputs))

    inner = network("tanh", "max")
    x = images()
    np.testing.assert_allclose(call(Subclassed(inner), x, 2), call(inner, x, 2), atol=1e-6)


# built once -------------------------------------------------------------------------------------


class Counted(layers.Layer):
    """The identity, counting how often Python runs it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = itertools.count()
        self.runs = 0

    def call(self, inputs):
        self.runs = next(self.count) + 1
        return inputs * 1.0


@pytest.mark.parametrize("kind", ["functional", "sequential", "unbuilt", "softmax", "subclassed"])
@EVERY_CALL
def test_later_calls_do_not_trace_again(call, kind):
    counted = Counted()
    stack = [counted, layers.Flatten(), layers.Dense(CLASSES)]
    if kind == "functional":
        inputs = layers.Input(SHAPE)
        model = keras.Model(inputs, stack[2](stack[1](counted(inputs))))
    elif kind == "subclassed":

        class Subclassed(keras.Model):
            def __init__(self):
                super().__init__()
                self.stack = [*stack, layers.Softmax()]

            def call(self, inputs):
                for layer in self.stack:
                    inputs = layer(inputs)
                return inputs

        model = Subclassed()
    else:
        end = [layers.Softmax()] if kind == "softmax" else []
        start = [] if kind == "unbuilt" else [layers.Input(SHAPE)]
        model = keras.Sequential([*start, *stack, *end])
    call(model, images(4), 100)
    runs = counted.runs
    assert runs > 0
    for count, size in ((4, 100), (1, 100), (5, 2), (9, 4), (2, 1)):
        call(model, images(count), size)
    assert counted.runs == runs


def test_open_spatial_shapes():
    model = keras.Sequential(
        [
            layers.Input((None, None, 1)),
            layers.Conv2D(3, 3, activation="tanh", padding="same"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    for shape in ((6, 7, 1), (9, 4, 1), (6, 7, 1)):
        x = images(3, shape)
        full = jacobian(model, x)
        assert full.shape == (3, CLASSES, *shape)
        np.testing.assert_allclose(jvp(model, x, x), products(full, x, "jvp"), atol=1e-5)
        v = np.eye(3, CLASSES)
        np.testing.assert_allclose(vjp(model, x, v), products(full, v, "vjp"), atol=1e-5)
        step = 1e-3 * np.sign(full[:, 0])
        slope = (predict_logits(model, x + step) - predict_logits(model, x - step))[:, 0] / 2e-3
        np.testing.assert_allclose(slope, np.abs(full[:, 0]).sum(axis=(1, 2, 3)), rtol=2e-2)


def test_a_layer_added_or_taken_away_after_use():
    model = keras.Sequential([layers.Input((3,)), layers.Dense(4)])
    x = images(2, (3,))
    chain = [model.layers[0]]
    for step in range(6):
        matrix = np.linalg.multi_dot([np.eye(3), *[layer.kernel.numpy() for layer in chain]])
        np.testing.assert_allclose(jacobian(model, x), np.stack([matrix.T] * 2), atol=1e-5)
        np.testing.assert_allclose(predict_logits(model, x), x @ matrix, atol=1e-5)
        if step % 2:
            model.pop()
            chain.pop()
        layer = layers.Dense(2 + step)
        model.add(layer)
        chain.append(layer)


def test_an_unbuilt_sequential_model_with_softmax():
    model = keras.Sequential([layers.Flatten(), layers.Dense(CLASSES, activation="softmax")])
    x = images(11)
    kernel = jacobian(model, x)[5].reshape(CLASSES, -1)
    np.testing.assert_allclose(kernel, model.layers[1].kernel.numpy().T, atol=1e-6)
    assert model.input_shape == (None, *SHAPE)


def test_models_do_not_share_functions():
    first, second = network("tanh", "max"), network("tanh", "max")
    x = images()
    assert np.abs(jacobian(first, x) - jacobian(second, x)).max() > 1e-2
    inner = keras.Sequential([first, layers.Rescaling(2.0)])
    np.testing.assert_allclose(jacobian(inner, x), 2 * jacobian(first, x), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
@EVERY_CALL
def test_other_precisions_give_float32(call, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = network("tanh", "max")
    finally:
        keras.config.set_dtype_policy(before)
    plain = network("tanh", "max")
    plain.set_weights([np.asarray(weight, np.float32) for weight in model.weights])
    x = images()
    found, expected = call(model, x, 2), call(plain, x, 2)
    assert found.dtype == np.float32
    tolerance = 1e-5 if policy == "float64" else 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.slow
def test_a_small_mobilenet():
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=12, alpha=0.35
    )
    x = images(2, (32, 32, 3))
    full = jacobian(model, x)
    assert full.shape == (2, 12, 32, 32, 3)
    scale = np.abs(full).max()
    assert scale > 0
    direction = np.random.default_rng(3).normal(size=x.shape)
    np.testing.assert_allclose(
        jvp(model, x, direction), products(full, direction, "jvp"), rtol=1e-3, atol=1e-3 * scale
    )


# what is refused --------------------------------------------------------------------------------


@EVERY_CALL
def test_bad_inputs_are_refused(call):
    model = network("tanh", "max")
    with pytest.raises(ValueError, match=r"x has shape .* but the model takes \(batch, 6, 5, 2\)"):
        call(model, np.zeros((2, *[CLASSES] * 3)), 100)
    with pytest.raises(ValueError, match="NaN or infinite values in 2 of 2 examples"):
        call(model, np.full((2, *SHAPE), np.nan), 100)
    with pytest.raises(ValueError, match="x is an empty batch"):
        call(model, np.zeros((0, *SHAPE)), 100)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        call(model, images(), 0)


@EVERY_CALL
def test_models_without_logits_are_refused(call):
    model = keras.Sequential([layers.Input(SHAPE), layers.Flatten(), layers.Dense(4, "sigmoid")])
    with pytest.raises(NotLogitsError, match="ends in sigmoid"):
        call(model, images(), 100)


def test_bad_directions_are_refused():
    model = network("tanh", "max")
    x = images()
    with pytest.raises(ValueError, match=r"v must have shape \(3, 4\), got \(3, 6, 5, 2\)"):
        vjp(model, x, x)
    with pytest.raises(ValueError, match=r"v must have shape \(3, 6, 5, 2\), got \(3, 4\)"):
        jvp(model, x, np.ones((3, CLASSES)))
    for product, shape in ((jvp, x.shape), (vjp, (3, CLASSES))):
        with pytest.raises(ValueError, match="v holds NaN or infinite values"):
            product(model, x, np.full(shape, np.nan))
