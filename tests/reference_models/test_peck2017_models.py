"""Peck 2017's networks against their descriptions and against float64 NumPy; WRN-28-10."""

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise

import reference_models
import tfrobust
from tfrobust.layers import LocalResponseNormalization

LENETS = ["lenet5", *(f"lenet5_{kind}{i}" for kind in ("lrn", "bn") for i in (1, 2, 3))]
NAMES = [*LENETS, "cifar_nin", "iris_mlp", "wine_mlp", "spambase_mlp", "linear"]


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


def convolved(x, kernel, bias):
    """Valid, stride 1, by the definition: (height, width, in) with (k, k, in, out)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))
    return np.einsum("ijcab,abco->ijo", windows, kernel) + bias


def same(x, kernel, bias):
    """Zeros around x so that a kernel of odd size keeps its size."""
    border = kernel.shape[0] // 2
    return convolved(np.pad(x, ((border, border), (border, border), (0, 0))), kernel, bias)


def max_pooled(x):
    high, wide, channels = x.shape
    return x.reshape(high // 2, 2, wide // 2, 2, channels).max(axis=(1, 3))


def caffe_pooled(x, reduce):
    """3x3, stride 2, sizes rounded up: windows are cut off at the right and lower end."""
    steps = range(0, x.shape[0] - 1, 2)
    rows = [[reduce(x[i : i + 3, j : j + 3], axis=(0, 1)) for j in steps] for i in steps]
    return np.array(rows)


def relu(x):
    return np.maximum(x, 0)


def local_response(x):
    """k 2, n 5, alpha 1e-4 not divided by n, beta .75: sums channel by channel."""
    sums = np.stack(
        [(x[..., max(c - 2, 0) : c + 3] ** 2).sum(-1) for c in range(x.shape[-1])], axis=-1
    )
    return x / (2 + 1e-4 * sums) ** 0.75


def normalised(x, gamma, beta, mean, variance):
    return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


def lenet_by_hand(x, weights, kind, places):
    weights = iter(weights)
    for pool in (1, 2):
        x = max_pooled(convolved(x, next(weights), next(weights)))
        if pool in places and kind == "lrn":
            x = local_response(x)
        elif pool in places:
            x = normalised(x, *(next(weights) for _ in range(4)))
    x = relu(x.ravel() @ next(weights) + next(weights))
    return x @ next(weights) + next(weights)


def doubles(model):
    return [weight.astype(np.float64) for weight in model.get_weights()]


@pytest.mark.parametrize("name", LENETS)
def test_lenets_compute_caffes_network(name, rng):
    model = randomise(reference_models.build(name), 1, scale=0.1)
    x = rng.random((2, 28, 28, 1), dtype="float32")
    if "lrn" in name:  # responses large enough for the normalisation to be felt
        x = 300 * x
    kind, number = (name[7:-1], int(name[-1])) if "_" in name else ("", 0)
    places = {0: (), 1: (1,), 2: (2,), 3: (1, 2)}[number]
    expected = [lenet_by_hand(row.astype(np.float64), doubles(model), kind, places) for row in x]
    logits = tfrobust.predict_logits(model, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_lenet_sizes():
    model = reference_models.build("lenet5")
    assert kinds(model) == [*["Conv2D", "MaxPooling2D"] * 2, "Flatten", "Dense", "Dense"]
    # Caffe's LeNet is known to have 431,080 parameters
    assert model.count_params() == 431_080
    for name in LENETS:
        assert reference_models.build(name).name == name
    wide = reference_models.build("lenet5_lrn3", input_shape=(32, 32, 3), classes=7)
    assert (wide.input_shape, wide.output_shape) == ((None, 32, 32, 3), (None, 7))
    assert kinds(wide).count("LocalResponseNormalization") == 2


def test_lenet_normalisation_settings():
    lenet5 = reference_models.build("lenet5", normalization="lrn", after=(2,))
    assert kinds(lenet5) == kinds(reference_models.build("lenet5_lrn2"))
    (layer,) = [x for x in lenet5.layers if isinstance(x, LocalResponseNormalization)]
    assert (layer.depth_radius, layer.bias, layer.alpha, layer.beta) == (2, 2.0, 1e-4, 0.75)
    for settings, message in [
        ({"normalization": "ln", "after": (1,)}, 'None, "lrn" or "bn", got \'ln\''),
        ({"normalization": "bn", "after": (3,)}, r"after is \(1,\), \(2,\) or \(1, 2\)"),
        ({"normalization": "bn"}, "give both or none"),
        ({"after": (1,)}, "give both or none"),
    ]:
        with pytest.raises(ValueError, match=message):
            reference_models.build("lenet5", **settings)


@pytest.mark.parametrize("final_relu", [True, False])
def test_nin_computes_caffes_network(final_relu, rng):
    model = randomise(reference_models.build("cifar_nin", final_relu=final_relu), 1, scale=0.05)
    x = rng.random((1, 32, 32, 3), dtype="float32")
    weights = iter(doubles(model))
    y = x[0].astype(np.float64)
    for block in range(3):
        for place in range(3):
            y = same(y, next(weights), next(weights))
            if final_relu or (block, place) != (2, 2):
                y = relu(y)
        if block < 2:
            y = caffe_pooled(y, (np.max, np.mean)[block])
    assert y.shape == (8, 8, 10)
    expected = y.mean(axis=(0, 1))
    found = model(x, training=False)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert (expected.min() >= 0) == final_relu


def test_nin_is_lins():
    model = reference_models.build("cifar_nin")
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [192, 160, 96, *[192] * 5, 10]
    assert [layer.kernel_size[0] for layer in convolutions] == [5, 1, 1, 5, 1, 1, 3, 1, 1]
    assert [layer.rate for layer in model.layers if "dropout" in layer.name] == [0.5, 0.5]
    assert type(model.layers[-1]).__name__ == "GlobalAveragePooling2D"
    # added up from Caffe's prototxt
    assert model.count_params() == 966_986


def test_nin_starts_by_hes_rule():
    """Signals keep their size through nine layers: deviation sqrt(2 / inputs of a unit)."""
    model = reference_models.build("cifar_nin")
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = np.asarray(layer.kernel)
            expected = np.sqrt(2 / np.prod(kernel.shape[:3]))
            assert kernel.std() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("iris_mlp", (4, 5, 3)),
        ("wine_mlp", (13, 5, 3, 3)),
        ("spambase_mlp", (57, 7, 5, 3, 2)),
    ],
)
def test_mlps_are_the_papers(name, sizes, rng):
    model = randomise(reference_models.build(name), 2)
    assert model.name == name
    assert [w.shape for w in model.weights[::2]] == list(itertools.pairwise(sizes))
    x = rng.normal(size=(6, sizes[0])).astype("float32")
    weights, y = doubles(model), x.astype(np.float64)
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        y = np.tanh(y @ kernel + bias)
    expected = y @ weights[-2] + weights[-1]
    np.testing.assert_allclose(tfrobust.predict_logits(model, x), expected, atol=1e-5)


def test_linear_is_affine(rng):
    model = randomise(reference_models.build("linear"), 3)
    x = rng.random((4, 28, 28, 1), dtype="float32")
    kernel, bias = doubles(model)
    expected = x.reshape(4, -1).astype(np.float64) @ kernel + bias
    np.testing.assert_allclose(tfrobust.predict_logits(model, x), expected, rtol=1e-4, atol=1e-4)
    gradients = tfrobust.jacobian(model, x).reshape(4, 10, -1)
    np.testing.assert_allclose(gradients, np.broadcast_to(kernel.T, gradients.shape), rtol=1e-6)


def test_mlp_settings():
    build = reference_models.build
    model = build("mlp", input_shape=(2, 3), hidden=(4,), classes=2, activation="relu")
    assert kinds(model) == ["Flatten", "Dense", "Dense"]
    assert model.layers[2].activation is keras.activations.relu
    assert build("mlp", input_shape=7, hidden=(), classes=2).input_shape == (None, 7)
    assert build("iris_mlp", activation="sigmoid").layers[1].activation.__name__ == "sigmoid"
    for settings, message in [
        ({"classes": 1}, "classes must be at least 2"),
        ({"hidden": (3, 0)}, "at least 1 unit"),
        ({"input_shape": ()}, "positive whole numbers"),
        ({"input_shape": (None,)}, "positive whole numbers"),
        ({"activation": "nothing"}, "nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("mlp", **{"input_shape": 7, "hidden": (3,), "classes": 2, **settings})


def test_wrn_28_10_is_zagoruykos():
    model = reference_models.build("wide_resnet_28_10")
    # the released network's 36,479,194; moving statistics are no parameters there
    trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert trained == 36_479_194
    three = [w for w in model.weights if w.name == "kernel" and w.shape[:2] == (3, 3)]
    assert len(three) == 25  # 28 with the two shortcuts that change size, and the dense layer
    assert len([layer for layer in model.layers if layer.name.startswith("dropout")]) == 12
    assert model.output_shape == (None, 10)


def wrn_by_hand(model, x):
    """WRN-10-1, written down from the paper: one block a group."""
    layers = [layer for layer in model.layers if layer.weights]
    # by shape: in the graph a shortcut may come before or after the branch beside it
    convolutions = collections.defaultdict(list)
    for layer in layers:
        if isinstance(layer, keras.layers.Conv2D):
            convolutions[tuple(layer.kernel.shape)].append(layer)
    norms = (layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization))

    def active(y):
        values = (np.float64(np.asarray(w)) for w in next(norms).weights)
        return relu(normalised(y, *values))

    def strided(y, shape, step):
        kernel = np.float64(np.asarray(convolutions[shape].pop(0).kernel))
        if kernel.shape[0] == 1:
            return convolved(y[::step, ::step], kernel, 0)
        full = np.pad(y, ((1, 1), (1, 1), (0, 0)))
        # TensorFlow pads an even size at the end only where the step is 2
        return convolved(full, kernel, 0)[step - 1 :: step, step - 1 :: step]

    y = strided(x.astype(np.float64), (3, 3, x.shape[-1], 16), 1)
    for wide, step in ((16, 1), (32, 2), (64, 2)):
        before = y.shape[-1]
        first = active(y)
        shortcut = y if before == wide else strided(first, (1, 1, before, wide), step)
        y = active(strided(first, (3, 3, before, wide), step))
        y = strided(y, (3, 3, wide, wide), 1) + shortcut
    kernel, bias = (np.float64(np.asarray(w)) for w in layers[-1].weights)
    return active(y).mean(axis=(0, 1)) @ kernel + bias


def test_wrn_10_1_computes_the_papers_network(rng):
    model = reference_models.build(
        "wide_resnet_28_10", depth=10, widen=1, input_shape=(8, 8, 2), classes=4
    )
    model = randomise(model, 4, scale=0.2)
    assert model.name == "wide_resnet_10_1"
    x = rng.normal(size=(2, 8, 8, 2)).astype("float32")
    expected = np.array([wrn_by_hand(model, row) for row in x])
    found = tfrobust.predict_logits(model, x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_wrn_settings():
    build = reference_models.build
    assert "Dropout" not in kinds(build("wide_resnet_28_10", depth=10, widen=1, dropout=0))
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4 .* got 12"):
        build("wide_resnet_28_10", depth=12)
    with pytest.raises(ValueError, match="widen must be at least 1"):
        build("wide_resnet_28_10", depth=10, widen=0)


@pytest.mark.parametrize("name", NAMES)
def test_models_save_and_give_logits(name, tmp_path, rng):
    assert name in reference_models.names()
    model = randomise(reference_models.build(name), 5, scale=0.1)
    assert tfrobust.logits_model(model) is model
    x = rng.random((2, *model.input_shape[1:]), dtype="float32")
    logits = tfrobust.predict_logits(model, x)
    assert np.ptp(logits) > 0
    again = reference_models.load(reference_models.save(model, tmp_path / f"{name}.keras"))
    np.testing.assert_array_equal(tfrobust.predict_logits(again, x), logits)


@pytest.mark.parametrize("name", ["lenet5_lrn3", "lenet5_bn3"])
def test_penalised_gradients_reach_every_weight(name, rng):
    """Double backpropagation through the normalisations, in training mode."""
    model = reference_models.build(name)
    x = tf.constant(rng.random((4, 28, 28, 1), dtype="float32"))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(tf.nn.log_softmax(model(x, training=True))[:, 0])
        penalty = tf.reduce_sum(tf.square(inner.gradient(loss, x)))
    kernels = [w for w in model.trainable_weights if w.name == "kernel"]
    for gradient in outer.gradient(penalty, [w.value for w in kernels]):
        assert np.abs(gradient).max() > 0
