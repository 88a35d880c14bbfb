"""The hot/cold attack against its closed form on linear models and its direction by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.attacks import minimal


def mirrored(linear):
    """The linear model with opposite logits, for which hot/cold goes straight to the plane."""
    model, x, normal, margin = linear
    bias = model.layers[-1].bias.numpy()
    kernel = np.stack([-normal, normal], axis=1) / 2
    model.layers[-1].set_weights([kernel, np.array([-1, 1]) * (bias[1] - bias[0]) / 2])
    return model, x, normal, margin


def test_exact_distance_of_opposite_logits(linear):
    model, x, normal, margin = mirrored(linear)
    exact = margin / np.linalg.norm(normal)
    result = minimal(model, x, "hot_cold")
    assert result.success.all()
    assert (result.distance >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(result.distance, exact, rtol=1e-3, atol=1e-5)


def test_closed_form_of_any_two_logits(linear):
    model, x, _, margin = linear
    kernel, _ = (w.astype(np.float64) for w in model.layers[-1].get_weights())
    logits = np.asarray(model(x), np.float64)
    result = minimal(model, x, "hot_cold", value_range=(-50, 50))
    for row in range(len(x)):
        cold = int(result.labels[row])
        hot = 1 - cold
        direction = (
            abs(logits[row, hot]) * kernel[:, hot] - abs(logits[row, cold]) * kernel[:, cold]
        )
        speed = (kernel[:, hot] - kernel[:, cold]) @ direction / np.linalg.norm(direction)
        assert speed > 0
        assert result.distance[row] == pytest.approx(margin[row] / speed, rel=2e-3, abs=3e-4)


@pytest.mark.parametrize("hot", ["runner_up", 2])
def test_direction_of_many_classes(cnn, images, hot):
    result = minimal(cnn, images, "hot_cold", hot=hot)
    logits = np.asarray(cnn(images))
    checked = 0
    for row in np.flatnonzero(result.success):
        cold = result.labels[row]
        chosen = np.argsort(logits[row])[-2] if hot == "runner_up" else hot
        z = tf.constant(images[row : row + 1])
        with tf.GradientTape() as tape:
            tape.watch(z)
            values = cnn(z)[0]
            weighted = abs(logits[row, chosen]) * values[chosen]
            weighted -= abs(logits[row, cold]) * values[cold]
        gradient = tape.gradient(weighted, z).numpy()[0]
        changed = images[row] + result.perturbation[row]
        inside = (changed > 0) & (changed < 1)
        scale = gradient[inside] @ result.perturbation[row][inside]
        scale /= gradient[inside] @ gradient[inside]
        np.testing.assert_allclose(
            changed, np.clip(images[row] + scale * gradient, 0, 1), atol=1e-5
        )
        checked += 1
    assert checked > 8


def test_examples_of_the_hot_class_have_no_direction(cnn, images):
    labels = np.argmax(cnn(images), axis=1)
    hot = int(np.bincount(labels).argmax())
    result = minimal(cnn, images, "hot_cold", hot=hot)
    assert not result.success[labels == hot].any()
    assert result.success[labels != hot].any() or (labels == hot).all()


def test_zero_gradients_are_unsuccessful(cnn, images):
    cnn.layers[-1].kernel.assign(tf.zeros_like(cnn.layers[-1].kernel))
    assert not minimal(cnn, images[:3], "hot_cold").success.any()


@pytest.mark.parametrize("hot", [5, -1, 1.0, True, "coldest", [1, 2]])
def test_bad_hot(cnn, images, hot):
    with pytest.raises(ValueError, match=r'hot must be "runner_up" or a class in 0..4, got'):
        minimal(cnn, images, "hot_cold", hot=hot)


def test_bad_size(cnn, images):
    with pytest.raises(ValueError, match="max_epsilon must be positive and finite, got -1"):
        minimal(cnn, images, "hot_cold", max_epsilon=-1)
    with pytest.raises(
        TypeError, match="'hot_cold' has no setting warm; it takes bracketed, clip, co"
    ):
        minimal(cnn, images, "hot_cold", warm=1)


def test_pixels_of_another_range(linear):
    model, x, *_ = mirrored(linear)
    plain = minimal(model, x, "hot_cold")
    wide = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Rescaling(1 / 255), model])
    result = minimal(wide, x * 255, "hot_cold", value_range=(0, 255))
    np.testing.assert_allclose(result.distance, 255 * plain.distance, rtol=1e-3, atol=3e-3)
