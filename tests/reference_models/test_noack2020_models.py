"""Noack 2020's networks against the paper, its released code and plain NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise

import reference_models
from reference_models.wide_resnet import wide_resnet
from tfrobust.attacks import pgd
from tfrobust.bounds import UnsupportedLayerError, robustness
from tfrobust.classifier import NotLogitsError, jacobian, logits_model, predict_logits, producer
from tfrobust.errors import InputError
from tfrobust.layers import SoftmaxAsLogits
from tfrobust.objectives import CrossEntropy, LastLayerRobustness
from tfrobust.saliency import gradient
from tfrobust.training import computing_in, evaluate, fit

layers = keras.layers
SMALL_CNN = {"input_shape": (8, 4, 2), "filters": (3, 2), "dense": 5, "classes": 4}
SMALL_WRN = {"input_shape": (8, 8, 3), "classes": 4, "depth": 10, "widen": 1}


def made_by(model, kind):
    """The model's layers of a class in the order in which they were made, which names count."""

    def number(layer):
        last = layer.name.rsplit("_", 1)[-1]
        return int(last) if last.isdigit() else 0

    return sorted((layer for layer in model.layers if type(layer) is kind), key=number)


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def images(model, count=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, *model.input_shape[1:]), dtype=np.float32)


# the MNIST network -------------------------------------------------------------------------------


def test_the_mnist_network_is_the_papers():
    model = reference_models.build("noack_mnist_cnn")
    kinds = [type(layer).__name__ for layer in model.layers[1:]]
    assert kinds == [*["Conv2D", "MaxPooling2D"] * 2, "Flatten", "Dense", "Dropout", "Dense"]
    assert model.name == "noack_mnist_cnn"
    for layer, filters in zip(made_by(model, layers.Conv2D), (32, 64), strict=True):
        assert (layer.filters, layer.kernel_size, layer.strides) == (filters, (5, 5), (1, 1))
        assert layer.padding == "same"
        assert layer.activation is keras.activations.relu
    for layer in made_by(model, layers.MaxPooling2D):
        assert (layer.pool_size, layer.strides) == ((2, 2), (2, 2))
    hidden, last = made_by(model, layers.Dense)
    assert (hidden.units, hidden.activation) == (1024, keras.activations.relu)
    assert (last.units, last.activation) == (10, keras.activations.linear)
    assert model.layers[-2].rate == 0.5
    # convolutions 5x5x1x32, 5x5x32x64, dense 7x7x64 to 1024 to 10
    assert model.count_params() == 832 + 51_264 + 3_212_288 + 10_250 == 3_274_634
    assert (model.input_shape, model.output_shape) == ((None, 28, 28, 1), (None, 10))
    assert "noack_mnist_cnn" in reference_models.names()


def convolved(x, kernel, bias, stride=1):
    """PyTorch's convolution of one image: padded by half the kernel, every stride-th position."""
    border = kernel.shape[0] // 2
    full = np.pad(x, ((border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(full, kernel.shape[:2], axis=(0, 1))
    return np.einsum("ijcab,abco->ijo", windows[::stride, ::stride], kernel) + bias


def weights_of(layer):
    return [weight.astype(np.float64) for weight in layer.get_weights()]


def test_a_small_mnist_network_by_hand_and_from_disk(tmp_path):
    model = randomise(reference_models.build("noack_mnist_cnn", **SMALL_CNN), 1)
    assert logits_model(model) is model
    x = images(model, 3)
    found = predict_logits(model, x)
    for row, logits in zip(x.astype(np.float64), found, strict=True):
        y = row
        for layer in made_by(model, layers.Conv2D):
            y = np.maximum(convolved(y, *weights_of(layer)), 0)
            high, wide, channels = y.shape
            y = y.reshape(high // 2, 2, wide // 2, 2, channels).max(axis=(1, 3))
        (first, first_bias), (last, last_bias) = map(weights_of, made_by(model, layers.Dense))
        y = np.maximum(y.ravel() @ first + first_bias, 0) @ last + last_bias
        np.testing.assert_allclose(logits, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    again = reference_models.load(reference_models.save(model, tmp_path / "m.keras"))
    np.testing.assert_array_equal(predict_logits(again, x), found)


def test_no_dropout_layer():
    model = reference_models.build("noack_mnist_cnn", **SMALL_CNN, dropout=0)
    assert not made_by(model, layers.Dropout)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filters": (8, 8, 8)}, "filters must be 2 numbers, one per convolution"),
        ({"filters": 8}, "filters must be 2 numbers"),
        ({"filters": (8, 0)}, "filters must be a whole number of at least 1"),
        ({"dense": 0}, "dense must be a whole number of at least 1"),
        ({"classes": 1}, "classes must be a whole number of at least 2"),
        ({"dropout": 1}, "dropout must be below 1, got 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and finite"),
        ({"dropout": None}, "dropout must be at least 0"),
        ({"input_shape": (28, 28)}, r"input_shape must be \(height, width, channels\)"),
        ({"input_shape": (3, 28, 1)}, "height and width must be .* at least 4"),
        ({"input_shape": (28, 28, 0)}, "channels must be a whole number"),
    ],
)
def test_bad_settings_of_the_mnist_network(settings, message):
    with pytest.raises(InputError, match=message):
        reference_models.build("noack_mnist_cnn", **settings)


# the wide residual network -----------------------------------------------------------------------


def test_parameters_of_both_variants():
    """By hand. Batch normalisation: gamma, beta, two moving statistics per channel."""
    kernels = biases = channels = 0
    inputs = 16
    kernels, biases = 9 * 3 * 16, 16
    for filters in (160, 320, 640):
        kernels += inputs * filters  # shortcut
        biases += filters
        for _ in range(4):
            kernels += 9 * inputs * filters + 9 * filters * filters
            biases += 2 * filters
            channels += inputs + filters
            inputs = filters
    channels += 640
    dense = 640 * 10 + 10
    assert biases == 10_096

    text = reference_models.build("wide_resnet_28_10")
    assert trainable(text) == kernels + 2 * channels + dense == 36_479_194
    assert text.count_params() == kernels + 4 * channels + dense == 36_497_146

    released = reference_models.build("wide_resnet_28_10", variant="released")
    assert trainable(released) == kernels + biases + 2 * channels + dense == 36_489_290
    assert released.count_params() == 36_497_146 + biases
    assert released.output_shape == (None, 10)


# filters, kernel, strides in the order of the code: a shortcut before its block's convolutions
TEXT = [
    (16, 3, 1),
    *[(16, 3, 1), (16, 3, 1)],
    *[(32, 1, 2), (32, 3, 2), (32, 3, 1)],
    *[(64, 1, 2), (64, 3, 2), (64, 3, 1)],
]
RELEASED = [
    (16, 3, 1),
    *[(16, 3, 1), (16, 3, 1)],
    *[(32, 1, 2), (32, 3, 1), (32, 3, 2)],
    *[(64, 1, 2), (64, 3, 1), (64, 3, 2)],
]


@pytest.mark.parametrize(
    ("variant", "convolutions", "through_softmax"),
    [("text", TEXT, False), ("released", RELEASED, False), ("released", RELEASED, True)],
)
def test_layers_of_both_variants(variant, convolutions, through_softmax):
    settings = {} if variant == "text" else {"variant": variant}  # "text" is the default
    model = wide_resnet(**SMALL_WRN, **settings, through_softmax=through_softmax)
    found = made_by(model, layers.Conv2D)
    assert [(c.filters, c.kernel_size[0], c.strides[0]) for c in found] == convolutions
    released = variant == "released"
    assert {layer.use_bias for layer in found} == {released}
    padded = [c for c in found if c.strides == (2, 2) and c.kernel_size == (3, 3)]
    assert [c.padding == "valid" for c in padded] == [released] * 2
    assert len(made_by(model, layers.ZeroPadding2D)) == (2 if released else 0)
    normalisations = made_by(model, layers.BatchNormalization)
    assert [n.momentum for n in normalisations] == ([0.9] * 6 + [0.1] if released else [0.99] * 7)
    assert {n.epsilon for n in normalisations} == ({1e-5} if released else {1e-3})
    # dropout follows the first convolution in the one, the second normalisation in the other
    for layer in made_by(model, layers.Dropout):
        assert layer.rate == 0.3
        before = producer(layer.input).operation
        assert type(before) is (layers.Conv2D if released else layers.ReLU)
    assert len(made_by(model, layers.Dropout)) == 3
    assert model.name == "wide_resnet_10_1"
    assert type(model.layers[-1]) is (SoftmaxAsLogits if through_softmax else layers.Dense)


def test_released_weights_start_as_in_pytorch():
    model = wide_resnet(**SMALL_WRN, variant="released")
    for layer in [*made_by(model, layers.Conv2D), *made_by(model, layers.Dense)]:
        kernel, bias = layer.get_weights()
        bound = np.prod(kernel.shape[:-1]) ** -0.5
        assert 0.9 * bound < np.abs(kernel).max() <= 1.0001 * bound
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
        assert 0.2 * bound < np.abs(bias).max() <= 1.0001 * bound
        assert (bias != kernel.ravel()[: len(bias)]).any()  # of different seeds


def reference_wrn(model, x):
    """One image through the released network in NumPy: logits."""
    convolutions = iter([weights_of(c) for c in made_by(model, layers.Conv2D)])
    normalisations = iter([weights_of(n) for n in made_by(model, layers.BatchNormalization)])

    def active(y):
        gamma, beta, mean, variance = next(normalisations)
        return np.maximum(gamma * (y - mean) / np.sqrt(variance + 1e-5) + beta, 0)

    y = convolved(x, *next(convolutions))
    for filters in (16, 32, 64):
        stride = 1 if filters == 16 else 2
        shortcut = y if filters == 16 else convolved(y, *next(convolutions), stride)
        y = convolved(active(y), *next(convolutions))
        y = shortcut + convolved(active(y), *next(convolutions), stride)
    kernel, bias = weights_of(made_by(model, layers.Dense)[0])
    return active(y).mean(axis=(0, 1)) @ kernel + bias


@pytest.mark.parametrize("size", [8, 9])
def test_a_small_released_network_by_hand_and_from_disk(size, tmp_path):
    settings = {**SMALL_WRN, "input_shape": (size, size, 3)}
    model = randomise(wide_resnet(**settings, variant="released"), 2, scale=0.2)
    x = images(model, 2)
    found = predict_logits(model, x)
    expected = np.stack([reference_wrn(model, row) for row in x.astype(np.float64)])
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    again = reference_models.load(reference_models.save(model, tmp_path / "m.keras"))
    np.testing.assert_array_equal(predict_logits(again, x), found)


@pytest.mark.parametrize("variant", ["text", "released"])
def test_only_the_released_shortcut_reads_the_raw_input(variant):
    """Without gamma the normalised input of a block is a constant."""
    model = randomise(wide_resnet(**SMALL_WRN, variant=variant), 3, scale=0.2)
    made_by(model, layers.BatchNormalization)[2].gamma.assign(np.zeros(16))  # the second block's
    block = keras.Model(model.inputs[0], made_by(model, layers.Add)[1].output)
    outputs = np.asarray(block(images(model), training=False))
    spread = np.ptp(outputs, axis=0).max()
    if variant == "text":
        assert spread < 1e-5
        return
    assert spread > 0.1
    raw = keras.Model(model.inputs[0], made_by(model, layers.Add)[0].output)(images(model))
    shortcut = np.asarray(made_by(model, layers.Conv2D)[3](raw))
    assert np.ptp(outputs - shortcut, axis=0).max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paper"}, r'variant must be "text".*or "released".*\'paper\''),
        ({"variant": None}, 'variant must be "text"'),
        ({"depth": 11}, "depth must be 6 n"),
        ({"variant": "released", "depth": 4}, "depth must be 6 n"),
        ({"widen": 0}, "widen must be at least 1"),
    ],
)
def test_bad_settings_of_the_wide_residual_network(settings, message):
    with pytest.raises(InputError, match=message):
        reference_models.build("wide_resnet_28_10", **settings)


# probabilities taken for logits ------------------------------------------------------------------


def softmax(values):
    return np.asarray(tf.nn.softmax(tf.cast(values, tf.float64)))


def losses_of(values, labels):
    """Cross-entropy of softmax(values)."""
    return -np.log(softmax(values)[np.arange(len(labels)), labels])


def through_softmax(**settings):
    """The network, and the one of the logits below its softmax, with the same weights."""
    model = wide_resnet(**SMALL_WRN, variant="released", through_softmax=True, **settings)
    randomise(model, 4, scale=0.15)
    kernel = made_by(model, layers.Dense)[0].kernel
    kernel.assign(0.05 * kernel)  # so that no probability is near 0 or 1
    return model, keras.Model(model.inputs[0], made_by(model, layers.Dense)[0].output)


@pytest.fixture(scope="module")
def pair():
    return through_softmax()


LABELS = np.array([0, 1, 2, 3, 0, 1])


def test_the_softmax_is_not_left_out(pair):
    model, below = pair
    x = images(model)
    assert logits_model(model) is model
    assert logits_model(model, x) is model
    assert logits_model(below) is below
    found = predict_logits(model, x)
    np.testing.assert_allclose(found, softmax(predict_logits(below, x)), atol=1e-6)
    assert 0.01 < found.min() < found.max() < 0.99
    np.testing.assert_allclose(found, np.asarray(model(x, training=False)), atol=1e-6)


def test_the_gradient_of_a_logit_is_the_probabilitys(pair):
    """J_c of footnote 2: row c of (diag(p) - p p^T) times the Jacobian of the logits below."""
    model, below = pair
    x = images(model)
    p = softmax(predict_logits(below, x))
    inner = jacobian(below, x)  # (batch, classes, *input)
    chain = np.eye(4) * p[:, None] - p[:, :, None] * p[:, None]
    expected = np.einsum("ick,ik...->ic...", chain, inner.astype(np.float64))
    np.testing.assert_allclose(jacobian(model, x), expected, atol=1e-5 * np.abs(expected).max())
    found = gradient(model, x, LABELS)
    rows = np.arange(len(x))
    np.testing.assert_allclose(found, expected[rows, LABELS], atol=1e-5 * np.abs(found).max())
    # the loss's: one more softmax
    slopes = softmax(p) - np.eye(4)[LABELS]
    np.testing.assert_allclose(
        gradient(model, x, LABELS, of="loss"),
        np.einsum("ic,ic...->i...", slopes, expected),
        atol=1e-5 * np.abs(expected).max(),
    )


def test_the_cross_entropy_is_of_a_softmax_of_the_softmax(pair):
    model, below = pair
    x = images(model)
    p = softmax(predict_logits(below, x))
    found = evaluate(model, x, LABELS)
    assert found["loss"] == pytest.approx(losses_of(p, LABELS).mean(), rel=1e-5)
    assert found["accuracy"] == np.mean(p.argmax(axis=1) == LABELS)
    assert found["loss"] > np.log(1 + 3 / np.e)


def test_attacks_act_on_probabilities(pair):
    model, _ = pair
    x = images(model)
    slope = gradient(model, x, LABELS, of="loss")
    found = pgd(model, x, LABELS, norm=np.inf, epsilon=0.02, step_size=0.02, steps=1, stop="last")
    stepped = np.clip(x + 0.02 * np.sign(slope), 0, 1) - x
    clear = np.abs(slope) > 1e-4 * np.abs(slope).max()
    np.testing.assert_allclose(found.perturbation[clear], stepped[clear], atol=1e-6)
    attacked = losses_of(predict_logits(model, x + found.perturbation), LABELS)
    assert (attacked > losses_of(predict_logits(model, x), LABELS)).mean() > 0.8


def test_a_step_of_training_is_on_the_softmax_of_the_softmax():
    model, below = through_softmax(dropout=0.0)
    x = images(model)
    variables = below.trainable_variables
    before = [variable.numpy() for variable in variables]
    statistics = [weight.numpy() for weight in below.non_trainable_weights]
    with tf.GradientTape() as tape:
        values = tf.nn.softmax(below(x, training=True))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, values)
        loss = tf.reduce_mean(losses)
    expected = tape.gradient(loss, [variable.value for variable in variables])
    for weight, value in zip(below.non_trainable_weights, statistics, strict=True):
        weight.assign(value)
    fit(
        model,
        (x, LABELS),
        CrossEntropy(),
        optimizer=keras.optimizers.SGD(1.0),
        epochs=1,
        batch_size=len(x),
        progress=False,
    )
    largest = max(np.abs(g).max() for g in map(np.asarray, expected))
    for variable, start, slope in zip(variables, before, expected, strict=True):
        np.testing.assert_allclose(start - variable.numpy(), slope, atol=1e-4 * largest)


def test_probabilities_stay_logits_on_disk(pair, tmp_path):
    """Also where Keras loads the file, in its safe mode."""
    model, _ = pair
    x = images(model)
    path = reference_models.save(model, tmp_path / "m.keras")
    keras_own = keras.saving.load_model(path, compile=False, safe_mode=True)
    for again in (reference_models.load(path), keras_own):
        assert type(again.layers[-1]) is SoftmaxAsLogits
        assert logits_model(again) is again
        np.testing.assert_array_equal(predict_logits(again, x), predict_logits(model, x))


def dense_below(*after):
    return keras.Sequential([layers.Input((5,)), layers.Dense(3), *after])


def test_where_else_the_layer_stands():
    """Inside a nested model it stays, before a softmax of Keras only the latter goes."""
    x = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    nested = keras.Sequential([layers.Input((5,)), layers.Dense(5), dense_below(SoftmaxAsLogits())])
    dropped = dense_below(SoftmaxAsLogits(), layers.Dropout(0.5))
    for model in (nested, dropped):
        assert logits_model(model) is model
    twice = dense_below(SoftmaxAsLogits(), layers.Softmax())
    found = predict_logits(twice, x)
    np.testing.assert_allclose(found, softmax(twice.layers[0](x)), atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.end = dense_below(SoftmaxAsLogits())

    def call(self, inputs):
        return self.end(inputs)


def test_what_needs_the_layers_of_logits_refuses_it():
    x = np.zeros((2, 5), np.float32)
    with pytest.raises(NotLogitsError, match="returns probabilities"):
        logits_model(Subclassed(), x)
    model = dense_below(SoftmaxAsLogits())
    with pytest.raises(UnsupportedLayerError, match="SoftmaxAsLogits"):
        robustness(model, x)
    with pytest.raises(InputError, match="ends in a dense layer, got SoftmaxAsLogits"):
        fit(
            model,
            (x, np.array([0, 1])),
            CrossEntropy() + LastLayerRobustness(1.0),
            optimizer=keras.optimizers.SGD(),
            epochs=1,
            batch_size=2,
            progress=False,
        )


def test_the_layer_is_a_softmax_with_two_derivatives(rng):
    layer = SoftmaxAsLogits(dtype="float64")
    z = tf.constant(rng.normal(0, 3, (5, 2, 4)))
    weights = tf.constant(rng.normal(size=z.shape))
    derivatives = []
    for function in (layer, tf.nn.softmax):
        with tf.GradientTape() as outer:
            outer.watch(z)
            with tf.GradientTape() as tape:
                tape.watch(z)
                total = tf.reduce_sum(weights * function(z))
            first = tape.gradient(total, z)
            squares = tf.reduce_sum(first**2)
        derivatives.append((function(z), first, outer.gradient(squares, z)))
    for found, expected in zip(*derivatives, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    extreme = np.asarray(layer(tf.constant([[1e4, -1e4, 0.0]])))
    np.testing.assert_array_equal(extreme, [[1, 0, 0]])


def test_probabilities_of_a_mixed_precision_model_are_in_single_precision(rng):
    with computing_in("mixed_bfloat16"):
        model = dense_below(SoftmaxAsLogits())
    assert model.layers[0].compute_dtype == "bfloat16"
    assert model.outputs[0].dtype == "float32"
    values = model(rng.normal(size=(6, 5)).astype("float32"))
    assert values.dtype == tf.float32
    np.testing.assert_allclose(np.sum(values, axis=1), 1, atol=1e-6)
    assert logits_model(model) is model
