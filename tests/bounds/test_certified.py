"""Certified bounds: no smaller perturbation is ever found, on plain and on nasty networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import computing_in, disc, nothing_inside, piecewise_linear_net, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrobust
from tfrobust.bounds import UnsupportedLayerError, register_rule, robustness
from tfrobust.layers import LocalResponseNormalization, LpPooling2D

layers = keras.layers


def _image(x):
    return layers.Reshape((4, 4, 2))(layers.Dense(32)(x))


def _perceptron(*activations):
    def build(x):
        for activation in activations:
            x = layers.Dense(6, activation=activation)(x)
        return x

    return build


def _residual(x):
    x = layers.Dense(5, activation="relu")(x)
    branch = layers.Dense(5)(layers.Dense(4, activation="relu")(x))
    return layers.ReLU()(layers.Add()([x, branch]))


def _convolutional(x):
    x = layers.Conv2D(3, 3, padding="same")(_image(x))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    branch = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([x, layers.Add()([x, branch])])
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    return layers.GlobalAveragePooling2D()(x)


def _pooled(x):
    x = layers.Conv2D(4, 2)(_image(x))
    x = layers.MaxPooling2D(2, strides=1)(x)
    x = layers.AveragePooling2D(2, padding="same")(layers.Conv2D(3, 1, activation="tanh")(x))
    return layers.Flatten()(x)


def _normalized(x):
    x = LocalResponseNormalization(alpha=0.3)(_image(x))
    x = LpPooling2D(2, p=1.5)(layers.LeakyReLU(0.3)(x))
    return layers.Flatten()(layers.ZeroPadding2D(1)(x))


def _merged(x):
    x = layers.Dense(6, activation="silu")(x)
    other = layers.Dense(6, activation="gelu")(x)
    far = layers.Minimum()([layers.Maximum()([x, other]), layers.Average()([x, other])])
    return keras.ops.relu(far - x) + layers.Activation("linear")(other)


def _separable(x):
    x = layers.SeparableConv2D(4, 3, activation="hard_silu")(_image(x))
    return layers.Flatten()(layers.SeparableConv2D(3, 2, activation="softsign")(x))


NETS = {
    "linear": lambda x: x,
    "merged": _merged,
    "separable": _separable,
    "relu": _perceptron("relu"),
    "deep_relu": _perceptron("relu", "relu", "relu"),
    "tanh": _perceptron("tanh", "sigmoid"),
    "others": _perceptron("softplus", "elu", "leaky_relu", "relu6", "selu"),
    "residual": _residual,
    "convolutional": _convolutional,
    "pooled": _pooled,
    "normalized": _normalized,
}


COSTLY = ("convolutional", "pooled", "normalized", "separable")


def plane_net(name, classes=3):
    """A network of two inputs."""
    inputs = keras.Input((2,))
    return keras.Model(inputs, layers.Dense(classes)(NETS[name](inputs)))


@pytest.mark.parametrize("name", sorted(NETS))
def test_brute_force_in_two_dimensions(name):
    """Hundreds of networks of each kind, two thousand in all."""
    rng = np.random.default_rng(1)
    model = plane_net(name)
    points = disc(300, rng)
    ratios = []
    for seed in range(80 if name in COSTLY else 300):
        randomise(model, seed, scale=rng.choice([0.3, 1.0, 2.0]))
        x = rng.normal(size=(4, 2)).astype(np.float32)
        x[0] = np.round(x[0])  # zeros tie windows and kinks
        found = robustness(model, x, tighten=True)
        coarse = found.untightened
        assert (found.bound >= coarse).all() and (coarse >= 0).all()
        assert nothing_inside(model, x, np.minimum(found.bound, 1e3), points), seed
        ratios.append(np.median(found.bound / np.maximum(coarse, 1e-12)))
    assert np.median(ratios) >= 1 - 1e-6


def test_bounds_are_exact_for_linear_classifiers():
    rng = np.random.default_rng(0)
    model = randomise(keras.Sequential([keras.Input((7,)), layers.Dense(4)]), 0)
    x = rng.normal(size=(50, 7)).astype(np.float32)
    kernel, bias = (np.asarray(w, np.float64) for w in model.get_weights())
    logits = x @ kernel + bias
    c = logits.argmax(1)
    exact = [
        min(
            (row[k] - row[j]) / np.linalg.norm(kernel[:, k] - kernel[:, j])
            for j in range(4)
            if j != k
        )
        for row, k in zip(logits, c, strict=True)
    ]
    for tighten in (False, True):
        found = robustness(model, x, tighten=tighten)
        assert found.proved_in_float32.all()
        assert (found.bound <= exact).all()
        np.testing.assert_allclose(found.bound, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_tightened_bound_is_exact_where_the_network_is_locally_linear(seed):
    """Far from every kink the only loss is the slack."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((5,))
    hidden = layers.Dense(8, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    randomise(model, seed)
    model.get_layer("hidden").bias.assign(rng.choice([-20.0, 20.0], 8))
    # a boundary nearer than any kink
    z = tfrobust.predict_logits(model, np.zeros((1, 5), np.float32))[0]
    model.layers[-1].bias.assign(model.layers[-1].bias - z + rng.uniform(0, 0.5, 3))
    x = rng.normal(size=(10, 5)).astype(np.float32)
    gradients = tfrobust.jacobian(model, x)
    logits = tfrobust.predict_logits(model, x)
    for row, z, bound in zip(gradients, logits, robustness(model, x).bound, strict=True):
        c = z.argmax()
        exact = min((z[c] - z[j]) / np.linalg.norm(row[c] - row[j]) for j in range(3) if j != c)
        assert bound <= exact * (1 + 1e-5)
        assert bound >= exact * 0.98


@settings(max_examples=2)
@given(seed=st.integers(0, 2**32 - 1))
def test_attacks_find_nothing_inside(seed):
    model, x = piecewise_linear_net(seed, count=6)
    found = robustness(model, x)
    low, high = float(x.min()) - 20, float(x.max()) + 20
    for attack in ("fast_gradient_sign", "gradient", "deepfool"):
        distance = tfrobust.minimal(model, x, attack, value_range=(low, high)).distance
        assert (distance >= found.bound).all(), attack


def test_residual_network_equals_its_chain_rule():
    """A sum's constant is the sum of its branches': two identities double a change."""
    inputs = keras.Input((3,))
    doubled = layers.Add()([inputs, layers.Identity()(inputs)])
    both = layers.Concatenate()([doubled, inputs])
    model = randomise(keras.Model(inputs, layers.Dense(2)(both)), 0)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    found = robustness(model, x, tighten=False)
    kernel, bias = (np.asarray(w, np.float64) for w in model.get_weights())
    logits = np.concatenate([2 * x, x], 1) @ kernel + bias
    margin = np.abs(logits[:, 0] - logits[:, 1])
    expected = margin / np.linalg.norm(kernel[:, 0] - kernel[:, 1]) / np.sqrt(5)
    np.testing.assert_allclose(found.bound, expected, rtol=1e-4)
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
    for tighten in (False, True):
        found, expected = (robustness(m, x, tighten=tighten).bound for m in (model, layered))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    dense, last = layers.Dense(6), layers.Dense(3)
    last(keras.Input((12,)))
    for operation, layer in (
        (keras.activations.relu, layers.ReLU()),
        (lambda h: keras.activations.relu(h, max_value=1.0), layers.ReLU(max_value=1.0)),
        (keras.ops.leaky_relu, layers.LeakyReLU(0.2)),
        (lambda h: keras.ops.elu(h, alpha=0.5), layers.ELU(0.5)),
        (lambda h: keras.ops.gelu(h, approximate=False), layers.Activation("gelu")),
        (keras.ops.relu6, layers.Activation("relu6")),
        (keras.ops.hard_silu, layers.Activation("hard_silu")),
    ):
        hidden = dense(inputs)
        model = keras.Model(inputs, last(keras.ops.concatenate([operation(hidden), hidden], -1)))
        layered = keras.Model(inputs, last(layers.Concatenate()([layer(hidden), hidden])))
        found, expected = (robustness(m, x, tighten=False).bound for m in (model, layered))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
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
    found = robustness(model, images, tighten=False)
    before = keras.Model(inputs, model.layers[-2].input)
    zero = tfrobust.predict_logits(before, np.zeros((1, 8, 8, 2)))
    columns = tfrobust.predict_logits(before, np.eye(128, dtype=np.float32).reshape(-1, 8, 8, 2))
    kernel = model.layers[-2].kernel
    norm = np.linalg.norm((columns - zero) @ kernel, 2)
    # kappa at the relu's input is the bound times the norm of everything before it
    relu = next(layer for layer in found.layers if layer.kind == "relu")
    np.testing.assert_allclose(relu.kappa / found.bound, norm, rtol=1e-3)


def test_convolution_and_batch_normalization_are_folded():
    inputs = keras.Input((20, 20, 4))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)), 0)
    scale = np.linspace(0.01, 10, 16, dtype=np.float32)
    model.layers[2].gamma.assign(scale)
    model.layers[1].kernel.assign(model.layers[1].kernel / scale)  # what one undoes, the other does
    images = np.random.default_rng(0).normal(size=(3, 20, 20, 4)).astype(np.float32)
    found = robustness(model, images, tighten=False)
    relu = next(layer for layer in found.layers if layer.kind == "ReLU")
    product = 1.0
    for layer, shape in ((model.layers[1], (20, 20, 4)), (model.layers[2], (20, 20, 16))):
        product *= tfrobust.bounds.operator_norm_upper_bound(layer, shape)
    assert np.all(relu.kappa / found.bound < product / 3)


def test_tightening_never_loosens_and_often_helps():
    for seed in range(3):
        model, x = piecewise_linear_net(seed)
        loose = robustness(model, x, tighten=False).bound
        tightened = robustness(model, x, tighten=True)
        np.testing.assert_array_equal(tightened.untightened, loose)
        tight = tightened.bound
        assert (tight >= loose).all()
        assert np.median(tight / loose) > 1.2


def test_many_classes_are_followed_in_turn():
    """More margins than are followed back at a time: none is forgotten."""
    inputs = keras.Input((2,))
    hidden = layers.Dense(12, activation="relu")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(40)(hidden)), 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    found = robustness(model, x, tighten=True)
    assert nothing_inside(model, x, found.bound, disc(500, rng))
    assert (found.bound > 1.05 * found.untightened).mean() > 0.5


def test_batches_and_softmax_change_nothing():
    model, x = piecewise_linear_net(3)
    whole = robustness(model, x)
    parts = robustness(model, x, batch_size=5)
    np.testing.assert_allclose(whole.bound, parts.bound, rtol=1e-4)
    softmax = keras.Model(model.input, layers.Softmax()(model.output))
    np.testing.assert_allclose(robustness(softmax, x).bound, whole.bound, rtol=1e-4)
    nested = keras.Sequential([keras.Input(x.shape[1:]), model, layers.Activation("softmax")])
    again, plain = (robustness(each, x, tighten=False) for each in (nested, model))
    np.testing.assert_allclose(again.bound, plain.bound, rtol=1e-4)
    assert [layer.name for layer in again.layers] == [layer.name for layer in whole.layers]


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
    model, x = piecewise_linear_net(0)
    before = robustness(model, x).bound
    randomise(model, 1, scale=0.4)
    after = robustness(model, x).bound
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(after, robustness(clone, x).bound, rtol=1e-5)
    assert not np.allclose(before, after)


def test_rounding_is_bounded_by_the_proof():
    """The same weights in double precision: logits differ by less than what is taken off."""
    for seed in range(3):
        single = rounding_net()
        with computing_in("float64"):
            double = rounding_net()
        randomise(single, seed)
        double.set_weights([np.asarray(w, np.float64) for w in single.get_weights()])
        x = np.random.default_rng(seed).normal(size=(64, 12, 12, 2)).astype(np.float32)
        exact = np.asarray(double(x.astype(np.float64), training=False))
        computed = np.asarray(single(x, training=False), np.float64)
        found = robustness(single, x, tighten=False)
        # each of the two logits of a margin, here and where an attacker's image is computed
        assert (4 * np.abs(exact - computed).max(1) <= found.rounding).all()
        assert found.proved_in_float32.mean() > 0.5
        allowed = 0.5 * found.margin
        assert (found.rounding <= allowed)[found.proved_in_float32].all()


def rounding_net():
    inputs = keras.Input((12, 12, 2))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.MaxPooling2D(2)(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def test_a_constant_network_cannot_be_changed():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation="relu"), layers.Dense(2)]
    )
    randomise(model, 0)
    model.layers[-1].kernel.assign(np.zeros((4, 2)))
    model.layers[-1].bias.assign([1.0, 0.0])
    found = robustness(model, np.ones((2, 3), np.float32))
    assert np.isinf(found.bound).all()
    model.layers[-1].bias.assign([0.0, 0.0])
    assert (robustness(model, np.ones((2, 3), np.float32)).bound == 0).all()


def test_users_can_register_a_layer():
    @keras.saving.register_keras_serializable("test")
    class Sine(layers.Layer):
        def call(self, x):
            return tf.sin(3 * x)

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(3)(Sine(name="wave")(layers.Dense(5)(inputs))))
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    with pytest.raises(UnsupportedLayerError, match=r"'Sine' of 'wave'.*Conv2D.*register_rule"):
        robustness(model, x)

    @register_rule(Sine)
    def sine(layer, input_shape):
        assert input_shape == (5,)
        return 3.0

    found = robustness(model, x, tighten=True)
    assert nothing_inside(model, x, found.bound, disc(500, np.random.default_rng(0)))
    assert (found.bound > 0).all() and "Lipschitz constant 3" in found.layers[1].rule
    register_rule(Sine)(lambda layer, shape: float("nan"))
    with pytest.raises(ValueError, match=r"'wave'.*finite"):
        robustness(model, x)


def test_results_can_be_read():
    model, x = piecewise_linear_net(0)
    found = robustness(model, x)
    assert found.bound.dtype == np.float32 and found.predicted.dtype == np.int32
    assert found.rules == "certified" and found.tightened
    np.testing.assert_array_equal(found.predicted, tfrobust.predict_logits(model, x).argmax(1))
    frame = found.to_frame()
    assert len(frame) == len(x) and frame["bound"].median() == found.median()
    # kappa grows by each layer's constant, from the input on
    first, second = found.layers[:2]
    assert first.kappa.shape == (len(x),) and first.name and first.kind and first.rule
    assert (second.kappa > 0).all()


def test_bad_input_is_an_error():
    model, x = piecewise_linear_net(0)
    with pytest.raises(ValueError, match="rules"):
        robustness(model, x, rules="proved")
    with pytest.raises(ValueError, match="tighten"):
        robustness(model, x, rules="thesis", tighten=True)
    with pytest.raises(ValueError, match="NaN"):
        robustness(model, x * np.nan)
    with pytest.raises(ValueError, match="shape"):
        robustness(model, x[:, :4])

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, rows):
            return self.dense(rows)

    with pytest.raises(UnsupportedLayerError, match="subclassed"):
        robustness(Subclassed(), np.ones((2, 3), np.float32))
    loose = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D()]
    )
    with pytest.raises(UnsupportedLayerError, match="fixed sizes"):
        robustness(loose, np.ones((2, 8, 8, 1), np.float32))
    with computing_in("mixed_float16"):
        half = keras.Sequential([keras.Input((5,)), layers.Dense(4, "relu"), layers.Dense(3)])
    with pytest.raises(ValueError, match="computes in float16"):
        robustness(half, np.ones((2, 5), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["a GPU"])
        with pytest.raises(ValueError, match="TensorFloat-32 is on"):
            robustness(model, x)
    model.layers[-1].bias.assign(np.full(model.layers[-1].bias.shape, np.inf))
    with pytest.raises(ValueError, match="finite"):
        robustness(model, x)


@pytest.mark.parametrize("depth_radius", [1, 5])
def test_response_normalization_over_few_channels(depth_radius):
    layer = LocalResponseNormalization(depth_radius=depth_radius, alpha=0.5)
    inputs = keras.Input((2,))
    hidden = layers.Reshape((1, 1, 3))(layers.Dense(3)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(hidden))))
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    found = robustness(model, x)
    assert (found.bound > 0).all()
    assert nothing_inside(model, x, found.bound, disc(400, np.random.default_rng(0)))


def test_averages_over_windows_wider_than_the_image():
    """What is left of such a window is a mean of fewer places, which moves more."""
    inputs = keras.Input((1, 1, 1))
    mean = layers.AveragePooling2D(3, strides=1, padding="same")(inputs)
    both = layers.Concatenate()([layers.Flatten()(layers.ReLU()(mean)), layers.Flatten()(mean)])
    last = layers.Dense(2)
    model = keras.Model(inputs, last(both))
    last.set_weights([np.float32([[-100, 0], [-0.01, 0]]), np.float32([1, 0])])
    x = -np.linspace(0.1, 3, 30, dtype=np.float32).reshape(-1, 1, 1, 1)
    bound = robustness(model, x).bound
    # the other class begins just above zero
    assert (bound <= 0.0101 - x.ravel()).all()
    assert (bound > 0.5 * np.abs(x.ravel())).all()


def test_padded_max_pooling_is_tightened():
    """As much as with the zeros that a layer puts there."""
    inputs = keras.Input((5, 5, 1))
    hidden = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    last = layers.Dense(3)
    padded = keras.Model(
        inputs, last(layers.Flatten()(layers.MaxPooling2D(2, padding="same")(hidden)))
    )
    zeros = layers.MaxPooling2D(2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(hidden))
    model = keras.Model(inputs, last(layers.Flatten()(zeros)))
    randomise(model, 1)
    x = np.random.default_rng(0).random((6, 5, 5, 1)).astype(np.float32)
    found, expected = robustness(padded, x).bound, robustness(model, x).bound
    np.testing.assert_allclose(found, expected, rtol=0.1)
    assert np.median(found / robustness(padded, x, tighten=False).bound) > 1.5


def test_rounding_where_the_attackers_image_is():
    """At x = 0 nothing is lost to rounding, but what an attacker adds is rounded."""
    rng = np.random.default_rng(0)
    common = 300 * rng.normal(size=(100, 1))
    model = keras.Sequential([keras.Input((100,)), layers.Dense(2)])
    kernel = (common + rng.normal(size=(100, 2)) / 20).astype(np.float32)
    model.set_weights([kernel, np.float32([1, 0])])
    x = np.zeros((1, 100), np.float32)
    found = robustness(model, x)
    across = np.diff(kernel.astype(np.float64), axis=1)[:, 0]
    steps = np.linspace(0.8, 1, 20_001) * found.bound[0]
    images = (steps[:, None] * across / np.linalg.norm(across)).astype(np.float32)
    inside = np.linalg.norm(images.astype(np.float64), axis=1) < found.bound[0]
    classes = np.asarray(model(images)).argmax(1)
    assert inside.sum() > 19_000 and (classes[inside] == 0).all()
    # what is taken off covers what the two logits lose there
    exact = images.astype(np.float64) @ kernel.astype(np.float64) + [1, 0]
    lost = np.abs(np.asarray(model(images), np.float64) - exact).sum(1)
    assert found.proved_in_float32.all() and (lost[inside] <= found.rounding).all()


def test_margins_that_never_change_are_lost_to_rounding():
    """Two classes of one weight vector: far away both logits are the same number."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(2)])
    model.set_weights([np.float32([[1, 1]]), np.float32([0, 0.001])])
    found = robustness(model, np.zeros((1, 1), np.float32))
    assert 100 < found.bound[0] < 1e5
    logits = np.asarray(model(np.float32([[1e5], [found.bound[0]]])))
    assert logits[0, 0] == logits[0, 1] and logits[1, 1] > logits[1, 0]


def test_linear_layers_that_cancel():
    """The product is known in double precision; single precision sees nothing of it."""
    first = np.float32([[1 + 2**-12, 1, 1]])
    second = np.float32([[1 + 2**-12, 0], [-(1 + 2**-11), 0], [0, 0]])
    slope = (first.astype(np.float64) @ second.astype(np.float64))[0, 0]
    assert slope == pytest.approx(5.96e-8, rel=1e-2)
    for order in ([0, 1, 2], [1, 0, 2]):
        model = keras.Sequential([keras.Input((1,)), layers.Dense(3), layers.Dense(2)])
        bias = np.float32([-0.01, 0])
        model.set_weights([first[:, order], np.zeros(3, np.float32), second[order], bias])
        bound = robustness(model, np.float32([[0.01]])).bound[0]
        assert 0 < bound < 0.01 / slope
