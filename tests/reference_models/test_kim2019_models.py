"""Kim 2019's classifiers against the paper's tables, the released code and plain NumPy."""

import keras
import numpy as np
import pytest
from helpers.nets import randomise

import reference_models
import tfrobust
from tfrobust.errors import InputError

build = reference_models.build
SMALL = {
    "kim_mnist_cnn": {"input_shape": (6, 4, 2), "filters": (3, 2), "dense": 5, "classes": 4},
    "kim_cifar_cnn": {"input_shape": (8, 4, 2), "filters": (3, 2, 4, 2), "dense": 5, "classes": 4},
    "kim_toy_mlp": {"dense": 6},
}


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


@pytest.mark.parametrize(
    ("name", "settings", "filters", "units", "parameters"),
    [
        # convolutions 5x5x1x64, 5x5x64x32, dense 14x14x32 to 1024 to 10
        ("kim_mnist_cnn", {}, [64, 32], [1024, 10], 1664 + 51_232 + 6_423_552 + 10_250),
        # the released code: 5x5x1x32, 5x5x32x64, dense 14x14x64 to 1024 to 10
        (
            "kim_mnist_cnn",
            {"variant": "released"},
            [32, 64],
            [1024, 10],
            832 + 51_264 + 12_846_080 + 10_250,
        ),
        # 3x3x3x32, 3x3x32x32, 3x3x32x64, 3x3x64x64, dense 8x8x64 to 256 to 10
        (
            "kim_cifar_cnn",
            {"variant": "text"},
            [32, 32, 64, 64],
            [256, 10],
            896 + 9248 + 18_496 + 36_928 + 1_048_832 + 2570,
        ),
        (
            "kim_cifar_cnn",
            {"variant": "released"},
            [32, 32, 64, 64],
            [512, 10],
            896 + 9248 + 18_496 + 36_928 + 2_097_664 + 5130,
        ),
        # the reduced preset: dense 8x8x32 to 128 to 10
        (
            "kim_cifar_cnn",
            {"filters": (16, 16, 32, 32), "dense": 128},
            [16, 16, 32, 32],
            [128, 10],
            448 + 2320 + 4640 + 9248 + 262_272 + 1290,
        ),
    ],
)
def test_cnns_are_the_tabled_ones(name, settings, filters, units, parameters):
    model = build(name, **settings)
    size, block = (5, 2) if name == "kim_mnist_cnn" else (3, 2)
    blocks = ["Conv2D"] * block + ["MaxPooling2D"]
    assert kinds(model) == [*blocks * (len(filters) // block), "Flatten", "Dense", "Dense"]
    assert model.name == name
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == filters
    for layer in convolutions:
        assert (layer.kernel_size, layer.strides) == ((size, size), (1, 1))
        assert layer.padding == "same"
        assert layer.activation is keras.activations.relu
    for layer in model.layers:
        if isinstance(layer, keras.layers.MaxPooling2D):
            assert (layer.pool_size, layer.strides) == ((2, 2), (2, 2))
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == units
    assert [layer.activation.__name__ for layer in dense] == ["relu", "linear"]
    assert model.count_params() == parameters
    assert model.input_shape == ((None, 28, 28, 1) if size == 5 else (None, 32, 32, 3))


def test_toy_mlp_is_the_tabled_one():
    model = build("kim_toy_mlp")
    assert kinds(model) == ["Dense", "Dense"]
    assert model.layers[1].activation is keras.activations.relu
    assert model.count_params() == 2 * 128 + 128 + 128 * 2 + 2
    assert (model.input_shape, model.output_shape) == ((None, 2), (None, 2))


@pytest.mark.parametrize("name", ["kim_mnist_cnn", "kim_cifar_cnn", "kim_toy_mlp"])
def test_weights_start_by_glorots_uniform_rule(name):
    for layer in build(name).layers:
        if layer.weights:
            kernel = np.asarray(layer.kernel)
            field = np.prod(kernel.shape[:-2])
            bound = np.sqrt(6 / (field * (kernel.shape[-2] + kernel.shape[-1])))
            assert 0.9 * bound < np.abs(kernel).max() <= 1.0001 * bound
            assert not np.asarray(layer.bias).any()


def same(x, kernel, bias):
    border = kernel.shape[0] // 2
    full = np.pad(x, ((border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(full, kernel.shape[:2], axis=(0, 1))
    return np.einsum("ijcab,abco->ijo", windows, kernel) + bias


def pooled(x):
    high, wide, channels = x.shape
    return x.reshape(high // 2, 2, wide // 2, 2, channels).max(axis=(1, 3))


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_by_hand_and_from_disk(name, tmp_path, rng):
    """Against float64 NumPy; in Keras's safe mode bit by bit."""
    assert name in reference_models.names()
    model = randomise(build(name, **SMALL[name]), 1)
    assert tfrobust.logits_model(model) is model
    x = rng.uniform(-1, 1, (3, *model.input_shape[1:])).astype("float32")
    logits = tfrobust.predict_logits(model, x)
    for row, found in zip(x.astype(np.float64), logits, strict=True):
        weights = iter([w.astype(np.float64) for w in model.get_weights()])
        y = row
        for _ in range({"kim_mnist_cnn": 1, "kim_cifar_cnn": 2}.get(name, 0)):
            for _ in range(2):
                y = np.maximum(same(y, next(weights), next(weights)), 0)
            y = pooled(y)
        y = np.maximum(y.ravel() @ next(weights) + next(weights), 0)
        y = y @ next(weights) + next(weights)
        np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    again = reference_models.load(reference_models.save(model, tmp_path / "m.keras"))
    np.testing.assert_array_equal(tfrobust.predict_logits(again, x), logits)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "kim_mnist_cnn",
            {"variant": "paper"},
            r'variant must be "text".*or "released".*\'paper\'',
        ),
        ("kim_cifar_cnn", {"variant": None}, 'variant must be "text"'),
        ("kim_mnist_cnn", {"filters": (8, 8, 8)}, "filters must be 2 numbers, one per convolution"),
        ("kim_cifar_cnn", {"filters": (8, 8)}, "filters must be 4 numbers, one per convolution"),
        ("kim_cifar_cnn", {"filters": ()}, "filters must be 4 numbers"),
        ("kim_mnist_cnn", {"filters": 8}, "filters must be 2 numbers"),
        ("kim_mnist_cnn", {"filters": (8, 0)}, "filters must be a whole number of at least 1"),
        ("kim_mnist_cnn", {"dense": 0}, "dense must be a whole number of at least 1"),
        ("kim_cifar_cnn", {"dense": 1.5}, "dense must be a whole number"),
        ("kim_toy_mlp", {"dense": -1}, "dense must be a whole number of at least 1"),
        ("kim_mnist_cnn", {"classes": 1}, "classes must be a whole number of at least 2"),
        ("kim_toy_mlp", {"classes": 1}, "classes must be a whole number of at least 2"),
        ("kim_mnist_cnn", {"input_shape": (28, 28)}, r"input_shape must be \(height, width, chan"),
        ("kim_cifar_cnn", {"input_shape": (3, 32, 3)}, "height and width must be .* at least 4"),
        ("kim_mnist_cnn", {"input_shape": (None, 28, 1)}, "height and width must be a whole"),
        ("kim_mnist_cnn", {"input_shape": (28, 28, 0)}, "channels must be a whole number"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(InputError, match=message):
        build(name, **settings)


def test_settings_of_other_architectures():
    with pytest.raises(TypeError, match="variant"):
        build("kim_toy_mlp", variant="text")
    with pytest.raises(TypeError, match="dropout"):
        build("kim_mnist_cnn", dropout=0.5)
